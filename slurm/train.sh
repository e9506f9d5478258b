#!/usr/bin/env bash
# Train runs of a study. Submit it in the project's directory, after the data set has been made:
#
#   sbatch slurm/train.sh CONFIG RUN                   one run, by its name or the beginning of it
#   sbatch --array=0-11%4 slurm/train.sh CONFIG        runs 0 to 11 of the study, 4 at a time
#   sbatch --ntasks=4 --time=30 slurm/train.sh CONFIG  any of sbatch's options wins over those below
#   sbatch --gpus-per-node=2 slurm/train.sh CONFIG     on GPUs: those of a profile are asked for by `make submit` alone
#
# `make submit` calls it as an array over a job file. How ranks are started comes from the site profile that CONFIG
# names (launch.site). The run goes on over as many allocations as it takes; each says so in its output.log.
#SBATCH --job-name=train
#SBATCH --ntasks=2
#SBATCH --cpus-per-task=1
#SBATCH --time=60
#SBATCH --signal=B:USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.out
set -u
cd "${SLURM_SUBMIT_DIR:-.}" && [ -f slurm/common.sh ] || {
    echo "error: submit slurm/train.sh in the project's directory" >&2
    exit 78
}
# shellcheck source=slurm/common.sh
. slurm/common.sh
main train "$@"
