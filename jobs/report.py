"""The table and pages of one study: summary, report.html, results_log.md and figures.

Of several studies also one page, report.html in the directory of all outputs.

Exit codes: 0 complete, 78 bad configuration, 70 files cannot be written.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from glass_cnn.analysis.arms import Estimates, estimate
from glass_cnn.analysis.best import best
from glass_cnn.analysis.dataset_summary import DatasetSummary, summarize
from glass_cnn.analysis.table import Aggregation, accounted, aggregate, find_study, write
from glass_cnn.data.dataset import PARTS, directory, load, split
from glass_cnn.paths import StudyDir, logs_root
from glass_cnn.report.dataset_section import Data
from glass_cnn.report.page import write_report, write_studies
from glass_cnn.report.terminal import arms_table, summary
from glass_cnn.settings import RunSettings
from glass_cnn.study import Study
from hpc.commandline import Parser, run_main
from hpc.errors import DataError
from hpc.words import plural

MOST_DATA = 4
"""Data sets of a study that its page shows."""


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("report", __doc__)
    parser.add_study(nargs="+")
    parser.add_settings()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Aggregate what is there, and write the pages of each study, and one of all."""
    args = parse(argv)
    root = logs_root(args.logs)
    found = [find_study(each, args.set, root) for config in args.config for each in named(config)]
    made = [report(study, directory) for study, directory in found]
    if len(made) > 1:
        Console().print(write_studies(root, made), soft_wrap=True)


def named(config: str) -> list[str]:
    """The studies of CONFIG: one, or several with spaces between."""
    return [config] if Path(config).exists() or " " not in config else config.split()


def report(study: Study, directory: StudyDir) -> tuple[Aggregation, Estimates]:
    """Write the pages of one study, and say what stands in them."""
    began = time.time()
    result = accounted(aggregate(study, directory))
    write(result)
    estimates = estimate(result)
    pages = write_report(result, estimates, *data_of(result))
    # Results that came since are not in it; jobs.submit sees that they are newer.
    os.utime(directory.report, (began, began))
    console = Console()
    console.print(arms_table(study.name, estimates, console.width))
    console.print(summary(result), soft_wrap=True, highlight=False, markup=False)
    console.print(directory.summary, *pages, sep="\n", soft_wrap=True)
    return result, estimates


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
