"""One training run, on all its ranks: the loop, how it begins, stops, goes back and ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glass_cnn.paths import RunDir
from glass_cnn.records import Numerics, Start, Usage, result_of
from glass_cnn.settings import RunSettings
from glass_cnn.training.branch import Branch
from glass_cnn.training.diagnostics import Diagnostics
from glass_cnn.training.engine import COUNTS, Engine, StepResult, set_up_tensorflow
from glass_cnn.training.examples import Examples
from glass_cnn.training.recorder import Recorder
from glass_cnn.training.resume import division_before, restore
from glass_cnn.training.rollback import Rollbacks
from glass_cnn.training.rounding import move_if_due
from glass_cnn.training.state import State
from hpc import provenance
from hpc.checkpoint_writer import Checkpoints
from hpc.errors import EXIT_AGAIN, EXIT_COMPLETE
from hpc.files import storage_errors
from hpc.heartbeat import Heartbeat
from hpc.moments import reached
from hpc.preempt import StopFlag, signal_name
from hpc.tensorfile import digest_tensors
from hpc.words import plural
from hpc.world import World

PROBE_IMAGES = 64


def train(
    settings: RunSettings,
    run: RunDir,
    root: Path,
    open_examples: Callable[[], Examples],
    world: World,
    stop: StopFlag,
    start: Start,
) -> int:
    """Train one run from where it stands to its end, or to a request to stop; all ranks.

    Args:
        settings: the run's settings; `run` is its directory, `root` the logs directory.
        open_examples: opens the data set, once nobody else trains this run.
        stop: flag of this process; whatever any rank has caught, all act on.
        start: record of this start, as far as only the caller knows it (code, versions, Slurm).

    Returns:
        EXIT_COMPLETE, or EXIT_AGAIN when stopped at a checkpoint.

    Raises:
        UserError on every rank: data missing, disk full, settings that do not fit the run.
    """
    launch = settings.launch
    numerics = set_up_tensorflow(
        launch.threads, world, launch.collectives, settings.train.precision
    )
    with ExitStack() as opened:
        job = _open(settings, run, open_examples, world, stop, numerics, opened)
        state, recorder, train = job.state, job.recorder, settings.train
        # By the process that this one has waited for.
        if world.broadcast(result_of(run, settings.seed, train) is not None):
            return EXIT_COMPLETE
        verify(job, start)
        begin(job, root, start)
        while True:
            # All ranks: one answer, so that none waits in a collective that another never enters.
            if request := stop.agreed(world):
                return suspend(job, request)
            # All ranks: every `batches_per_iteration` steps the whole validation set, divided.
            if state.evaluation_due:
                counts = evaluate(job, job.examples.parts.validation[: train.evaluation_examples])
                if counts is not None:  # None: somebody asked to stop in the middle
                    reached("record")
                    recorder.evaluated(state, state.take_evaluation(counts))  # rank 0 writes
                    job.rollbacks.go_back_if_due(state)  # where the settings ask for it
                    # Last, so that a run resumed from it has no decision to make again.
                    recorder.save_when_due(state)  # rank 0: a checkpoint
                continue
            if state.progress.step >= train.steps:
                return finish(job)
            # All ranks: this rank's share of the global batch, gradients summed, one update.
            result, rate = take_step(job)
            recorder.check()
            if job.engine.division.measures and state.evaluation_due:
                # Now, not at the evaluation: a restart in between has no gradients any more.
                state.progress.diagnosis = diagnose(job, result.gradients, rate)
            del result  # lets the old gradients go before new ones are made


@dataclass(kw_only=True)
class Work:
    """What steps and evaluations are made with, on this rank."""

    settings: RunSettings
    world: World
    stop: StopFlag
    examples: Examples
    engine: Engine
    state: State
    feed: Feed
    heart: Heartbeat
    say: Callable[[str], object]
    """tells people what happens, on rank 0"""


@dataclass(kw_only=True)
class TrainingJob(Work):
    """What one run is trained and recorded with, on this rank."""

    recorder: Recorder
    rollbacks: Rollbacks
    diagnostics: Diagnostics
    probe_labels: np.ndarray
    """classes of the images that the diagnostics look at"""


def _open(
    settings: RunSettings,
    run: RunDir,
    open_examples: Callable[[], Examples],
    world: World,
    stop: StopFlag,
    numerics: Numerics,
    opened: ExitStack,
) -> TrainingJob:
    """Make the parts of a run, closed with `opened`; a UserError is raised on every rank."""
    recorder = opened.enter_context(Recorder(settings, run, world, stop))
    limit = settings.launch.hang_seconds
    heart = opened.enter_context(
        world.everywhere(lambda: Heartbeat(run.heartbeats, world.rank, world.size, limit))
    )
    examples = world.everywhere(open_examples)
    parts = examples.parts
    before = world.broadcast(world.on_root(lambda: division_before(run, world.size)))
    engine = world.everywhere(lambda: Engine(settings, world, before))
    probe = np.sort(parts.validation[:PROBE_IMAGES])
    return TrainingJob(
        settings=settings,
        world=world,
        stop=stop,
        examples=examples,
        engine=engine,
        state=State(settings, engine, examples.identity, numerics, len(parts.train)),
        feed=opened.enter_context(Feed(examples, engine)),
        recorder=recorder,
        rollbacks=Rollbacks(settings, run, world, recorder),
        diagnostics=Diagnostics(
            engine.network, engine.optimizer, examples.images[probe, engine.strip]
        ),
        probe_labels=parts.labels[probe],
        heart=heart,
        say=recorder.say,
    )


class Feed:
    """An engine's share of the batches, handed over to it ahead, in the order of steps."""

    def __init__(self, examples: Examples, engine: Engine) -> None:
        self.examples, self.engine = examples, engine
        self._batches: Generator[tuple[Any, Any], None, None] | None = None
        self._next: int | None = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._batches is not None:
            self._batches.close()

    def batch(self, step: int) -> tuple[Any, Any]:
        """Images and labels of step number `step`; reading starts anew where it does not follow."""
        if self._batches is None or step != self._next:
            self.__exit__()
            engine = self.engine
            self._batches = self.examples.batches(
                engine.share, engine.strip, step, engine.hand_over
            )
        self._next = step + 1
        return next(self._batches)


