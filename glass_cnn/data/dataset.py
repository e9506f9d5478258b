"""A stored data set, opened: images, labels, the split, the order of samples, augmentation.

    logs/datasets/<name>-<hash8>/
        images.npy     uint8 [images, pixels, pixels, 3], memory-mapped
        dataset.h5     /images: one row for each image; /configurations: what they were drawn from
        dataset.json   how it was made, counts, checksums

`glass_cnn.data.store` makes it. Everything random here is a pure function of seeds and counters
through Philox (Salmon et al. 2011), whose stream NumPy promises never to change.
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import xxhash

from glass_cnn.paths import dataset_dir
from glass_cnn.settings import RunSettings, Split
from glass_cnn.train_settings import Augmentation
from hpc.errors import DataError
from hpc.files import read_json
from hpc.words import plural

FORMAT = 1
CLASSES = ("liquid", "glass")
BLOCK = 256
"""images that are made, written and checksummed together"""
PARTS = ("train", "validation", "test")


class Stream(enum.IntEnum):
    """What random numbers are for: one seed gives each purpose a stream of its own."""

    WINDOWS = 1
    SPLIT = 2
    EXAMPLES = 3
    LABELS = 4
    ORDER = 5
    AUGMENTATION = 6


def philox(stream: Stream, seed: int, index: int = 0, counter: int = 0) -> np.random.Philox:
    """Bit generator number `index` of a stream, its `counter` at a block of four 64-bit words."""
    return np.random.Philox(
        key=np.array([seed + (int(stream) << 32), index], dtype=np.uint64),
        counter=np.array([counter, 0, 0, 0], dtype=np.uint64),
    )


def permutation(bits: np.random.Philox, count: int) -> np.ndarray:
    """Random permutation of 0 … count - 1, int64."""
    return np.argsort(bits.random_raw(count), kind="stable")


# --- The open data set --------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """A data set on disk; its images are read as they are needed."""

    path: Path
    record: dict[str, Any]
    """dataset.json"""
    images: np.ndarray
    """uint8 [images, pixels, pixels, 3], memory-mapped, read-only; row 0 of an image is its top"""
    labels: np.ndarray
    """uint8 [images]: 0 liquid, 1 glass; shuffled when data.permute_labels is set"""
    trajectories: np.ndarray
    """int64 [images]: the trajectory each image comes from"""

    def __len__(self) -> int:
        return len(self.labels)

    def column(self, name: str) -> np.ndarray:
        """A column of dataset.h5: 'images/corner', 'configurations/positions', …

        Raises DataError where the data set has none of that name (imported images have no
        configurations).
        """
        with _open_columns(self.path / "dataset.h5") as file:
            if name not in file:
                found = [f"{group}/{key}" for group in file for key in file[group]]
                raise DataError(f"{self.path}: has no column '{name}'; it has {', '.join(found)}.")
            column = file[name]
            return (column.asstr() if h5py.check_string_dtype(column.dtype) else column)[...]

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

    def verify(self) -> None:
        """Compare every byte with the checksums in dataset.json; raises DataError."""
        sums = self.record["checksums"]
        if file_checksum(self.path / "dataset.h5") != sums["dataset.h5"]:
            raise _damaged(self.path / "dataset.h5", "its checksum is not the one it was made with")
        for block, checksum in zip(blocks(len(self)), sums["images.npy"], strict=True):
            if xxhash.xxh3_64_hexdigest(np.ascontiguousarray(self.images[block]).data) != checksum:
                raise _damaged(
                    self.path / "images.npy", f"images {block.start} to {block.stop - 1} changed"
                )


def blocks(count: int) -> list[slice]:
    """Slices of BLOCK images that cover `count` images."""
    return [slice(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]


def file_checksum(path: Path) -> str:
    """xxh3-64, in hexadecimal, of a file's bytes."""
    return xxhash.xxh3_64_hexdigest(path.read_bytes())


def directory(settings: RunSettings, root: Path) -> Path:
    """Where the data set of these settings lies, whether it exists or not."""
    return dataset_dir(root, settings.data.name, settings.dataset_digest())


