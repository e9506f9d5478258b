"""Run directories of one or several studies to their tables, summary.parquet and summary.csv.

Several studies also give one table of all their runs, in the directory of all outputs. Exit
codes: 0 complete, 78 bad configuration, 70 files cannot be written.
"""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from glass_cnn.analysis.arms import estimate
from glass_cnn.analysis.table import accounted, aggregate, combine, find_study, write, write_table
from glass_cnn.paths import StudyDir, logs_root
from glass_cnn.report.terminal import arms_table, counted, summary
from hpc.commandline import Parser, run_main


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("aggregate", __doc__)
    parser.add_study(nargs="+")
    parser.add_settings()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Aggregate each study, then all together."""
    args = parse(argv)
    root = logs_root(args.logs)
    found = [find_study(config, args.set, root) for config in args.config]
    console = Console()
    results = []
    for study, directory in found:
        result = accounted(aggregate(study, directory))
        write(result)
        console.print(arms_table(study.name, estimate(result), console.width))
        console.print(summary(result), soft_wrap=True, highlight=False, markup=False)
        console.print(directory.summary, directory.summary_csv, sep="\n", soft_wrap=True)
        results.append(result)
    if len(results) > 1:
        table, together = combine(results), StudyDir(root)
        parquet, csv = together.summary, together.summary_csv
        write_table(table, parquet, csv)
        console.print("all studies:", counted(table), soft_wrap=True, highlight=False, markup=False)
        console.print(parquet, csv, sep="\n", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(run_main(main))
