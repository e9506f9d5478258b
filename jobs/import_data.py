"""Store pictures or trajectory files that others made as the data set of a study.

SOURCE is a directory with folders called liquid and glass, or with files that have one of these
words in their names, or with a metadata.json, a list of {"path": …, "label": "liquid" or "glass"}
and optionally "frame" and "trajectory". The files are PNG, JPEG or TIFF pictures, or LAMMPS dumps,
extended XYZ or GSD files, or what MDAnalysis reads, where it is installed. The study file needs
data.source: import. Exit codes: 0 complete, 75 stopped on request (run it again), 65 bad data, 78
bad configuration, 70 internal error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpc.commandline import Parser, run_ranks

if TYPE_CHECKING:
    from glass_cnn.settings import RunSettings, Split
    from glass_cnn.study import Study
    from hpc.preempt import StopFlag
    from hpc.world import World


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("import", __doc__)
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
    from glass_cnn.data.imports import import_data
    from glass_cnn.paths import logs_root
    from glass_cnn.study import load_study

    def wanted() -> tuple[Path, Study]:
        root = logs_root(args.logs)
        return root, load_study(args.config, args.set, root)

    root, study = ranks.broadcast(ranks.on_root(wanted))
    for settings in study.datasets:
        splits = splits_of(study, settings)
        import_data(args.source, settings, root, ranks, stop, splits)
        ranks.on_root(lambda: summarize(settings, root, splits))  # noqa: B023 - at once
    ranks.on_root(lambda: tell_superseded(study, root))


def tell_superseded(study: Study, root: Path) -> None:
    """Say which runs of the study the new data have taken the place of the old ones for."""
    from glass_cnn.data_identity import REMEDY, compare, superseded

    found, _ = compare(study, root)
    if found:
        run, trained, now = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        print(f"note: {run.path}{more}: {superseded(trained, now)} {REMEDY}")


def splits_of(study: Study, settings: RunSettings) -> list[Split]:
    """How the points of a study divide the data set of these settings."""
    digest = settings.dataset_digest()
    users = (point.settings for point in study.points)
    return list(dict.fromkeys(user.split for user in users if user.dataset_digest() == digest))


def summarize(settings: RunSettings, root: Path, splits: Sequence[Split]) -> None:
    """What is stored, and how the study will divide it."""
    from glass_cnn.data import dataset

    stored = dataset.load(settings, root)
    print(stored.describe())
    for split in splits:
        parts = dataset.split(stored, settings.model_copy(update={"split": split}))
        print(parts.describe())
        print(dataset.needed(stored, split))


if __name__ == "__main__":
    from hpc.commandline import run_main

    sys.exit(run_main(main))
