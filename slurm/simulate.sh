#!/usr/bin/env bash
# Make the data sets of a study: simulate what is missing, render the images. Submit it in the project's directory:
#
#   sbatch slurm/simulate.sh CONFIG                      all data sets of the study
#   sbatch --ntasks=16 --time=30 slurm/simulate.sh CONFIG  any of sbatch's options wins over those below
#
# `make submit` calls it as an array over a job file. How ranks are started comes from the site profile that CONFIG
# names (launch.site). What is there already is not made again, so it may be stopped and started at any time.
#SBATCH --job-name=simulate
#SBATCH --ntasks=2
#SBATCH --cpus-per-task=1
#SBATCH --time=60
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -u
cd "${SLURM_SUBMIT_DIR:-.}" && [ -f slurm/common.sh ] || {
    echo "error: submit slurm/simulate.sh in the project's directory" >&2
    exit 78
}
# shellcheck source=slurm/common.sh
. slurm/common.sh
main simulate "$@"
