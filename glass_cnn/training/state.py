"""The state of a run: exactly what a checkpoint holds, and what the next step follows from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from glass_cnn import data_identity, numerics
from glass_cnn.records import DataIdentity, Evaluation, Numerics, NumericsChange
from glass_cnn.settings import RunSettings
from glass_cnn.training.diagnostics import output_statistics
from glass_cnn.training.engine import COUNTS, Engine, Sums
from glass_cnn.training.schedule import learning_rate
from hpc.checkpoint import Checkpoint
from hpc.tensorfile import Tensors, digest_tensors
from hpc.world import World


@dataclass
class Progress:
    """How far a run is; a part of the `meta` of a checkpoint."""

    step: int = 0
    """updates made"""
    evaluated: int = 0
    """iterations evaluated and recorded"""
    skipped: int = 0
    """steps by which order and masks are ahead of `step`, after rollbacks"""
    rate_factor: float = 1.0
    """factor on the learning rate, after rollbacks"""
    loss_sum: float = 0.0
    """sum of the steps' training losses since the last evaluation"""
    correct: int = 0
    """training examples classified correctly since the last evaluation"""
    accuracy: float | None = None
    """last validation accuracy"""
    best_accuracy: float = -1.0
    best_iteration: int = 0
    seconds: float = 0.0
    """wall time of all starts together, s"""
    rollbacks: list[int] = field(default_factory=list)
    """iterations at which the run went back"""
    diagnosis: dict[str, Any] = field(default_factory=dict)
    """measurements after the iteration's last step, for the record of the evaluation to come"""


