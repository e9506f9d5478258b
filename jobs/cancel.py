"""Stop a study: what waits is forgotten, what runs writes a checkpoint and ends.

`make submit` goes on from there. Exit codes: 0 done, 78 bad configuration, 70 Slurm refused.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys

import psutil

from glass_cnn.analysis.table import find_study
from glass_cnn.paths import StudyDir, logs_root
from hpc import slurm
from hpc.commandline import Parser, run_main
from hpc.environment import BATCH_JOB
from hpc.words import plural


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = Parser("cancel", __doc__)
    parser.add_study()
    parser.add_logs()
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Stop what runs of the study on this machine, and cancel what Slurm has of it."""
    args = parse(argv)
    root = logs_root(args.logs)
    study, place = find_study(args.config, root=root)
    here = stop_here(place)
    try:
        waiting, running = slurm.cancel(place.path) if slurm.answers() else (0, 0)
    except slurm.SlurmError as error:
        stopped = f"{plural(here, 'run')} of {study.name} on this machine asked to stop. "
        raise slurm.SlurmError(f"{stopped if here else ''}{error}") from None
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
    ranks = [process for process in psutil.process_iter(["cmdline"]) if trains(process, place)]
    for process in {starter(rank) for rank in ranks}:
        with contextlib.suppress(psutil.Error):  # it has just ended
            process.send_signal(signal.SIGUSR2)
    return len({tuple(process.info["cmdline"][2:]) for process in ranks})


def starter(rank: psutil.Process) -> psutil.Process:
    """The `make submit` above a rank, else the rank itself."""
    with contextlib.suppress(psutil.Error):
        above = [process for process in rank.parents() if "jobs.submit" in process.cmdline()]
        return (above or [rank])[-1]
    return rank


def trains(process: psutil.Process, place: StudyDir) -> bool:
    """Whether this is a rank of one of the study's runs, not started by one of our batch scripts.

    SLURM_JOB_ID would not tell: it is also there for what people start within an allocation.
    """
    words = process.info["cmdline"] or []
    try:
        if words[1:3] != ["-m", "jobs.train"]:  # other people's arguments are not looked up
            return False
        ours = os.path.realpath(place.study) in map(os.path.realpath, words[3:])
        return ours and BATCH_JOB not in process.environ()
    except psutil.Error:
        return False


if __name__ == "__main__":
    sys.exit(run_main(main))
