#!/usr/bin/env bash
# A real Slurm of three nodes on this machine, for development and tests: no root, systemd, cgroups or /etc/slurm.
#
#   bash slurm/cluster.sh up [LINK]      start it (nothing to do when it runs) and print how to use it
#   bash slurm/cluster.sh down [LINK]    stop it, by its own process ids alone
#   bash slurm/cluster.sh node N [LINK]  start node N again (a test has killed it)
#
# LINK (.slurm-dev beside this folder) becomes a link to the cluster's own directory in /tmp: sockets need short
# paths and slurm.conf takes no spaces, wherever the project lies. `make submit` finds the cluster through it.
set -euo pipefail

readonly NODES=3 CPUS=4 GPUS=(null zero) # CPUs are claimed, not owned: jobs of two nodes must run on a laptop of two cores
action=${1:-}
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ "$action" = node ]; then number=${2:?which node}; shift; fi
link=${2:-$project/.slurm-dev}
PATH=$PATH:/usr/sbin:/sbin

say() { printf 'slurm: %s\n' "$*"; }
fail() { printf 'error: slurm: %s\n' "$*" >&2; exit 70; }

alive() { # alive PIDFILE: does the daemon that wrote it run, and is it ours (process ids are reused)?
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] &&
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$home"
}

install_packages() {
    local program missing=
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null || missing="$missing $program"
    done
    [ -n "$missing" ] || return 0
    local get='apt-get install -y --no-install-recommends slurm-wlm munge'
    command -v apt-get >/dev/null || fail "not installed:$missing. Install Slurm and munge with this system's packages"
    [ "$(id -u)" = 0 ] || fail "not installed:$missing. Run: sudo $get"
    say "installing$missing"
    local log=/tmp/slurm-install.$$.log
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive $get; } >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        fail "'$get' failed; the whole story is in $log"
    fi
    rm -f "$log"
    # Debian starts daemons of its own where there is systemd; without a /etc/slurm/slurm.conf those of Slurm end at once.
}

