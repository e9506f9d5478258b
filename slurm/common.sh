# shellcheck shell=bash
# What the templates share. Sourced inside a batch job, in the project's directory.
#
# What a job file or a setting says is data: it goes into variables that stand in quotes, and is never evaluated.

asked="" child=""
trap 'pass_on USR2' USR2 # --signal=B:USR2: the time limit is near, or the job is to be preempted
trap 'pass_on TERM' TERM # scancel, or the end of the grace time

pass_on() { # a wish to stop, to the launcher, which tells all ranks
    asked=$1 interrupted=1
    [ -z "$child" ] || kill -s "$forward" "$child" 2>/dev/null
}

say() { printf '%s %s\n' "$(date -u +%FT%T+00:00)" "$*"; }
fail() { local code=$1; shift; printf 'error: %s\n' "$*" >&2; exit "$code"; }

help() { # what stands at the head of the template
    sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//p}' "$0"
}

main() { # main STAGE (--tasks FILE | ARGUMENT...)
    local stage=$1; shift
    case "${1:-}" in -h | --help) help && exit 0 ;; esac
    [ -n "${SLURM_JOB_ID:-}" ] || fail 78 "submit this with sbatch; on this machine use make submit LAUNCHER=local"
    python=$PWD/.venv/bin/python
    [ -x "$python" ] || fail 78 "$python is missing: run 'make setup' in $PWD"
    export PATH=$PWD/.venv/bin:$PATH PYTHONUNBUFFERED=1
    [ "${1:-}" = --tasks ] || keep_own_array # `make submit` hands nothing on
    me=$SLURM_JOB_ID job_file=''
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || me=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    export LAUNCH_BATCH_JOB=$me # `make cancel` leaves what runs here to Slurm
    # Bindings of a job that this one was submitted from, which srun would take for its own.
    unset "${!SLURM_CPU_BIND@}" "${!SLURM_MEM_BIND@}" "${!SLURM_GPU_BIND@}" "${!SLURM_DISTRIBUTION@}"

    read_job "$stage" "$@"
    if [ -n "$packed" ]; then main_packed; else main_alone; fi
    exit "$status"
}

main_alone() { # the job of one task
    [ ! -e "$done_file" ] || set_damaged_aside
    ! complete || { say "$name is complete; nothing to do"; exit 0; }
    load_modules
    make_command
    check_gpus
    make_program
    mkdir -p "$(dirname "$log")" || fail 70 "cannot write $log"
    say "$name on ${SLURM_JOB_NODELIST:-?}: log in $log"
    requeue begin --ranks "$ranks" | tee -a "$log"
    clear_shared_memory
    run_ranks
    ! complete || status=0 # a signal that came after the last step has nothing to say
    say "$name ended with exit code $status"
    [ "$status" = 0 ] || requeue end --status "$status" --asked "$asked" --lead "$lead" --bound "$max_requeues" \
        --job-file "$job_file" | tee -a "$log"
}

main_packed() { # many tasks on this node: hpc.packed starts them, and each has a log of its own
    set_damaged_aside
    load_modules
    make_packed_command
    check_gpus
    make_program
    local part=(--job "$me" --job-file "$job_file" --index "${SLURM_ARRAY_TASK_ID:-0}")
    say "tasks of $job_file, part ${SLURM_ARRAY_TASK_ID:-0}, on ${SLURM_JOB_NODELIST:-?}"
    run "${launch[@]}" "$python" -m hpc.packed "${part[@]}" -- "${program[@]}"
    say "ended with exit code $status"
    [ "$status" = 0 ] || "$python" -m hpc.requeue end "${part[@]}" --status "$status" --asked "$asked" \
        --lead "$lead" --bound "$max_requeues"
}

keep_own_array() { # forget the array of a job that this one was submitted from: Slurm hands its variables on
    [ -n "${SLURM_ARRAY_JOB_ID:-}" ] || return 0
    local facts
    facts=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null) || return 0
    case " $facts " in
        *" ArrayJobId=$SLURM_ARRAY_JOB_ID "*) ;;
        *) unset "${!SLURM_ARRAY_@}" ;;
    esac
}

