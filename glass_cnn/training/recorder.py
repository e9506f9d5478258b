"""What is written of a run: log, metrics, TensorBoard, checkpoints, provenance, result.

A recorder exists on every rank and is silent on all but rank 0. It is handed what it writes. Where
it cannot write, it asks all ranks to stop, which they do at their next agreement.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec

import numpy as np

from glass_cnn import lineage
from glass_cnn.paths import RunDir
from glass_cnn.records import (
    Evaluation,
    Lineage,
    Result,
    Start,
    Tested,
    Usage,
    keep_evaluations,
    read_evaluations,
)
from glass_cnn.settings import RunSettings, load_run
from glass_cnn.train_settings import Train
from glass_cnn.training.engine import COUNTS
from glass_cnn.training.state import State
from glass_cnn.training.tensorboard import EventFiles
from hpc.checkpoint import Checkpoint, InvalidCheckpoint
from hpc.checkpoint_interval import Interval
from hpc.checkpoint_writer import Checkpoints
from hpc.config import to_yaml
from hpc.errors import ConfigError, UserError
from hpc.files import make_directory, storage_errors, write_atomic, write_json
from hpc.preempt import StopFlag
from hpc.records import (
    Event,
    append_event,
    append_record,
    as_dict,
    now,
    read_events,
    read_records,
)
from hpc.tensorfile import digest_tensors
from hpc.words import duration, plural
from hpc.world import World

P = ParamSpec("P")


def rank_0(
    method: Callable[Concatenate[Recorder, P], None],
) -> Callable[Concatenate[Recorder, P], None]:
    """Let a method write on rank 0 and do nothing elsewhere; a failure asks all ranks to stop."""

    @functools.wraps(method)
    def silent(self: Recorder, /, *args: P.args, **named: P.kwargs) -> None:
        if self.world.is_root:
            try:
                method(self, *args, **named)
            except UserError as error:
                self.stop.fail(error)

    return silent


def reads_state(
    method: Callable[Concatenate[Recorder, State, P], None],
) -> Callable[Concatenate[Recorder, State, P], None]:
    """Let rank 0 have the whole state in a method that all ranks call, and that may read it."""

    @functools.wraps(method)
    def gathering(self: Recorder, state: State, /, *args: P.args, **named: P.kwargs) -> None:
        with state.engine.gathering():
            method(self, state, *args, **named)

    return gathering


class Recorder:
    """The files of one run. Collective to make: raises, on every rank, StorageError or ConfigError
    for a directory that cannot be written or belongs to other settings."""

    checkpoints: Checkpoints
    """on rank 0 only"""

    def __init__(self, settings: RunSettings, run: RunDir, world: World, stop: StopFlag) -> None:
        self.settings, self.run, self.world, self.stop = settings, run, world, stop
        self._saved: tuple[int, int] | None = None
        self._interval = Interval(None)
        self._ended = False
        self._since, self._made_before = time.monotonic(), 0
        self._curves = EventFiles(run.tensorboard)
        world.on_root(self._open)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.world.is_root:
            self._curves.close()
            self.checkpoints.close()

    def _open(self) -> None:
        make_directory(self.run.path)
        claim(self.run, self.settings)
        self.checkpoints = Checkpoints(
            self.run.checkpoints,
            identity=self.settings.run_digest(),
            keep=self.settings.checkpoint.keep,
            milestone=self._stays,
            ranks=self.world.size,
            on_event=self._tell,
            on_saved=self._saved_state,
            accept=self._same_lineage,
        )

    def _saved_state(self, step: int, digest: str) -> None:
        lineage.add_digest(self.run.digests, self.settings, step, digest)

    def _same_lineage(self, found: Checkpoint) -> None:
        """Raise InvalidCheckpoint for a state that is not the one this run went through."""
        recorded = lineage.digest_at(self.run.digests, found.step)
        if recorded is not None and recorded != digest_tensors(found.tensors):
            raise InvalidCheckpoint(
                found.path,
                f"of another lineage: its state is not the one that {self.run.digests.name} has "
                f"of step {found.step}",
            )

    def _chain(self, state: State) -> str:
        digests = lineage.read_digests(self.run.digests)
        return lineage.head(self.settings, state.data, digests)

    def _stays(self, step: int) -> bool:
        newest = self._saved[1] if self._saved else 0
        return stays(self.settings, step, newest, self._ended)

    # -- log ------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        """Print a message, and append it to run.log."""
        print(text, flush=True)
        with storage_errors(self.run.log), open(self.run.log, "a", encoding="utf-8") as log:
            log.write(text + "\n")

    say = rank_0(_say)
    """print a message, and append it to run.log"""

    def _tell(self, event: Event) -> None:
        """Record an event, and print it."""
        told = as_dict(append_event(self.run.events, event))
        details = ", ".join(
            f"{key} {value}" for key, value in told.items() if key not in ("time", "event")
        )
        self._say(f"{event.event}: {details}")

    event = rank_0(_tell)
    """record something out of the ordinary, and print it"""

    # -- start ----------------------------------------------------------------------------------

    @reads_state
    @rank_0
    def started(
        self, state: State, start: Start, branched: Lineage | None, reason: str, data: str
    ) -> None:
        """Cut the records back to where the run stands and head this start's log with `data`."""
        done, step = state.progress.evaluated, state.progress.step
        keep_evaluations(self.run.metrics, done)
        lineage.cut_back(self.run.digests, step + 1)
        if step and lineage.digest_at(self.run.digests, step) is None:
            # The run ended right after the checkpoint, or was begun by a version without digests.
            self._saved_state(step, digest_tensors(state.tensors()))
        start.chain = self._chain(state)
        start.time, start.resumed_step, start.reason, start.lineage = now(), step, reason, branched
        start.numerics, start.numerics_changes = state.numerics, state.numerics_changes
        record = as_dict(start)
        if branched is None:
            del record["lineage"]
        append_record(self.run.provenance, record)
        slurm = "".join(f", {k} {v}" for k, v in (start.slurm or {}).items())
        self._say(
            f"=== {start.time} {self.run.name}: {reason}, step {step} of "
            f"{self.settings.train.steps}; {plural(self.world.size, 'rank')} on "
            f"{', '.join(start.hosts)}, start {self.starts()}{slurm}\n{data}"
        )
        self._curves.begin(read_evaluations(self.run.metrics))
        best = state.model() if self.settings.checkpoint.best else None
        self.checkpoints.prepare(state.tensors(), best)
        self._since = time.monotonic()
        self._made_before = step - done * self.settings.train.batches_per_iteration
        hours = self.settings.checkpoint.hours_between_failures
        self._interval = Interval(hours * 3600 if hours else None)

    def starts(self) -> int:
        """Starts of this run so far; the present one counts from `started` on."""
        return len(read_records(self.run.provenance))

    def stopped_by(self) -> str | None:
        """What the last start was stopped by; None when it ended without notice."""
        stops = [event for event in read_events(self.run.events) if event.event == "stopped"]
        return stops[-1].by if stops and stops[-1].start == self.starts() else None

    # -- while it runs --------------------------------------------------------------------------

    @rank_0
    def check(self) -> None:
        """Notice what went wrong in the background since the last call."""
        self.checkpoints.check()

    @reads_state
    @rank_0
    def evaluated(self, state: State, evaluation: Evaluation) -> None:
        """Write an evaluation down; keep the best model for the next checkpoint."""
        append_record(self.run.metrics, evaluation)
        self._curves.add(evaluation)
        took = time.monotonic() - self._since
        self._since += took
        made = self.settings.train.batches_per_iteration - self._made_before
        self._made_before = 0
        self._say(line(evaluation, self.settings.train, took, made))
        if state.is_best and self.settings.checkpoint.best:
            self.checkpoints.save_best(state.progress.step, state.model(), state.meta())

    @reads_state
    @rank_0
    def save_when_due(self, state: State) -> None:
        """A regular checkpoint, and one in between where failures are expected."""
        regular = state.progress.evaluated % self.settings.checkpoint.every_iterations == 0
        if regular or self._interval.due():
            self._save(state)

    def _save(self, state: State) -> None:
        """A checkpoint of the present state, in the background, unless it is saved already."""
        present = (state.progress.step, state.progress.evaluated)
        if present != self._saved:
            began = time.monotonic()
            self.checkpoints.save(state.progress.step, state.tensors(), state.meta())
            self._saved = present
            self._interval.saved(time.monotonic() - began)

    save = reads_state(rank_0(_save))

    @reads_state
    @rank_0
    def rolled_back(self, state: State, onset: int, step: int) -> None:
        """Forget what came after checkpoint `step`, but for the record that it happened."""
        done = state.progress.evaluated
        left = [e for e in read_evaluations(self.run.metrics) if e.iteration > done]
        keys = ("iteration", "validation_accuracy", "validation_loss")
        abandoned = [{key: getattr(evaluation, key) for key in keys} for evaluation in left]
        action = self.settings.train.rollback.action
        self._tell(
            Event(event="rollback", iteration=onset, step=step, action=action, abandoned=abandoned)
        )
        self.checkpoints.drop_after(step)
        keep_evaluations(self.run.metrics, done)
        lineage.cut_back(self.run.digests, step)
        self._curves.begin(read_evaluations(self.run.metrics))
        self._saved = None
        self._save(state)

    # -- ends -----------------------------------------------------------------------------------

    @reads_state
    @rank_0
    def suspended(self, state: State, by: str) -> None:
        """Make the present state durable, and say what this start was stopped by."""
        began = time.monotonic()
        self._save(state)
        self.checkpoints.flush()
        took, step = time.monotonic() - began, state.progress.step
        append_event(self.run.events, Event(event="stopped", by=by, step=step, start=self.starts()))
        self._say(
            f"stopped: {by} at step {step}; durable checkpoint after {took:.2f} s. The same "
            "command goes on from here."
        )

    @rank_0
    def finished(
        self,
        state: State,
        digest: str,
        optimal: np.ndarray | None,
        final: np.ndarray,
        examples: dict[str, int],
        usage: Usage,
    ) -> None:
        """Write result.json: the run is complete; then remove what it needs no more.

        `optimal` and `final` are the sums over the test set of the two models, in the order of
        COUNTS; `optimal` is None where the best model was not kept.
        """
        self.checkpoints.flush()
        progress = state.progress
        best_test = None if optimal is None else _accuracy(optimal)
        result = Result(
            seed=self.settings.seed,
            steps=progress.step,
            optimal=Tested(progress.best_iteration, progress.best_accuracy, best_test),
            final=Tested(progress.evaluated, progress.accuracy, _accuracy(final)),
            weights_sha256=digest,
            restarts=self.starts() - 1,
            wall_seconds=progress.seconds,
            examples=examples,
            rollbacks=progress.rollbacks,
            data=state.data,
            chain=self._chain(state),
            usage=usage,
        )
        write_json(self.run.result, as_dict(result))
        self._ended = True
        self.checkpoints.retire(self.settings.checkpoint.after_end)
        tested = "not kept for the" if best_test is None else f"{best_test:.2%}"
        self._say(
            f"done: optimal {progress.best_accuracy:.2%} validation, {tested} test at iteration "
            f"{progress.best_iteration}; final {progress.accuracy:.2%} validation, "
            f"{_accuracy(final):.2%} test; "
            f"{duration(progress.seconds)}, {plural(result.restarts, 'restart')}"
        )


