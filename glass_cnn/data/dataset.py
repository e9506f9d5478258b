"""A stored data set, opened: images, labels, and how they are split.

Its directory (`DatasetDir`) holds the images, uint8 [images, pixels, pixels, 3], memory-mapped;
the columns, one row for each image and for each configuration that they were drawn from; and the
record: how it was made, counts, checksums. `glass_cnn.data.store` makes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from glass_cnn.configuration import Configuration
from glass_cnn.paths import DatasetDir, dataset_dir
from glass_cnn.records import DataIdentity
from glass_cnn.settings import CLASSES, RunSettings, Split
from glass_cnn.streams import Stream, permutation, philox
from hpc.errors import DataError
from hpc.files import read_json
from hpc.words import command, plural

FORMAT = 1
BLOCK = 256
"""images that are made, written and checksummed together"""
PARTS = ("train", "validation", "test")


# --- The open data set --------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """A data set on disk; its images are read as they are needed."""

    place: DatasetDir
    record: dict[str, Any]
    """how it was made, counts, checksums"""
    images: np.ndarray
    """uint8 [images, pixels, pixels, 3], memory-mapped, read-only; row 0 of an image is its top"""
    labels: np.ndarray
    """uint8 [images]: 0 liquid, 1 glass; shuffled when data.permute_labels is set"""
    trajectories: np.ndarray
    """int64 [images]: the trajectory each image comes from"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def path(self) -> Path:
        return self.place.path

    def column(self, name: str) -> np.ndarray:
        """One column: 'images/corner', 'configurations/positions', …

        Raises DataError where the data set has none of that name (imported images have no
        configurations).
        """
        with _open_columns(self.place.columns) as file:
            if name not in file:
                found = [f"{group}/{key}" for group in file for key in file[group]]
                raise DataError(f"{self.path}: has no column '{name}'; it has {', '.join(found)}.")
            column = file[name]
            return (column.asstr() if h5py.check_string_dtype(column.dtype) else column)[...]

    @property
    def identity(self) -> DataIdentity:
        """Which data these are, whatever else comes to lie under their name."""
        fingerprint = self.record["data_fingerprint"]
        return DataIdentity(self.place.name, fingerprint, self.record.get("created"))

    def configurations(self, rows: np.ndarray) -> list[Configuration]:
        """Those of these rows of /configurations; raises DataError as `column` does."""
        columns = (self.column(f"configurations/{name}") for name in ("positions", "types", "box"))
        chosen = zip(rows, *(column[rows] for column in columns), strict=True)
        return [configuration(self.place.columns, row, *parts) for row, *parts in chosen]

    def describe(self) -> str:
        """Where it lies, what it holds, and how ordered each class is."""
        counts = ", ".join(f"{n:,d} {name}" for name, n in self.record["classes"].items())
        text = (
            f"{self.path}\n{len(self):,d} images of {self.record['pixels']} px ({counts}) "
            f"from {plural(self.record['trajectories'], 'trajectory')}"
        )
        if psi6 := self.record["psi6"]:
            text += f"; mean |ψ6| {psi6['liquid']:.3f} liquid, {psi6['glass']:.3f} glass"
        return text

    def verify(self, share: slice = slice(None), go_on: Callable[[], bool] = lambda: True) -> bool:
        """Compare every byte, or those of a share of the blocks, with the record's checksums.

        `go_on` is asked before each block; returns False where it said no. Raises DataError naming
        the file and, of the images, the block.
        """
        columns, images = self.place.columns, self.place.images
        sums = self.record["checksums"]
        if not share.start and file_checksum(columns) != sums[columns.name]:
            raise _damaged(columns, "its bytes are not those it was made with")
        each = zip(blocks(len(self))[share], sums[images.name][share], strict=True)
        for block, checksum in each:
            if not go_on():
                return False
            if block_checksum(self.images[block]) != checksum:
                number, last = block.start // BLOCK, block.stop - 1
                raise _damaged(
                    images,
                    f"block {number} (images {block.start} to {last}) is not what was written",
                )
        return True