set_damaged_aside() { # results that are none, so that their runs are finished again; by hand, jobs.task has seen to it
    [ -z "$job_file" ] || "$python" -m jobs.damaged "$job_file" "${SLURM_ARRAY_TASK_ID:-0}" || exit
}

complete() { # a report that exists may be of fewer runs than there are now: it is always made again
    [ "$stage" != aggregate ] && [ -e "$done_file" ]
}

read_job() { # the lines of a job file that concern this job; see hpc/batch.py
    local stage=$1; shift
    local job index=${SLURM_ARRAY_TASK_ID:-0} line field
    if [ "${1:-}" = --tasks ]; then
        job_file=$2
        job=$(awk -F '\t' -v n="$index" '$1 != "task" || k++ == n' "$2") || fail 78 "cannot read $2"
    else
        job=$("$python" -m jobs.task "$stage" "$@") || exit
    fi
    name='' packed='' launcher=srun mpi=none bind=none lead=120 max_requeues=0 per_node='' gpus_per_rank='' gpus_per_node='' container=''
    modules=() options=()
    while IFS= read -r line; do
        mapfile -t -d $'\t' field < <(printf '%s\t' "$line")
        case ${field[0]}:${field[1]} in
            site:launcher) launcher=${field[2]} ;;
            site:mpi) mpi=${field[2]} ;;
            site:bind) bind=${field[2]} ;;
            site:signal_lead) lead=${field[2]} ;;
            site:max_requeues) max_requeues=${field[2]} ;;
            site:per_node) per_node=${field[2]} ;;
            site:gpus_per_rank) gpus_per_rank=${field[2]} ;;
            site:gpus_per_node) gpus_per_node=${field[2]} ;;
            site:container) container=${field[2]} ;;
            site:module) modules+=("${field[2]}") ;;
            site:environment) export "${field[2]?}" ;;
            site:option) options+=("${field[2]}") ;;
            pack:*) packed=yes ;; # what follows is hpc.packed's
            task:*)
                name=${field[1]} checkpoints=${field[2]} done_file=${field[3]} log=${field[4]} module=${field[5]}
                arguments=("${field[@]:6}")
                ;;
        esac
    done <<<"$job"
    [ -n "$name" ] || fail 78 "there is no task number $index in $*"
}

