"""What a training reads, step after step: the order of samples, their augmentation, batches.

Pure functions of seeds and counters (`glass_cnn.streams`): the same on any number of ranks and
after any restart.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from glass_cnn.data.dataset import Dataset, Parts, blocks, load, split
from glass_cnn.records import DataIdentity
from glass_cnn.settings import RunSettings
from glass_cnn.streams import Stream, permutation, philox
from glass_cnn.train_settings import Augmentation

Order = Literal["epoch", "batch"]
"""see `Train.order`"""
HandOver = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]
"""takes images and labels of a batch to where they are used"""
AHEAD = 2
"""batches that are read before they are asked for: one is handed over to a GPU, which waits for
the step that it computes, while it begins the next one with the other"""


@functools.lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return permutation(philox(Stream.ORDER, seed, epoch), count)


def order(seed: int, step: int, batch_size: int, count: int, kind: Order = "epoch") -> np.ndarray:
    """Which of `count` samples make the batch of `step` (from 0): int64 [batch_size].

    By `epoch` batches follow each other without gaps through one permutation after another, so
    every epoch visits each sample exactly once and batches run across the ends of epochs. By
    `batch` all samples are shuffled for each batch, which takes the first: none twice in a batch
    (while there are enough), and some not for many epochs.
    """
    if kind == "batch":
        shuffles = -(-batch_size // count)
        parts = [
            permutation(philox(Stream.BATCHES, seed, step * shuffles + part), count)
            for part in range(shuffles)
        ]
        return np.concatenate(parts)[:batch_size]
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


def apply(
    images: np.ndarray, choices: Choices, settings: Augmentation, strip: slice = slice(None)
) -> np.ndarray:
    """Images uint8 [n, pixels, pixels, 3] under the symmetries that `settings` allow.

    Returns the rows of pixels in `strip`, of the images as they are then.
    """
    pixels = images.shape[1]
    turns = choices.rotation * settings.rotations
    flips = choices.flip * settings.flips
    rows, columns = (shift * pixels >> 32 for shift in (choices.shift_row, choices.shift_column))
    result = np.empty_like(images[:, strip])
    for image, out, turn, flip, row, column in zip(
        images, result, turns, flips, rows, columns, strict=True
    ):
        moved = np.roll(image, (row, column), axis=(0, 1)) if settings.translations else image
        seen = np.rot90(moved[:, ::-1] if flip else moved, turn)[strip]
        for colour in range(3):  # NumPy copies single bytes four times as fast as runs of three
            out[..., colour] = seen[..., colour]
    return result


@dataclass(frozen=True)
class TrainingData:
    """A data set and its division, as the training of one run is handed them."""

    settings: RunSettings
    dataset: Dataset
    parts: Parts

    @property
    def identity(self) -> DataIdentity:
        return self.dataset.identity

    @property
    def images(self) -> np.ndarray:
        return self.dataset.images

    @property
    def blocks(self) -> int:
        return len(blocks(len(self.dataset)))

    def verify(self, share: slice, go_on: Callable[[], bool]) -> bool:
        """See `Dataset.verify`."""
        return self.dataset.verify(share, go_on)

    def batches(
        self, share: slice, strip: slice, first_step: int, hand_over: HandOver
    ) -> Generator[tuple[Any, Any], None, None]:
        """The run's batches from a step on; see `batches`."""
        train = self.settings.train
        return batches(
            self.dataset,
            self.parts.train,
            seed=self.settings.seed,
            batch_size=train.batch_size,
            augmentation=train.augmentation,
            share=share,
            first_step=first_step,
            kind=train.order,
            strip=strip,
            hand_over=hand_over,
        )


def training_data(settings: RunSettings, root: Path) -> TrainingData:
    """Open and divide the data set that a run is trained on; raises DataError."""
    dataset = load(settings, root)
    return TrainingData(settings, dataset, split(dataset, settings))


def batches(
    dataset: Dataset,
    part: np.ndarray,
    seed: int,
    batch_size: int,
    augmentation: Augmentation,
    share: slice = slice(None),
    first_step: int = 0,
    kind: Order = "epoch",
    strip: slice = slice(None),
    hand_over: HandOver = lambda images, labels: (images, labels),
) -> Generator[tuple[Any, Any], None, None]:
    """Images uint8 [n, strip, pixels, 3] and labels uint8 [n] of one step after another, for ever.

    `part` holds the indices to draw from, `share` is this rank's of the global batch, `strip` the
    rows of pixels that it wants of every image. While one batch is used a thread reads those of the
    next AHEAD steps, and yields what `hand_over` makes of them. The only state is the step, and
    closing the generator ends the thread; an error in it is raised by the `next` that asks for its
    batch.
    """

    def read(step: int) -> tuple[Any, Any]:
        return hand_over(
            *_read(dataset, part, kind, seed, batch_size, augmentation, share, strip, step)
        )

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as reader:
        ahead = deque(reader.submit(read, first_step + number) for number in range(AHEAD))
        for step in itertools.count(first_step + AHEAD):
            ahead.append(reader.submit(read, step))
            yield ahead.popleft().result()


def _read(
    dataset: Dataset,
    part: np.ndarray,
    kind: Order,
    seed: int,
    batch_size: int,
    augmentation: Augmentation,
    share: slice,
    strip: slice,
    step: int,
) -> tuple[np.ndarray, np.ndarray]:
    chosen = part[order(seed, step, batch_size, len(part), kind)[share]]
    if augmentation.rotations or augmentation.flips or augmentation.translations:
        drawn = Choices(*(choice[share] for choice in augment(seed, step, batch_size)))
        images = apply(dataset.images[chosen], drawn, augmentation, strip)
    else:
        images = dataset.images[chosen, strip]
    return images, dataset.labels[chosen]


def first_batch(
    settings: RunSettings, dataset: Dataset, parts: Parts, count: int
) -> tuple[np.ndarray, list[np.ndarray], Augmentation]:
    """The first images of a run's first batch as stored, and as its first three steps see them.

    Also returns the augmentation: the run's own, or rotations and flips where it has none.
    """
    train = settings.train
    own, batch = train.augmentation, train.batch_size
    tried = own if any(own.model_dump().values()) else Augmentation(rotations=True, flips=True)
    first = order(settings.seed, 0, batch, len(parts.train), train.order)[:count]
    originals = dataset.images[parts.train[first]]
    versions = []
    for step in range(3):
        choices = Choices(*(c[: len(first)] for c in augment(settings.seed, step, batch)))
        versions.append(apply(originals, choices, tried))
    return originals, versions, tried
