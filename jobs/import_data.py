"""Store images or trajectory files that others made as the data set of a study.

SOURCE is a directory with a metadata.json, a list of {"path": …, "label": "liquid" or "glass"},
and optionally "frame" and "trajectory"; paths name PNG images, or LAMMPS dumps, extended XYZ or
GSD files. Or it holds trajectory files of one frame called liquid… and glass…. The study file needs
data.source: import. Exit codes: 0 complete, 75 stopped on request (run it again), 65 bad data,
78 bad configuration, 70 internal error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.commandline import Parser, run_ranks

if TYPE_CHECKING:
    from hpc.preempt import StopFlag
    from hpc.world import World


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("import_data", __doc__)
    parser.add_argument("source", metavar="SOURCE", type=directory, help="directory to import")
    parser.add_study()
    parser.add_settings()
    parser.add_logs()
    return parser.parse_args(argv)


def directory(text: str) -> Path:
    """SOURCE, which make passes on even where it is not given."""
    if not text:
        raise argparse.ArgumentTypeError("is not given; it names the directory to import")
    return Path(text)


def main(argv: list[str]) -> int:
    """Import, on all ranks."""
    return run_ranks(import_all, parse, argv)


def import_all(args: argparse.Namespace, ranks: World, stop: StopFlag) -> None:
    """Store the source once for each way in which the study renders it."""
    from glass_cnn.data import dataset
    from glass_cnn.data.imports import import_data
    from glass_cnn.paths import logs_root
    from glass_cnn.study import load_study

    def wanted() -> tuple:
        root = logs_root(args.logs)
        return root, load_study(args.config, args.set, root).datasets

    root, all_settings = ranks.broadcast(ranks.on_root(wanted))
    for settings in all_settings:
        path = import_data(args.source, settings, root, ranks, stop)
        ranks.on_root(lambda: print(dataset.load(path).describe()))  # noqa: B023 - at once


if __name__ == "__main__":
    from hpc.commandline import run_main

    sys.exit(run_main(main))
