"""What rank 0 writes of a run: log, metrics, TensorBoard, checkpoints, provenance, result."""

from __future__ import annotations

import contextlib
import datetime
import errno
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from glass_cnn.paths import RunDir
from glass_cnn.settings import RunSettings
from glass_cnn.training.engine import COUNTS
from hpc.checkpoint_writer import Checkpoints
from hpc.config import to_yaml, validate
from hpc.errors import ConfigError
from hpc.files import (
    append_record,
    keep_records,
    make_directory,
    read_records,
    storage_errors,
    write_atomic,
    write_json,
)
from hpc.words import plural
from hpc.yaml_files import read_yaml

if TYPE_CHECKING:
    from glass_cnn.training.loop import Job

CURVES = (
    "learning_rate", "train_accuracy", "train_loss", "l2_loss", "validation_accuracy",
    "validation_loss", "predicted_glass_fraction",
)  # fmt: skip


class Recorder:
    """Rank 0's files of one run. Raises StorageError wherever they cannot be written."""

    def __init__(self, settings: RunSettings, run: RunDir, ranks: int) -> None:
        self.settings, self.run = settings, run
        self.lineage: dict[str, Any] | None = None
        make_directory(run.path)
        self._claim()
        self._saved: tuple[int, int] | None = None
        self._ended = False
        self.checkpoints = Checkpoints(
            run.checkpoints,
            identity=settings.run_digest(),
            keep=settings.checkpoint.keep,
            milestone=self._stays,
            ranks=ranks,
            on_event=self.event,
        )
        self._events: Any = None
        self._since = time.monotonic()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._events is not None:
            with contextlib.suppress(tf.errors.OpError):  # everything in it has been flushed
                self._events.close()
        self.checkpoints.close()

    def _claim(self) -> None:
        """Write `config.yaml`, or refuse a directory that belongs to other settings."""
        if self.run.config.exists():
            old = validate(RunSettings, read_yaml(self.run.config), str(self.run.config))
            if old.run_digest() != self.settings.run_digest():
                raise ConfigError(
                    f"{self.run.path}: holds a run with other settings (see its config.yaml); "
                    "use another directory or move it away."
                )
        write_atomic(self.run.config, to_yaml(self.settings))

    def _stays(self, step: int) -> bool:
        """Whether a checkpoint is a milestone, or in reach of a rollback that is yet to come.

        Those made by a request to stop are not: a rollback must not depend on interruptions.
        """
        batches, settings = self.settings.train.batches_per_iteration, self.settings.checkpoint
        iteration, rest = divmod(step, batches)
        if rest:
            return False
        if settings.milestone_iterations and iteration % settings.milestone_iterations == 0:
            return True
        rollback = self.settings.train.rollback
        if not rollback.enabled or self._ended or iteration % settings.every_iterations:
            return False
        newest = self._saved[1] if self._saved else 0
        back = rollback.back_iterations + rollback.chance_evaluations + settings.every_iterations
        return iteration >= newest - back

    # -- log ------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """One message to standard output and run.log."""
        print(text, flush=True)
        with storage_errors(self.run.log), open(self.run.log, "a", encoding="utf-8") as log:
            log.write(text + "\n")

    def event(self, event: dict[str, Any]) -> None:
        """Record something out of the ordinary, and say it."""
        append_record(self.run.events, {"time": _now(), **event})
        details = ", ".join(f"{k} {v}" for k, v in event.items() if k != "event")
        self.say(f"{event['event']}: {details}")

    # -- start ------------------------------------------------------------------------------------

    def started(self, job: Job, hosts: list[str], reason: str, start: dict[str, Any]) -> None:
        """Cut the records back to where the run stands and head this start's log."""
        done = job.progress.evaluated
        keep_records(self.run.metrics, lambda record: record.get("iteration", 0) <= done)
        record = {
            "time": _now(),
            **start,
            "hosts": sorted(set(hosts)),
            "ranks": len(hosts),
            "resumed_step": job.progress.step,
            "reason": reason,
        }
        if self.lineage is not None:
            record["lineage"] = self.lineage
        append_record(self.run.provenance, record)
        slurm = "".join(f", {k} {v}" for k, v in start.get("slurm", {}).items())
        self.say(
            f"=== {record['time']} {self.run.name}: {reason}, step {job.progress.step} of "
            f"{self.settings.train.steps}; {plural(len(hosts), 'rank')} on "
            f"{', '.join(record['hosts'])}, start {self.starts()}{slurm}"
        )
        self.say(f"{job.data.path.name}: {len(job.data)} images\n{job.parts.describe()}")
        self._open_tensorboard()
        best = job.engine.snapshot("model/") if self.settings.checkpoint.best else None
        self.checkpoints.prepare(job.engine.snapshot(), best)
        self._since = time.monotonic()

    def _open_tensorboard(self) -> None:
        """Event files hold exactly what metrics.jsonl holds: made anew at every start."""
        with _event_errors(self.run.tensorboard):
            for old in self.run.tensorboard.glob("events.out.tfevents.*"):
                old.unlink()
            self._events = tf.summary.create_file_writer(str(self.run.tensorboard))
        for record in read_records(self.run.metrics):
            self._plot(record)

    def _plot(self, record: dict[str, Any]) -> None:
        with _event_errors(self.run.tensorboard), self._events.as_default(step=record["step"]):
            for key in CURVES:
                if record[key] is not None:
                    tf.summary.scalar(key, record[key])
            self._events.flush()

    # -- while it runs ----------------------------------------------------------------------------

    def check(self) -> None:
        """Raise what went wrong in the background since the last call."""
        self.checkpoints.check()

    def evaluated(self, job: Job, record: dict[str, Any], improved: bool) -> None:
        """Write one evaluation down; keep the best model for the next checkpoint."""
        append_record(self.run.metrics, record)
        self._plot(record)
        self._report(record)
        progress = job.progress
        if improved and self.settings.checkpoint.best:
            self.checkpoints.save_best(progress.step, job.engine.snapshot("model/"), job.meta())

    def save_when_due(self, job: Job) -> None:
        """A checkpoint every so many iterations."""
        if job.progress.evaluated % self.settings.checkpoint.every_iterations == 0:
            self.save(job)

    def _report(self, record: dict[str, Any]) -> None:
        train = self.settings.train
        now = time.monotonic()
        took, self._since = now - self._since, now
        left = (train.iterations - record["iteration"]) * took
        speed = train.batches_per_iteration * train.batch_size / took
        self.say(
            f"iteration {record['iteration']:>{len(str(train.iterations))}}/{train.iterations}  "
            f"step {record['step']}  rate {record['learning_rate']:.3g}  "
            f"train {record['train_accuracy']:7.2%} {_loss(record['train_loss'])}  "
            f"validation {record['validation_accuracy']:7.2%} "
            f"{_loss(record['validation_loss'])}  {speed:.0f} img/s  ETA {_duration(left)}"
        )

    def save(self, job: Job) -> None:
        """A checkpoint of the present state, in the background, unless it is saved already."""
        state = (job.progress.step, job.progress.evaluated)
        if state != self._saved:
            self.checkpoints.save(job.progress.step, job.engine.snapshot(), job.meta())
            self._saved = state

    def rolled_back(self, job: Job, onset: int, step: int, action: str) -> None:
        """Forget what came after checkpoint `step`, but for the record that it happened."""
        done = job.progress.evaluated
        left = [r for r in read_records(self.run.metrics) if r["iteration"] > done]
        keys = ("iteration", "validation_accuracy", "validation_loss")
        self.event(
            {
                "event": "rollback",
                "iteration": onset,
                "step": step,
                "action": action,
                "abandoned": [{key: record[key] for key in keys} for record in left],
            }
        )
        self.checkpoints.drop_after(step)
        keep_records(self.run.metrics, lambda record: record["iteration"] <= done)
        self._open_tensorboard()
        self._saved = None
        self.save(job)

    # -- ends -------------------------------------------------------------------------------------

    def suspended(self, job: Job, by: str) -> None:
        """Make the present state durable, and say what this start was stopped by."""
        began = time.monotonic()
        self.save(job)
        self.checkpoints.flush()
        took, step = time.monotonic() - began, job.progress.step
        stop = {"event": "stopped", "by": by, "step": step, "start": self.starts()}
        append_record(self.run.events, {"time": _now(), **stop})
        self.say(
            f"stopped: {by} at step {step}; durable checkpoint after {took:.2f} s. The same "
            "command goes on from here."
        )

    def stopped_by(self) -> str | None:
        """What the last start was stopped by; None when it ended without notice."""
        stops = [r for r in read_records(self.run.events) if r.get("event") == "stopped"]
        return stops[-1]["by"] if stops and stops[-1]["start"] == self.starts() else None

    def starts(self) -> int:
        """Starts of this run so far; the present one counts from `started` on."""
        return len(read_records(self.run.provenance))

    def finished(
        self,
        job: Job,
        digest: str,
        optimal: np.ndarray | None,
        final: np.ndarray,
    ) -> None:
        """Write result.json: the run is complete; then remove what it needs no more."""
        progress = job.progress
        result: dict[str, Any] = {
            "seed": self.settings.seed,
            "steps": progress.step,
            "optimal": {
                "iteration": progress.best_iteration,
                "validation_accuracy": progress.best_accuracy,
                "test_accuracy": None if optimal is None else _accuracy(optimal),
            },
            "final": {
                "iteration": progress.evaluated,
                "validation_accuracy": progress.accuracy,
                "test_accuracy": _accuracy(final),
            },
            "weights_sha256": digest,
            "restarts": self.starts() - 1,
            "wall_seconds": progress.seconds,
            "examples": {
                part: len(getattr(job.parts, part)) for part in ("train", "validation", "test")
            },
            "rollbacks": progress.rollbacks,
        }
        write_json(self.run.result, result)
        self._ended = True
        self.checkpoints.retire(self.settings.checkpoint.after_end)
        tested = "not kept for the" if optimal is None else f"{_accuracy(optimal):.2%}"
        self.say(
            f"done: optimal {progress.best_accuracy:.2%} validation, {tested} test at iteration "
            f"{progress.best_iteration}; final {progress.accuracy:.2%} validation, "
            f"{_accuracy(final):.2%} test; "
            f"{_duration(progress.seconds)}, {plural(result['restarts'], 'restart')}"
        )


@contextlib.contextmanager
def _event_errors(path: Path) -> Iterator[None]:
    """`storage_errors` for TensorBoard's files, whose errors are TensorFlow's."""
    with storage_errors(path):
        try:
            yield
        except tf.errors.OpError as error:
            full = isinstance(error, tf.errors.ResourceExhaustedError)
            number = errno.ENOSPC if full else errno.EIO
            raise OSError(number, os.strerror(number), str(path)) from error


def _accuracy(sums: np.ndarray) -> float:
    count = dict(zip(COUNTS, sums.tolist(), strict=True))
    return count["correct"] / count["examples"]


def _loss(value: float | None) -> str:
    return "  nan " if value is None or not math.isfinite(value) else f"{value:6.3f}"


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