load_modules() {
    [ ${#modules[@]} -gt 0 ] || return 0
    local file
    if ! command -v module >/dev/null; then # batch shells are no login shells
        for file in /etc/profile.d/*modules.sh /etc/profile.d/*lmod.sh; do
            # shellcheck source=/dev/null
            [ ! -r "$file" ] || . "$file"
        done
    fi
    for file in "${modules[@]}"; do
        module load "$file" || fail 78 "cannot load the module '$file' on $(hostname); see 'modules' in the site profile"
    done
}

make_command() { # launch, ranks and forward: how to start the ranks, and the signal that the launcher passes on to them
    ranks=${SLURM_NTASKS:-1}
    # As many as the nodes that there are this time (min_nodes); SLURM_NTASKS is that of the first start.
    [ -z "$per_node" ] || ranks=$((SLURM_JOB_NUM_NODES * per_node))
    local cpus=${SLURM_CPUS_PER_TASK:-1} label=() binding=()
    export OMP_NUM_THREADS=$cpus OPENBLAS_NUM_THREADS=$cpus
    forward=USR2
    if [ "$launcher" = srun ]; then
        [ "$ranks" = 1 ] || label=(--label)
        [ "$bind" = none ] || binding=(--cpu-bind="$bind")
        # MPICH over UCX publishes 4 KiB of its heap as a rank's address, in requests that Slurm's PMI can cut off:
        # MPI_Init then fails, depending on what lies in memory. Over libfabric an address has 16 bytes.
        [ "$mpi" != pmi2 ] || export MPIR_CVAR_CH4_NETMOD=${MPIR_CVAR_CH4_NETMOD:-ofi}
        # Not --kill-on-bad-exit: the first rank to exit with 75 would have the others killed while they do the same.
        launch=(srun --mpi="$mpi" --ntasks="$ranks" --cpus-per-task="$cpus" "${binding[@]}"
            --kill-on-bad-exit=0 --wait=30 "${label[@]}")
    elif mpiexec --version 2>&1 | grep -q 'Open MPI'; then
        [ "$bind" = none ] || bind=core
        [ "$ranks" = 1 ] || label=(--tag-output)
        launch=(mpiexec -n "$ranks" --bind-to "$bind" "${label[@]}")
    else
        # MPICH's mpiexec passes TERM on to all ranks and waits for them; USR2 kills it.
        forward=TERM
        [ "$bind" = none ] || bind=core:$cpus
        [ "$ranks" = 1 ] || label=(-prepend-rank)
        launch=(mpiexec -n "$ranks" -bind-to "$bind" "${label[@]}")
    fi
    launch+=("${options[@]}")
}

make_packed_command() { # the same for the launcher of many tasks, which starts their ranks itself
    local binding=()
    ranks=${SLURM_NTASKS:-1} launch=()
    forward=USR1 # Slurm may hand it to all processes of a step, and MPICH's mpiexec dies of USR2
    [ "$launcher" = srun ] || return 0
    [ "$bind" = none ] || binding=(--cpu-bind="$bind")
    # One step for all of them: some sites tell steps alone of a preemption. What the job was asked for is not for it.
    unset SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK SLURM_NTASKS_PER_NODE
    launch=(srun --mpi=none --ntasks=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" "${binding[@]}" "${options[@]}")
}

check_gpus() { # promise ranks the GPUs that the profile gives them; a job that was submitted by hand may have none
    local wanted=$gpus_per_node nodes=${SLURM_JOB_NUM_NODES:-1}
    [ -n "$wanted" ] || [ -z "$gpus_per_rank" ] || wanted=${gpus_per_rank%1}$(((ranks + nodes - 1) / nodes))
    [ -n "$wanted" ] || return 0
    export LAUNCH_GPUS=1
    [ -n "${SLURM_JOB_GPUS:-}${SLURM_GPUS_ON_NODE:-}" ] || fail 78 "this job has no GPU, and the site profile gives one \
to each rank: sbatch --gpus-per-node=$wanted slurm/$stage.sh …"
}

make_program() { # program: the Python of the ranks, in its image where there is one; the code is that of this directory
    program=("$python")
    [ -n "$container" ] || return 0
    command -v apptainer >/dev/null || fail 78 "no apptainer in PATH on $(hostname), and the site profile names a \
container; see 'modules' there"
    [ -r "$container" ] || fail 78 "the container $container cannot be read on $(hostname)"
    program=(apptainer exec --pwd "$PWD")
    [ -z "${LAUNCH_GPUS:-}" ] || program+=(--nv) # the node's driver; nothing else of CUDA comes from it
    program+=("$container" python)
}

clear_shared_memory() { # on every node of the job, what ranks that were killed have left behind and nobody holds
    # Under srun MPICH names its shared memory by job and step alone: after a requeue, MPI_Init would stumble over it.
    [ "$launcher" = srun ] && [ "$ranks" -gt 1 ] || return 0
    # shellcheck disable=SC2016 # expanded there
    srun --mpi=none --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c '
        find /dev/shm -maxdepth 1 -name "mpich_shm_*" -user "$(id -u)" ! -newermt "-2 seconds" 2>/dev/null |
            while read -r file; do
                grep -qsF "$file" /proc/[0-9]*/maps || rm -f "$file"
            done'
}

run_ranks() { # the task's; sets status
    run "${launch[@]}" "${program[@]}" -m "$module" "${arguments[@]}" >>"$log" 2>&1
}

run() { # run COMMAND...: start what runs the ranks and wait for it; sets status
    status=75
    [ -z "$asked" ] || return 0
    "$@" </dev/null &
    child=$!
    [ -z "$asked" ] || kill -s "$forward" "$child" # it came between the last two lines
    # A trap ends `wait` with 128 + its signal; the launcher's own status comes from the wait after it.
    interrupted=1
    while [ -n "$interrupted" ]; do
        interrupted=
        wait "$child"
        status=$?
    done
    child=
}

requeue() { # requeue begin|end ...: the record of starts, and the decision to go back into the queue
    local action=$1; shift
    "$python" -m hpc.requeue "$action" --job "$me" --name "$name" --log "$log" --checkpoints "$checkpoints" "$@"
}
