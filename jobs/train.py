"""Train one run of a study, on all the ranks this is started with.

Exit codes: 0 complete, 75 stopped at a checkpoint (run it again), 65 bad data, 78 bad
configuration, 70 internal error.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.preempt import StopFlag

if TYPE_CHECKING:
    from hpc.world import World


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    parser.add_argument("config", help="study file, or the name or directory of a study")
    parser.add_argument("run", nargs="?", help="name of a run, or the beginning of one")
    parser.add_argument("--index", type=int, help="number of the run in the study, from 0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--logs", help="directory of all outputs (default $GLASS_LOGS or logs)")
    parser.add_argument(
        "--start-over", action="store_true", help="forget this run's checkpoints and metrics"
    )
    return parser.parse_intermixed_args(argv)  # a run may also stand behind the options


def main(argv: list[str]) -> int:
    """Find the run and train it; whatever is no user's mistake ends all ranks."""
    stop = StopFlag().install()  # before the slow imports: a signal must not kill the start
    args = parse(argv)
    # git is started here, before MPI is initialised.
    from hpc import provenance

    start = {
        **provenance.code(Path(__file__).parent),
        "versions": provenance.versions(),
        "slurm": provenance.slurm(),
    }
    from hpc.world import world

    ranks = world()
    ranks.pin()
    crash_dir = Path()
    try:
        settings, run, root = choose(args, ranks)
        crash_dir = run.path / "crashes"
        done = ranks.broadcast(run.is_done())  # one answer: shared file systems may give two
        if done and not args.start_over:
            if ranks.is_root:
                print(f"{run.path}: complete; nothing to do.")
            return 0
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        from glass_cnn.train import start_over, train

        if args.start_over and ranks.is_root:
            start_over(run)
        ranks.barrier()
        return train(settings, run, root, ranks, stop, start)
    except Exception as error:
        from hpc.config import UserError

        if isinstance(error, UserError):
            raise
        crash(ranks, crash_dir)
        raise


def choose(args: argparse.Namespace, ranks: World):  # type: ignore[no-untyped-def]
    """The run to train: settings, directory, logs root. A mistake is raised on all ranks."""
    from glass_cnn.study import load_study
    from hpc.config import ConfigError, UserError
    from hpc.rundir import logs_root

    error = None
    try:
        root = logs_root(args.logs)
        study = load_study(args.config, args.set, root)
        if args.index is not None and not 0 <= args.index < len(study.runs):
            raise ConfigError(f"--index {args.index}: {study.name} has {len(study.runs)} runs.")
        if args.index is not None:
            run = study.runs[args.index]
        elif args.run or len(study.runs) > 1:
            run = study.find(args.run or "")
        else:
            run = study.runs[0]
    except UserError as problem:
        error = problem
    ranks.check(error)
    return run.settings, study.run_dir(root, run), root


def crash(ranks: World, directory: Path) -> None:
    """Keep this rank's traceback under its number, and end all ranks."""
    text = traceback.format_exc()
    print(f"rank {ranks.rank}: internal error\n{text}", file=sys.stderr, flush=True)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"rank-{ranks.rank}.txt").write_text(text)
    finally:
        from hpc.config import EXIT_INTERNAL

        ranks.abort(EXIT_INTERNAL)


if __name__ == "__main__":
    from hpc.config import run_main

    sys.exit(run_main(main))
