"""Check a run by training parts of it again: audit by replay.

Every checkpoint that was kept is read and its state compared with the digest that the run recorded
when it was saved; the chain of digests is compared with result.json and the provenance. Then
--count stretches, chosen at random, each from a kept checkpoint (or from the seed) to the next
digest, are trained once more on the same number of ranks, and must lead to it bit by bit. So is,
with --best, what led to the optimal model, where the state of its step is not kept. Nothing is
written. Exit codes: 0 everything agrees, 65 something does not, or cannot be replayed here, 78 bad
configuration.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.commandline import Parser, run_ranks

if TYPE_CHECKING:
    from glass_cnn.lineage import StateDigest
    from glass_cnn.paths import RunDir
    from glass_cnn.records import DataIdentity, Numerics
    from glass_cnn.settings import RunSettings
    from hpc.checkpoint import Checkpoint
    from hpc.preempt import StopFlag
    from hpc.world import World


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("verify", __doc__)
    parser.add_run()
    parser.add_argument("--count", type=int, default=2, help="stretches to replay (default: 2)")
    parser.add_argument("--best", action="store_true", help="train up to the optimal model, too")
    parser.add_argument("--seed", type=int, help="which are chosen (default: another each time)")
    parser.add_logs("the one it lies in")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Verify, on all ranks."""
    from hpc import gpus

    gpus.here()  # starts nvidia-smi: before MPI is initialised
    return run_ranks(verify, parse, argv)


@dataclass(frozen=True)
class Stretch:
    """A part of a run that can be trained again."""

    origin: Path | None
    """checkpoint that it begins at; None: the seed's initial weights"""
    begin: int
    end: int
    """step of the next digest"""
    sha256: str
    """that digest"""
    weights: bool = False
    """whether it is of the weights alone: those of the optimal model"""


@dataclass(frozen=True)
class Audit:
    """A run whose records agree, and what of it can be replayed."""

    run: RunDir
    settings: RunSettings
    root: Path
    stretches: list[Stretch]
    best: Stretch | None
    """what leads to the optimal model, where that is not one of the states that were compared"""


def verify(args: argparse.Namespace, ranks: World, stop: StopFlag) -> None:
    """Compare what is written, then replay; raises DataError for what does not agree."""
    audit = ranks.broadcast(ranks.on_root(functools.partial(examine, args)))
    from glass_cnn import numerics

    numerics.choose(audit.settings.launch, print if ranks.is_root else lambda _: None)
    from glass_cnn.data.batches import training_data
    from glass_cnn.training.engine import set_up_tensorflow
    from glass_cnn.training.replay import replay

    launch, precision = audit.settings.launch, audit.settings.train.precision
    now = set_up_tensorflow(launch.threads, ranks, launch.collectives, precision)
    chosen = ranks.broadcast(ranks.on_root(lambda: choose(audit, now, args)))
    examples = ranks.everywhere(lambda: training_data(audit.settings, audit.root))
    ranks.everywhere(lambda: examples.verify(ranks.share(examples.blocks), lambda: True))
    ranks.on_root(lambda: check_data(audit, examples.identity))
    for stretch in chosen:
        origin = ranks.on_root(functools.partial(read, stretch))
        divided = ranks.broadcast(ranks.on_root(functools.partial(division, audit, stretch)))
        under = launch.model_copy(update={"division": divided})
        settings = audit.settings.model_copy(update={"launch": under})
        found = replay(settings, origin, stretch.end, examples, now, ranks, stop, stretch.weights)
        ranks.on_root(functools.partial(tell, stretch, found))
    ranks.on_root(lambda: print(f"{audit.run.name}: verified"))


# --- what is written -------------------------------------------------------------------------


def examine(args: argparse.Namespace) -> Audit:
    """Compare records and checkpoints with each other; raises DataError, ConfigError."""
    from glass_cnn.lineage import head, read_digests
    from glass_cnn.paths import logs_root
    from glass_cnn.records import own_result, trained_on
    from glass_cnn.study import find_run
    from hpc.errors import ConfigError, DataError
    from hpc.words import plural

    if args.count < 0:
        raise ConfigError(f"--count {args.count}: it is a number of stretches, 0 or more.")
    run, settings = find_run(args.run)
    digests = read_digests(run.digests)
    if not digests:
        raise DataError(
            f"{run.path}: has no {run.digests.name}: it was trained by a version that recorded no "
            "digests, or they were removed; there is nothing to compare with."
        )
    chain = functools.partial(head, settings, trained_on(run))
    result = own_result(run, settings.seed, settings.train)
    if result is not None and result.chain is not None:
        check_head(run.result, "", result.chain, chain(digests))
    check_starts(run, digests, chain)
    print(f"{run.path}\n{plural(len(digests), 'digest')}, head of the chain {chain(digests)}")
    kept = check_checkpoints(run, settings, digests)
    origins = origins_of(settings, kept)
    stretches = found_stretches(run, digests, origins)
    best = check_best(run, settings, kept, origins)
    return Audit(run, settings, logs_root(args.logs or run.root), stretches, best)