free_ports() { # the first of enough neighbouring ports that nobody listens on
    local first port
    for _ in {1..50}; do
        first=$((20000 + RANDOM % 10000))
        for ((port = first; port <= first + NODES; port++)); do
            (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && continue 2
        done
        echo "$first" && return
    done
    fail 'no free ports between 20000 and 30000'
}

write_conf() {
    local port user host node
    port=$(free_ports) user=$(id -un) host=$(hostname -s)
    cat >"$home/slurm.conf" <<CONF
ClusterName=glassdev
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=$port
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a requeued job waits before it may start again (default 120 s).
AuthInfo=socket=$home/munge.socket,cred_expire=5
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool.%n
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.%n.pid
SlurmctldLogFile=$home/slurmctld.log
SlurmdLogFile=$home/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,preempt_youngest_first
SlurmctldTimeout=300
SlurmdTimeout=10
MessageTimeout=20
# Half a minute by default; shorter, because what a dead node leaves behind is waited for.
KillWait=10
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
# MPICH names shared memory by job id, so those of an earlier cluster should not come again.
FirstJobId=$((RANDOM % 30000 + 1))
MaxArraySize=1001
MaxJobCount=50000
CONF
    for ((node = 1; node <= NODES; node++)); do
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=$CPUS Gres=gpu:${#GPUS[@]} State=UNKNOWN"
    done >>"$home/slurm.conf"
    cat >>"$home/slurm.conf" <<CONF
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF
CONF
}

write_gpus() { # Slurm hands out devices and asks no more of them: two that every machine has
    printf "NodeName=n[1-$NODES] Name=gpu File=/dev/%s\n" "${GPUS[@]}" >"$home/gres.conf"
}

start_munge() {
    alive "$home/munged.pid" && return
    munged --key-file="$home/munge.key" --socket="$home/munge.socket" --pid-file="$home/munged.pid" \
        --log-file="$home/munged.log" --seed-file="$home/munge.seed" --num-threads=2
}

start_slurm() {
    export SLURM_CONF=$home/slurm.conf
    alive "$home/slurmctld.pid" || slurmctld -f "$SLURM_CONF"
    local node
    for ((node = 1; node <= NODES; node++)); do start_node "$node"; done
}

start_node() {
    alive "$home/slurmd.n$1.pid" || SLURM_CONF=$home/slurm.conf slurmd -N "n$1" -f "$home/slurm.conf"
}

wait_until_idle() {
    for _ in {1..60}; do
        if [ "$(sinfo -h -N -p low -t idle,alloc,mix -o %N 2>/dev/null | wc -l)" = "$NODES" ]; then return; fi
        sleep 0.5
    done
    tail -n 5 "$home"/slurmctld.log "$home"/slurmd.*.log >&2
    fail "the nodes did not come up in 30 s; logs are in $home"
}

up() {
    install_packages
    if [ -f "$link/slurm.conf" ]; then
        home=$(cd "$link" && pwd -P)
    else
        [ ! -e "$link" ] || [ -L "$link" ] || fail "$link is in the way: not a link that this script made"
        umask 022
        home=$(mktemp -d "/tmp/slurm-dev-$(id -u).XXXXXX")
        chmod 755 "$home"
        mkdir "$home/state"
        (umask 077 && head -c 128 /dev/urandom >"$home/munge.key")
        write_conf
        write_gpus
        ln -sfn "$home" "$link"
    fi
    start_munge
    start_slurm
    wait_until_idle
    say "$NODES nodes of $CPUS CPUs and ${#GPUS[@]} GPUs (claimed), partitions low (preempted by requeue) and high; logs in $home"
    say "\`make submit LAUNCHER=slurm\` finds it; for squeue, sbatch and the like in this shell:"
    printf 'export SLURM_CONF=%q\n' "$home/slurm.conf"
}

stop() { # stop PIDFILE: TERM, and KILL after 10 s
    alive "$1" || return 0
    local pid
    pid=$(cat "$1")
    kill "$pid" 2>/dev/null || true
    for _ in {1..100}; do
        alive "$1" || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

cancel_jobs() {
    local conf=$home/slurm.conf
    SLURM_CONF=$conf scancel --full --signal=KILL --user="$(id -un)" 2>/dev/null || true
    SLURM_CONF=$conf scancel --user="$(id -un)" 2>/dev/null || true
    for _ in {1..20}; do
        [ -n "$(SLURM_CONF=$conf squeue -h 2>/dev/null)" ] || break
        sleep 0.5
    done
}

kill_leftovers() { # what ran on a node whose slurmd had died is nobody's any more; its environment says whose it was
    local environment process
    for environment in /proc/[0-9]*/environ; do
        process=${environment%/environ}
        [ -O "$process" ] || continue
        grep -qzxF "SLURM_CONF=$home/slurm.conf" "$environment" 2>/dev/null || continue
        if grep -qz '^SLURM_JOB_ID=' "$environment" || [ "$(cat "$process/comm")" = slurmstepd ]; then
            kill -KILL "${process#/proc/}" 2>/dev/null || true
        fi
    done
}

down() {
    home=$(cd "$link" 2>/dev/null && pwd -P) || { say 'not running'; return 0; }
    [ -f "$home/slurm.conf" ] || fail "$link does not lead to a cluster of this script"
    ! alive "$home/slurmctld.pid" || cancel_jobs
    local file
    for file in "$home"/slurmd.*.pid "$home/slurmctld.pid" "$home/munged.pid"; do stop "$file"; done
    kill_leftovers
    rm -rf "$home"
    rm -f "$link"
    say 'stopped'
}

case $action in
    up) up ;;
    down) down ;;
    node) home=$(cd "$link" && pwd -P) && start_node "$number" ;;
    *) fail 'say up, down or node N' ;;
esac
