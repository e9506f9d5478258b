"""A stretch of a run trained once more, to see whether it leads where the run says it led."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from glass_cnn.records import Numerics
from glass_cnn.settings import RunSettings
from glass_cnn.training.engine import Engine
from glass_cnn.training.examples import Examples
from glass_cnn.training.loop import Feed, Work, evaluate, take_step
from glass_cnn.training.state import State
from hpc.checkpoint import Checkpoint
from hpc.errors import Stopped
from hpc.heartbeat import Heartbeat
from hpc.preempt import StopFlag, signal_name
from hpc.world import World


def replay(
    settings: RunSettings,
    origin: Checkpoint | None,
    end: int,
    examples: Examples,
    numerics: Numerics,
    world: World,
    stop: StopFlag,
    weights: bool = False,
) -> str:
    """Train from `origin` (None: from the seed's initial weights) to step `end`; all ranks.

    `origin` is read on rank 0 alone. Writes nothing. Returns the digest of the state, or of its
    weights alone, as the run recorded it. Raises DataError for a checkpoint of other data, Stopped
    on request.
    """
    with ExitStack() as opened:
        engine = Engine(settings, world)
        state = State(settings, engine, examples.identity, numerics, len(examples.parts.train))
        world.on_root(lambda: state.restore(origin) if origin is not None else None)
        state.share(world)
        place = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        limit = settings.launch.hang_seconds
        job = Work(
            settings=settings,
            world=world,
            stop=stop,
            examples=examples,
            engine=engine,
            state=state,
            feed=opened.enter_context(Feed(examples, engine)),
            heart=opened.enter_context(Heartbeat(place, world.rank, world.size, limit)),
            say=print if world.is_root else bool,
        )
        _train_to(job, end)
        return state.digest(state.model() if weights else state.tensors())


def _train_to(job: Work, end: int) -> None:
    """The steps up to `end`, with the evaluations that rates follow from."""
    part = job.examples.parts.validation[: job.settings.train.evaluation_examples]
    while job.state.progress.step < end:
        if request := job.stop.agreed(job.world):
            raise Stopped(f"stopped by {signal_name(request)}; nothing was written.")
        if job.state.evaluation_due:
            counts = evaluate(job, part)
            if counts is not None:
                job.state.take_evaluation(counts)
            continue
        take_step(job)
