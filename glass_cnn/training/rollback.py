"""When a run goes back, and how: `train.rollback`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np

from glass_cnn.outcomes import Evaluations, at_chance, classify, streaks
from glass_cnn.paths import RunDir
from glass_cnn.records import Evaluation, read_evaluations
from glass_cnn.settings import Analysis, RunSettings
from glass_cnn.train_settings import Rollback
from glass_cnn.training.recorder import Recorder
from glass_cnn.training.state import State
from hpc.checkpoint import NoValidCheckpoint
from hpc.moments import reached
from hpc.records import Event
from hpc.world import World


class Rollbacks:
    """Returns of one run to a checkpoint from before a collapse; each is recorded."""

    def __init__(
        self, settings: RunSettings, run: RunDir, world: World, recorder: Recorder
    ) -> None:
        self.settings, self.run, self.world, self.recorder = settings, run, world, recorder

    def go_back_if_due(self, state: State) -> None:
        """After a collapse, return to a checkpoint from before it; all ranks."""
        rollback = self.settings.train.rollback
        if not rollback.enabled or len(state.progress.rollbacks) >= rollback.at_most:
            return
        found = self.world.broadcast(self.world.on_root(self._onset))
        if found is None:
            return
        step = self.world.broadcast(self.world.on_root(lambda: self._return_before(found, state)))
        state.share(self.world)
        if step is not None:
            if rollback.action == "fresh_optimizer":
                state.engine.optimizer.reset()
            self.recorder.rolled_back(state, found, step)

    def _onset(self) -> int | None:
        records = read_evaluations(self.run.metrics)
        return onset(records, self.settings.train.rollback, self.settings.analysis)

    def _return_before(self, onset: int, state: State) -> int | None:
        """Rank 0: set the state of a checkpoint before iteration `onset`, and what is changed.

        Returns its step; None where no checkpoint can be used.
        """
        reached("go back")
        rollback, before = self.settings.train.rollback, state.progress
        # Of the regular checkpoints: those of interruptions would lead to other bits.
        goal = max(onset - rollback.back_iterations, 0)
        goal -= goal % self.settings.checkpoint.every_iterations
        goal *= self.settings.train.batches_per_iteration
        found = None
        with contextlib.suppress(NoValidCheckpoint):  # newer ones may well be valid
            found = self.recorder.checkpoints.latest(at_most=goal)
        if found is None:
            before.rollbacks = [*before.rollbacks, onset]  # a try: it cannot succeed later
            reason = f"no checkpoint at or before step {goal} can be used"
            event = Event(event="rollback_impossible", iteration=onset, reason=reason)
            self.recorder.event(event)
            return None
        state.restore(found)
        state.progress = dataclasses.replace(
            state.progress,
            seconds=before.seconds,
            skipped=before.skipped,
            rate_factor=before.rate_factor,
            rollbacks=[*before.rollbacks, onset],
        )
        match rollback.action:
            case "skip":
                state.progress.skipped += rollback.skip_steps
            case "lower_rate":
                state.progress.rate_factor *= rollback.rate_factor
        return found.step


def onset(records: Sequence[Evaluation], rollback: Rollback, analysis: Analysis) -> int | None:
    """Iteration at which a collapse began, once it is one; None as long as there is none.

    A collapse is a loss that is not finite, or chance in `rollback.chance_evaluations`
    evaluations in a row after the run had learned, both as `analysis` defines them.

    Args:
        records: the run's evaluations in order, as in metrics.jsonl.
    """
    if not records:
        return None
    finite = np.array([record.finite for record in records])
    if not finite.all():
        return records[int(np.argmin(finite))].iteration
    run = Evaluations(
        step=np.array([record.step for record in records]),
        finite=finite,
        accuracy=np.array([record.validation_accuracy for record in records], float),
        glass_fraction=np.array([record.predicted_glass_fraction for record in records], float),
        examples=np.array([record.validation_examples for record in records], float),
        glass=np.array([record.validation_glass for record in records], float),
    )
    if classify(run, analysis).first_bad is None:
        return None
    chance = at_chance(run.accuracy, run.glass_fraction, run.examples, run.glass, analysis)
    lasted = int(streaks(chance)[-1])
    if lasted < rollback.chance_evaluations:
        return None
    return records[len(records) - lasted].iteration
