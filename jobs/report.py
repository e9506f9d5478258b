"""The table and pages of one study: summary, report.html, results_log.md and figures.

Exit codes: 0 complete, 78 bad configuration, 70 files cannot be written.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from glass_cnn.analysis.arms import estimate
from glass_cnn.analysis.best import best
from glass_cnn.analysis.dataset_summary import DatasetSummary, summarize
from glass_cnn.analysis.table import Aggregation, aggregate, find_study, write
from glass_cnn.data.dataset import PARTS, directory, load, split
from glass_cnn.paths import logs_root
from glass_cnn.report.dataset_section import Data
from glass_cnn.report.page import write_report
from glass_cnn.report.terminal import arms_table, summary
from glass_cnn.settings import RunSettings
from hpc.commandline import Parser, run_main
from hpc.errors import DataError
from hpc.words import plural

MOST_DATA = 4
"""Data sets of a study that its page shows."""


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("report", __doc__)
    parser.add_study()
    parser.add_settings()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Aggregate what is there, and write the pages."""
    args = parse(argv)
    study, directory = find_study(args.config, args.set, logs_root(args.logs))
    began = time.time()
    result = aggregate(study, directory)
    write(result)
    estimates = estimate(result)
    pages = write_report(result, estimates, *data_of(result))
    # Results that came since are not in it; jobs.submit sees that they are newer.
    os.utime(directory.report, (began, began))
    console = Console()
    console.print(arms_table(study.name, estimates, console.width))
    console.print(summary(result), soft_wrap=True, highlight=False, markup=False)
    console.print(directory.summary, *pages, sep="\n", soft_wrap=True)


def data_of(result: Aggregation) -> tuple[list[Data], list[str]]:
    """The data of a study beside its best networks; and why others of them cannot be shown."""
    study, root = result.study, result.directory.path.parent
    shown, without = [], []
    for settings in study.datasets[:MOST_DATA]:
        place = directory(settings, root)
        if not place.is_done():
            without.append(
                f"The data set {place.name} is not here: its pictures are not shown, and no simple "
                "measures stand beside the network."
            )
            continue
        labels = [p.label for p in study.points if directory(p.settings, root) == place]
        try:
            summary = look(settings, root)
        except DataError as error:
            without.append(f"{place.name} cannot be shown: {error}".replace(f"{root}/", ""))
        else:
            shown.append(Data(summary, best(result, labels, settings.analysis.confidence)))
    if more := len(study.datasets) - MOST_DATA:
        without += [f"{plural(more, 'further data set')} are not shown."] * (more > 0)
    return shown, without


def look(settings: RunSettings, root: Path) -> DatasetSummary:
    """One data set, summarized; raises DataError."""
    from glass_cnn.analysis.baselines import measures  # slow to import

    data = load(settings, root)
    parts = split(data, settings)
    found = measures(data, settings.analysis.confidence)
    return summarize(data, found, {name: getattr(parts, name) for name in PARTS})


if __name__ == "__main__":
    sys.exit(run_main(main))
