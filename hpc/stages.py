"""What a launcher is given: stages, one after the other, of tasks that are independent.

A study is three stages: simulate, train, aggregate. `hpc.local` runs them on this machine,
`hpc.slurm` as job arrays; both know a task only by what is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """One process group: `python -m <module> <args>` on the stage's ranks."""

    name: str
    """what people call it; safe as a file name and shell word (a run's name)"""
    module: str
    """Python module to run, for example jobs.train"""
    args: tuple[str, ...]
    """its command line"""
    done: Path
    """file whose existence means that there is nothing left to do"""
    log: Path
    """file that collects what the task says, appended over restarts"""
    checkpoints: Path | None = None
    """directory of its checkpoints"""
    records: Path | None = None
    """record file that shows how far it is (metrics.jsonl: one record an iteration)"""
    total: int = 0
    """number of records when it is complete"""
    images: int = 0
    """training images behind each record, for the rate that is shown"""


@dataclass(frozen=True)
class Stage:
    """Tasks that may run at the same time; the next stage starts when they have ended."""

    name: str
    """simulate, train or aggregate: also the name of the template in slurm/"""
    tasks: tuple[Task, ...]
    """tasks that are not done yet"""
    ranks: int
    """MPI ranks of each task"""
    threads: int
    """CPU threads of each rank"""
    after_failures: bool = False
    """run even when tasks of earlier stages failed"""
