"""Train one run of a study, on all the ranks this is started with.

Exit codes: 0 complete, 75 stopped at a checkpoint (run it again), 65 bad data, 78 bad
configuration, 70 internal error.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc.commandline import Parser, run_ranks
from hpc.preempt import StopFlag
from hpc.words import plural

if TYPE_CHECKING:
    from glass_cnn.paths import RunDir
    from glass_cnn.settings import RunSettings
    from hpc.world import World


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("train", __doc__)
    parser.add_study()
    parser.add_run_name()
    parser.add_argument("--index", type=int, help="number of the run in the study, from 0")
    parser.add_settings()
    parser.add_logs()
    parser.add_argument(
        "--start-over", action="store_true", help="forget this run's checkpoints and metrics"
    )
    return parser.parse_intermixed_args(argv)  # a run may also stand behind the options


def main(argv: list[str]) -> int:
    """Find the run and train it, on all ranks."""
    stop = StopFlag().install()  # before the slow imports: a signal must not kill the start
    # git and nvidia-smi are started here, before MPI is initialised.
    from hpc import gpus, provenance

    gpus.here()
    start = {
        **provenance.code(Path(__file__).parent),
        "versions": provenance.versions(),
        "slurm": provenance.slurm(),
    }
    return run_ranks(functools.partial(train_one, start=start), parse, argv, stop)


def train_one(
    args: argparse.Namespace, ranks: World, stop: StopFlag, start: dict[str, Any]
) -> int | None:
    """Train the run that the command line names."""
    from glass_cnn.records import result_of

    settings, run, root, notes = ranks.everywhere(lambda: choose(args))
    ranks.on_root(lambda: [print(f"note: {note}", flush=True) for note in notes])
    # One answer for all: shared file systems may give two.
    done = ranks.broadcast(result_of(run, settings.seed, settings.train) is not None)
    if done and not args.start_over:
        ranks.on_root(lambda: tell_complete(settings, run, root))
        return None
    with keeping_crashes(run.crashes / f"rank-{ranks.rank}.txt"):
        from glass_cnn import numerics

        # Before TensorFlow loads, which it does with the loop.
        numerics.choose(settings.launch, print if ranks.is_root else lambda _: None)
        from glass_cnn.data.batches import training_data
        from glass_cnn.records import Start
        from glass_cnn.training.loop import start_over, train

        if args.start_over:
            ranks.on_root(lambda: start_over(run))
        data = functools.partial(training_data, settings, root)
        return train(settings, run, root, data, ranks, stop, Start(**start))


def tell_complete(settings: RunSettings, run: RunDir, root: Path) -> None:
    """Say that there is nothing to do; raises DataError where the run was trained on other data."""
    from glass_cnn import data_identity
    from glass_cnn.records import trained_on

    data_identity.check(run.path, trained_on(run), data_identity.of_settings(settings, root))
    print(f"{run.path}: complete; nothing to do.")


@contextlib.contextmanager
def keeping_crashes(path: Path) -> Iterator[None]:
    """Write the traceback of whatever is no user's mistake to `path` as well."""
    from hpc.errors import UserError

    try:
        yield
    except UserError:
        raise
    except Exception:
        with contextlib.suppress(OSError):  # the traceback is also printed
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(traceback.format_exc())
        raise


def choose(args: argparse.Namespace) -> tuple[RunSettings, RunDir, Path, tuple[str, ...]]:
    """The run to train: settings, directory, logs root, notes; raises ConfigError."""
    from glass_cnn.paths import logs_root
    from glass_cnn.study import load_study
    from hpc.errors import ConfigError

    root = logs_root(args.logs)
    study = load_study(args.config, args.set, root)
    if args.index is None:
        run = study.find(args.run or "")  # without a name, the only one
    elif 0 <= args.index < len(study.runs):
        run = study.runs[args.index]
    else:
        number = plural(len(study.runs), "run")
        raise ConfigError(f"--index {args.index}: {study.name} has {number}, counted from 0.")
    return run.settings, study.run_dir(root, run), root, study.notes_of(run)


if __name__ == "__main__":
    from hpc.commandline import run_main

    sys.exit(run_main(main))