class State:
    """Weights and optimizer (in `engine`) and progress; the same on every rank after `share`."""

    def __init__(
        self,
        settings: RunSettings,
        engine: Engine,
        data: DataIdentity,
        numerics: Numerics,
        training_examples: int,
    ) -> None:
        self.settings, self.engine = settings, engine
        self.numerics = msgspec.structs.replace(numerics, division=engine.division.kind)
        self.data, self.training_examples = data, training_examples
        self.progress = Progress()
        self.numerics_changes: list[NumericsChange] = []
        self._uncounted: Sums | None = None
        self._clock = time.monotonic()

    # -- what a checkpoint holds --------------------------------------------------------------

    def tensors(self) -> Tensors:
        """Every tensor, to be read until the next step; see `Engine.snapshot`."""
        return self.engine.snapshot()

    def model(self) -> Tensors:
        """The weights alone."""
        return self.engine.snapshot("model/")

    def digest(self, tensors: Tensors) -> str:
        """SHA-256 of some of them, on every rank; collective."""
        with self.engine.gathering():
            own = digest_tensors(tensors) if self.engine.world.is_root else ""
        return self.engine.world.broadcast(own)

    def meta(self) -> dict[str, Any]:
        """Progress, updates that the optimizer has seen, and numerics, as JSON values."""
        self.count()
        self.tick()
        return dataclasses.asdict(self.progress) | {
            "updates": self.engine.optimizer.count,
            "data": msgspec.to_builtins(self.data),
            "numerics": msgspec.to_builtins(self.numerics),
            "numerics_changes": msgspec.to_builtins(self.numerics_changes),
        }

    def restore(self, checkpoint: Checkpoint) -> NumericsChange | None:
        """Go on where a checkpoint was made; raises DataError for one of other data.

        Tells where it was made under other numerics.
        """
        meta = checkpoint.meta
        data_identity.check(checkpoint.path, data_identity.of(meta.get("data")), self.data)
        self._uncounted = None
        names = {field.name for field in dataclasses.fields(Progress)}
        self.progress = Progress(**{key: meta[key] for key in meta if key in names})
        self.begin_with(checkpoint.tensors, int(meta["updates"]))
        before = msgspec.convert(meta.get("numerics"), Numerics | None)
        self.numerics_changes = msgspec.convert(
            meta.get("numerics_changes", []), list[NumericsChange]
        )
        what = numerics.changes(before, self.numerics)
        if what is None:
            return None
        self.numerics_changes.append(NumericsChange(self.progress.step, what))
        return self.numerics_changes[-1]

    def begin_with(self, tensors: Mapping[str, np.ndarray], updates: int) -> None:
        """Take tensors, and the number of updates that the optimizer's state has seen."""
        self.engine.assign(dict(tensors))
        self.engine.optimizer.count = updates

    def share(self, world: World) -> None:
        """Give every rank what rank 0 has."""
        self.progress = world.broadcast(self.progress)
        self.numerics_changes = world.broadcast(self.numerics_changes)
        self.engine.optimizer.count = world.broadcast(self.engine.optimizer.count)
        self.engine.broadcast()

    # -- what follows from it -----------------------------------------------------------------

    @property
    def sample_step(self) -> int:
        """Step that order, augmentation and masks follow from."""
        return self.progress.step + self.progress.skipped

    @property
    def evaluation_due(self) -> bool:
        """Whether the last step ended an iteration that is not evaluated yet."""
        done, rest = divmod(self.progress.step, self.settings.train.batches_per_iteration)
        return rest == 0 and done > self.progress.evaluated

    def rate(self, step: int) -> float:
        """Learning rate of update number `step`; before the next evaluation is taken in."""
        train, progress = self.settings.train, self.progress
        rate = learning_rate(
            train.learning_rate, step, train.batches_per_iteration, progress.accuracy
        )
        return rate * progress.rate_factor

    # -- how it goes on -----------------------------------------------------------------------

    def take_step(self, sums: Sums) -> None:
        """Count an update that is under way. Its sums are read when the next one is."""
        self.progress.step += 1
        self.count()
        self._uncounted = sums

    def count(self) -> None:
        """Add the sums of the last step, which waits for it."""
        if self._uncounted is not None:
            self.progress.loss_sum += self._uncounted.loss
            self.progress.correct += self._uncounted.correct
            self._uncounted = None

    def take_evaluation(self, counts: np.ndarray) -> Evaluation:
        """Take in an evaluation (sums in the order of COUNTS) and return its record."""
        self.count()
        progress, train = self.progress, self.settings.train
        count = dict(zip(COUNTS, counts.tolist(), strict=True))
        rate = self.rate(progress.step - 1)
        progress.evaluated += 1
        progress.accuracy = count["correct"] / count["examples"]
        self.tick()
        if progress.accuracy > progress.best_accuracy:
            progress.best_accuracy = progress.accuracy
            progress.best_iteration = progress.evaluated
        train_loss = progress.loss_sum / train.batches_per_iteration
        record = Evaluation(
            iteration=progress.evaluated,
            step=progress.step,
            epoch=progress.step * train.batch_size / self.training_examples,
            learning_rate=rate,
            train_accuracy=progress.correct / (train.batches_per_iteration * train.batch_size),
            train_loss=train_loss,
            l2_loss=train.l2 * float(self.engine.network.l2()),
            validation_accuracy=progress.accuracy,
            validation_loss=count["loss"] / count["examples"],
            predicted_glass_fraction=count["predicted_glass"] / count["examples"],
            validation_examples=int(count["examples"]),
            validation_glass=int(count["glass"]),
            finite=bool(np.isfinite([train_loss, count["loss"]]).all()),
            seconds=progress.seconds,
            diagnostics=output_statistics(counts) | progress.diagnosis,
        )
        progress.loss_sum, progress.correct, progress.diagnosis = 0.0, 0, {}
        return record

    @property
    def is_best(self) -> bool:
        """Whether the last evaluation is the best so far."""
        return self.progress.best_iteration == self.progress.evaluated

    def tick(self) -> None:
        """Count the wall time up to now."""
        now = time.monotonic()
        self.progress.seconds += now - self._clock
        self._clock = now
