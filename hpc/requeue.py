"""Whether a batch job goes back into the queue, and why; called by the templates in slurm/.

    python -m hpc.requeue begin …   before the ranks start: record it, print the log's header line
    python -m hpc.requeue end …     when they ended with a code other than 0: decide, log, requeue

Slurm by itself requeues after a preemption whose grace time is used up, a node failure or an
administrator's request; not at a time limit, and up to 23.11 not when the job ends within its
grace time. So every job decides for itself, and finds out when Slurm was faster.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc import slurm
from hpc.checkpoint_names import newest_step
from hpc.commandline import run_main
from hpc.errors import EXIT_AGAIN, EXIT_COMPLETE, EXIT_CONFIG, EXIT_DATA, EXIT_INTERNAL
from hpc.failures import SHARED_MEMORY, is_bus_error
from hpc.records import EVENTS, Event, append_event, now, read_events
from hpc.site import seconds
from hpc.slurm import SlurmError
from hpc.words import plural

KILLED = 128
"""exit codes from here on: ranks were killed from outside (128 + signal; mpiexec says 255)"""
EARLY = 60
"""seconds by which Slurm may send the signal before its time, s"""
MEANING = {EXIT_DATA: "bad data", EXIT_CONFIG: "bad configuration", EXIT_INTERNAL: "internal error"}


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
    starts: Sequence[int | None],
    step: int | None,
    *,
    asked: bool = False,
    cancelled: bool = False,
    requeues: int = 0,
    bound: int = 100,
    lead: int = 120,
) -> Decision:
    """Decide over a job whose ranks ended with `status` (not 0). Pure.

    Args:
        status: exit code of the launcher.
        job: what Slurm says; None where Slurm cannot be asked.
        starts: newest checkpoint's step at each start of this job so far, the present one last;
            None where steps mean nothing.
        step: newest checkpoint's step now, or None.
        asked: whether the batch script was told to stop.
        cancelled: whether `make cancel` was called.
        requeues: times that this job has requeued itself; `bound` is the most it may.
        lead: seconds between the signal and the time limit.
    """
    killed = status >= KILLED
    if not killed and status != EXIT_AGAIN:
        meaning = MEANING.get(status, "not a request to be run again")
        return Decision(False, f"exit code {status}: {meaning}; mend it and submit again")
    if cancelled:
        return Decision(False, "cancelled by make cancel")
    if job is None:
        return Decision(False, "Slurm cannot be asked from here; submit again to go on")
    if job.state != "RUNNING" and not job.overtime:
        return Decision(False, f"Slurm ends this job itself ({job.state}): cancelled, or requeued")
    if requeues >= bound:
        return Decision(
            False, f"requeued {plural(requeues, 'time')} already (max_requeues); submit again"
        )
    if len(starts) > 1 and step is not None and (starts[-2] or 0) >= step:
        return Decision(False, f"two starts in a row made no progress beyond step {step}")
    return Decision(True, _reason(status, job, asked, lead) + _at(step))


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
    parser.add_argument("--name", required=True, help="name of the task")
    parser.add_argument("--log", type=Path, required=True, help="the task's log")
    parser.add_argument("--checkpoints", default="", help="directory of its checkpoints, if any")
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--status", type=int, default=0, help="exit code of the launcher")
    parser.add_argument("--asked", default="", help="signal that the batch script has caught")
    parser.add_argument("--lead", type=int, default=120)
    parser.add_argument("--bound", type=int, default=100)
    parser.add_argument("--job-file", default="", help="the job file, if there is one")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Record a start, or decide at an end."""
    args = parse(argv)
    step = newest_step(Path(args.checkpoints)) if args.checkpoints else None
    events = args.log.parent / EVENTS
    mine = [e for e in read_events(events) if (e.job, e.task) == (args.job, args.name)]
    if args.action == "begin":
        _begin(args, events, mine, step)
    else:
        _end(args, events, mine, step)
    return EXIT_COMPLETE


def _begin(args: argparse.Namespace, events: Path, mine: list[Event], step: int | None) -> None:
    last = mine[-1] if mine else None
    reason = "first start" if last is None else "no notice from the last start: node or job failed"
    if last is not None and last.event != "job_start":
        reason = last.reason or "no reason given"
    nodes = os.environ.get("SLURM_JOB_NODELIST", "?")
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    restart = int(count) if count.isdecimal() else 0
    print(
        f"=== {now()} job {args.job}, restart {restart}: {args.name} on {nodes}, "
        f"{plural(args.ranks, 'rank')}, {_from(step)}; {reason}",
        flush=True,
    )
    _write(args, events, "job_start", step, restart=restart, nodes=nodes, reason=reason)


def _from(step: int | None) -> str:
    return "goes on with what is there" if step is None else f"from step {step}"


def _end(args: argparse.Namespace, events: Path, mine: list[Event], step: int | None) -> None:
    decision = decide(
        args.status,
        job_state(args.job),
        [event.step for event in mine if event.event == "job_start"],
        step,
        asked=bool(args.asked),
        cancelled=bool(args.job_file) and slurm.cancelled(Path(args.job_file)).exists(),
        requeues=sum(event.event == "requeue" for event in mine),
        bound=args.bound,
        lead=args.lead,
    )
    # Written first: Slurm ends this process as soon as the job is requeued.
    event = "requeue" if decision.requeue else "no_requeue"
    _write(args, events, event, step, status=args.status, reason=decision.reason)
    print(f"=== {now()} job {args.job}: {event.replace('_', ' ')}: {decision.reason}", flush=True)
    if decision.requeue:
        _requeue(args, events, step)


def _requeue(args: argparse.Namespace, events: Path, step: int | None) -> None:
    try:
        slurm.ask("scontrol", "requeue", args.job)  # twice does no more than once
    except SlurmError as error:
        if (there := job_state(args.job)) is not None and there.state == "PENDING":
            return  # Slurm was faster
        _write(args, events, "no_requeue", step, status=args.status, reason=str(error))
        raise


def _write(
    args: argparse.Namespace, events: Path, event: str, step: int | None, **facts: Any
) -> None:
    append_event(events, Event(event=event, job=args.job, task=args.name, step=step, **facts))


if __name__ == "__main__":
    sys.exit(run_main(main))
