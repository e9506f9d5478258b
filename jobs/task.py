"""Print the job file of one task, for a template in slurm/ that was submitted by hand.

The batch script calls it: `sbatch slurm/train.sh CONFIG RUN` becomes `python -m jobs.task train
CONFIG RUN`. Without RUN, the array index is the number of the run in the study.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from glass_cnn.paths import logs_root
from glass_cnn.pipeline import SECTIONS, result_of, set_aside, train_task
from glass_cnn.study import Run, Study, load_study
from hpc.batch import job_text
from hpc.commandline import Parser, run_main
from hpc.errors import ConfigError
from hpc.site import load_site
from hpc.stages import Task
from hpc.words import plural

MODULES = {"simulate": "jobs.dataset", "aggregate": "jobs.report"}


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("task", __doc__)
    parser.add_argument("stage", choices=("train", *MODULES))
    parser.add_study()
    parser.add_run_name()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Find the task and the site, and print what the template reads."""
    args = parse(argv)
    root = logs_root(args.logs)
    study = load_study(args.config, root=root)
    launch = study.launch
    site = load_site(launch.site, launch.slurm, SECTIONS).of(args.stage, args.stage == "train")
    print(job_text(site, [find(args, study, root)]), end="")


def find(args: argparse.Namespace, study: Study, root: Path) -> Task:
    """The task that the command line names; raises ConfigError."""
    if args.stage == "train":
        run = choose(study, args.run, os.environ.get("SLURM_ARRAY_TASK_ID"))
        result = study.run_dir(root, run).result
        if result.exists() and result_of(run, study.run_dir(root, run)) is None:
            print(f"{result} is damaged: the run is finished again.", file=sys.stderr)
            set_aside([result])
        return train_task(study, root, run, args.config)
    # Asked for by hand, it is done in any case; what exists already is found at once.
    place = study.directory(root)
    never, log = place.path / f".{args.stage}", place.path / f"{args.stage}.log"
    words = (args.config, "--logs", str(root))
    return Task(args.stage, MODULES[args.stage], words, never, log)


def choose(study: Study, name: str | None, index: str | None) -> Run:
    """The run of this name, else of this array index, else the only one; raises ConfigError."""
    if name is not None:
        return study.find(name)
    if index is None and len(study.runs) > 1:
        raise ConfigError(
            f"{study.source}: has {len(study.runs)} runs: name one (sbatch slurm/train.sh CONFIG "
            f"RUN, for example {study.runs[0].name}), or submit an array "
            f"(sbatch --array=0-{len(study.runs) - 1} …)."
        )
    number = index or "0"
    if not number.isdecimal() or int(number) >= len(study.runs):
        raise ConfigError(
            f"{study.source}: has {plural(len(study.runs), 'run')}; there is no number {number}. "
            f"Submit --array=0-{len(study.runs) - 1} or a part of it."
        )
    return study.runs[int(number)]


if __name__ == "__main__":
    sys.exit(run_main(main))
