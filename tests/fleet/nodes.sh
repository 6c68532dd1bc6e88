# shellcheck shell=bash
# Slurm with three nodes on this machine, each with a broker (ledger) of its own: what slurm.sh and cluster.sh have in
# common. `. nodes.sh NAME PATIENCE`, as root, as common.sh has them.

# shellcheck source=tests/fleet/common.sh
. "${BASH_SOURCE[0]%/*}/common.sh" "$@"
work=$(mktemp -d /tmp/tessera-fleet.XXXXXX)
readonly work
chmod 755 "$work"
readonly bin=$work/bin share=$work/share/tessera/fleet/slurm nodes='n1 n2 n3'
export SLURM_CONF=$work/slurm.conf PATH=$bin:$PATH
mkdir -p "$bin" "$share" "$work"/{state,spool,out,brokers,vms,moves,munge}
chmod 777 "$work/out"
chmod 1777 "$work/moves"
declare -A process # by name, of what the script has started
vm=tessera         # what the command line of a VM's process begins with

finish() {
    local status=$? name
    trap - ERR
    set +e
    if ((status)); then
        echo "$me: failed with status $status; the controller's last lines:" >&2
        tail -n 30 "$work/slurmctld.log" >&2
        scontrol show nodes --oneliner >&2
        squeue >&2
        tail -n 5 "$work"/out/* "$work"/*.out >&2
    fi
    scancel --user=nobody --full --signal=KILL 2>/dev/null
    scancel --user=nobody 2>/dev/null
    for ((i = 0; i < 40; i++)); do [[ -n $(squeue -h 2>/dev/null) ]] || break; sleep 0.5; done
    for name in slurmctld n1 n2 n3 broker-n1 broker-n2 broker-n3 munged; do
        [[ -z ${process[$name]:-} ]] || { kill "${process[$name]}" && wait "${process[$name]}"; } 2>/dev/null
    done
    # VMs and jobs whose slurmd was killed, by this run's own folder.
    pkill -KILL -f "^$vm run .*$work/vms/"
    pkill -KILL -f "^/bin/bash $work/spool/"
    rm -rf "$work"
}
trap finish EXIT

# ---- configuration ----

# configure NAME=VALUE...: scripts and settings. Standard input has more lines for slurm.conf. Of each node: `tags` and
# `memory` in MiB. Settings in seconds: `grace`, `kill_wait`, `health`, `sample` and `slurmd_timeout`. `scripts` is the
# folder of what is tested.
configure() {
    local tags memory grace kill_wait health sample slurmd_timeout scripts script
    local "$@"
    readonly capacity=$tags
    cat >"$work/defaults" <<END
PATH=$bin:\$PATH
SLURM_CONF=$SLURM_CONF
export PATH SLURM_CONF
TESSERA_BROKER=$work/brokers/\${SLURMD_NODENAME:-none}
TESSERA_FLEET_DIR=$work/vms/\${SLURMD_NODENAME:-none}
TESSERA_FLEET_GRACE=$grace
TESSERA_FLEET_RESTARTS=1
TESSERA_FLEET_SAMPLE=$sample
END
    for script in prolog epilog health vm.job; do
        sed "s|/etc/default/tessera-fleet|$work/defaults|" "$scripts/$script" >"$share/$script"
        chmod 755 "$share/$script"
    done
    # This machine's own needs; what the fleet needs follows. No cgroups: a container may have none.
    cat >"$SLURM_CONF" <<END
ClusterName=tessera
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/%n.log
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool/%n
AuthInfo=socket=$work/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SlurmdTimeout=$slurmd_timeout
ReturnToService=2
MinJobAge=3600
NodeName=n[1-3] NodeHostName=$(hostname) NodeAddr=127.0.0.1 Port=[16821-16823] CPUs=8 RealMemory=$memory Gres=tagmib:$tags
PartitionName=vms Nodes=ALL Default=YES
END
    cat >>"$SLURM_CONF"
    sed -e "s|/usr/share/tessera/fleet/slurm|$share|" -e "s/^KillWait=.*/KillWait=$kill_wait/" \
        -e "s/^HealthCheckInterval=.*/HealthCheckInterval=$health/" "$scripts/tessera.conf" >>"$SLURM_CONF"
}

# ---- services ----

# start NAME WORDS...
start() {
    local name=$1
    shift
    "$@" >>"$work/$name.out" 2>&1 &
    process[$name]=$!
}
# crash NAME: ends what this script has started by SIGKILL, and forgets its number.
crash() {
    kill -KILL "${process[$1]}"
    wait "${process[$1]}" 2>/dev/null || :
    unset "process[$1]"
}
broker_answers() { tesseractl pool --broker "$work/brokers/$1" >/dev/null 2>&1; }
# start_broker NODE [MIB]: one that every user may ask.
start_broker() {
    start "broker-$1" tessera broker --socket "$work/brokers/$1" --capacity "${2:-$capacity}M"
    until_true 20 "the broker of $1" broker_answers "$1"
    chmod 666 "$work/brokers/$1"
}
start_node() { start "$1" slurmd -D -N "$1"; }

# Everything that `configure` has described, until the nodes are idle.
start_all() {
    local name
    dd if=/dev/urandom of="$work/munge/key" bs=1024 count=1 status=none
    chmod 600 "$work/munge/key"
    start munged munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge.socket" \
        --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed"
    until_true 20 "munged's socket" test -S "$work/munge.socket"
    for name in $nodes; do
        start_broker "$name" >&2
        tesseractl fleet gres --broker "$work/brokers/$name" --node "$name" --gres-conf
    done >"$work/gres.conf"
    cat "$work/gres.conf"
    start slurmctld slurmctld -D
    for name in $nodes; do
        mkdir "$work/spool/$name"
        start_node "$name"
    done
    for name in $nodes; do until_true 60 "node $name" is node "$name" State 'IDLE'; done
    say "three nodes are idle"
}

# ---- jobs ----

# submit MIB MEM WORDS...: the number of a job of an ordinary user's. With `on`, it runs on that node.
submit() {
    runuser -u nobody -- sbatch --parsable --chdir="$work/out" --output="$work/out/%j" ${on:+"--nodelist=$on"} \
        --gres="tagmib:$1" --mem="$2" "$share/vm.job" "${@:3}"
}
# vm_of JOB [WORDS]: the number of its VM's process.
vm_of() { pgrep -f "^$vm run --id slurm-$1 .*${2:-}"; }
count_vms() { pgrep -c -f "^$vm run .*$work/vms/" || :; }
