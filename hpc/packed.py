"""Many tasks in one batch job: the launcher of one machine inside an allocation of one node.

    python -m hpc.packed --job ID --job-file FILE --index N -- PROGRAM…

The batch script calls it with the Python that runs the tasks, and hands signals on to it. Every
task has records of its own, as one that has a job to itself: a failure ends no other, what was
killed is started again as long as that is worth it. What a request to stop leaves unfinished is
decided over by `hpc.requeue`, also where this process did not live to see it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from hpc import gpus, provenance
from hpc.batch import Pack, read_job_file
from hpc.commandline import run_main
from hpc.environment import BATCH_JOB, FACTS, GPUS
from hpc.errors import (
    EXIT_AGAIN,
    EXIT_COMPLETE,
    EXIT_DATA,
    EXIT_INTERNAL,
    ConfigError,
    DataError,
)
from hpc.local import Local
from hpc.preempt import StopFlag
from hpc.stages import Stage, Task
from hpc.starts import Starts, failure

GRACE_SHARE = 0.8
"""of the time between the signal and the end of the job: for checkpoints; the rest is to requeue"""


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m hpc.packed", description=__doc__)
    parser.add_argument("--job", required=True, help="job id, of an array task as ARRAY_INDEX")
    parser.add_argument("--job-file", required=True, type=Path)
    parser.add_argument("--index", required=True, type=int, help="of the array task, from 0")
    parser.add_argument("program", nargs="+", help="the Python of the tasks, word by word")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run what is not done of the tasks that share this job; the exit code that tells the worst.

    EXIT_COMPLETE when all are done, EXIT_AGAIN when stopped on request, else the code of a task
    that failed, now or at an earlier start of the job. Raises ConfigError where there is no GPU
    for tasks that were to have one.
    """
    stop = StopFlag().install()
    args = parse(argv)
    file = read_job_file(args.job_file)
    pack, tasks = file.pack, file.of(args.index)
    if pack is None or not tasks:
        raise ConfigError(f"{args.job_file}: no tasks share a job number {args.index}.")
    clerk = Records(args.job, pack.ranks, file.max_requeues)
    left = [task for task in tasks if not task.done.exists()]
    failed = {task.name: code for task in left if (code := clerk.failed(task))}
    for name, code in failed.items():
        print(f"{name}: exit code {code} before this start of the job; not started again")
    cards = _cards()
    stage = Stage(
        name=args.job_file.stem,
        tasks=tuple(task for task in left if task.name not in failed),
        ranks=pack.ranks,
        threads=pack.threads,
        gpus_per_rank=1 if cards else 0,
        tasks_per_gpu=pack.tasks_per_gpu,
    )
    launcher = Local(
        side_by_side=pack.at_once,
        gpus=cards,
        program=tuple(args.program),
        variables=_variables(args.job, len(tasks)),
        bind=file.site["bind"] != "none" and _has_cores(pack),
        grace=GRACE_SHARE * int(file.site["signal_lead"]),
        clerk=clerk,
        stop=stop,
    )
    return launcher.launch([stage]) or next(iter(failed.values()), EXIT_COMPLETE)


@dataclass(frozen=True)
class Records:
    """What this job writes down of its tasks' starts and ends: a `hpc.local.Clerk`."""

    job: str
    ranks: int
    """of each task"""
    bound: int
    """times that this job may start a task again"""

    def failed(self, task: Task) -> int:
        """Exit code with which this job has given a task up; 0 where it may start it."""
        try:
            decision = Starts.of(self.job, task).given_up(self.bound)
        except DataError as error:
            print(f"error: {task.name}: {error}", file=sys.stderr)
            return EXIT_DATA
        return 0 if decision is None else decision.status or EXIT_INTERNAL

    def begins(self, task: Task) -> None:
        """Write down a start, and head its part of the log."""
        starts = Starts.of(self.job, task)
        starts.say(starts.begin(self.ranks))

    def goes_on(self, task: Task, code: int) -> bool:
        """Whether ranks that were killed, or stopped by whomever, start again; not what failed."""
        starts = Starts.of(self.job, task)
        step = starts.step
        refused = failure(code) or starts.used_up(self.bound, step)
        was = "asked to stop" if code == EXIT_AGAIN else f"ranks were killed (exit code {code})"
        event = "no_requeue" if refused else "restart"
        starts.say(starts.decided(event, step, code, refused or was))
        return not refused


def _cards() -> tuple[str, ...]:
    """UUIDs of the job's GPUs; none where its tasks were promised none. Raises ConfigError."""
    if os.environ.get(GPUS, "0") == "0":
        return ()
    found, complaint = gpus.here()
    if not found:
        raise ConfigError(
            f"the site profile gives GPUs to this job, and nvidia-smi shows none of them on "
            f"{socket.gethostname()}{complaint and ': '}{complaint}. Nothing is trained on a "
            "processor in their place."
        )
    return found


def _variables(job: str, tasks: int) -> dict[str, str]:
    """What tasks are told of their job; Slurm's own variables would steer their mpiexec."""
    facts = {**provenance.slurm(), "tasks": str(tasks)}
    return {BATCH_JOB: job, FACTS: json.dumps(facts)}


def _has_cores(pack: Pack) -> bool:
    """Whether each rank can be kept on cores of its own: of those that are this job's alone."""
    mine, need = len(os.sched_getaffinity(0)), pack.at_once * pack.ranks * pack.threads
    given = int(os.environ.get("SLURM_CPUS_ON_NODE") or mine)
    if need <= mine <= given:
        return True
    print(
        f"note: not bound to cores: this job may use {mine} here, {given} are its own and its "
        f"tasks want {need}"
    )
    return False


if __name__ == "__main__":
    sys.exit(run_main(main))
