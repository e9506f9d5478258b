"""Other people's data become a data set: PNG images or trajectory files, labelled by a list.

`metadata.json` in the directory is a list of entries:

    {"path": "a.png", "label": "liquid"}                          an image, as in 2017
    {"path": "7.dump.gz", "label": "glass", "frame": -1}          a frame of a trajectory file
    {"path": "x.gsd", "label": "liquid", "frame": "all"}          every frame of it

`path` is relative to the directory and stays inside it. A file with several frames needs `frame`.
A `trajectory` (text or number) names the simulation that an entry comes from, whose entries the
split keeps together. Without it, frames of one file belong together, and every image counts as
independent. Other keys are ignored.

Without `metadata.json`, trajectory files of one frame called `liquid…` and `glass…` are taken;
what follows the word names the trajectory: liquid_7.xyz and glass_7.xyz stay together.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from glass_cnn.configuration import Configuration, hexatic_order
from glass_cnn.data.dataset import CLASSES, directory, load
from glass_cnn.data.formats import (
    IMAGE_SUFFIX,
    SUFFIXES,
    Frame,
    image_size,
    read_frames,
    read_image,
    suffix,
)
from glass_cnn.data.render import Image, check_window
from glass_cnn.data.store import Contents, Draw, draw_configurations, image_columns, store
from glass_cnn.paths import DatasetDir
from glass_cnn.settings import Render, RunSettings
from hpc.errors import ConfigError, DataError
from hpc.preempt import StopFlag
from hpc.words import plural
from hpc.world import World

LISTING = "metadata.json"


@dataclass(frozen=True)
class Entry:
    """One line of the list."""

    path: str
    label: int
    frame: int | str | None
    trajectory: str | None


def import_data(
    source: Path, settings: RunSettings, root: Path, world: World, stop: StopFlag | None = None
) -> DatasetDir:
    """Store what `source` holds as the data set of `settings`, all ranks together.

    The same source again changes nothing. Raises, on every rank alike, DataError for whatever is
    wrong with the source or when another one was stored under this name and rendering, ConfigError
    when the settings do not ask for an import, StorageError, Stopped.
    """
    target = directory(settings, root)
    found = world.broadcast(world.on_root(lambda: _examine(source, settings, target)))
    if found is None:
        return target
    entries, fingerprint = found
    record = {"source": str(source.resolve()), "fingerprint": fingerprint}
    if _are_images(entries):
        collect = functools.partial(_list_images, source, entries, settings.render, record)
        draw = functools.partial(_read_images, source, settings.render.pixels)
    else:
        collect = functools.partial(_read_configurations, source, entries, settings.render, record)
        draw = functools.partial(draw_configurations, settings.render)
    return store(target, settings, world, collect, draw, stop)


def _examine(
    source: Path, settings: RunSettings, target: DatasetDir
) -> tuple[list[Entry], str] | None:
    """The list and its fingerprint; None when exactly this is stored already."""
    if settings.data.source != "import":
        raise ConfigError(
            f"data.source is {settings.data.source}: set data.source: import (and a data.name of "
            "its own) in the study file that is to use the imported data."
        )
    entries = read_listing(source)
    fingerprint = _fingerprint(source, entries)
    if not target.is_done():
        return entries, fingerprint
    record = load(target).record
    if record.get("fingerprint") == fingerprint:
        print(f"{target.path}: {record['source']} is imported already; nothing to do.", flush=True)
        return None
    raise DataError(
        f"{target.path}: already holds what was imported from {record['source']} at "
        f"{record['created']}, and {source.resolve()} differs from it. Give the new data another "
        "data.name, or remove that directory first."
    )


def _fingerprint(source: Path, entries: Sequence[Entry]) -> str:
    """One checksum of the list and of the content of every file in it."""
    total = xxhash.xxh3_128()
    for entry in entries:
        total.update(repr(entry).encode())
    for path in dict.fromkeys(entry.path for entry in entries):
        with _readable(source / path).open("rb") as file:
            while chunk := file.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()


def _readable(path: Path) -> Path:
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    return path


# The list


def read_listing(source: Path) -> list[Entry]:
    """The entries of `source`, checked one by one; raises DataError."""
    if not source.is_dir():
        raise DataError(f"{source}: is no directory; SOURCE names the directory to import.")
    listing = source / LISTING
    entries = _listed(source, listing) if listing.exists() else _named(source)
    if not entries:
        raise DataError(f"{listing}: is an empty list; there is nothing to import.")
    kinds = {suffix(Path(entry.path)) == IMAGE_SUFFIX for entry in entries}
    if len(kinds) > 1:
        raise DataError(f"{listing}: lists images and trajectory files; import one or the other.")
    return entries


def _listed(source: Path, listing: Path) -> list[Entry]:
    try:
        tree = json.loads(listing.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{listing}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{listing}: is no JSON: {error}. Mend it and run again.") from None
    if not isinstance(tree, list):
        raise DataError(
            f"{listing}: holds {type(tree).__name__} where a list of entries is needed, for "
            'example [{"path": "a.png", "label": "glass"}].'
        )
    return [_entry(source, f"{listing}, entry {i}", item) for i, item in enumerate(tree, 1)]


def _entry(source: Path, where: str, item: Any) -> Entry:
    if not isinstance(item, dict) or not {"path", "label"} <= item.keys():
        raise DataError(f'{where}: {item!r:.80} must be a mapping with "path" and "label".')
    label, frame, trajectory = item["label"], item.get("frame"), item.get("trajectory")
    if label not in CLASSES:
        raise DataError(f"{where}: label {label!r:.40} is unknown; allowed: glass, liquid.")
    path = _path(source, where, item["path"])
    if frame not in (None, "all") and type(frame) is not int:
        raise DataError(f'{where}: frame {frame!r:.40} must be a whole number or "all".')
    if trajectory is not None and type(trajectory) not in (int, str):
        raise DataError(f"{where}: trajectory {trajectory!r:.40} must be a text or whole number.")
    return Entry(path, CLASSES.index(label), frame, None if trajectory is None else str(trajectory))


def _path(source: Path, where: str, path: Any) -> str:
    """The path from `source`, free of links and detours, so that each file has one name."""
    if not isinstance(path, str) or not path:
        raise DataError(f"{where}: path {path!r:.80} must be the name of a file.")
    try:
        real, top = (source / path).resolve(), source.resolve()
        exists = real.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, links in a circle, no text
        raise DataError(f"{where}: path {path!r:.80} names no file: {error}.") from None
    if not real.is_relative_to(top):
        raise DataError(f"{where}: path {path!r:.80} leads out of {source}; that is not allowed.")
    if suffix(real) not in SUFFIXES:
        raise DataError(
            f"{where}: {path!r:.80} is of no known kind; known endings: {', '.join(SUFFIXES)}, "
            "and .gz after all but .png and .gsd."
        )
    if not exists:
        raise DataError(f"{where}: {source / path}: no such file.")
    return str(real.relative_to(top))


def _named(source: Path) -> list[Entry]:
    """Entries from file names, for trajectory files only."""
    entries = []
    try:
        paths = sorted(source.iterdir())
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}.") from None
    for path in paths:
        stem = path.name.lower().removesuffix(".gz").removesuffix(suffix(path))
        match = re.match(r"(liquid|glass)[ _.-]*(.*)", stem)
        if match and suffix(path) in SUFFIXES and suffix(path) != IMAGE_SUFFIX:
            label = CLASSES.index(match[1])
            entries.append(Entry(path.name, label, None, match[2] or path.name))
    if not entries:
        raise DataError(
            f"{source}: has neither {LISTING} nor trajectory files called liquid… and glass…; "
            f'write {LISTING}: [{{"path": "a.png", "label": "glass"}}, …].'
        )
    return entries


def _check_once(source: Path, names: Sequence[str]) -> None:
    """Raise DataError for what is listed twice: it might come to lie on both sides of the split."""
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{source / LISTING}: {name} is listed twice; each may be listed once.")


def _are_images(entries: Sequence[Entry]) -> bool:
    return suffix(Path(entries[0].path)) == IMAGE_SUFFIX


# Images


def _list_images(
    source: Path, entries: Sequence[Entry], settings: Render, record: dict[str, Any]
) -> Contents:
    """Columns of a data set of imported images; their sizes are checked here, once."""
    _check_once(source, [entry.path for entry in entries])
    _check_sizes(source, entries, settings)
    alone = sum(entry.trajectory is None for entry in entries)
    if alone:
        print(
            f"{alone} of {plural(len(entries), 'entry')} name no trajectory: each of these images "
            "counts as independent. Images of one simulation then lie on both sides of the split "
            'and make accuracies too good; "trajectory" in metadata.json keeps them together.',
            flush=True,
        )
    images = {
        "label": np.array([entry.label for entry in entries], np.uint8),
        "trajectory": _numbers([entry.trajectory for entry in entries]),
        "path": np.array([entry.path for entry in entries]),
    }
    return Contents(images, {}, record)


def _check_sizes(source: Path, entries: Sequence[Entry], settings: Render) -> None:
    if settings.window is not None:
        raise ConfigError("render.window has no meaning for imported images; leave it out.")
    pixels = settings.pixels
    size_of = {entry.path: image_size(source / entry.path) for entry in entries}
    sizes = Counter(size_of.values())
    if set(sizes) == {(pixels, pixels)}:
        return
    text = ", ".join(f"{n} of {w} × {h}" for (w, h), n in sizes.most_common(4))
    if "pixels" not in settings.model_fields_set:
        raise DataError(
            f"{source}: has images of other sizes than {pixels} × {pixels} pixels: {text}. Set "
            "render.pixels: the centre of each image of that size is then taken."
        )
    if too_small := [path for path, size in size_of.items() if min(size) < pixels]:
        width, height = size_of[too_small[0]]
        raise DataError(
            f"{source / too_small[0]}: is {width} × {height} pixels, smaller than render.pixels "
            f"{pixels}; images are never enlarged."
        )
    print(f"images: {text}; the centre {pixels} × {pixels} of each is taken", flush=True)


def _numbers(names: Sequence[str | None]) -> np.ndarray:
    """A number for each name, int64; None is a name of its own each time."""
    keys = [("", i) if name is None else (name, -1) for i, name in enumerate(names)]
    number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], np.int64)


def _read_images(source: Path, pixels: int, columns: Path) -> Draw:
    """The function that reads the images listed in the columns of a data set."""

    def draw(block: slice) -> Image:
        with h5py.File(columns, "r", locking="best-effort") as file:
            paths = file["images/path"].asstr()[block]
        return np.stack([read_image(source / path, pixels) for path in paths])

    return draw


# Configurations


def _read_configurations(
    source: Path, entries: Sequence[Entry], settings: Render, record: dict[str, Any]
) -> Contents:
    """Columns of a data set of imported configurations, from files of the field."""
    read = functools.lru_cache(maxsize=4)(read_frames)  # liquid and glass are often of one file
    found: list[tuple[Entry, Frame]] = []
    names = []
    for entry in entries:
        frames = read(source / entry.path)
        for index in _chosen(source / entry.path, len(frames), entry.frame):
            _check_frame(source / entry.path, frames[index], found[0] if found else None, settings)
            found.append((entry, frames[index]))
            names.append(f"frame {index} of {entry.path}")
    _check_once(source, names)
    configurations = _columns(found)
    return Contents(image_columns(configurations, settings), configurations, record)


def _chosen(path: Path, count: int, frame: int | str | None) -> range:
    """Indices of the frames of a file that an entry means."""
    if frame == "all":
        return range(count)
    if frame is None and count > 1:
        raise DataError(
            f'{path}: has {count} frames; say which in {LISTING}: "frame" is a number '
            '(negative counts from the end) or "all".'
        )
    index = int(frame or 0)
    if not -count <= index < count:
        raise DataError(f"{path}: has {plural(count, 'frame')}, and no frame {frame}.")
    return range(index % count, index % count + 1)


def _check_frame(
    path: Path, frame: Frame, first: tuple[Entry, Frame] | None, settings: Render
) -> None:
    try:
        check_window(frame.box, settings.window)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    if first is not None and len(frame.types) != len(first[1].types):
        raise DataError(
            f"{path}: has {len(frame.types)} particles and {first[0].path} "
            f"{len(first[1].types)}; a data set holds one size of system."
        )


def _columns(found: Sequence[tuple[Entry, Frame]]) -> dict[str, np.ndarray]:
    entries, frames = [entry for entry, _ in found], [frame for _, frame in found]
    box = np.stack([frame.box for frame in frames])
    return {
        "positions": np.stack([frame.positions for frame in frames]),
        "types": np.stack([frame.types for frame in frames]),
        "box": box,
        "density": len(frames[0].types) / box.prod(axis=1),
        "psi6": np.array(
            [hexatic_order(Configuration(f.positions, f.types, f.box)) for f in frames]
        ),
        "label": np.array([entry.label for entry in entries], np.uint8),
        "trajectory": _numbers([e.path if e.trajectory is None else e.trajectory for e in entries]),
        "path": np.array([entry.path for entry in entries]),
    }