def blocks(count: int) -> list[slice]:
    """Slices of BLOCK images that cover `count` images."""
    return [slice(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]


def block_checksum(images: np.ndarray) -> str:
    """xxh3-64, in hexadecimal, of some images."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(images).data)


def fingerprint_of(checksums: Sequence[str], labels: np.ndarray, groups: np.ndarray) -> str:
    """What tells data from others: xxh3-128 of their blocks' checksums, labels and trajectories."""
    total = xxhash.xxh3_128("\n".join(checksums).encode())
    total.update(labels.astype("u1").tobytes())
    total.update(groups.astype("<i8").tobytes())
    return total.hexdigest()


def file_checksum(path: Path) -> str:
    """xxh3-64, in hexadecimal, of a file's bytes."""
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def configuration(
    path: Path, row: int, positions: np.ndarray, species: np.ndarray, box: np.ndarray
) -> Configuration:
    """Row number `row` of the configurations stored in a file; raises DataError naming it."""
    try:
        return Configuration(positions, species, box)
    except DataError as error:
        raise _damaged(path, f"configuration {row}: {error}".rstrip(".")) from None


def directory(settings: RunSettings, root: Path) -> DatasetDir:
    """Where the data set of these settings lies, whether it exists or not."""
    return dataset_dir(root, settings.data.name, settings.dataset_digest())


def load(source: RunSettings | DatasetDir, root: Path | None = None) -> Dataset:
    """Open the data set of a directory, or that of settings under the logs directory `root`.

    Only with settings are labels shuffled where data.permute_labels asks for it. Sizes, types and
    classes are checked here, every byte by `Dataset.verify`. Raises DataError.
    """
    if isinstance(source, DatasetDir):
        return _open(source)
    place = directory(source, Path() if root is None else root)
    if not place.is_done():
        raise DataError(f"{place.path}: there is no such data set. {_how_to_make(source)}")
    dataset = _open(place)
    if not source.data.permute_labels:
        return dataset
    shuffled = permutation(philox(Stream.LABELS, source.split.seed), len(dataset))
    return dataclasses.replace(dataset, labels=dataset.labels[shuffled])


def _how_to_make(settings: RunSettings) -> str:
    if settings.data.source == "import":
        return "Import it: make import SOURCE=<directory> CONFIG=<study file>"
    return f"Make it: make submit CONFIG=<study file>, or {command('dataset')} <study file>"


def _open(place: DatasetDir) -> Dataset:
    record = read_json(place.record)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else record
        raise _damaged(place.record, f"format {found!r} is not {FORMAT}")
    images = _map_images(place.images, record)
    with _open_columns(place.columns) as file:
        try:
            labels, trajectories = (file[f"images/{n}"][...] for n in ("label", "trajectory"))
        except (KeyError, OSError, ValueError) as error:
            raise _damaged(place.columns, str(error)) from None
    if not len(images) == len(labels) == len(trajectories):
        raise _damaged(place.path, f"it has {len(images)} images and {len(labels)} labels")
    check_classes(labels, str(place.path))
    fingerprint = fingerprint_of(_checksums(place, record, images), labels, trajectories)
    if record.setdefault("data_fingerprint", fingerprint) != fingerprint:
        raise _damaged(place.columns, "its labels or trajectories are not those it was made with")
    return Dataset(place, record, images, labels, trajectories)


def _checksums(place: DatasetDir, record: dict[str, Any], images: np.ndarray) -> list[str]:
    """Those of the blocks of images, as they stand in the record."""
    sums = record.get("checksums")
    found = sums.get(place.images.name) if isinstance(sums, dict) else None
    if not isinstance(found, list) or len(found) != len(blocks(len(images))):
        raise _damaged(place.record, f"it must hold a checksum for each {BLOCK} images")
    return [str(each) for each in found]


def _map_images(path: Path, record: dict[str, Any]) -> np.ndarray:
    try:
        size = path.stat().st_size
        if size != record["sizes"][path.name]:
            raise ValueError(f"{size:,} bytes where {record['sizes'][path.name]:,} were written")
        images = np.load(path, mmap_mode="r", allow_pickle=False)
        shape = (record["images"], record["pixels"], record["pixels"], 3)
        if images.shape != shape or images.dtype != np.uint8:
            raise ValueError(f"{images.dtype} {images.shape} where uint8 {shape} was written")
    except FileNotFoundError:
        raise _damaged(path, "no such file") from None
    except (KeyError, OSError, EOFError, ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from None
    return images.view(np.ndarray)


def _open_columns(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r", locking="best-effort")
    except FileNotFoundError:
        raise _damaged(path, "no such file") from None
    except OSError as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> DataError:
    target = path if path.is_dir() else path.parent
    return DataError(
        f"{path}: is damaged or incomplete: {why}. Remove {target} and run the command again: "
        "it is made anew (imported data: make import first)."
    )


def check_classes(labels: np.ndarray, what: str) -> None:
    """Raise DataError unless there are both liquids and glasses."""
    if len(labels) == 0:
        raise DataError(f"{what}: is empty; a data set needs liquids and glasses.")
    strange = np.setdiff1d(labels, (0, 1))
    if len(strange):
        raise DataError(f"{what}: has labels {strange.tolist()}; 0 is liquid and 1 is glass.")
    if labels.min() == labels.max():
        raise DataError(
            f"{what}: has {plural(len(labels), 'image')}, all labelled {CLASSES[int(labels[0])]}; "
            "a data set needs liquids and glasses."
        )


# --- The split ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """Indices of the images of each part, and the labels of all images.

    Each part is in a random order of its own, so that its first n images are a fair sample.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    trajectories: np.ndarray

    def describe(self) -> str:
        """Images, trajectories and classes of each part, a line for each."""
        lines = []
        for name in PARTS:
            part: np.ndarray = getattr(self, name)
            liquid, glass = np.bincount(self.labels[part], minlength=2)
            groups = len(np.unique(self.trajectories[part]))
            lines.append(
                f"{name:10s} {len(part):7,d} images of {groups:6,d} trajectories: "
                f"{liquid:,d} liquid, {glass:,d} glass ({glass / len(part):.1%} glass)"
            )
        return "\n".join(lines)


def split(dataset: Dataset, settings: RunSettings) -> Parts:
    """Divide the data set by trajectory: all images of one trajectory lie in one part.

    A pure function of trajectories, labels and settings.split. Raises DataError when a part would
    be empty or lack a class.
    """
    part_of = assign(dataset.trajectories, dataset.labels, settings.split, str(dataset.path))
    chosen: dict[str, np.ndarray] = {}
    for k, name in enumerate(PARTS):
        index = np.flatnonzero(part_of == k)
        shuffled = permutation(philox(Stream.EXAMPLES, settings.split.seed, k), len(index))
        chosen[name] = index[shuffled]
    return Parts(**chosen, labels=dataset.labels, trajectories=dataset.trajectories)


def check_split(points: Iterable[RunSettings], root: Path) -> None:
    """Raise DataError unless the data of each of these settings can be divided as they say.

    Data sets that do not exist yet are those that will be simulated: nobody shall simulate for
    days what cannot be split. Of imports that are missing nothing is known.
    """
    seen = set()
    for settings in points:
        key = (settings.dataset_digest(), settings.split, settings.data.permute_labels)
        if key in seen:
            continue
        seen.add(key)
        place = directory(settings, root)
        if place.is_done():
            split(load(settings, root), settings)
        elif settings.data.source == "simulation":
            trajectories = np.repeat(np.arange(settings.simulation.trajectories), 2)
            labels = np.arange(len(trajectories)) % 2
            assign(trajectories, labels, settings.split, "simulation.trajectories")


def assign(
    trajectories: np.ndarray, labels: np.ndarray, settings: Split, what: str = "the data"
) -> np.ndarray:
    """Part (0 train, 1 validation, 2 test) of every image of `what`, int64.

    Shares are exact to a whole trajectory (largest remainders). Trajectories of only liquids, of
    only glasses and of both are divided alike, so that the classes stay balanced as well as they
    can. Raises DataError when a part would be empty or lack a class.
    """
    kind_of, group_of = _kinds(trajectories, labels)
    kinds = np.bincount(kind_of, minlength=3)
    counts = _divide(kinds, settings)
    if not _is_sound(counts):
        raise DataError(f"{what}: {_cannot_be_split(kinds, counts, settings)}")
    part = np.empty(len(kind_of), dtype=np.int64)
    for k, kind in enumerate(np.flatnonzero(kinds)):
        stratum = np.flatnonzero(kind_of == kind)
        shuffled = permutation(philox(Stream.SPLIT, settings.seed, k), len(stratum))
        part[stratum[shuffled]] = np.repeat(np.arange(3), counts[kind])
    return part[group_of]


def _kinds(trajectories: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each trajectory has (0 only liquids, 1 only glasses, 2 both), and that of each image."""
    groups, group_of = np.unique(trajectories, return_inverse=True)
    liquids, glasses = (
        np.bincount(group_of, weights=labels == k, minlength=len(groups)) > 0 for k in (0, 1)
    )
    return liquids + 2 * glasses - 1, group_of


def _divide(kinds: np.ndarray, settings: Split) -> np.ndarray:
    """Trajectories of each kind (rows) in each part (columns)."""
    shares = np.array([settings.train, settings.validation, settings.test])
    return proportional_counts(kinds, largest_remainders(shares * kinds.sum()))


def _with_class(kinds: np.ndarray) -> np.ndarray:
    """Trajectories with liquids and with glasses, by numbers of each kind."""
    return kinds[:2] + kinds[2]


def _is_sound(counts: np.ndarray) -> bool:
    """Whether every part has both classes."""
    return bool(_with_class(counts).all())


def _cannot_be_split(kinds: np.ndarray, counts: np.ndarray, settings: Split) -> str:
    lacking = int(np.flatnonzero(~_with_class(counts).all(axis=0))[0])
    liquid, glass = _with_class(counts)[:, lacking]
    return (
        f"{plural(int(kinds.sum()), 'trajectory')} cannot be split {_shares(settings)}: the "
        f"{PARTS[lacking]} part would have {liquid} with liquids and {glass} with glasses, and "
        f"each part needs both. {_fewest(kinds, settings).capitalize()}, or other shares in "
        "'split' (another seed changes nothing)."
    )


def _shares(settings: Split) -> str:
    return " / ".join(
        f"{share:g}" for share in (settings.train, settings.validation, settings.test)
    )


def _fewest(kinds: np.ndarray, settings: Split) -> str:
    """How many trajectories are needed when those of the rarer class become more."""
    kinds = kinds.copy()
    while not (kinds.any() and _is_sound(_divide(kinds, settings))):
        paired = not kinds[:2].any()
        kinds[2 if paired else int(_with_class(kinds).argmin())] += 1
    liquid, glass = _with_class(kinds)
    if not kinds[:2].any():
        return f"at least {liquid:,d} trajectories are needed"
    return f"at least {liquid:,d} with liquids and {glass:,d} with glasses are needed"


def needed(dataset: Dataset, settings: Split) -> str:
    """How many trajectories a data set has, and how many like them a split needs, in words."""
    kinds = np.bincount(_kinds(dataset.trajectories, dataset.labels)[0], minlength=3)
    liquid, glass = _with_class(kinds)
    start = np.array([1, 1, 0]) if kinds[:2].any() else np.array([0, 0, 1])
    return (
        f"{plural(int(kinds.sum()), 'trajectory')} ({liquid:,d} with liquids, {glass:,d} with "
        f"glasses); for the split {_shares(settings)} {_fewest(start, settings)}"
    )


def largest_remainders(exact: np.ndarray) -> np.ndarray:
    """Whole numbers nearest to `exact` with its sum (which is whole), by largest remainders."""
    exact = np.round(exact, 9)  # 0.15 · 20 is 3, not a little less
    counts = np.floor(exact).astype(np.int64)
    missing = round(exact.sum()) - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:missing]] += 1
    return counts


def proportional_counts(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Whole-number table with these sums of rows and columns, nearly proportional to both.

    Every cell starts at the floor of its proportional share; what is missing goes one by one to
    the cells with the largest remainders whose row and column have room.
    """
    exact = np.round(np.outer(rows, columns) / rows.sum(), 9)
    table = np.floor(exact).astype(np.int64)
    remainder = exact - table
    while (missing := rows - table.sum(axis=1)).any():
        room = np.outer(missing > 0, columns - table.sum(axis=0) > 0)
        cell = np.unravel_index(np.where(room, remainder, -np.inf).argmax(), table.shape)
        table[cell] += 1
        remainder[cell] -= 1
    return table