def verify(job: TrainingJob, start: Start) -> None:
    """Compare every byte of the data with its checksum, each rank its share; raises DataError.

    A request to stop ends it early; the record of the start then says that it was not done.
    """

    def go_on() -> bool:
        job.heart.beat("verifying the data")
        return not job.stop.signal

    reached("verify")
    began = time.monotonic()
    share = job.world.share(job.examples.blocks)
    whole = job.world.everywhere(lambda: job.examples.verify(share, go_on))
    if all(job.world.comm.allgather(whole)):
        start.data_verified = round(time.monotonic() - began, 3)


def _told(seconds: float | None) -> str:
    return "not verified" if seconds is None else f"verified in {seconds:.2f} s"


def begin(job: TrainingJob, root: Path, start: Start) -> None:
    """Set the state: newest checkpoint, else another run's, else new; and record the start."""
    reached("restore")
    found: tuple[str, Branch | None] | None = job.world.on_root(
        lambda: restore(job.state, job.recorder, root)
    )
    reason, branch = found or ("", None)
    job.state.share(job.world)
    start.hosts, start.ranks = sorted(set(job.world.hosts)), job.world.size
    start.data = job.examples.identity
    described = (
        f"{start.data.name}: {plural(len(job.examples.images), 'image')}, {start.data}, "
        f"{_told(start.data_verified)}\n{job.examples.parts.describe()}"
    )
    if job.world.size > 1:
        described += f"\nsteps divided by {job.engine.division.kind} ({job.engine.why})"
    if (sent := job.settings.train.gradients) != "float32" and not job.engine.sends_gradients:
        described += f"\ntrain.gradients {sent} rounds nothing: ranks send no large gradient here"
    lineage = branch.lineage if branch else None
    job.recorder.started(job.state, start, lineage, reason, described)
    job.world.check(job.stop.error)


def take_step(job: Work) -> tuple[StepResult, float]:
    """One update on all ranks; returns what it gave, and the rate that it was made with."""
    state = job.state
    reached("step", job.engine)
    where = f"before step {state.progress.step + 1}"
    job.heart.beat(where, job.engine.compiling("a step"))
    images, labels = job.feed.batch(state.sample_step)
    rate = state.rate(state.progress.step)
    if told := move_if_due(job.engine, state.progress.step):
        job.say(told)
    result = job.engine.train_step(images, labels, state.sample_step, rate)
    state.take_step(result.sums)
    return result, rate


