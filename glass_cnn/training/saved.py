"""A saved model: the weights of a run's checkpoint, and what they say about images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from glass_cnn.paths import RunDir
from glass_cnn.settings import RunSettings
from glass_cnn.tensorflow import prepare, tf
from glass_cnn.training import convolution
from glass_cnn.training.model import Network
from hpc import checkpoint, checkpoint_names
from hpc.errors import DataError

Which = Literal["best", "latest"]
WORDS = {"best": "optimal", "latest": "final"}
"""what the results log calls them, once a run is complete"""


class SavedModel:
    """The network of a run, with the weights of its best or its newest checkpoint."""

    def __init__(self, run: RunDir, settings: RunSettings, saved: checkpoint.Checkpoint) -> None:
        precision = settings.train.precision
        prepare(precision=precision)  # as in training
        self.run, self.settings, self.saved = run, settings, saved
        pixels = settings.render.pixels
        self.network = Network(
            settings.recipe,
            pixels,
            settings.seed,
            precision=precision,
            convolve=convolution.chosen(),
        )
        for name, variable in self.network.parameters.items():
            variable.assign(saved.tensors[f"model/{name}"])
        self._logits = tf.function(
            self.network.logits,
            autograph=False,
            input_signature=[tf.TensorSpec((None, pixels, pixels, 3), tf.uint8)],
        )

    @property
    def iteration(self) -> int:
        """Iterations the run had trained when this was saved."""
        return self.saved.step // self.settings.train.batches_per_iteration

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 [n, 2] of uint8 images [n, pixels, pixels, 3], without dropout.

        Images go through in the portions of the run's own evaluations on one rank, so that
        rounding is the same. Raises DataError when they are of another size.
        """
        pixels = self.settings.render.pixels
        if images.shape[1:] != (pixels, pixels, 3):
            raise DataError(
                f"{self.run.path}: its network sees images of {pixels} px; these have "
                f"{images.shape[1]} px. Evaluate it on data of its own size."
            )
        size = self.settings.train.evaluation_batch
        starts = range(0, len(images), size)
        found = [self._logits(tf.constant(images[s : s + size])).numpy() for s in starts]
        return np.concatenate(found) if found else np.zeros((0, 2), np.float32)


def open_model(run: RunDir, settings: RunSettings, which: Which) -> SavedModel:
    """Read and verify a checkpoint of a run; raises DataError when there is none to be used."""
    saved = _saved(run, which)
    if saved is None:
        raise DataError(
            f"{run.path}: has no {WORDS[which]} model ('{which}'); train it with make submit, or "
            "ask for the other one with --which."
        )
    return SavedModel(run, settings, saved)


def open_all(run: RunDir, settings: RunSettings) -> Iterator[tuple[Which, SavedModel]]:
    """The best and the newest model of a run, those of them that were kept.

    Raises DataError when none was.
    """
    kinds: tuple[Which, ...] = ("best", "latest")
    found = 0
    for which in kinds:
        saved = _saved(run, which)
        if saved is not None:
            found += 1
            yield which, SavedModel(run, settings, saved)
    if not found:
        raise DataError(f"{run.path}: has no saved model yet; train it with make submit.")


def _saved(run: RunDir, which: Which) -> checkpoint.Checkpoint | None:
    if which == "latest":
        return checkpoint.newest(run.checkpoints, None, lambda refused: print(refused))
    best = run.checkpoints / checkpoint_names.BEST
    return checkpoint.read(best) if best.is_dir() else None
