"""Simulate the trajectories of a study: every distinct simulation among its points.

Runs on all ranks it is started with (mpiexec -n 4 glass simulate …) or alone, keeps
each finished trajectory, and returns at once when all are there. Exit codes: 0 complete,
75 stopped on request (run it again), 78 bad configuration, 70 internal error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.commandline import Parser, run_ranks

if TYPE_CHECKING:
    from glass_cnn.settings import RunSettings
    from hpc.preempt import StopFlag
    from hpc.world import World


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("simulate", __doc__)
    parser.add_study()
    parser.add_settings()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Make every file of trajectories, on all ranks."""
    return run_ranks(make, parse, argv)


def make(args: argparse.Namespace, ranks: World, stop: StopFlag) -> None:
    """Simulate what is missing of each file."""
    from glass_cnn.data import simulate
    from glass_cnn.data.trajectories import directory
    from glass_cnn.paths import logs_root

    root, wanted = ranks.everywhere(lambda: (logs_root(args.logs), choose(args)))
    if ranks.is_root and not wanted:
        print("nothing to simulate: the study's data are imported.")
    for settings in wanted:
        exists = directory(settings, root).is_done()
        place = simulate.run(settings, root, ranks, stop)
        if ranks.is_root and exists:
            print(f"{place.file}: complete; nothing to do.", flush=True)


def choose(args: argparse.Namespace) -> list[RunSettings]:
    """Settings of each file of trajectories that the study needs, in the order of its points."""
    from glass_cnn.data.trajectories import directory
    from glass_cnn.paths import logs_root
    from glass_cnn.study import load_study

    study = load_study(args.config, args.set, logs_root(args.logs))
    points = (point.settings for point in study.points)
    simulated = (settings for settings in points if settings.data.source == "simulation")
    return list({directory(settings, Path()): settings for settings in simulated}.values())


if __name__ == "__main__":
    from hpc.commandline import run_main

    sys.exit(run_main(main))
