#!/usr/bin/env bash
# The scripts of resources/fleet/slurm under Debian's Slurm: a controller and three slurmd on this machine, each with a
# broker (ledger) of its own, and jobs whose VMs are stand-ins (vmm/ctl/examples/fake_vm.rs), with real `tesseractl`
# and real slurm programs. Run it as root: slurm.sh [FOLDER OF BUILT PROGRAMS].
# What it starts ends with it, and its files go; packages stay. Not a part of make test.
set -euo pipefail
cd "$(dirname "$0")/../.."
built=$(realpath "${1:-${CARGO_TARGET_DIR:-target}/debug}")
readonly built

# shellcheck source=tests/fleet/packages.sh
. tests/fleet/packages.sh
install_packages munge slurmctld slurmd slurm-client

work=$(mktemp -d /tmp/tessera-fleet.XXXXXX)
readonly work
chmod 755 "$work"
readonly bin=$work/bin share=$work/share/tessera/fleet/slurm nodes='n1 n2 n3'
export SLURM_CONF=$work/slurm.conf PATH=$bin:$PATH
declare -A process # by name, of what this script has started

finish() {
    local status=$? name
    set +e
    if ((status)); then
        echo "slurm.sh: failed with status $status; the controller's last lines:" >&2
        tail -n 30 "$work/slurmctld.log" >&2
        scontrol show nodes --oneliner >&2
        squeue >&2
        tail -n 5 "$work"/out/* >&2
    fi
    scancel --user=nobody --full --signal=KILL 2>/dev/null
    scancel --user=nobody 2>/dev/null
    for ((i = 0; i < 40; i++)); do [[ -n $(squeue -h 2>/dev/null) ]] || break; sleep 0.5; done
    for name in slurmctld n1 n2 n3 broker-n1 broker-n2 broker-n3 munged; do
        [[ -z ${process[$name]:-} ]] || { kill "${process[$name]}" && wait "${process[$name]}"; } 2>/dev/null
    done
    # VMs and jobs whose slurmd was killed, by this run's own folder.
    pkill -KILL -f "^$work/vm/tessera run"
    pkill -KILL -f "^/bin/bash $work/spool/"
    rm -rf "$work"
}
trap finish EXIT

say() { printf 'slurm.sh: %s\n' "$*"; }
die() {
    say "$*" >&2
    exit 1
}
# until_true SECONDS WHAT COMMAND...
until_true() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < deadline)) || die "not in time: $what"
        sleep 0.5
    done
}

# ---- programs and configuration ----

mkdir -p "$bin" "$work/vm" "$share" "$work"/{state,spool,out,brokers,vms,moves}
chmod 777 "$work/out"
chmod 1777 "$work/moves"
cp "$built/examples/fake_vm" "$work/vm/tessera"
# The stand-in has no memory to save: what is saved is a folder with a file.
cat >"$bin/tesseractl" <<END
#!/bin/sh
[ "\$1" != snapshot ] || { mkdir "\$3" && exec touch "\$3/state"; }
exec $built/tesseractl "\$@"
END
chmod 755 "$bin/tesseractl"
# `tessera run` is the stand-in. It takes no signal of the job's, as the VM does not.
cat >"$bin/tessera" <<END
#!/bin/sh
case "\$* " in
"run "*--restore*) [ ! -e $work/differs-\$SLURMD_NODENAME ] || { echo 'tessera: this host has no MTE' >&2; exit 69; } ;;
esac
case \$1 in
run) exec $work/vm/tessera "\$@" ;;
doctor) exec test ! -e $work/sick-\$SLURMD_NODENAME ;;
esac
exec $built/tessera "\$@"
END
chmod 755 "$bin/tessera"
cat >"$work/defaults" <<END
PATH=$bin:\$PATH
SLURM_CONF=$SLURM_CONF
export PATH SLURM_CONF
TESSERA_BROKER=$work/brokers/\${SLURMD_NODENAME:-none}
TESSERA_FLEET_DIR=$work/vms/\${SLURMD_NODENAME:-none}
TESSERA_FLEET_GRACE=5
TESSERA_FLEET_RESTARTS=1
TESSERA_FLEET_SAMPLE=1
END
for script in prolog epilog health vm.job; do
    sed "s|/etc/default/tessera-fleet|$work/defaults|" "resources/fleet/slurm/$script" >"$share/$script"
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
SlurmdTimeout=15
ReturnToService=2
MinJobAge=3600
NodeName=n[1-3] NodeHostName=$(hostname) NodeAddr=127.0.0.1 Port=[16821-16823] CPUs=8 RealMemory=2048 Gres=tagmib:256
PartitionName=vms Nodes=ALL Default=YES
END
sed -e "s|/usr/share/tessera/fleet/slurm|$share|" -e 's/^KillWait=.*/KillWait=10/' -e 's/^HealthCheckInterval=.*/HealthCheckInterval=5/' \
    resources/fleet/slurm/tessera.conf >>"$SLURM_CONF"

# ---- services ----

# start NAME WORDS...
start() {
    local name=$1
    shift
    "$@" >>"$work/$name.out" 2>&1 &
    process[$name]=$!
}
broker() { start "broker-$1" "$built/tessera" broker --socket "$work/brokers/$1" --capacity "${2:-256M}"; }
broker_answers() { "$bin/tesseractl" pool --broker "$work/brokers/$1" >/dev/null 2>&1; }
node() { start "$1" slurmd -D -N "$1"; }
# field KIND NAME FIELD: of scontrol show.
field() { scontrol --oneliner show "$1" "$2" | tr ' ' '\n' | sed -n "s/^$3=//p" | head -n 1; }
# is KIND NAME FIELD PATTERN
# shellcheck disable=SC2053
is() { [[ $(field "$1" "$2" "$3") == $4 ]]; }

mkdir "$work/munge"
dd if=/dev/urandom of="$work/munge/key" bs=1024 count=1 status=none
chmod 600 "$work/munge/key"
start munged munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge.socket" \
    --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed"
until_true 20 "munged's socket" test -S "$work/munge.socket"
for name in $nodes; do
    (umask 0; broker "$name"; echo "${process[broker-$name]}" >"$work/pid")
    process[broker-$name]=$(<"$work/pid")
    until_true 20 "the broker of $name" broker_answers "$name"
    chmod 666 "$work/brokers/$name"
    tesseractl fleet gres --broker "$work/brokers/$name" --node "$name" --gres-conf
done >"$work/gres.conf"
cat "$work/gres.conf"
start slurmctld slurmctld -D
for name in $nodes; do
    mkdir "$work/spool/$name"
    node "$name"
done
for name in $nodes; do until_true 60 "node $name" is node "$name" State 'IDLE'; done
say "three nodes are idle"

# submit MIB MEM WORDS...: the number of a job of an ordinary user's.
submit() {
    local mib=$1 mem=$2
    shift 2
    runuser -u nobody -- sbatch --parsable --chdir="$work/out" --output="$work/out/%j" --gres="tagmib:$mib" --mem="$mem" "$share/vm.job" "$@"
}
state_is() { is job "$1" JobState "$2"; }

# restart_broker NAME SIZE: as if it had crashed.
restart_broker() {
    kill -KILL "${process[broker-$1]}"
    wait "${process[broker-$1]}" 2>/dev/null || :
    broker "$1" "$2"
    until_true 20 "the broker of $1" broker_answers "$1"
    chmod 666 "$work/brokers/$1"
}

# ---- a capacity that changes: the health check updates Slurm's count ----

for size in 200 256; do
    restart_broker n3 ${size}M
    until_true 60 "the count of n3 is $size" is node n3 Gres "tagmib:$size*"
done
until_true 60 'n3 is idle' is node n3 State IDLE
say "Slurm's count of n3 followed its broker to 200 MiB and back"

# ---- 12 VMs ----

jobs=()
for mib in 128 128 128 64 64 64 32 32 32 20 20; do jobs+=("$(submit $mib 100M --kernel Image --cmdline memory)"); done
for job in "${jobs[@]}"; do until_true 60 "job $job runs" state_is "$job" RUNNING; done
# 712 of 768 MiB are taken: 60 fit on no node, whatever the placement.
waiting=$(submit 60 100M --kernel Image --cmdline memory)
until_true 30 "job $waiting waits for resources" is job "$waiting" Reason 'Resources'
state_is "$waiting" PENDING
for name in $nodes; do
    sum=0
    for job in "${jobs[@]}"; do
        if is job "$job" BatchHost "$name"; then
            mib=$(field job "$job" TresPerNode)
            sum=$((sum + ${mib##*:}))
        fi
    done
    ((sum <= 256)) || die "$name has $sum MiB of jobs"
    say "$name: $sum of 256 MiB"
done
eleven() { (($(pgrep -c -f "^$work/vm/tessera run") == 11)); }
until_true 30 '11 VMs' eleven
say "11 VMs run, the twelfth waits: $(squeue -h -j "$waiting" -o '%T %R')"

# ---- one ends in order, and makes room ----

until_true 30 'a comment' is job "${jobs[0]}" Comment 'footprint_peak_kib=*'
scancel "${jobs[0]}"
until_true 60 'the waiting job starts' state_is "$waiting" RUNNING
say "job ${jobs[0]}: $(scontrol --oneliner show job "${jobs[0]}" | grep -o 'footprint.*restarts=[0-9]*')"
grep -q stopped "$work/out/${jobs[0]}" || die "the VM of job ${jobs[0]} was not shut down in order"

# ---- kill -9 of a VM: requeued ----

job=${jobs[3]}
pkill -KILL -f "^$work/vm/tessera run --id slurm-$job "
until_true 30 "job $job is requeued" is job "$job" Restarts 1
until_true 240 "job $job runs again" state_is "$job" RUNNING
say "job $job was killed, requeued, and runs on $(field job "$job" BatchHost)"

# ---- a broker that is killed: drained, and resumed when it is back ----

name=n1
kill -KILL "${process[broker-$name]}"
wait "${process[broker-$name]}" 2>/dev/null || :
until_true 60 "$name is drained" is node $name State '*DRAIN*'
reason=$(scontrol --oneliner show node $name | sed -n 's/.*Reason=\(.*\) \[.*/\1/p')
say "$name: $(field node $name State), $reason"
[[ $reason == *'the broker at'*'does not answer'* ]] || die "reason: $reason"
broker $name
until_true 20 "the broker of $name" broker_answers $name
chmod 666 "$work/brokers/$name"
until_true 60 "$name is resumed" is node $name State '@(MIXED|ALLOCATED|IDLE)'
say "$name is resumed"

# ---- an exit code that another host may do with, until there were enough attempts ----

job=$(submit 1 50M --kernel Image --cmdline fail=14)
until_true 240 "job $job is given up" state_is "$job" FAILED
{ is job "$job" Restarts 1 && is job "$job" ExitCode 1:0; } || die "$(scontrol show job "$job")"
say "job $job (exit code 14) was requeued once, then given up"

# ---- a VM that moves: from a node that is drained, past one that does not restore it ----

job=$(TESSERA_FLEET_MOVE=$work/moves submit 1 50M --kernel Image --cmdline memory)
until_true 60 "job $job runs" state_is "$job" RUNNING
from=$(field job "$job" BatchHost)
saved=$work/moves/slurm-$job
up() { pgrep -f "^$work/vm/tessera run --id slurm-$job .*${1:-}" >/dev/null; }
until_true 30 "the VM of job $job" up
for name in $nodes; do [[ $name == "$from" ]] || touch "$work/differs-$name"; done
scontrol update NodeName="$from" State=DRAIN Reason=maintenance
scontrol requeue "$job"
until_true 30 "job $job is saved" test -e "$saved/vm/state"
until_true 30 "job $job is requeued" is job "$job" Restarts 1
until_true 240 "job $job is held" is job "$job" Priority 0
[[ -e $saved/vm/state ]] || die 'the snapshot of a job that is held is gone'
say "job $job was saved on $from and is held: $(squeue -h -j "$job" -o '%T %r')"
grep -h 'vm.job:\|no MTE' "$work/out/$job"
rm "$work"/differs-*
scontrol release "$job"
until_true 240 "job $job runs again" state_is "$job" RUNNING
until_true 30 "the VM of job $job continues" up --restore
is job "$job" BatchHost "$from" && die "job $job runs on $from, which is drained"
until_true 30 'the snapshot has been used' test ! -e "$saved/vm"
say "job $job continues on $(field job "$job" BatchHost)"
scontrol update NodeName="$from" State=RESUME
scancel "$job"
until_true 60 "the folder of job $job is gone" test ! -e "$saved"

# ---- tesseractl fleet run ----

status=0
runuser -u nobody -- tesseractl fleet run --gres tagmib:1 --mem 50M "--sbatch=--chdir=$work/out" --script "$share/vm.job" -- \
    tessera --kernel Image --cmdline fail=11 || status=$?
((status == 11)) || die "fleet run ended with status $status"

# ---- kill -9 of a slurmd: its jobs are requeued ----

name=n3
held=$(squeue -h -w $name -t RUNNING -o %i | head -n 1)
restarts=$(field job "$held" Restarts)
kill -KILL "${process[$name]}"
wait "${process[$name]}" 2>/dev/null || :
until_true 90 "$name is down" is node $name State 'DOWN*'
until_true 30 "job $held is requeued" is job "$held" Restarts $((restarts + 1))
say "$name: $(field node $name State); job $held is requeued"

# ---- nothing is left ----

scancel --user=nobody
no_jobs() { [[ -z $(squeue -h) ]]; }
until_true 120 'all jobs end' no_jobs
for name in n1 n2; do
    [[ -z $(ls -A "$work/vms/$name") ]] || die "left on $name: $(ls -A "$work/vms/$name")"
done
say 'nothing is left on n1 and n2'
