"""A batch job's starts of a task: written down with reasons, and whether another one is worth it.

They stand in events.jsonl beside the task's log: job_start, then requeue (the job went back into
the queue), restart (ranks were killed, and the same job started them again) or no_requeue.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc.checkpoint_names import newest_step
from hpc.errors import EXIT_AGAIN, EXIT_CONFIG, EXIT_DATA, EXIT_INTERNAL
from hpc.files import make_directory, storage_errors
from hpc.records import EVENTS, Event, append_event, now, read_events
from hpc.stages import Task
from hpc.words import plural

KILLED = 128
"""exit codes from here on: ranks were killed from outside (128 + signal; mpiexec says 255)"""
MEANING = {EXIT_DATA: "bad data", EXIT_CONFIG: "bad configuration", EXIT_INTERNAL: "internal error"}
BACK = ("requeue", "restart")
"""events after which a task is started again by the same job"""


def failure(status: int) -> str:
    """Why ranks that ended with this code are not started again; empty where they may be."""
    if status >= KILLED or status == EXIT_AGAIN:
        return ""
    meaning = MEANING.get(status, "not a request to be run again")
    return f"exit code {status}: {meaning}; mend it and submit again"


@dataclass(frozen=True)
class Starts:
    """What one job has written down of one task."""

    job: str
    """job id, of an array task as ARRAY_INDEX"""
    task: str
    log: Path
    """the task's log; its events stand beside it"""
    checkpoints: Path | None = None

    @classmethod
    def of(cls, job: str, task: Task) -> Starts:
        """Those of one task by one job."""
        return cls(job, task.name, task.log, task.checkpoints)

    @property
    def step(self) -> int | None:
        """Step of the newest checkpoint; None for a task without any."""
        return newest_step(self.checkpoints) if self.checkpoints else None

    def events(self) -> list[Event]:
        """What was written down so far, oldest first; raises DataError."""
        found = read_events(self.log.parent / EVENTS)
        return [event for event in found if (event.job, event.task) == (self.job, self.task)]

    def used_up(self, bound: int, step: int | None) -> str:
        """Why this job has started it often enough; empty where another start is worth it.

        Args:
            bound: the most times that it may start it again.
            step: newest checkpoint's step now; None where steps mean nothing.
        """
        mine = self.events()
        begun = [event.step for event in mine if event.event == "job_start"]
        returns = sum(event.event in BACK for event in mine)
        if returns >= bound:
            return f"requeued {plural(returns, 'time')} already (max_requeues); submit again"
        if step is not None and len(begun) > 1 and (begun[-2] or 0) >= step:
            return f"two starts in a row made no progress beyond step {step}"
        return ""

    def given_up(self, bound: int) -> Event | None:
        """The decision by which this job has done with it; None while it may start it again.

        A refusal that lay with the job itself (cancelled, Slurm was faster) is none: where it
        runs again after all, so does the task.
        """
        mine = self.events()
        if not mine or mine[-1].event != "no_requeue":
            return None
        failed = failure(mine[-1].status or 0) or self.used_up(bound, self.step)
        return mine[-1] if failed else None

    def begin(self, ranks: int) -> str:
        """Write down a start; returns the line that heads its part of the log."""
        mine, step = self.events(), self.step
        last = mine[-1] if mine else None
        lost = "no notice from the last start: node or job failed"
        reason = "first start" if last is None else lost
        if last is not None and last.event != "job_start":
            reason = last.reason or "no reason given"
        nodes = os.environ.get("SLURM_JOB_NODELIST", "?")
        count = os.environ.get("SLURM_RESTART_COUNT", "")
        restart = int(count) if count.isdecimal() else 0
        self.write("job_start", step, restart=restart, nodes=nodes, reason=reason)
        from_ = "goes on with what is there" if step is None else f"from step {step}"
        return (
            f"=== {now()} job {self.job}, restart {restart}: {self.task} on {nodes}, "
            f"{plural(ranks, 'rank')}, {from_}; {reason}"
        )

    def decided(self, event: str, step: int | None, status: int, reason: str) -> str:
        """Write down what becomes of it after an end; returns the line that says so."""
        self.write(event, step, status=status, reason=reason)
        return f"=== {now()} job {self.job}: {event.replace('_', ' ')}: {reason}"

    def say(self, line: str) -> None:
        """Append a line to the task's log; raises StorageError."""
        with storage_errors(self.log), self.log.open("a") as log:
            log.write(f"{line}\n")

    def write(self, event: str, step: int | None, **facts: Any) -> None:
        """Append an event; raises StorageError."""
        make_directory(self.log.parent)
        stamped = Event(event=event, job=self.job, task=self.task, step=step, **facts)
        append_event(self.log.parent / EVENTS, stamped)