Chain = Callable[[Sequence["StateDigest"]], str]


def check_starts(run: RunDir, digests: Sequence[StateDigest], chain: Chain) -> None:
    """Compare the chain with what each start found of it, but where the run went back later."""
    from glass_cnn.records import read_starts

    lowest = digests[-1].step
    for number, start in reversed([*enumerate(read_starts(run.provenance), 1)]):
        begun = start.resumed_step or 0
        if begun <= lowest and start.chain is not None:
            before = [each for each in digests if each.step <= begun]
            check_head(run.provenance, f" (start {number})", start.chain, chain(before))
        lowest = min(lowest, begun)


def check_head(path: Path, where: str, told: str, found: str) -> None:
    """Raise DataError unless two heads of the chain are the same."""
    from hpc.errors import DataError

    if told != found:
        raise DataError(
            f"{path}{where}: says that the chain of digests ends in {told[:12]}, and what "
            f"digests.jsonl holds up to there ends in {found[:12]}. One of the files was changed, "
            "or is another run's."
        )


def check_checkpoints(
    run: RunDir, settings: RunSettings, digests: Sequence[StateDigest]
) -> dict[int, Path]:
    """Step and place of every kept checkpoint, each the state that was recorded; else DataError."""
    from glass_cnn.records import own_result
    from hpc import checkpoint, checkpoint_names
    from hpc.errors import DataError
    from hpc.tensorfile import digest_tensors

    recorded, kept = {each.step: each.sha256 for each in digests}, {}
    result = own_result(run, settings.seed, settings.train)
    for entry in checkpoint_names.saved(run.checkpoints):
        found = checkpoint.read(entry.path, settings.run_digest())
        digest = digest_tensors(found.tensors)
        if recorded.get(entry.step) != digest:
            raise DataError(
                f"{entry.path}: is of another lineage: its state has the digest {digest[:12]}, and "
                f"the run recorded {recorded.get(entry.step, 'none')[:12]} at step {entry.step}."
            )
        if result is not None and entry.step == result.steps:
            model = {k: v for k, v in found.tensors.items() if k.startswith("model/")}
            if digest_tensors(model) != result.weights_sha256:
                raise DataError(f"{run.result}: its weights are not those of {entry.path}.")
        print(f"{entry.path.name}: is the state that was recorded")
        kept[entry.step] = entry.path
    return kept


def check_best(
    run: RunDir,
    settings: RunSettings,
    kept: dict[int, Path],
    origins: dict[int, Path | None],
) -> Stretch | None:
    """Compare the optimal model with the result, and with the state of its step where it is kept.

    Where it is not: what leads there, from the last origin before it. Raises DataError.
    """
    from glass_cnn.records import own_result
    from hpc import checkpoint, checkpoint_names
    from hpc.errors import DataError
    from hpc.tensorfile import digest_tensors

    place = run.checkpoints / checkpoint_names.BEST
    if not (place / checkpoint_names.MANIFEST).exists():
        return None
    best = checkpoint.read(place, settings.run_digest())
    digest = digest_tensors(best.tensors)
    result = own_result(run, settings.seed, settings.train)
    per = settings.train.batches_per_iteration
    if result is not None and best.step != result.optimal.iteration * per:
        raise DataError(
            f"{place}: is the model of step {best.step}, and {run.result.name} says that the "
            f"optimal one is that of step {result.optimal.iteration * per}."
        )
    if best.step in kept:
        state = checkpoint.read(kept[best.step]).tensors
        model = {name: value for name, value in state.items() if name.startswith("model/")}
        if digest_tensors(model) != digest:
            raise DataError(f"{place}: its weights are not those of {kept[best.step]}.")
        print(f"{place.name}: has the weights of {kept[best.step].name}")
        return None
    begin = max((step for step in origins if step < best.step), default=None)
    if begin is None or any(begin < step <= best.step for step in rolled_back(run)):
        print(f"{place.name}: nothing is kept from which step {best.step} can be trained again")
        return None
    print(f"{place.name}: --best trains {best.step - begin} steps to compare it")
    return Stretch(origins[begin], begin, best.step, digest, weights=True)


# --- what is replayed ------------------------------------------------------------------------


