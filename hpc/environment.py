"""Environments of the programs that a launcher starts: nothing of another launcher around it.

A shell inside a batch job or under mpiexec is full of variables that mean that job: its nodes, its
ranks, defaults of its options. Handed on they would steer what is started here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

SCHEDULERS = (
    "SLURM", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCANCEL_", "SINFO_", "SCONTROL_", "SACCT_",
    "SPRIO_", "SSTAT_", "SATTACH_", "SPANK_",
)  # fmt: skip
"""what Slurm sets in a job, and what its commands take for options"""
OTHERS = ("PBS_", "LSB_", "LSF_", "COBALT_", "FLUX_", "LOADL_", "OAR_", "PE_HOSTFILE", "SGE_")
"""what other schedulers set, in which mpiexec would look for nodes"""
MPI = (
    "PMI", "PALS_", "HYDRA_", "HYDI_", "MPIEXEC_", "MPIRUN_", "MPI_LOCAL", "MPIR_PMI", "OMPI_",
    "PRTE_", "ORTE_", "MV2_COMM_WORLD", "I_MPI_HYDRA", "I_MPI_PMI", "I_MPI_MPIRUN",
)  # fmt: skip
"""what mpiexec and srun tell the ranks they start"""
OURS = ("GLASS_BATCH_JOB", "GLASS_STARTED", "GLASS_CORES")
"""what this program's own launchers tell what they start"""
KEPT = ("SLURM_CONF",)
"""where Slurm's configuration is: of the machine, not of a job"""


def without(
    prefixes: tuple[str, ...], variables: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment (or `variables`) without those whose names begin with one of `prefixes`."""
    present = os.environ if variables is None else variables
    return {k: v for k, v in present.items() if k in KEPT or not k.startswith(prefixes)}


def for_ranks() -> dict[str, str]:
    """For ranks that are started on this machine, by an mpiexec that starts them here."""
    # Hydra, MPICH's mpiexec: fork the ranks and ask no scheduler for nodes.
    return without(SCHEDULERS + OTHERS + MPI + OURS) | {
        "HYDRA_LAUNCHER": "fork",
        "HYDRA_RMK": "user",
    }


def for_slurm() -> dict[str, str]:
    """For Slurm's commands, and for the jobs that they submit."""
    return without(SCHEDULERS + MPI + OURS)
