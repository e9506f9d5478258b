"""Whether a batch job goes back into the queue, and why; called by the templates in slurm/.

    python -m hpc.requeue begin …   before the ranks start: record it, print the log's header line
    python -m hpc.requeue end …     when they ended with a code other than 0: decide, log, requeue

With --index it is about all tasks of a packed job (`hpc.packed`, which records their starts): each
is decided over by itself, and the job goes back if one of them is to go on.

Slurm by itself requeues after a preemption whose grace time is used up, a node failure or an
administrator's request; not at a time limit, and up to 23.11 not when the job ends within its
grace time. So every job decides for itself, and finds out when Slurm was faster.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc import slurm
from hpc.batch import read_job_file
from hpc.commandline import run_main
from hpc.errors import EXIT_COMPLETE, DataError
from hpc.failures import SHARED_MEMORY, is_bus_error
from hpc.site import seconds
from hpc.slurm import SlurmError
from hpc.starts import KILLED, Starts, failure

EARLY = 60
"""seconds by which Slurm may send the signal before its time, s"""


@dataclass(frozen=True)
class JobState:
    """What Slurm says of a job at this moment."""

    state: str
    """RUNNING; anything else means that Slurm itself is ending the job"""
    run_seconds: int | None = 0
    """None where it does not say"""
    limit_seconds: int | None = None
    preempted: bool = False

    @property
    def overtime(self) -> bool:
        """Whether the job is being ended because its time is over."""
        return self.left is not None and self.left <= 0

    @property
    def left(self) -> int | None:
        """Seconds to the time limit, if that can be told."""
        if self.limit_seconds is None or self.run_seconds is None:
            return None
        return self.limit_seconds - self.run_seconds


@dataclass(frozen=True)
class Decision:
    """Requeue or not, and the reason in words."""

    requeue: bool
    reason: str


def decide(
    status: int,
    job: JobState | None,
    step: int | None,
    *,
    spent: str = "",
    asked: bool = False,
    cancelled: bool = False,
    lead: int = 120,
) -> Decision:
    """Decide over a job whose ranks ended with `status` (not 0). Pure.

    Args:
        status: exit code of the launcher.
        job: what Slurm says; None where Slurm cannot be asked.
        step: newest checkpoint's step now; None where steps mean nothing.
        spent: why its task has been started often enough, see `Starts.used_up`.
        asked: whether the batch script was told to stop.
        cancelled: whether `make cancel` was called.
        lead: seconds between the signal and the time limit.
    """
    refused = failure(status) or _refused_by_job(job, cancelled) or spent
    if refused or job is None:
        return Decision(False, refused)
    return Decision(True, _reason(status, job, asked, lead) + _at(step))


def _refused_by_job(job: JobState | None, cancelled: bool) -> str:
    """Why a job cannot go back, whatever its tasks are like; empty where it can."""
    if cancelled:
        return "cancelled by make cancel"
    if job is None:
        return "Slurm cannot be asked from here; submit again to go on"
    if job.state != "RUNNING" and not job.overtime:
        return f"Slurm ends this job itself ({job.state}): cancelled, or requeued"
    return ""


def _reason(status: int, job: JobState, asked: bool, lead: int) -> str:
    if job.preempted:
        return "preempted"
    if job.left is not None and job.left <= lead + EARLY and (asked or job.left <= 0):
        return "time limit"
    if status < KILLED:
        return "asked to stop"
    memory = f": a bus error, is {SHARED_MEMORY} there too small?" if is_bus_error(status) else ""
    return f"ranks were killed (exit code {status}{memory})"


def _at(step: int | None) -> str:
    return "" if step is None else f" at step {step}"


# -- facts -----------------------------------------------------------------------------------------


def job_state(job: str) -> JobState | None:
    """What Slurm says of a job; None where it does not answer, or nothing that can be read."""
    try:
        text = slurm.ask("scontrol", "--oneliner", "show", "job", job, timeout=20)
    except SlurmError:
        return None
    facts: dict[str, str] = {}
    for key, value in re.findall(r"(?<!\S)(\w+)=(\S*)", text):
        facts.setdefault(key, value)  # the comment comes late, and may hold anything
    if not facts.get("JobState", "").isupper():
        return None
    return JobState(
        facts["JobState"],
        _seconds(facts.get("RunTime", "")),
        _seconds(facts.get("TimeLimit", "")),
        facts.get("PreemptTime", "")[:1].isdigit(),
    )


def _seconds(text: str) -> int | None:
    """Length of a time as Slurm writes it; None for UNLIMITED, INVALID and whatever else."""
    with contextlib.suppress(ValueError):
        return seconds(text)
    return None


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m hpc.requeue", description=__doc__)
    parser.add_argument("action", choices=("begin", "end"))
    parser.add_argument("--job", required=True, help="job id, of an array task as ARRAY_INDEX")
    parser.add_argument("--name", help="name of the task")
    parser.add_argument("--log", type=Path, help="the task's log")
    parser.add_argument("--checkpoints", default="", help="directory of its checkpoints, if any")
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--status", type=int, default=0, help="exit code of the launcher")
    parser.add_argument("--asked", default="", help="signal that the batch script has caught")
    parser.add_argument("--lead", type=int, default=120)
    parser.add_argument("--bound", type=int, default=100)
    parser.add_argument("--job-file", default="", help="the job file, if there is one")
    parser.add_argument("--index", type=int, help="of a packed job: which tasks of it are meant")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Record a start, or decide at an end."""
    args = parse(argv)
    if args.index is not None:
        file = Path(args.job_file)
        tasks = read_job_file(file).of(args.index)
        left = [Starts.of(args.job, task) for task in tasks if not task.done.exists()]
        _end(args, [starts for starts in left if _is_readable(starts)])
        return EXIT_COMPLETE
    place = Path(args.checkpoints) if args.checkpoints else None
    only = Starts(args.job, args.name, args.log, place)
    if args.action == "begin":
        print(only.begin(args.ranks), flush=True)
    else:
        _end(args, [only])
    return EXIT_COMPLETE


