"""Make the data sets of a study: simulate the trajectories that are missing, render the images.

Runs on all ranks it is started with (mpiexec -n 4 glass dataset …) or alone, and returns
at once when the data sets exist. Exit codes: 0 complete, 75 stopped on request (run it again),
65 bad data, 78 bad configuration, 70 internal error.
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
    parser = Parser("dataset", __doc__)
    parser.add_study()
    parser.add_argument("--only", metavar="NAME", help="the data set of this directory name alone")
    parser.add_settings()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Make every data set, on all ranks."""
    return run_ranks(make, parse, argv)


def make(args: argparse.Namespace, ranks: World, stop: StopFlag) -> None:
    """Simulate and render what is missing of each data set, and say what is there."""
    from glass_cnn.data import dataset, simulate, store
    from glass_cnn.paths import logs_root

    root, wanted = ranks.broadcast(ranks.on_root(lambda: (logs_root(args.logs), choose(args))))
    for settings in wanted:
        place = dataset.directory(settings, root)
        exists = ranks.broadcast(place.is_done())
        if settings.data.source == "simulation" and not exists:
            simulate.run(settings, root, ranks, stop)
        store.build(settings, root, ranks, stop)
        ranks.on_root(lambda: describe(settings, root))  # noqa: B023 - called at once


def choose(args: argparse.Namespace) -> list[RunSettings]:
    """Settings of each data set that is asked for."""
    from glass_cnn.data import dataset
    from glass_cnn.paths import logs_root
    from glass_cnn.study import load_study
    from hpc.errors import ConfigError

    found = load_study(args.config, args.set, logs_root(args.logs)).datasets
    names = {dataset.directory(settings, Path()).name: settings for settings in found}
    if args.only is None:
        return list(names.values())
    if args.only not in names:
        raise ConfigError(f"--only {args.only}: the study's data sets are {', '.join(names)}.")
    return [names[args.only]]


def describe(settings: RunSettings, root: Path) -> None:
    """Print what the data set holds and how it is split."""
    from glass_cnn.data import dataset

    data = dataset.load(settings, root)
    print(f"{data.describe()}\n{dataset.split(data, settings).describe()}", flush=True)


if __name__ == "__main__":
    from hpc.commandline import run_main

    sys.exit(run_main(main))
