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

# shellcheck source=tests/fleet/nodes.sh
. tests/fleet/nodes.sh slurm.sh 1
readonly vm=$work/vm/tessera

# ---- programs ----

mkdir "$work/vm"
cp "$built/examples/fake_vm" "$vm"
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
run) exec $vm "\$@" ;;
doctor) exec test ! -e $work/sick-\$SLURMD_NODENAME ;;
esac
exec $built/tessera "\$@"
END
chmod 755 "$bin/tessera"
configure tags=256 memory=2048 grace=5 kill_wait=10 health=5 sample=1 slurmd_timeout=15 scripts=resources/fleet/slurm \
    </dev/null
start_all

# ---- a capacity that changes: the health check updates Slurm's count ----

for size in 200 256; do
    crash broker-n3
    start_broker n3 $size
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
eleven() { (($(count_vms) == 11)); }
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
kill -KILL "$(vm_of "$job")"
until_true 30 "job $job is requeued" is job "$job" Restarts 1
until_true 240 "job $job runs again" state_is "$job" RUNNING
say "job $job was killed, requeued, and runs on $(field job "$job" BatchHost)"

# ---- a broker that is killed: drained, and resumed when it is back ----

name=n1
crash broker-$name
until_true 60 "$name is drained" is node $name State '*DRAIN*'
reason=$(reason_of $name)
say "$name: $(field node $name State), $reason"
[[ $reason == *'the broker at'*'does not answer'* ]] || die "reason: $reason"
start_broker $name
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
until_true 30 "the VM of job $job" vm_of "$job" >&2
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
until_true 30 "the VM of job $job continues" vm_of "$job" --restore >&2
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
crash $name
until_true 90 "$name is down" is node $name State 'DOWN*'
until_true 30 "job $held is requeued" is job "$held" Restarts $((restarts + 1))
say "$name: $(field node $name State); job $held is requeued"

# ---- nothing is left ----

scancel --user=nobody
until_true 120 'all jobs end' no_jobs
for name in n1 n2; do
    [[ -z $(ls -A "$work/vms/$name") ]] || die "left on $name: $(ls -A "$work/vms/$name")"
done
say 'nothing is left on n1 and n2'
