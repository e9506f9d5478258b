"""What is to be imported from a directory: its `metadata.json`, or the names of folders and files.

`metadata.json` is a list of entries:

    {"path": "a.png", "label": "liquid"}                          a picture, as in 2017
    {"path": "7.dump.gz", "label": "glass", "frame": -1}          a frame of a trajectory file
    {"path": "x.gsd", "label": "liquid", "frame": "all"}          every frame of it

`path` is relative to the directory and stays inside it. A file with several frames needs `frame`.
A `trajectory` (text or number) names the simulation that an entry comes from, whose entries the
split keeps together. Without it, frames of one file belong together, and every picture counts as
independent. Other keys have no use and are told.

Without `metadata.json`, what lies in folders called `liquid` and `glass` is taken, and files with
one of these words in their names. The rest of the name is the trajectory: liquid_007.png,
glass_7.png and liquid/7.png belong together, as does all of a folder inside `liquid`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glass_cnn.data.formats import ENDINGS, IMAGE, KNOWN, kind_of
from glass_cnn.data.mdanalysis import describes_another
from glass_cnn.settings import CLASSES
from hpc.errors import DataError
from hpc.words import plural

METADATA = "metadata.json"
KEYS = ("path", "label", "frame", "trajectory")
WORD = re.compile(r"(?<![a-z])(liquid|glass)(?:s|es)?(?![a-z])")
"""what of a name in small letters says the class"""
ZEROS = re.compile(r"(?<!\d)(?<!\d\.)0+(?=\d)")
"""zeros before a number, those behind a decimal point apart"""


@dataclass(frozen=True)
class Entry:
    """One line of the list."""

    path: str
    label: int
    frame: int | str | None
    trajectory: str | None


@dataclass(frozen=True)
class Listing:
    """What a directory holds, entry by entry."""

    entries: list[Entry]
    pictures: bool
    """whether the entries are pictures; else they are trajectory files"""
    remarks: list[str]
    """what people should know about it"""


def read_listing(source: Path) -> Listing:
    """What `source` holds, checked entry by entry; raises DataError."""
    if not source.is_dir():
        raise DataError(f"{source}: is no directory; SOURCE names the directory to import.")
    listing = source / METADATA
    entries, remarks = _listed(source, listing) if listing.exists() else _named(source)
    if not entries:
        raise DataError(f"{listing}: is an empty list; there is nothing to import.")
    return Listing(entries, _are_pictures(source, entries), remarks)


def _are_pictures(source: Path, entries: Sequence[Entry]) -> bool:
    """Whether all entries are pictures; raises DataError unless all are of one sort."""
    kinds = {path: kind_of(source / path) for path in dict.fromkeys(e.path for e in entries)}
    for number, entry in enumerate(entries, 1):
        where, kind = f"{source / METADATA}, entry {number}", kinds[entry.path]
        if kind is None:
            raise DataError(f"{where}: {entry.path!r} is of no known kind; known are {KNOWN}.")
        if kind == IMAGE and entry.frame is not None:
            raise DataError(
                f'{where}: {entry.path} is a picture and has no frames; leave "frame" out.'
            )
    pictures = [path for path, kind in kinds.items() if kind == IMAGE]
    if 0 < len(pictures) < len(kinds):
        other = next(path for path, kind in kinds.items() if kind != IMAGE)
        raise DataError(
            f"{source}: has pictures ({pictures[0]}) and trajectory files ({other}) to import; "
            f"list one or the other in {METADATA}, or move one of them elsewhere."
        )
    return bool(pictures)


def plain(name: str) -> str:
    """A trajectory's name without zeros before its numbers: 007 is 7, and T0.05 stays."""
    return ZEROS.sub("", name)


def example(*entries: dict[str, Any]) -> str:
    """Lines as they are written in `metadata.json`."""
    return ", ".join(json.dumps(entry, ensure_ascii=False) for entry in entries)


# --- metadata.json ------------------------------------------------------------------------------


