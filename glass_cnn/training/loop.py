"""One training run, on all its ranks: the loop, what a restart needs, and what is recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from glass_cnn.data import dataset as data
from glass_cnn.paths import RunDir
from glass_cnn.settings import RunSettings
from glass_cnn.training.branch import open_branch
from glass_cnn.training.diagnostics import Diagnostics, output_statistics
from glass_cnn.training.engine import COUNTS, Engine, StepResult, portions, set_up_tensorflow
from glass_cnn.training.recorder import Recorder
from glass_cnn.training.schedule import learning_rate
from hpc.checkpoint import NoValidCheckpoint
from hpc.checkpoint_writer import Checkpoints
from hpc.errors import EXIT_AGAIN, EXIT_COMPLETE, UserError
from hpc.files import read_records, storage_errors
from hpc.heartbeat import Heartbeat
from hpc.preempt import StopFlag, signal_name
from hpc.tensorfile import digest_tensors
from hpc.world import World

PROBE_IMAGES = 64


@dataclass
class Progress:
    """Everything a restart needs besides the tensors; lives in the checkpoint's `meta`."""

    step: int = 0
    """updates made"""
    evaluated: int = 0
    """iterations evaluated and recorded"""
    updates: int = 0
    """updates the optimizer's state has seen (fewer than `step` after a reset)"""
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


def train(
    settings: RunSettings, run: RunDir, root: Path, world: World, stop: StopFlag, start: dict
) -> int:
    """Train one run from where it stands to its end, or to a request to stop; all ranks.

    Args:
        settings: the run's settings; `run` is its directory, `root` the logs directory.
        stop: flag of this process; whatever any rank has caught, all act on.
        start: provenance of this start (code, versions, slurm) that only the caller can know.

    Returns:
        EXIT_COMPLETE, or EXIT_AGAIN when stopped at a checkpoint.

    Raises:
        UserError on every rank: data missing, disk full, settings that do not fit the run.
    """
    with Job(settings, run, root, world, stop) as job:
        if world.broadcast(run.is_done()):  # by the process that this one has waited for
            return EXIT_COMPLETE
        job.restore(start)
        while True:
            # All ranks: one answer, so that none waits in a collective that another never enters.
            if request := stop.agreed(world):
                return job.suspend(request)
            # All ranks: every `batches_per_iteration` steps the whole validation set, shared out.
            if job.evaluation_due:
                counts = job.evaluate(job.parts.validation, settings.train.evaluation_examples)
                if counts is not None:  # None: somebody asked to stop in the middle
                    job.record(counts)  # rank 0: metrics, best model
                    job.roll_back()  # all ranks, where the settings ask for it: after a collapse
                    job.save()  # rank 0: a checkpoint, where one is due
                continue
            if job.progress.step >= settings.train.steps:
                return job.finish()
            # All ranks: this rank's rows of the global batch, gradients summed, one update.
            job.step()