def claim(run: RunDir, settings: RunSettings) -> None:
    """Write `config.yaml`; raises ConfigError for a directory that belongs to other settings."""
    if run.config.exists() and load_run(run.config).run_digest() != settings.run_digest():
        raise ConfigError(
            f"{run.path}: holds a run with other settings (see its config.yaml); use another "
            "directory or move it away."
        )
    write_atomic(run.config, to_yaml(settings))


def stays(settings: RunSettings, step: int, newest: int, ended: bool) -> bool:
    """Whether a checkpoint is a milestone, or in reach of a rollback that is yet to come.

    Those made by a request to stop are not: a rollback must not depend on interruptions. `newest`
    is the iteration that was saved last, `ended` whether the run is complete.
    """
    every = settings.checkpoint.every_iterations
    milestones = settings.checkpoint.milestone_iterations
    iteration, rest = divmod(step, settings.train.batches_per_iteration)
    if rest:
        return False
    if milestones and iteration % milestones == 0:
        return True
    rollback = settings.train.rollback
    if not rollback.enabled or ended or iteration % every:
        return False
    return iteration >= newest - (rollback.back_iterations + rollback.chance_evaluations + every)


def line(evaluation: Evaluation, train: Train, took: float, made: int) -> str:
    """The line of the log for an evaluation `took` seconds and `made` steps after the last one.

    After a restart the iteration may have steps that an earlier start made.
    """
    told = (
        f"iteration {evaluation.iteration:>{len(str(train.iterations))}}/{train.iterations}  "
        f"step {evaluation.step}  rate {evaluation.learning_rate:.3g}  "
        f"train {evaluation.train_accuracy:7.2%} {_loss(evaluation.train_loss)}  "
        f"validation {evaluation.validation_accuracy:7.2%} {_loss(evaluation.validation_loss)}"
    )
    if not made:
        return told
    speed = made * train.batch_size / took
    left = (train.steps - evaluation.step) * took / made
    return f"{told}  {speed:.0f} img/s  ETA {duration(left)}"


def _accuracy(sums: np.ndarray) -> float:
    count: dict[str, Any] = dict(zip(COUNTS, sums.tolist(), strict=True))
    return count["correct"] / count["examples"]


def _loss(value: float | None) -> str:
    return "  nan " if value is None or not math.isfinite(value) else f"{value:6.3f}"
