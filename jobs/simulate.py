"""Simulate the trajectories of a study: every distinct simulation among its points.

Runs on all ranks it is started with (mpiexec -n 4 python -m jobs.simulate …) or alone, keeps
each finished trajectory, and returns at once when all are there. Exit codes: 0 complete,
75 stopped on request (run it again), 78 bad configuration, 70 internal error.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.preempt import StopFlag

if TYPE_CHECKING:
    from glass_cnn.settings import RunSettings
    from hpc.world import World


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.simulate", description=__doc__)
    parser.add_argument("config", help="study file, or the name or directory of a study")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--logs", help="directory of all outputs (default $GLASS_LOGS or logs)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Make every file of trajectories; a mistake is raised on all ranks and told by one."""
    stop = StopFlag().install()  # before the slow imports: a signal must not kill the start
    args = parse(argv)
    from hpc.config import EXIT_COMPLETE, EXIT_INTERNAL, UserError
    from hpc.world import world

    ranks = world()
    ranks.pin()
    from glass_cnn.simulate import Stopped

    try:
        make(args, ranks, stop)
    except Stopped as stopped:
        if not stopped.told:
            print(stopped, flush=True)
        return stopped.exit_code
    except UserError:
        raise
    except Exception:
        traceback.print_exc()
        ranks.abort(EXIT_INTERNAL)  # the other ranks must not wait for this one
    return EXIT_COMPLETE


def make(args: argparse.Namespace, ranks: World, stop: StopFlag) -> None:
    """Simulate what is missing of each file."""
    from glass_cnn import simulate
    from hpc.rundir import logs_root

    root, wanted = ranks.everywhere(lambda: (logs_root(args.logs), choose(args)))
    if ranks.is_root and not wanted:
        print("nothing to simulate: the study's data are imported.")
    for settings in wanted:
        exists = simulate.product(settings, root).exists()
        path = simulate.run(settings, root, ranks, stop)
        if ranks.is_root and exists:
            print(f"{path}: complete; nothing to do.", flush=True)


def choose(args: argparse.Namespace) -> list[RunSettings]:
    """Settings of each file of trajectories that the study needs, in the order of its points."""
    from glass_cnn import simulate
    from glass_cnn.study import load_study
    from hpc.rundir import logs_root

    study = load_study(args.config, args.set, logs_root(args.logs))
    points = (point.settings for point in study.points)
    simulated = (settings for settings in points if settings.data.source == "simulation")
    return list({simulate.product(settings, Path()): settings for settings in simulated}.values())


if __name__ == "__main__":
    from hpc.config import run_main

    sys.exit(run_main(main))
