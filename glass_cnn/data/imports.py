"""Other people's data become a data set: pictures or trajectory files with their labels.

`glass_cnn.data.listing` says what a directory holds, entry by entry. Here the contents are read and
compared: what cannot be what it is listed as is refused before anything is stored.
"""

from __future__ import annotations

import datetime
import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.spatial
import xxhash

from glass_cnn.configuration import Configuration, hexatic_order
from glass_cnn.data.dataset import assign, check_classes, directory, load
from glass_cnn.data.formats import read_frames
from glass_cnn.data.listing import METADATA, Entry, Listing, example, read_listing
from glass_cnn.data.pictures import Look, check_sizes, look, read_picture
from glass_cnn.data.render import Image, check_window
from glass_cnn.data.store import Contents, Draw, draw_configurations, heed, image_columns, store
from glass_cnn.mixture import TYPE_A
from glass_cnn.paths import DatasetDir
from glass_cnn.settings import CLASSES, Render, RunSettings, Split
from hpc.errors import ConfigError, DataError
from hpc.preempt import StopFlag
from hpc.progress import track
from hpc.words import plural
from hpc.world import World

DIM = 64
"""span of all colours, of 256, below which pictures are called dim"""
CLOSEST = 0.3
"""distance of two particles, σ, which no liquid or glass of these particles comes below"""
DENSITIES = (0.3, 3.0)
"""particles per σ² between which liquids and glasses lie"""


@dataclass(frozen=True)
class Item:
    """One picture or frame that will be stored."""

    name: str
    entry: Entry
    digest: str
    """of its contents as they will be stored, whatever file they come from"""
    transparent: bool = False
    """whether something was dropped in which it may differ from one of equal contents"""


def import_data(
    source: Path,
    settings: RunSettings,
    root: Path,
    world: World,
    stop: StopFlag | None = None,
    splits: Iterable[Split] = (),
) -> DatasetDir:
    """Store what `source` holds as the data set of `settings`, all ranks together.

    The same source again changes nothing. Raises, on every rank alike, DataError for whatever is
    wrong with the source, when it cannot be divided by one of `splits`, or when another one was
    stored under this name and rendering; ConfigError when the settings do not ask for an import;
    StorageError, Stopped.
    """
    target, stop = directory(settings, root), stop or StopFlag()
    found = world.broadcast(world.on_root(lambda: _examine(source, settings, target)))
    if found is None:
        return target
    listing, record = found
    if listing.pictures:
        world.on_root(lambda: _check_pictures(source, listing.entries, settings))
        looks = _look_at(source, listing.entries, settings.render, world, stop)
        collect = functools.partial(_list_pictures, listing, looks, record)
        draw = functools.partial(_read_pictures, source, settings.render)
    else:
        collect = functools.partial(_read_configurations, source, listing, settings, record, stop)
        draw = functools.partial(draw_configurations, settings.render)

    def divisible() -> Contents:
        contents = collect()
        check_classes(contents.images["label"], str(source))
        for split in splits:
            assign(contents.images["trajectory"], contents.images["label"], split, str(source))
        return contents

    return store(target, settings, world, divisible, draw, stop)


def _examine(
    source: Path, settings: RunSettings, target: DatasetDir
) -> tuple[Listing, dict[str, Any]] | None:
    """The list and what is recorded of it; None when exactly this is stored already."""
    if settings.data.source != "import":
        raise ConfigError(
            f"data.source is {settings.data.source}: write data: {{source: import, name: …}} (a "
            "name of its own) in the study file that is to use the imported data."
        )
    listing = read_listing(source)
    fingerprint = _fingerprint(source, listing.entries)
    if not target.is_done():
        _tell(listing.remarks)
        return listing, {"source": str(source.resolve()), "fingerprint": fingerprint}
    record = load(target).record
    if record.get("fingerprint") == fingerprint:
        print(f"{target.path}: {record['source']} is imported already; nothing to do.", flush=True)
        return None
    raise DataError(
        f"{target.path}: already holds what was imported from {record['source']} at "
        f"{record['created']}, and {source.resolve()}, last changed "
        f"{_last_change(source, listing.entries)}, differs from it. Give the new data another "
        "data.name; or remove that directory first, and what was trained on it is superseded."
    )