def _is_readable(starts: Starts) -> bool:
    """Whether there are events to decide by; one whose are damaged was told so by `hpc.packed`."""
    with contextlib.suppress(DataError):
        starts.events()
        return True
    return False


def _end(args: argparse.Namespace, unfinished: Sequence[Starts]) -> None:
    """Decide over tasks that are not done; the job goes back for those that go on."""
    job = job_state(args.job)
    cancelled = bool(args.job_file) and slurm.cancelled(Path(args.job_file)).exists()
    again = []
    for task in unfinished:
        mine = task.events()
        if args.index is not None and (not mine or mine[-1].event != "job_start"):
            # Its turn has not come yet, or it failed while others ran and was decided over then.
            if not task.given_up(args.bound) and not _refused_by_job(job, cancelled):
                again.append(task)
            continue
        step = task.step
        decision = decide(
            args.status,
            job,
            step,
            spent=task.used_up(args.bound, step),
            asked=bool(args.asked),
            cancelled=cancelled,
            lead=args.lead,
        )
        # Written first: Slurm ends this process as soon as the job is requeued.
        event = "requeue" if decision.requeue else "no_requeue"
        line = task.decided(event, step, args.status, decision.reason)
        print(line if args.index is None else f"{task.task} {line}", flush=True)
        if args.index is not None:  # what is printed of a single task, the template puts there
            task.say(line)
        if decision.requeue:
            again.append(task)
    if again:
        _requeue(args, again)


def _requeue(args: argparse.Namespace, again: Sequence[Starts]) -> None:
    try:
        slurm.ask("scontrol", "requeue", args.job)  # twice does no more than once
    except SlurmError as error:
        if (there := job_state(args.job)) is not None and there.state == "PENDING":
            return  # Slurm was faster
        for task in again:
            task.write("no_requeue", task.step, status=args.status, reason=str(error))
        raise


if __name__ == "__main__":
    sys.exit(run_main(main))