def load(source: RunSettings | Path, root: Path | None = None) -> Dataset:
    """Open the data set at a path, or that of settings under the logs directory `root`.

    Only with settings are labels shuffled where data.permute_labels asks for it. Sizes, types and
    classes are checked here, every byte by `Dataset.verify`. Raises DataError.
    """
    if isinstance(source, Path):
        return _open(source)
    path = directory(source, Path() if root is None else root)
    if not (path / "dataset.json").exists():
        raise DataError(f"{path}: there is no such data set. {_how_to_make(source)}")
    dataset = _open(path)
    if not source.data.permute_labels:
        return dataset
    shuffled = permutation(philox(Stream.LABELS, source.split.seed), len(dataset))
    return Dataset(
        path, dataset.record, dataset.images, dataset.labels[shuffled], dataset.trajectories
    )


def _how_to_make(settings: RunSettings) -> str:
    if settings.data.source == "import":
        return "Import it: make import SOURCE=<directory> CONFIG=<study file>"
    return "Make it: make submit CONFIG=<study file>, or python -m jobs.dataset <study file>"


def _open(path: Path) -> Dataset:
    record = read_json(path / "dataset.json")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else record
        raise _damaged(path / "dataset.json", f"format {found!r} is not {FORMAT}")
    images = _map_images(path / "images.npy", record)
    with _open_columns(path / "dataset.h5") as file:
        try:
            labels, trajectories = (file[f"images/{n}"][...] for n in ("label", "trajectory"))
        except (KeyError, OSError, ValueError) as error:
            raise _damaged(path / "dataset.h5", str(error)) from None
    if not len(images) == len(labels) == len(trajectories):
        raise _damaged(path, f"it has {len(images)} images and {len(labels)} labels")
    check_classes(labels, str(path))
    return Dataset(path, record, images, labels, trajectories)


def _map_images(path: Path, record: dict[str, Any]) -> np.ndarray:
    try:
        size = path.stat().st_size
        if size != record["sizes"]["images.npy"]:
            raise ValueError(f"{size:,} bytes where {record['sizes']['images.npy']:,} were written")
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
        "it is made anew."
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
    part_of = assign(dataset.trajectories, dataset.labels, settings.split)
    chosen: dict[str, np.ndarray] = {}
    for k, name in enumerate(PARTS):
        index = np.flatnonzero(part_of == k)
        counts = np.bincount(dataset.labels[index], minlength=2)
        if not counts.all():
            raise DataError(
                f"{dataset.path}: the {name} part of the split has {counts[0]} liquid and "
                f"{counts[1]} glass images; each part needs both. More trajectories of the rarer "
                "class, or other shares in 'split' (another seed changes nothing)."
            )
        shuffled = permutation(philox(Stream.EXAMPLES, settings.split.seed, k), len(index))
        chosen[name] = index[shuffled]
    return Parts(**chosen, labels=dataset.labels, trajectories=dataset.trajectories)


def assign(trajectories: np.ndarray, labels: np.ndarray, settings: Split) -> np.ndarray:
    """Part (0 train, 1 validation, 2 test) of every image, int64.

    Shares are exact to a whole trajectory (largest remainders). Trajectories of only liquids, of
    only glasses and of both are divided alike, so that the classes stay balanced as well as they
    can. Raises DataError when a part would be empty.
    """
    groups, group_of = np.unique(trajectories, return_inverse=True)
    shares = np.array([settings.train, settings.validation, settings.test])
    sizes = largest_remainders(shares * len(groups))
    if not sizes.all():
        needed = next(n for n in itertools.count(3) if largest_remainders(shares * n).all())
        raise DataError(
            f"{plural(len(groups), 'trajectory')} cannot be split "
            f"{' / '.join(f'{s:g}' for s in shares)} into three parts that are not "
            f"empty; at least {needed} are needed."
        )
    liquids, glasses = (np.bincount(group_of, weights=labels == k) > 0 for k in (0, 1))
    kind = liquids + 2 * glasses
    strata = [np.flatnonzero(kind == k) for k in np.unique(kind)]
    counts = proportional_counts(np.array([len(s) for s in strata]), sizes)
    part = np.empty(len(groups), dtype=np.int64)
    for k, (stratum, count) in enumerate(zip(strata, counts, strict=True)):
        shuffled = permutation(philox(Stream.SPLIT, settings.seed, k), len(stratum))
        part[stratum[shuffled]] = np.repeat(np.arange(3), count)
    return part[group_of]


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


