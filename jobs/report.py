"""The table and pages of one study: summary, report.html, results_log.md and figures.

Exit codes: 0 complete, 78 bad configuration, 70 files cannot be written.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from rich.console import Console

from glass_cnn.analysis.arms import estimate
from glass_cnn.analysis.table import aggregate, find_study, write
from glass_cnn.paths import logs_root
from glass_cnn.report.page import write_report
from glass_cnn.report.terminal import arms_table, summary
from hpc.commandline import Parser, run_main


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
    pages = write_report(result, estimates)
    # Results that came since are not in it; jobs.submit sees that they are newer.
    os.utime(directory.report, (began, began))
    console = Console()
    console.print(arms_table(study.name, estimates))
    console.print(summary(result), soft_wrap=True, highlight=False, markup=False)
    console.print(directory.summary, *pages, sep="\n", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_main(main))