def rolled_back(run: RunDir) -> set[int]:
    """Steps that rollbacks went back to: they may have changed the state there."""
    from hpc.records import read_events

    events = read_events(run.events)
    return {e.step for e in events if e.event == "rollback" and e.step is not None}


def origins_of(settings: RunSettings, kept: dict[int, Path]) -> dict[int, Path | None]:
    """Where training can begin again: kept checkpoints by step, and the seed (None)."""
    origins: dict[int, Path | None] = dict(kept)
    if settings.train.restart_from is None:  # else it begins with another run's weights
        origins[0] = None
    return origins


def found_stretches(
    run: RunDir, digests: Sequence[StateDigest], origins: dict[int, Path | None]
) -> list[Stretch]:
    """From every kept checkpoint, and from the seed, to the digest after it."""
    rolled = rolled_back(run)
    following = {step: [d for d in digests if d.step > step][:1] for step in sorted(origins)}
    return [
        Stretch(origins[step], step, after.step, after.sha256)
        for step, found in following.items()
        for after in found
        if after.step not in rolled
    ]


def choose(audit: Audit, now: Numerics, args: argparse.Namespace) -> list[Stretch]:
    """Some stretches at random that round here as they did, and the optimal model's if asked for.

    Raises DataError without any, or where that one rounds otherwise here.
    """
    from hpc.errors import DataError
    from hpc.words import plural

    count: int = args.count
    best = [audit.best] if args.best and audit.best else []
    differing = {stretch: why_not(audit, stretch, now) for stretch in [*best, *audit.stretches]}
    same = [stretch for stretch in audit.stretches if differing[stretch] is None]
    lost = next((differing[stretch] for stretch in best), None)
    if lost or (count and not same):
        why = lost or next(iter(differing.values()), None)
        why = why or "no checkpoint was kept that another follows"
        raise DataError(
            f"{audit.run.path}: nothing of it can be trained again here to the same bits: {why}. "
            "Start as many ranks as it had (make verify RUN=… RANKS=n) on the same kind of "
            "machine, or COUNT=0 to compare only what is written."
        )
    number = random.SystemRandom().randrange(2**31) if args.seed is None else args.seed
    chosen = random.Random(number).sample(same, min(count, len(same)))
    print(f"replaying {len(chosen)} of {plural(len(same), 'part')} (--seed {number})")
    return [*sorted(chosen, key=lambda stretch: stretch.begin), *best]


def why_not(audit: Audit, stretch: Stretch, now: Numerics) -> str | None:
    """What rounds otherwise here than where a stretch was trained; None where nothing does."""
    import msgspec

    from glass_cnn.numerics import changes

    alike = msgspec.structs.replace(now, division=division(audit, stretch))
    made = made_under(audit, stretch)
    differing = [told for numerics in made if (told := changes(numerics, alike))]
    return differing[0] if differing else None


def division(audit: Audit, stretch: Stretch) -> str:
    """By what the steps of a stretch were divided, the first of them where that changed."""
    made = made_under(audit, stretch)
    return made[0].division if made and made[0] else "data"


def made_under(audit: Audit, stretch: Stretch) -> list[Numerics | None]:
    """The numerics of the starts that a stretch was trained by; None where they are unknown."""
    from glass_cnn.lineage import starts_of
    from glass_cnn.records import read_starts

    starts = starts_of(read_starts(audit.run.provenance), stretch.begin, stretch.end)
    return [start.numerics for start in starts]


def check_data(audit: Audit, identity: DataIdentity) -> None:
    """Raise DataError unless the data here are those that the run was trained on."""
    from glass_cnn import data_identity
    from glass_cnn.records import trained_on

    data_identity.check(audit.run.path, trained_on(audit.run), identity)


def read(stretch: Stretch) -> Checkpoint | None:
    """Where a stretch begins."""
    from hpc import checkpoint

    return None if stretch.origin is None else checkpoint.read(stretch.origin)


def tell(stretch: Stretch, found: str) -> None:
    """Whether a stretch led where the run says it led; raises DataError where it did not."""
    from hpc.errors import DataError

    what = f"steps {stretch.begin} to {stretch.end}, from {stretch.origin or 'the seed'}"
    there = "the optimal model has" if stretch.weights else "the run recorded"
    if found != stretch.sha256:
        raise DataError(
            f"{what}: trained again they lead to the digest {found[:12]}, and {there} "
            f"{stretch.sha256[:12]}: it was not made by these settings, data and libraries."
        )
    which = ", those of the optimal model" * stretch.weights
    print(f"{what}: trained again, every bit the same{which}")


if __name__ == "__main__":
    from hpc.commandline import run_main

    sys.exit(run_main(main))
