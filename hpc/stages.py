"""What a launcher is given: stages, one after the other, of tasks that are independent.

`hpc.local` runs them on this machine, `hpc.slurm` as job arrays. Both have one shape, `room()` and
`launch(stages, dry_run)`, and know of a stage and its tasks only what is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class Meter:
    """How the progress of a task is read and shown."""

    records: Path
    """record file that grows by one record with each unit of progress"""
    total: int
    """number of records when the task is complete"""
    shown: Mapping[str, str]
    """key of the newest record -> how its value is shown: {"loss": "loss {:.3f}"}"""
    work: float = 0.0
    """amount of work behind each record, for the rate that is shown; 0 shows none"""
    unit: str = "/s"
    """unit of that rate"""


@dataclass(frozen=True)
class Task:
    """One process group: `python -m <module> <args>` on the stage's ranks."""

    name: str
    """what people call it; safe as a file name and shell word"""
    module: str
    """Python module to run, for example jobs.train"""
    args: tuple[str, ...]
    """its command line"""
    done: Path
    """file whose existence means that there is nothing left to do"""
    log: Path
    """file that collects what the task prints, appended over restarts"""
    checkpoints: Path | None = None
    """directory of its checkpoints"""
    meter: Meter | None = None
    """how far it is; without one, the last line of its log is shown"""


@dataclass(frozen=True)
class Stage:
    """Tasks that may run at the same time; the next stage starts when they have ended."""

    name: str
    """what people call it: also its section of a site profile, and its template in slurm/"""
    tasks: tuple[Task, ...]
    """tasks that are not done yet"""
    ranks: int
    """MPI ranks of each task"""
    threads: int
    """CPU threads of each rank"""
    needs: Literal["success", "end"] = "end"
    """whether its batch jobs wait for the success of the stage before, or for its end"""
    main: bool = False
    """gets the nodes and GPUs of the site profile; the others get CPUs"""
    gpus_per_rank: int = 0
    """GPUs that each rank takes where there are some"""
    tasks_per_gpu: int = 1
    """tasks that share a GPU"""
    tasks_per_job: int = 1
    """tasks that share a batch job; 0: as many as a node holds"""
    after_failures: bool = False
    """run on this machine even when tasks of earlier stages failed"""
    sums_up: bool = False
    """looks at what all the others made: comes last, also after tasks that are added later"""


@dataclass(frozen=True)
class Room:
    """What a launcher has for the ranks of the main stage's tasks."""

    ranks: int
    """that run at a time, on this machine or on one node: its cores, or its GPUs"""
    threads: int = 1
    """cores of each of them"""
    gpus: bool = False
    """whether each has a GPU"""
    tasks: int | None = None
    """tasks at a time, at most"""
    more: bool = False
    """whether there may be more such nodes"""
    each: int | None = None
    """ranks of each task, where that is not for others to choose"""


class Launcher(Protocol):
    """What runs stages."""

    def room(self) -> Room:
        """What there is for the main stage; raises ConfigError."""
        ...

    def launch(self, stages: Sequence[Stage], dry_run: bool = False) -> int:
        """Run or submit them, or only show how; returns the exit code."""
        ...