def _last_change(source: Path, entries: Sequence[Entry]) -> str:
    """When the newest of the files was written, UTC."""
    times = [(source / entry.path).stat().st_mtime for entry in entries]
    newest = datetime.datetime.fromtimestamp(max(times), datetime.UTC)
    return newest.isoformat(timespec="seconds")


def _tell(remarks: Sequence[str]) -> None:
    for remark in remarks:
        print(remark, flush=True)


def _fingerprint(source: Path, entries: Sequence[Entry]) -> str:
    """One checksum of the list and of the content of every file in it."""
    total = xxhash.xxh3_128()
    for entry in entries:
        total.update(repr(entry).encode())
    for path in track("comparing", list(dict.fromkeys(entry.path for entry in entries))):
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


# --- Contents -----------------------------------------------------------------------------------


def _check_contents(source: Path, items: Sequence[Item]) -> None:
    """Refuse what is listed twice, and equal contents that the split might part.

    Under two names they would lie in training and test, or be liquid and glass.
    """
    for name, count in Counter(item.name for item in items).items():
        if count > 1:
            raise DataError(f"{source}: {name} is listed twice; each may be listed once.")
    first: dict[str, Item] = {}
    pairs = [
        (first[item.digest], item) for item in items if first.setdefault(item.digest, item) != item
    ]
    for one, other in pairs:
        if one.entry.label != other.entry.label:
            raise DataError(
                f"{source}: {one.name} ({CLASSES[one.entry.label]}) and {other.name} "
                f"({CLASSES[other.entry.label]}) are the same: one of the two labels is wrong, or "
                f"one of the files is a copy. Correct it, or leave both out.{_alpha(other)}"
            )
    apart = [(one, other) for one, other in pairs if _group(one.entry) != _group(other.entry)]
    if apart:
        raise DataError(_copies(source, len(items), apart))
    if pairs:
        print(
            f"entries that repeat another one of the same trajectory: {len(pairs):,d} of "
            f"{len(items):,d}, such as {pairs[0][1].name}",
            flush=True,
        )


def _copies(source: Path, count: int, apart: Sequence[tuple[Item, Item]]) -> str:
    one, other = apart[0]
    named = ", ".join(f"{b.name} is {a.name}" for a, b in apart[:4])
    together = one.entry.trajectory or one.entry.path
    lines = example(
        *(
            {"path": item.entry.path, "label": CLASSES[item.entry.label], "trajectory": together}
            for item in (one, other)
        )
    )
    return (
        f"{source}: {len(apart):,d} of {count:,d} entries repeat others and count as independent "
        f"of them: {named}{', …' if len(apart) > 4 else ''}. Training and test would share them. "
        "Import each once, or keep equal ones together by a trajectory of the same name in "
        f"{METADATA}: {lines}.{_alpha(other)}"
    )


def _alpha(item: Item) -> str:
    return " Alpha, in which they may differ, is dropped as in 2017." if item.transparent else ""


def _group(entry: Entry) -> tuple[str, str]:
    """What the split keeps together: the trajectory, or else the file."""
    return ("file", entry.path) if entry.trajectory is None else ("trajectory", entry.trajectory)


def _numbers(entries: Sequence[Entry]) -> np.ndarray:
    """The number of each entry's group, int64."""
    groups = [_group(entry) for entry in entries]
    number = {group: n for n, group in enumerate(dict.fromkeys(groups))}
    return np.array([number[group] for group in groups], np.int64)


# --- Pictures -----------------------------------------------------------------------------------


def _check_pictures(source: Path, entries: Sequence[Entry], settings: RunSettings) -> None:
    """Refuse settings that mean nothing for pictures, and pictures that do not fit."""
    if settings.render.window is not None or settings.data.types:
        name = "data.types" if settings.data.types else "render.window"
        raise ConfigError(f"{name} has no meaning for imported pictures; leave it out.")
    if taken := check_sizes(source, [entry.path for entry in entries], settings.render):
        print(taken, flush=True)


