"""What a launcher starts knows nothing of another launcher around it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from glass_cnn.study import load_study
from hpc import environment
from hpc.environment import BATCH_JOB, CORES, STARTED, for_ranks, for_slurm
from hpc.records import read_records
from tests import tiny
from tests.conftest import ONE_THREAD, ROOT

ALLOCATION = {
    "SLURM_JOB_ID": "1", "SLURM_JOBID": "1", "SLURM_NODELIST": "node[1-2]", "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_NTASKS": "2",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1", "SLURM_MEM_PER_CPU": "1", "SLURM_PROCID": "0",
    "SLURM_TRES_PER_TASK": "gres/gpu:1", "SBATCH_WAIT": "1", "SQUEUE_STATES": "RUNNING",
    "SCANCEL_STATE": "PENDING", "SINFO_PARTITION": "x", "SLURMD_NODENAME": "node1",
}  # fmt: skip
"""a shell in a job of two nodes, without srun (a container)"""
RANK = {
    "PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "9", "PMI2_FD": "9", "PMIX_RANK": "1",
    "PMIX_NAMESPACE": "x", "PMIX_SERVER_URI41": "x;tcp4://127.0.0.1:1", "PALS_RANKID": "1",
    "HYDRA_HOST_FILE": "/nowhere", "HYDI_CONTROL_FD": "7", "MPI_LOCALNRANKS": "2",
    "MPI_LOCALRANKID": "1", "OMPI_COMM_WORLD_RANK": "1", "OMPI_UNIVERSE_SIZE": "2",
    "PRTE_LAUNCHED": "1", "MPIEXEC_TIMEOUT": "1",
}  # fmt: skip
"""a rank of somebody's mpiexec"""
OTHERS = {
    "PBS_JOBID": "1", "PBS_NODEFILE": "/nowhere", "LSB_JOBID": "1", "LSB_MCPU_HOSTS": "far 2",
    "PE_HOSTFILE": "/nowhere", "COBALT_NODEFILE": "/nowhere", "FLUX_URI": "x",
}  # fmt: skip
"""jobs of other schedulers"""
NEEDED = {
    "HOME": "/home/me", "MPIR_CVAR_CH4_NETMOD": "ofi", "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMP_PROC_BIND": "true", "LD_LIBRARY_PATH": "/opt", "GLASS_LOGS": "/data",
}  # fmt: skip
"""what is of the machine, the user or the study"""
OURS = {BATCH_JOB: "7_1", STARTED: "/nowhere", CORES: "0,1"}


@pytest.fixture
def outer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything at once."""
    for name, value in {**ALLOCATION, **RANK, **OTHERS, **NEEDED, **OURS}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("outer")
def test_ranks_on_this_machine_inherit_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/site/slurm.conf")
    given = for_ranks()
    assert not (ALLOCATION.keys() | RANK.keys() | OTHERS.keys() | OURS.keys()) & given.keys()
    assert "SLURM_CONF" not in given
    assert given.items() >= NEEDED.items()
    # Only what makes MPICH's mpiexec start the ranks here is added.
    added = given.keys() - os.environ.keys()
    assert added == {"HYDRA_LAUNCHER", "HYDRA_RMK"}


@pytest.mark.usefixtures("outer")
def test_slurm_is_told_where_it_is_and_nothing_of_other_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CONF", "/site/slurm.conf")
    given = for_slurm()
    assert not (ALLOCATION.keys() | RANK.keys() | OURS.keys()) & given.keys()
    assert given["SLURM_CONF"] == "/site/slurm.conf"
    assert given.items() >= NEEDED.items()
    assert not given.keys() - os.environ.keys()


def test_defaults_that_people_set_for_sbatch_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(environment.WISHES)]:
        monkeypatch.delenv(name)
    assert environment.wishes() == []
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert environment.wishes() == ["SBATCH_ACCOUNT"]


# The real study of two ranks

Start = Callable[[list[str], Path], "subprocess.CompletedProcess[str]"]
MPIEXEC = [str(Path(sys.prefix) / "bin" / "mpiexec"), "-n", "1"]


@pytest.mark.slow
@pytest.mark.requires("mpi")
@pytest.mark.parametrize(
    ("around", "variables", "ranks"),
    [
        ([], ALLOCATION, 2),
        ([], {**RANK, **OTHERS}, 2),
        (MPIEXEC, {}, 2),
        (MPIEXEC, ALLOCATION, 1),
    ],
    ids=["allocation without srun", "ranks and others", "mpiexec", "mpiexec, one rank"],
)
def test_a_study_trains_under_any_launcher(
    tmp_path: Path, tiny_logs: Path, around: list[str], variables: dict[str, str], ranks: int
) -> None:
    logs = tiny.share(tiny_logs, tmp_path / "logs")
    study = tiny.write_study(tmp_path / "study.yaml", tiny.tree(train={"iterations": 1}))
    words = [sys.executable, "-m", "jobs.submit", str(study), "--launcher", "local"]
    words += ["--ranks", str(ranks), "--logs", str(logs)]
    # The outer mpiexec is not to look at what its child is to be given.
    given = [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(
        [*around, "env", *given, *words], capture_output=True, text=True, timeout=200, cwd=ROOT,
        stdin=subprocess.DEVNULL, env={**os.environ, **ONE_THREAD},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = load_study(study)
    run = found.run_dir(logs, found.runs[0])
    assert run.result.exists()
    (start,) = read_records(run.provenance)
    assert start["ranks"] == ranks
    assert start["slurm"] == {}
