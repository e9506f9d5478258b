#!/usr/bin/env bash
# Table, statistics and pages of a study, from what its runs have left so far. Submit it in the project's directory:
#
#   sbatch slurm/aggregate.sh CONFIG
#   sbatch --mem=8G --time=30 slurm/aggregate.sh CONFIG  any of sbatch's options wins over those below
#
# `make submit` calls it with a job file, to start when all runs have ended. How it is started comes from the site
# profile that CONFIG names (launch.site).
#SBATCH --job-name=aggregate
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --time=60
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -u
cd "${SLURM_SUBMIT_DIR:-.}" && [ -f slurm/common.sh ] || {
    echo "error: submit slurm/aggregate.sh in the project's directory" >&2
    exit 78
}
# shellcheck source=slurm/common.sh
. slurm/common.sh
main aggregate "$@"