# --- Order, augmentation, batches ---------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return permutation(philox(Stream.ORDER, seed, epoch), count)


def order(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Which of `count` samples make the batch of `step` (from 0): int64 [batch_size].

    Batches follow each other without gaps through one permutation after another, so every epoch
    visits each sample exactly once and batches run across the ends of epochs.
    """
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), count)
    chosen = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = _epoch_order(seed, int(epoch), count)[places[here]]
    return chosen


class Choices(NamedTuple):
    """Random symmetry of each sample of a batch, as integer arrays [batch_size]."""

    rotation: np.ndarray
    """quarter turns counter-clockwise, 0 to 3"""
    flip: np.ndarray
    """1 mirrors left and right, before the turn"""
    shift_row: np.ndarray
    """shift in 2⁻³² of the image's height"""
    shift_column: np.ndarray
    """shift in 2⁻³² of the image's width"""


def augment(seed: int, step: int, batch_size: int) -> Choices:
    """The symmetries drawn for the batch of `step`, whether they are used or not."""
    bits = philox(Stream.AUGMENTATION, seed, counter=step * batch_size)
    words = bits.random_raw(4 * batch_size).reshape(batch_size, 4)
    rotation, flip, row, column = (words >> np.array([62, 63, 32, 32], dtype=np.uint64)).T
    return Choices(*(choice.astype(np.int64) for choice in (rotation, flip, row, column)))


def apply(images: np.ndarray, choices: Choices, settings: Augmentation) -> np.ndarray:
    """Images uint8 [n, pixels, pixels, 3] under the symmetries that `settings` allow."""
    pixels = images.shape[1]
    if settings.translations:
        rows, columns = (
            shift * pixels >> 32 for shift in (choices.shift_row, choices.shift_column)
        )
        shifts = zip(images, rows, columns, strict=True)
        images = np.stack([np.roll(image, (r, c), axis=(0, 1)) for image, r, c in shifts])
    turns = choices.rotation * settings.rotations
    flips = choices.flip * settings.flips
    result = np.empty_like(images)
    for turn, flip in itertools.product(range(4), range(2)):
        chosen = (turns == turn) & (flips == flip)
        mirrored = images[chosen][:, :, ::-1] if flip else images[chosen]
        result[chosen] = np.rot90(mirrored, turn, axes=(1, 2))
    return result


def batches(
    dataset: Dataset,
    part: np.ndarray,
    seed: int,
    batch_size: int,
    augmentation: Augmentation,
    rows: slice = slice(None),
    first_step: int = 0,
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Images uint8 [n, pixels, pixels, 3] and labels uint8 [n] of one step after another, for ever.

    `part` holds the indices to draw from, `rows` this rank's share of the global batch. While one
    batch is used a thread reads the next. The only state is the step, and closing the generator
    ends the thread; an error in it is raised by the `next` that asks for its batch.
    """
    read: Callable[[int], tuple[np.ndarray, np.ndarray]] = functools.partial(
        _read, dataset, part, seed, batch_size, augmentation, rows
    )
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as reader:
        ahead = reader.submit(read, first_step)
        for step in itertools.count(first_step + 1):
            ready, ahead = ahead, reader.submit(read, step)
            yield ready.result()


def _read(
    dataset: Dataset,
    part: np.ndarray,
    seed: int,
    batch_size: int,
    augmentation: Augmentation,
    rows: slice,
    step: int,
) -> tuple[np.ndarray, np.ndarray]:
    chosen = part[order(seed, step, batch_size, len(part))[rows]]
    images = dataset.images[chosen]
    if augmentation.rotations or augmentation.flips or augmentation.translations:
        drawn = Choices(*(choice[rows] for choice in augment(seed, step, batch_size)))
        images = apply(images, drawn, augmentation)
    return images, dataset.labels[chosen]
