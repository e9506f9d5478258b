"""Stop a study: what waits is forgotten, what runs writes a checkpoint and ends.

`make submit` goes on from there. Exit codes: 0 done, 78 bad configuration, 70 Slurm refused.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

import psutil

from glass_cnn.analysis.table import find_study
from glass_cnn.paths import StudyDir, logs_root
from hpc import slurm
from hpc.commandline import Parser, run_main
from hpc.words import plural


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("cancel", __doc__)
    parser.add_study()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Cancel what Slurm has of the study, then what runs on this machine."""
    args = parse(argv)
    root = logs_root(args.logs)
    study, place = find_study(args.config, root=root)
    waiting, running = slurm.cancel(place.path) if slurm.answers() else (0, 0)
    here = stop_here(place)
    if not waiting + running + here:
        print(f"{study.name}: nothing of it waits or runs.")
        return
    print(
        f"{study.name}: {plural(waiting, 'waiting task')} cancelled, {running + here} running "
        "asked to stop at a checkpoint. make submit goes on from there."
    )


def stop_here(place: StudyDir) -> int:
    """Ask the trainings of a study that run on this machine without Slurm to stop; how many.

    The `make submit` above them is asked in their place: it tells all and starts no others.
    """
    asked: set[int] = set()
    ranks = [process for process in psutil.process_iter(["cmdline"]) if trains(process, place)]
    for process in ranks:
        above = [p for p in process.parents() if "jobs.submit" in p.cmdline()]
        asked.add((above or [process])[-1].pid)
    for pid in asked:
        psutil.Process(pid).send_signal(signal.SIGUSR2)
    return len({tuple(process.info["cmdline"][2:]) for process in ranks})


def trains(process: psutil.Process, place: StudyDir) -> bool:
    """Whether this is a rank of one of the study's runs, not started by Slurm."""
    words = process.info["cmdline"] or []
    try:
        if words[1:3] != ["-m", "jobs.train"]:  # other people's arguments are not looked up
            return False
        ours = os.path.realpath(place.study) in map(os.path.realpath, words[3:])
        return ours and "GLASS_BATCH_JOB" not in process.environ()
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(run_main(main))
