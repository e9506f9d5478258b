"""A page about data alone: pictures, counts, energies, order, g(r), and what simple measures tell.

Of one data set's directory, or of the data sets of a study. Written as data_report.html beside the
images. Exit codes: 0 complete, 65 bad data, 78 bad configuration, 70 files cannot be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console

from glass_cnn.analysis.baselines import measures
from glass_cnn.analysis.dataset_summary import summarize
from glass_cnn.data.dataset import PARTS, Dataset, load, split
from glass_cnn.paths import DatasetDir, logs_root
from glass_cnn.report.dataset_section import Data, verdict
from glass_cnn.report.page import write_data_report
from glass_cnn.study import load_study
from hpc.commandline import Parser, run_main


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("data-report", __doc__)
    text = "directory of a data set, logs/datasets/<name>; or a study, for all its data sets"
    parser.add_argument("data", metavar="DATA", help=text)
    parser.add_settings()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Write the page of each data set."""
    args = parse(argv)
    console = Console()
    for dataset, parts in opened(args.data, args.set, logs_root(args.logs)):
        summary = summarize(dataset, measures(dataset), parts)
        page = write_data_report(dataset.place, Data(summary, None))
        console.print(f"{dataset.describe()}\n{verdict(summary, None)}", soft_wrap=True)
        console.print(page, soft_wrap=True)


Parts = dict[str, np.ndarray] | None
"""images of each part of the split; None where no study says how it is divided"""


def opened(data: str, sets: list[str], root: Path) -> Iterator[tuple[Dataset, Parts]]:
    """The data sets that are meant, with the parts of their split where a study says them."""
    if (place := DatasetDir(Path(data))).is_done():
        yield load(DatasetDir(place.path.absolute())), None
        return
    for settings in load_study(data, sets, root).datasets:
        dataset = load(settings, root)
        parts = split(dataset, settings)
        yield dataset, {name: getattr(parts, name) for name in PARTS}


if __name__ == "__main__":
    sys.exit(run_main(main))
