"""Environments of the programs that a launcher starts: nothing of another launcher around it.

A shell inside a batch job or under mpiexec is full of variables that mean that job: its nodes, its
ranks, defaults of its options. Handed on they would steer what is started here.
"""

from __future__ import annotations

import os

BATCH_JOB = "LAUNCH_BATCH_JOB"
"""set by batch scripts for all they start: the job's id; what carries it is Slurm's to end"""
STARTED = "LAUNCH_STARTED"
"""set by the launcher of this machine: file that rank 0 makes once all ranks have met"""
CORES = "LAUNCH_CORES"
"""set by the launcher of this machine: cores that a task's ranks share, with commas between"""
GPUS = "LAUNCH_GPUS"
"""set by launchers for a task that has GPUs: how many each rank must find"""
FACTS = "LAUNCH_BATCH_FACTS"
"""set for tasks that share a batch job: what Slurm says of it in variables that they do not get"""

OURS = (BATCH_JOB, STARTED, CORES, GPUS, FACTS)
SCHEDULERS = (
    "SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SINFO_", "SCONTROL_", "SACCT_",
    "SPRIO_", "SSTAT_", "SATTACH_", "SPANK_",
)  # fmt: skip
"""what Slurm sets in a job, and what its commands take for options"""
OTHERS = (
    "PBS_", "LSB_", "LSF_", "LS_JOBPID", "JSM_", "COBALT_", "FLUX_", "LOADL_", "LOADLBATCH", "OAR_",
    "PE_HOSTFILE", "SGE_", "ALPS_", "BASIL_",
)  # fmt: skip
"""what other schedulers set, in which mpiexec would look for nodes"""
MPI = (
    "PMI", "PALS_", "HYDRA_", "HYDI_", "MPIEXEC_", "MPIRUN_", "MPI_LOCAL", "MPIR_PMI",
    "MPICH_INTERFACE_HOSTNAME", "OMPI_", "OPAL_", "PRTE_", "PRRTE_", "ORTE_", "MV2_COMM_WORLD",
    "I_MPI_HYDRA", "I_MPI_PMI", "I_MPI_MPIRUN",
)  # fmt: skip
"""what mpiexec and srun tell the ranks they start; not how people tune an MPI (MPIR_CVAR_…)"""
SLURM_ITSELF = ("SLURM_CONF", "SLURM_JWT")
"""where Slurm is and who asks it: of the machine and the user, not of a job"""
ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT")
"""permissions that people give Open MPI in containers"""
WISHES = ("SBATCH_", "SLURM_CLUSTERS")
"""what people set to give sbatch options; no job sets them"""


def _outside() -> dict[str, str]:
    """The environment without what any launcher has put there."""
    launchers = (*SCHEDULERS, *OTHERS, *MPI, *OURS)
    present = os.environ.items()
    return {k: v for k, v in present if k.startswith(ROOT) or not k.startswith(launchers)}


def for_ranks() -> dict[str, str]:
    """For ranks that are started on this machine, by an mpiexec that starts them here."""
    # Hydra, MPICH's mpiexec: fork the ranks and ask no scheduler for nodes.
    return {**_outside(), "HYDRA_LAUNCHER": "fork", "HYDRA_RMK": "user"}


def for_slurm() -> dict[str, str]:
    """For Slurm's commands, and for the jobs that they submit."""
    kept = {name: os.environ[name] for name in SLURM_ITSELF if name in os.environ}
    return _outside() | kept


def wishes() -> list[str]:
    """Names of variables that people set for sbatch, and that `for_slurm` leaves out."""
    return sorted(name for name in os.environ if name.startswith(WISHES))
