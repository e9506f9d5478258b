"""Simple physics beside the network: how well energy, distances, order and spectra tell glasses.

Prints a table for each data set of a study, and keeps the numbers beside the data set.
Exit codes: 0 complete, 65 bad data, 78 bad configuration.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from glass_cnn.analysis.baselines import measures
from glass_cnn.analysis.dataset_summary import Baseline
from glass_cnn.data.dataset import Dataset, load
from glass_cnn.paths import logs_root
from glass_cnn.study import load_study
from hpc.commandline import Parser, run_main
from hpc.errors import DataError


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("baselines", __doc__)
    parser.add_study()
    parser.add_settings()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measure every data set of the study."""
    args = parse(argv)
    root = logs_root(args.logs)
    study = load_study(args.config, args.set, root)
    console = Console()
    for settings in study.datasets:
        dataset = load(settings, root)
        found = measures(dataset, settings.analysis.confidence)
        if not found.baselines:
            raise DataError(f"{dataset.path}: {found.without}")
        console.print(table(dataset, found.baselines))


def table(dataset: Dataset, found: list[Baseline]) -> Table:
    """One line for each measure."""
    shown = Table(title=dataset.path.name, title_justify="left", box=None, pad_edge=False)
    shown.add_column("logistic regression on", no_wrap=True)
    for heading in ("features", "right", "examples", "AUC", "interval"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        cells = (str(one.features), str(one.correct), str(one.examples), f"{one.auc:.4f}")
        shown.add_row(one.name, *cells, f"{one.low:.4f} to {one.high:.4f}")
    return shown


if __name__ == "__main__":
    sys.exit(run_main(main))