class Job:
    """The parts of one run: data, engine, progress, and on rank 0 the recorder."""

    recorder: Recorder
    """on rank 0 only"""

    def __init__(
        self, settings: RunSettings, run: RunDir, root: Path, world: World, stop: StopFlag
    ) -> None:
        self.settings, self.run, self.root = settings, run, root
        self.world, self.stop = world, stop
        self.progress = Progress()
        self.batches: Iterator[tuple[np.ndarray, np.ndarray]] | None = None
        self.last: StepResult | None = None
        self.open = ExitStack()

    def __enter__(self) -> Job:
        try:
            self._enter()
        except BaseException:
            self.open.close()
            raise
        return self

    def _enter(self) -> None:
        settings, world = self.settings, self.world
        set_up_tensorflow(settings.launch.threads_per_rank, world)
        self.world.on_root(self._open_recorder)
        self.heart = self.open.enter_context(self.world.everywhere(self._open_heartbeat))
        self.data = self.world.everywhere(lambda: data.load(settings, self.root))
        self.parts = self.world.everywhere(lambda: data.split(self.data, settings))
        self.engine = self.world.everywhere(lambda: Engine(settings, world))
        self.diagnostics = Diagnostics(
            self.engine.network,
            self.engine.optimizer,
            self.data.images[np.sort(self.parts.validation[:PROBE_IMAGES])],
        )
        self.clock = time.monotonic()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.open.close()

    def _open_heartbeat(self) -> Heartbeat:
        limit = self.settings.launch.hang_seconds
        return Heartbeat(self.run.heartbeats, self.world.rank, self.world.size, limit)

    def _open_recorder(self) -> None:
        self.recorder = self.open.enter_context(Recorder(self.settings, self.run, self.world.size))

    # -- where the run stands ---------------------------------------------------------------

    def restore(self, start: dict) -> None:
        """Set weights, optimizer and progress: newest checkpoint, else another run's, else new."""
        reason = self.world.on_root(self._restore_on_root) or ""
        self._share_state()
        hosts = self.world.hosts
        self.world.on_root(lambda: self.recorder.started(self, hosts, reason, start))

    def _restore_on_root(self) -> str:
        checkpoint = self.recorder.checkpoints.latest()
        if checkpoint is not None:
            self.progress = Progress(**checkpoint.meta)
            self.engine.assign(checkpoint.tensors)
            return f"resumed after {self.recorder.stopped_by() or 'an end without notice'}"
        branch = open_branch(self.settings, self.root, self.engine.state())
        if branch is not None:
            self.engine.assign(branch.tensors)
            self.progress.updates = branch.updates
            self.recorder.lineage = branch.lineage
            return f"branched from {branch.lineage['checkpoint']}"
        return "begun again without a checkpoint" if self.recorder.starts() else "new run"

    def _share_state(self) -> None:
        """Give every rank what rank 0 has just set: progress, weights, optimizer; start reading."""
        self.progress = self.world.broadcast(self.progress)
        self.engine.broadcast()
        self.engine.optimizer.count = self.progress.updates
        self._feed()

    def roll_back(self) -> None:
        """After a collapse, return to a checkpoint from before it; every rollback is recorded."""
        rollback = self.settings.train.rollback
        if not rollback.enabled or len(self.progress.rollbacks) >= rollback.at_most:
            return
        # Here, not above: it brings SciPy's statistics, a second of every start, for a rare use.
        from glass_cnn.training.rollback import onset as find_onset

        onset = self.world.broadcast(
            self.world.on_root(
                lambda: find_onset(read_records(self.run.metrics), rollback, self.settings.analysis)
            )
        )
        if onset is not None:
            self.world.on_root(lambda: self._return_before(onset))
            self._share_state()

    def _return_before(self, onset: int) -> None:
        """Rank 0: set the state of a checkpoint before iteration `onset`, and what is changed."""
        rollback, before = self.settings.train.rollback, self.progress
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
            event = {"event": "rollback_impossible", "iteration": onset, "reason": reason}
            self.recorder.event(event)
            return
        self.engine.assign(found.tensors)
        self.progress = dataclasses.replace(
            Progress(**found.meta),
            seconds=before.seconds,
            skipped=before.skipped,
            rate_factor=before.rate_factor,
            rollbacks=[*before.rollbacks, onset],
        )
        match rollback.action:
            case "skip":
                self.progress.skipped += rollback.skip_steps
            case "lower_rate":
                self.progress.rate_factor *= rollback.rate_factor
            case "fresh_optimizer":
                self.engine.optimizer.reset()
                self.progress.updates = 0
        self.recorder.rolled_back(self, onset, found.step, rollback.action)

    def _feed(self) -> None:
        """Start reading batches at the present step."""
        if self.batches is not None:
            self.batches.close()  # type: ignore[attr-defined]
        train = self.settings.train
        self.batches = data.batches(
            self.data,
            self.parts.train,
            seed=self.settings.seed,
            batch_size=train.batch_size,
            augmentation=train.augmentation,
            rows=self.engine.share,
            first_step=self.sample_step,
        )
        self.open.callback(self.batches.close)

    @property
    def sample_step(self) -> int:
        """Step that order, augmentation and masks follow from."""
        return self.progress.step + self.progress.skipped

    @property
    def evaluation_due(self) -> bool:
        done, rest = divmod(self.progress.step, self.settings.train.batches_per_iteration)
        return rest == 0 and done > self.progress.evaluated

    # -- training and evaluation ------------------------------------------------------------

    def step(self) -> None:
        """One update on one global batch."""
        progress = self.progress
        self.heart.beat(f"before step {progress.step + 1}")
        self.last = None  # lets the old gradients go before new ones are made
        images, labels = next(self.batches)  # type: ignore[arg-type]
        rate = self._rate(progress.step)
        self.last = self.engine.train_step(images, labels, self.sample_step, rate)
        progress.step += 1
        progress.updates = self.engine.optimizer.count
        progress.loss_sum += self.last.loss
        progress.correct += self.last.correct
        if self.world.is_root:
            self._guard(self.recorder.check)
            if self.evaluation_due:
                # Now, not at the evaluation: a restart in between has no gradients any more.
                progress.diagnosis = self._diagnose(self.last.gradients, rate)

    def _diagnose(self, gradients: dict[str, Any], rate: float) -> dict[str, Any]:
        """Those measurements that are due after an iteration's last step."""
        train, number = self.settings.train, self.progress.evaluated + 1
        found: dict[str, Any] = {}
        if train.diagnostics_every and number % train.diagnostics_every == 0:
            found |= self.diagnostics.measure(gradients, rate)
        if train.curvature_every and number % train.curvature_every == 0:
            labels = self.parts.labels[np.sort(self.parts.validation[:PROBE_IMAGES])]
            found |= self.diagnostics.curvature(labels, train.l2, rate)
        return found

    def _rate(self, step: int) -> float:
        """Learning rate of the update number `step`; before the next evaluation is taken in."""
        train = self.settings.train
        rate = learning_rate(
            train.learning_rate, step, train.batches_per_iteration, self.progress.accuracy
        )
        return rate * self.progress.rate_factor

    def evaluate(self, part: np.ndarray, at_most: int | None = None) -> np.ndarray | None:
        """Sums of COUNTS over the examples of `part` (indices), each counted once on one rank.

        Returns None on every rank as soon as any rank was asked to stop.
        """
        part = part[:at_most]
        sums = np.zeros(len(COUNTS))
        for portion in portions(self.world, len(part), self.settings.train.evaluation_batch):
            self.heart.beat(f"evaluating after step {self.progress.step}")
            chosen = part[portion]
            if len(chosen):
                sums += self.engine.evaluate(self.data.images[chosen], self.parts.labels[chosen])
            if self.stop.agreed(self.world):
                return None
        return self.world.sum(sums)

    def record(self, counts: np.ndarray) -> None:
        """Take an evaluation into the progress; rank 0 writes it down and saves what is due."""
        progress, train = self.progress, self.settings.train
        seen = train.batches_per_iteration * train.batch_size
        count = dict(zip(COUNTS, counts.tolist(), strict=True))
        rate = self._rate(progress.step - 1)
        progress.evaluated += 1
        progress.accuracy = count["correct"] / count["examples"]
        self._tick()
        improved = progress.accuracy > progress.best_accuracy
        if improved:
            progress.best_accuracy = progress.accuracy
            progress.best_iteration = progress.evaluated
        train_loss = progress.loss_sum / train.batches_per_iteration
        train_accuracy = progress.correct / seen
        diagnosis, progress.diagnosis = progress.diagnosis, {}
        progress.loss_sum, progress.correct = 0.0, 0
        if self.world.is_root:
            record = {
                "iteration": progress.evaluated,
                "step": progress.step,
                "epoch": progress.step * train.batch_size / len(self.parts.train),
                "learning_rate": rate,
                "train_accuracy": train_accuracy,
                "train_loss": train_loss,
                "l2_loss": train.l2 * float(self.engine.network.l2()),
                "validation_accuracy": progress.accuracy,
                "validation_loss": count["loss"] / count["examples"],
                "predicted_glass_fraction": count["predicted_glass"] / count["examples"],
                "validation_examples": int(count["examples"]),
                "validation_glass": int(count["glass"]),
                "finite": bool(np.isfinite([train_loss, count["loss"]]).all()),
                "seconds": progress.seconds,
                "diagnostics": output_statistics(counts) | diagnosis,
            }
            self._guard(lambda: self.recorder.evaluated(self, record, improved))

    def save(self) -> None:
        """Rank 0: a checkpoint after this evaluation, where one is due.

        Last, so that a run resumed from it has no decision to make that was made already.
        """
        if self.world.is_root:
            self._guard(lambda: self.recorder.save_when_due(self))

    def _tick(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now

    def _guard(self, action: Any) -> None:
        """Run rank 0's action; a UserError becomes a request to stop that all ranks see."""
        try:
            action()
        except UserError as error:
            self.stop.fail(error)

    def meta(self) -> dict[str, Any]:
        """The progress as JSON values."""
        self._tick()
        return dataclasses.asdict(self.progress)

    # -- ends -------------------------------------------------------------------------------

    def suspend(self, request: int) -> int:
        """End at this step boundary: a checkpoint, and exit code 75 on every rank."""
        self.world.check(self.stop.error)  # a failure on rank 0 is no wish: raise it everywhere
        self.world.on_root(lambda: self.recorder.suspended(self, signal_name(request)))
        return EXIT_AGAIN

    def finish(self) -> int:
        """Test the final and the optimal weights, and write the result; all ranks."""
        self.world.on_root(lambda: self.recorder.save(self))
        digest = self._agreed_digest()
        final = self.evaluate(self.parts.test)
        optimal = None
        kept = final is not None and self.world.broadcast(self.world.on_root(self._assign_best))
        if kept:
            self.engine.broadcast()
            optimal = self.evaluate(self.parts.test)
        if final is None or (kept and optimal is None):
            # Everything but the test is on disk; the next start goes straight to it.
            return self.suspend(self.stop.agreed(self.world))
        self._tick()
        self.world.on_root(lambda: self.recorder.finished(self, digest, optimal, final))
        return EXIT_COMPLETE

    def _assign_best(self) -> bool:
        """Rank 0: set the optimal weights; False where `checkpoint.best` did not keep them."""
        best = self.recorder.checkpoints.best()
        if best is None or best.meta["best_iteration"] != self.progress.best_iteration:
            return False
        self.engine.assign(best.tensors)
        return True

    def _agreed_digest(self) -> str:
        """SHA-256 of the weights, the same on every rank or an error."""
        digest = digest_tensors(self.engine.snapshot("model/"))
        digests = self.world.comm.allgather(digest)
        if len(set(digests)) > 1:
            raise RuntimeError(f"ranks ended with different weights: {digests}")
        return digest


def start_over(run: RunDir) -> None:
    """Forget a run's checkpoints, metrics and result; its provenance and log stay.

    Raises DirectoryInUse while another process trains it.
    """
    with Checkpoints(run.checkpoints, "", 1, None, 1, on_event=print) as checkpoints:
        checkpoints.clear()
        with storage_errors(run.path):
            for file in (run.result, run.metrics):
                file.unlink(missing_ok=True)