def evaluate(job: Work, part: np.ndarray) -> np.ndarray | None:
    """Sums of COUNTS over the examples of `part` (indices), each counted once.

    Returns None on every rank as soon as any rank was asked to stop.
    """
    found, engine = [], job.engine
    images, labels = job.examples.images, job.examples.parts.labels
    where = f"evaluating after step {job.state.progress.step}"
    for portion in engine.division.portions(len(part), job.settings.train.evaluation_batch):
        job.heart.beat(where, engine.compiling("an evaluation"))
        chosen = part[portion]
        if len(chosen):
            reached("evaluate")
            found.append(engine.evaluate(images[chosen, engine.strip], labels[chosen]))
        if job.stop.agreed(job.world):
            return None
    sums = sum((counts.numpy() for counts in found), np.zeros(len(COUNTS)))
    return engine.division.counted(sums)


def diagnose(job: TrainingJob, gradients: dict[str, Any], rate: float) -> dict[str, Any]:
    """Those measurements that are due after an iteration's last step."""
    train, number = job.settings.train, job.state.progress.evaluated + 1
    found: dict[str, Any] = {}
    if train.diagnostics_every and number % train.diagnostics_every == 0:
        found |= job.diagnostics.measure(gradients, rate)
    if train.curvature_every and number % train.curvature_every == 0:
        found |= job.diagnostics.curvature(job.probe_labels, train.l2, rate)
    return found


def suspend(job: TrainingJob, request: int) -> int:
    """End at this step boundary: a checkpoint, and exit code 75 on every rank."""
    job.world.check(job.stop.error)  # a failure on rank 0 is no wish: raise it everywhere
    job.recorder.suspended(job.state, signal_name(request))
    job.world.check(job.stop.error)
    return EXIT_AGAIN


def finish(job: TrainingJob) -> int:
    """Test the final and the optimal weights, and write the result; all ranks."""
    reached("finish")
    job.recorder.save(job.state)
    job.world.check(job.stop.error)
    digest = _agreed_digest(job)
    final = evaluate(job, job.examples.parts.test)
    optimal = None
    kept = final is not None and job.world.broadcast(job.world.on_root(lambda: _assign_best(job)))
    if kept:
        job.engine.broadcast()
        optimal = evaluate(job, job.examples.parts.test)
    if final is None or (kept and optimal is None):
        # Everything but the test is on disk; the next start goes straight to it.
        return suspend(job, job.stop.agreed(job.world))
    job.state.tick()
    reached("write the result")
    sizes = {
        part: len(getattr(job.examples.parts, part)) for part in ("train", "validation", "test")
    }
    job.recorder.finished(job.state, digest, optimal, final, sizes, _usage(job))
    job.world.check(job.stop.error)
    return EXIT_COMPLETE


def _usage(job: TrainingJob) -> Usage:
    """What this start has taken so far. Collective."""
    spent = job.world.comm.allgather(provenance.spent())
    return Usage(
        cores=job.state.numerics.threads * job.world.size,
        wall_seconds=round(max(each.wall_seconds for each in spent), 3),
        processor_seconds=round(sum(each.processor_seconds for each in spent), 3),
        peak_memory=max(each.peak_memory for each in spent),
    )


def _assign_best(job: TrainingJob) -> bool:
    """Rank 0: set the optimal weights; False where `checkpoint.best` did not keep them."""
    reached("test the best")
    best = job.recorder.checkpoints.best()
    if best is None or best.meta["best_iteration"] != job.state.progress.best_iteration:
        return False
    job.engine.assign(best.tensors)
    return True


def _agreed_digest(job: TrainingJob) -> str:
    """SHA-256 of the weights; those that all ranks have are the same on each, or an error."""
    reached("compare weights")
    weights = job.state.model()
    divided = job.engine.division.shards.divided
    everywhere = {name: tensor for name, tensor in weights.items() if not divided(name)}
    digests = job.world.comm.allgather(digest_tensors(everywhere))
    if len(set(digests)) > 1:
        raise RuntimeError(f"ranks ended with different weights: {digests}")
    return digests[0] if len(everywhere) == len(weights) else job.state.digest(weights)


def start_over(run: RunDir) -> None:
    """Forget a run's checkpoints, metrics and result; its provenance and log stay.

    Raises DirectoryInUse while another process trains it.
    """
    with Checkpoints(run.checkpoints, "", 1, None, 1, on_event=print) as checkpoints:
        checkpoints.clear()
        with storage_errors(run.path):
            for file in (run.result, run.metrics, run.digests):
                with contextlib.suppress(FileNotFoundError):
                    file.unlink()
