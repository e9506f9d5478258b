"""Set aside damaged results of the tasks of a job, for the templates in slurm/.

A job file says of each task by which file it is done. Of a run that is its result, which may be
damaged, or none of it, since the study was submitted: then the run is finished again, not taken for
complete. Exit codes: 0 complete, 70 files cannot be written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from glass_cnn.pipeline import is_damaged, set_aside
from hpc.batch import read_job_file
from hpc.commandline import Parser, run_main


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("damaged", __doc__)
    parser.add_argument("file", metavar="JOB_FILE", type=Path, help="job file of a submission")
    parser.add_argument("index", metavar="INDEX", type=int, help="which of its jobs, from 0")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Look at each, and say what was set aside."""
    args = parse(argv)
    for task in read_job_file(args.file).of(args.index):
        if is_damaged(task.done):
            print(f"{task.name}: {task.done.name} is damaged: the run is finished again")
            set_aside([task.done])


if __name__ == "__main__":
    sys.exit(run_main(main))