def _look_at(
    source: Path, entries: Sequence[Entry], settings: Render, world: World, stop: StopFlag
) -> list[Look]:
    """Read every picture once, all ranks together; returns their looks on rank 0."""

    def look_at_share() -> list[Look]:
        share = entries[world.share(len(entries))]
        found = []
        for entry in track("looking at pictures", share) if world.is_root else share:
            heed(stop)
            found.append(look(source / entry.path, settings.pixels, settings.fit == "resize"))
        return found

    return [each for some in world.gather(world.everywhere(look_at_share)) or [] for each in some]


def _list_pictures(listing: Listing, looks: Sequence[Look], record: dict[str, Any]) -> Contents:
    """Columns of a data set of imported pictures."""
    entries = listing.entries
    items = [
        Item(entry.path, entry, one.digest, one.transparent)
        for entry, one in zip(entries, looks, strict=True)
    ]
    _check_contents(Path(record["source"]), items)
    _tell(_remarks(entries, looks))
    images = {
        "label": np.array([entry.label for entry in entries], np.uint8),
        "trajectory": _numbers(entries),
        "path": np.array([entry.path for entry in entries]),
    }
    return Contents(images, {}, record)


def _remarks(entries: Sequence[Entry], looks: Sequence[Look]) -> list[str]:
    """What people should know of pictures that can be used."""
    remarks = []
    alone = sum(entry.trajectory is None for entry in entries)
    if alone:
        remarks.append(
            f"{alone:,d} of {plural(len(entries), 'entry')} name no trajectory: each of these "
            "pictures counts as independent. Pictures of one simulation then lie on both sides of "
            f'the split and make accuracies too good; "trajectory" in {METADATA} keeps them '
            "together."
        )
    if clear := sum(each.transparent for each in looks):
        remarks.append(
            f"{clear:,d} of {plural(len(looks), 'picture')} are transparent in places; alpha is "
            "dropped as in 2017, and the colours below it are used"
        )
    low, high = min(each.darkest for each in looks), max(each.brightest for each in looks)
    if high - low < DIM:
        remarks.append(
            f"all colours lie between {low} and {high} of 0 to 255: the pictures are dim (of 16 "
            "bits the upper 8 are taken)"
        )
    return remarks


def _read_pictures(source: Path, settings: Render, columns: Path) -> Draw:
    """The function that reads the pictures listed in the columns of a data set."""
    how = (settings.pixels, settings.fit == "resize")

    def draw(block: slice) -> Image:
        with h5py.File(columns, "r", locking="best-effort") as file:
            paths = file["images/path"].asstr()[block]
        return np.stack([read_picture(source / path, *how) for path in paths])

    return draw


# --- Configurations -----------------------------------------------------------------------------


def _read_configurations(
    source: Path,
    listing: Listing,
    settings: RunSettings,
    record: dict[str, Any],
    stop: StopFlag,
) -> Contents:
    """Columns of a data set of imported configurations, from files of the field."""
    if settings.render.fit is not None:
        raise ConfigError("render.fit has no meaning for trajectory files; leave it out.")
    items, found = _read_frames(source, listing.entries, settings, stop)
    _check_contents(source, items)
    _tell(_doubts(items, found))
    configurations = _columns([item.entry for item in items], found)
    return Contents(image_columns(configurations, settings.render), configurations, record)