def _listed(source: Path, listing: Path) -> tuple[list[Entry], list[str]]:
    tree = _read(listing)
    if not isinstance(tree, list):
        raise DataError(
            f"{listing}: holds {type(tree).__name__} where a list of entries is needed, for "
            f"example [{example({'path': 'a.png', 'label': 'glass'})}]."
        )
    entries = [_entry(source, f"{listing}, entry {i}", item) for i, item in enumerate(tree, 1)]
    remarks = [*_unused_keys(tree), *_joined(tree), *_beside(source, entries)]
    return entries, remarks


def _read(listing: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                raise DataError(f"{listing}: {dict(pairs)!r:.80} has the key {key!r:.40} twice.")
        return dict(pairs)

    try:
        return json.loads(listing.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
    except OSError as error:
        raise DataError(f"{listing}: cannot be read: {error.strerror}.") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{listing}: is no JSON at line {error.lineno}, column {error.colno}. Mend it and run "
            "again."
        ) from None
    except (ValueError, RecursionError):
        raise DataError(f"{listing}: is no JSON in UTF-8. Mend it and run again.") from None


def _entry(source: Path, where: str, item: Any) -> Entry:
    if not isinstance(item, dict):
        raise DataError(f'{where}: {item!r:.80} must be a mapping with "path" and "label".')
    for key in item:
        near = difflib.get_close_matches(key.lower(), KEYS, 1, 0.75)
        if near and key not in KEYS:
            raise DataError(f'{where}: the key "{key:.40}" is unknown; write "{near[0]}".')
    if not {"path", "label"} <= item.keys():
        raise DataError(f'{where}: {item!r:.80} must be a mapping with "path" and "label".')
    label, frame, trajectory = item["label"], item.get("frame"), item.get("trajectory")
    if label not in CLASSES:
        raise DataError(f"{where}: label {label!r:.40} is unknown; allowed: glass, liquid.")
    path = _path(source, where, item["path"])
    if frame not in (None, "all") and type(frame) is not int:
        raise DataError(f'{where}: frame {frame!r:.40} must be a whole number or "all".')
    if trajectory is not None and (type(trajectory) not in (int, str) or trajectory == ""):
        raise DataError(f"{where}: trajectory {trajectory!r:.40} must be a text or whole number.")
    name = None if trajectory is None else plain(str(trajectory))
    return Entry(path, CLASSES.index(label), frame, name)


def _path(source: Path, where: str, path: Any) -> str:
    """The path from `source`, free of links and detours, so that each file has one name."""
    if not isinstance(path, str) or not path:
        raise DataError(f"{where}: path {path!r:.80} must be the name of a file.")
    try:
        path.encode()  # else it is no text: no record could name it
        real, top = (source / path).resolve(), source.resolve()
        exists, is_directory = real.is_file(), real.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, links in a circle, no text
        raise DataError(f"{where}: path {path!r:.80} names no file.") from None
    if not real.is_relative_to(top):
        raise DataError(f"{where}: path {path!r:.80} leads out of {source}; that is not allowed.")
    if is_directory:
        raise DataError(f"{where}: {path!r:.80} is a directory; list its files one by one.")
    if not exists:
        raise DataError(f"{where}: {source / path}: no such file.")
    return str(real.relative_to(top))


def _unused_keys(tree: list[dict[str, Any]]) -> Iterator[str]:
    unused = sorted({key for item in tree for key in item} - set(KEYS))
    if unused:
        yield f"{METADATA}: keys without use here: {_some(unused)}"


def _joined(tree: list[dict[str, Any]]) -> Iterator[str]:
    """Names of trajectories that differ in zeros alone."""
    forms: dict[str, set[str]] = {}
    for name in (str(item["trajectory"]) for item in tree if item.get("trajectory") is not None):
        forms.setdefault(plain(name), set()).add(name)
    for found in forms.values():
        if len(found) > 1:
            yield f"{METADATA}: one trajectory under several names: {_some(sorted(found))}"


def _beside(source: Path, entries: Sequence[Entry]) -> Iterator[str]:
    """Files beside listed ones that are not listed themselves."""
    listed = {entry.path for entry in entries}
    left = [
        str(path.relative_to(source))
        for folder in sorted({(source / path).parent for path in listed})
        for path in _files(folder, "*")
        if path.suffix.lower() in ENDINGS
        and not describes_another(path)
        and str(path.relative_to(source)) not in listed
    ]
    if left:
        yield f"{METADATA} does not list {plural(len(left), 'file')} beside others: {_some(left)}"


def _some(names: Sequence[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


# --- Names of folders and files -----------------------------------------------------------------


def _named(source: Path) -> tuple[list[Entry], list[str]]:
    entries, left = [], []
    for path, label in _labelled(source):
        if describes_another(path):
            continue
        if label is not None and kind_of(path) is not None:
            entries.append(_entry_of_name(source, path, label))
        elif label is not None or path.suffix.lower() in ENDINGS:
            left.append(str(path.relative_to(source)))
    if not entries:
        raise DataError(_nothing_named(source, left))
    remarks = [_pairs(entries)]
    if left:
        remarks.append(f"left out, for their names or kinds say nothing: {_some(left)}")
    return entries, remarks


def _labelled(source: Path) -> Iterator[tuple[Path, str | None]]:
    """Files of the directory and of its folders of one class, each with what its name says."""
    for path in _files(source, "*"):
        words = set(WORD.findall(path.name.lower()))
        yield path, words.pop() if len(words) == 1 else None
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        if word := WORD.fullmatch(folder.name.lower()):
            for path in _files(folder, "**/*"):
                if set(WORD.findall(path.name.lower())) - {word[1]}:
                    raise DataError(f"{path}: is it {word[1]}, as its folder says? Rename it.")
                yield path, word[1]


def _entry_of_name(source: Path, path: Path, label: str) -> Entry:
    """The entry of a file; its name without the class, or the folder below it, is a trajectory."""
    folders = path.relative_to(source).parts[1:-1]
    rest = folders[0].lower() if folders else WORD.sub("", _stem(path))
    name = plain(re.sub(r"[ _-]+", "_", rest).strip(" _.-"))
    relative = _path(source, str(source), str(path.relative_to(source)))
    return Entry(relative, CLASSES.index(label), None, name or relative)


def _stem(path: Path) -> str:
    """A file's name in small letters without the endings that say its kind."""
    name = path.name.lower().removesuffix(".gz")
    return name.removesuffix(Path(name).suffix) if Path(name).suffix in ENDINGS else name


def _files(folder: Path, pattern: str) -> list[Path]:
    """The visible files of a folder, sorted; raises DataError."""
    try:
        next(folder.iterdir(), None)  # glob says nothing of a folder that may not be read
        found = sorted(folder.glob(pattern))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}.") from None
    return [
        path
        for path in found
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]


def _pairs(entries: Sequence[Entry]) -> str:
    """How many trajectories the names tell, and how many of them have both classes."""
    labels: dict[str, set[int]] = {}
    for entry in entries:
        labels.setdefault(str(entry.trajectory), set()).add(entry.label)
    alone = [entry for entry in entries if len(labels[str(entry.trajectory)]) == 1]
    text = f"names of {plural(len(entries), 'file')} tell {plural(len(labels), 'trajectory')}"
    if alone:
        single = len({entry.trajectory for entry in alone})
        text += f", {single} of them of one class only, such as {alone[0].path}"
    return text


def _nothing_named(source: Path, left: Sequence[str]) -> str:
    entry = {"path": left[0] if left else "a.png", "label": "glass"}
    return (
        f"{source}: has neither {METADATA}, nor folders called liquid and glass, nor files with "
        f"one of these words in their names. Write {METADATA}: [{example(entry)}, …]."
    )