def _read_frames(
    source: Path, entries: Sequence[Entry], settings: RunSettings, stop: StopFlag
) -> tuple[list[Item], list[Configuration]]:
    """The frames that are listed, each checked for what all must have in common."""

    @functools.lru_cache(maxsize=4)  # liquid and glass are often of one file
    def read(path: Path) -> list[Configuration]:
        return read_frames(path, settings.data.types)

    items: list[Item] = []
    found: list[Configuration] = []
    for entry in track("reading", entries):
        heed(stop)
        frames = read(source / entry.path)
        for index in _chosen(source, entry, len(frames)):
            where = f"{source / entry.path}, frame {index}"
            _check_window(where, frames[index], settings.render)
            if found and len(frames[index]) != len(found[0]):
                raise DataError(
                    f"{where}: has {len(frames[index])} particles, and {items[0].name} has "
                    f"{len(found[0])}; a data set holds one size of system."
                )
            name = f"frame {index} of {entry.path}"
            items.append(Item(name, entry, _digest(frames[index])))
            found.append(frames[index])
    return items, found


def _chosen(source: Path, entry: Entry, count: int) -> range:
    """Indices of the frames of a file that an entry means."""
    path = source / entry.path
    if entry.frame is None and count > 1:
        line = {"path": entry.path, "label": CLASSES[entry.label], "frame": -1}
        raise DataError(
            f"{path}: has {count} frames; say which in {METADATA}, for example [{example(line)}, "
            '…]: "frame" is a number (negative counts from the end) or "all".'
        )
    if entry.frame == "all":
        return range(count)
    index = int(entry.frame or 0)
    if not -count <= index < count:
        raise DataError(f"{path}: has {plural(count, 'frame')}, and no frame {index}.")
    return range(index % count, index % count + 1)


def _check_window(where: str, configuration: Configuration, settings: Render) -> None:
    try:
        check_window(configuration.box, settings.window)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _digest(configuration: Configuration) -> str:
    """Of species, places and box, whatever order the particles stand in."""
    positions = configuration.positions
    order = np.lexsort((positions[:, 1], positions[:, 0]))
    content = xxhash.xxh3_128(configuration.box.tobytes())
    content.update(configuration.species[order].tobytes())
    content.update(positions[order].tobytes())
    return content.hexdigest()


def _doubts(items: Sequence[Item], found: Sequence[Configuration]) -> list[str]:
    """What is odd about configurations that can be drawn."""
    doubts = []
    odd = [i for i, c in enumerate(found) if not DENSITIES[0] < c.density < DENSITIES[1]]
    if odd:
        doubts.append(
            f"{len(odd):,d} of {len(found):,d} configurations have a density out of "
            f"{DENSITIES[0]} … {DENSITIES[1]} σ⁻² ({found[odd[0]].density:.3g} in "
            f"{items[odd[0]].name}): are lengths in σ?"
        )
    closest = [_closest(configuration) for configuration in found]
    if near := [i for i, distance in enumerate(closest) if distance < CLOSEST]:
        doubts.append(
            f"in {len(near):,d} of {len(found):,d} configurations particles come closer than "
            f"{CLOSEST} σ ({closest[near[0]]:.2g} σ in {items[near[0]].name}): are the box and the "
            "lengths right?"
        )
    shares = [float((configuration.species == TYPE_A).mean()) for configuration in found]
    if max(shares) - min(shares) > 0.5 / len(found[0]):
        low, high = shares.index(min(shares)), shares.index(max(shares))
        doubts.append(
            f"compositions differ, from {min(shares):.1%} A in {items[low].name} to "
            f"{max(shares):.1%} in {items[high].name}: a network may tell classes by that alone"
        )
    return doubts


def _closest(configuration: Configuration) -> float:
    """The smallest distance of two particles, σ."""
    places = configuration.wrapped().astype(np.float64) % configuration.box
    tree = scipy.spatial.cKDTree(places, boxsize=configuration.box)
    return float(tree.query(places, k=2)[0][:, 1].min())


def _columns(entries: Sequence[Entry], found: Sequence[Configuration]) -> dict[str, np.ndarray]:
    return {
        "positions": np.stack([each.positions for each in found]),
        "types": np.stack([each.species for each in found]),
        "box": np.stack([each.box for each in found]),
        "density": np.array([each.density for each in found]),
        "psi6": np.array([hexatic_order(each) for each in found]),
        "label": np.array([entry.label for entry in entries], np.uint8),
        "trajectory": _numbers(entries),
        "path": np.array([entry.path for entry in entries]),
    }
