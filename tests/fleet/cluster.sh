#!/bin/bash
# Slurm with real guests with MTE: a controller and three slurmd, each with a broker (ledger) and a share of the memory, in
# one emulated arm64 host whose system is Debian with Slurm's packages. The image is made where it is missing.
# cluster.sh [PART...], of `place`, `race`, `move` and `kill`; all without. Not a part of make test.
# The lab runs its scripts with sh.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

if [[ -z ${TESSERA_NESTED:-} ]]; then
    for part; do
        [[ $part =~ ^(place|race|move|kill)$ ]] || {
            echo "cluster.sh: there is no part $part: name place, race, move or kill" >&2
            exit 64
        }
    done
    cd "$(dirname "$0")/../.."
    # shellcheck source=tests/fleet/common.sh
    . tests/fleet/common.sh cluster.sh 1
    make_lab
    in_lab tests/fleet/cluster.sh --env "PARTS=$*"
fi

# What systemd and udev would have done. Slurm asks for names of a kind of address that the host has, and those of the
# loopback interface do not count (AI_ADDRCONFIG): it gets one that is for examples (RFC 5737).
ip address add 192.0.2.1/32 dev lo
echo tessera >/proc/sys/kernel/hostname
chmod 666 /dev/kvm
# shellcheck source=tests/fleet/nodes.sh
. /fleet/nodes.sh cluster.sh 5
mkdir -m 1777 "$work/consoles"
echo CgroupPlugin=disabled >"$work/cgroup.conf"
# An emulated processor needs longer than Slurm allows.
configure tags=16 memory=700 grace=60 kill_wait=120 health=60 sample=20 slurmd_timeout=60 scripts=/slurm <<END
BatchStartTimeout=300
MessageTimeout=60
UnkillableStepTimeout=300
END
start_all

# ---- guests ----

# guest MIB MEM MEMORY WORKLOAD [OPTIONS...]: a job whose guest has so much memory; `on` as for submit.
guest() {
    submit "$1" "$2" --kernel /artifacts/Image --initrd /artifacts/initrd.cpio --memory "$3" --mte require \
        --cmdline "quiet workload=$4" "${@:5}"
}
# Guests that take 24 MiB and tag all of it. Their console is the job's output.
readonly toucher=touch,24
# touched JOB [TIMES]: whether its guest has, as often as that, with the tags as it set them.
touched() {
    local times
    # There is no output before the job starts.
    times=$(grep -sc '"event":"touched".*"ok":true.*"tagged":true' "$work/out/$1") || :
    ((${times:-0} >= ${2:-1}))
}
# lease NODE NAME: bytes of tag storage that the broker has reserved for it; none where there is no such lease.
lease() {
    tesseractl pool --broker "$work/brokers/$1" --prometheus |
        sed -n "s/^tessera_lease_reserved_bytes{.*name=\"$2\".* \([0-9]*\)$/\1/p"
}
has_lease() { [[ -n $(lease "$1" "$2") ]]; }
# Not so either where the broker does not answer.
has_no_lease() {
    local found
    found=$(lease "$@") && [[ -z $found ]]
}
vm_answers() { tesseractl status "$1" >/dev/null 2>&1; }
has_no_vm() { ! vm_of "$1" >/dev/null; }

no_vms() { (($(count_vms) == 0)); }
# Every job's VM is gone, and with it its lease and its files; Slurm has no complaint.
nothing_left() {
    local name files
    scancel --user=nobody
    until_true 60 'all jobs end' no_jobs
    until_true 5 'all VMs end' no_vms
    for name in $nodes; do
        until_true 30 "$name is idle" is node "$name" State IDLE
        has_no_lease "$name" 'slurm-[0-9]*' || die "left at the broker of $name: $(tesseractl pool --broker "$work/brokers/$name")"
    done
    files=$(find "$work/vms" "$work/moves" "$work/consoles" -mindepth 1 -not -path "$work/vms/n[1-3]")
    [[ -z $files ]] || die "left: $files"
    say "$1: nothing is left on any node"
}

# ---- 12 VMs ----

place() {
    local jobs=() job waiting name tags memory
    local -A mib mem
    # The more tag storage, the more memory: all together 46 of 48 MiB of tag storage and 1890 of 2100 MiB.
    for job in '8 300 256M' '8 300 256M' '4 170 128M' '4 170 128M' '4 170 128M' \
        '3 130 96M' '3 130 96M' '3 130 96M' '3 130 96M' '3 130 96M' '3 130 96M'; do
        read -r tags memory name <<<"$job"
        job=$(guest "$tags" "${memory}M" "$name" $toucher)
        jobs+=("$job") mib[$job]=$tags mem[$job]=$memory
    done
    for job in "${jobs[@]}"; do until_true 60 "job $job runs" state_is "$job" RUNNING; done
    # There is tag storage for it, and 210 MiB of memory are left, whatever the placement.
    waiting=$(guest 1 250M 96M $toucher)
    until_true 30 "job $waiting waits for memory" is job "$waiting" Reason Resources
    scancel "$waiting"
    # 2 MiB of tag storage are left.
    waiting=$(guest 4 40M 128M $toucher)
    until_true 30 "job $waiting waits for tag storage" is job "$waiting" Reason Resources
    for job in "${jobs[@]}"; do until_true 120 "the guest of job $job has tagged its memory" touched "$job"; done
    state_is "$waiting" PENDING
    for name in $nodes; do
        tags=0 memory=0
        for job in "${jobs[@]}"; do
            if is job "$job" BatchHost "$name"; then
                tags=$((tags + mib[$job])) memory=$((memory + mem[$job]))
                # 24 MiB of a guest's memory take 768 KiB.
                (($(lease "$name" "slurm-$job") >= 768 << 10)) || die "the broker of $name has too little for job $job"
            fi
        done
        ((tags <= 16 && memory <= 700)) || die "$name has $tags MiB of tag storage and $memory MiB of memory of jobs"
        say "$name: $tags of 16 MiB of tag storage, $memory of 700 MiB of memory"
    done
    (($(count_vms) == 11))
    say "11 guests run, the twelfth waits: $(squeue -h -j "$waiting" -o '%T %R')"
    job=${jobs[2]}
    scancel "$job"
    until_true 60 "job $waiting starts" state_is "$waiting" RUNNING
    until_true 60 "the guest of job $waiting has tagged its memory" touched "$waiting"
    say "job $job has ended ($(scontrol --oneliner show job "$job" | grep -o 'footprint_peak.* supply=[a-z]*'))," \
        "and job $waiting runs on $(field job "$waiting" BatchHost)"
}

# ---- the last of a node's tag storage ----

# one_runs JOBS
one_runs() { [[ -n $(squeue -h -j "${1/ /,}" -t RUNNING) ]]; }
# Two jobs at once, by Slurm's count.
race_of_jobs() {
    local holder round pair first second
    holder=$(on=n1 guest 12 130M 96M $toucher)
    until_true 60 "job $holder runs" state_is "$holder" RUNNING
    for round in 1 2 3; do
        on=n1 guest 4 130M 96M $toucher >"$work/first" &
        second=$(on=n1 guest 4 130M 96M $toucher)
        wait $!
        pair="$(<"$work/first") $second"
        until_true 60 'one runs' one_runs "$pair"
        read -r first second <<<"$pair"
        state_is "$first" RUNNING || read -r second first <<<"$pair"
        until_true 60 "job $second waits" is job "$second" Reason Resources
        until_true 60 "the guest of job $first has tagged its memory" touched "$first"
        state_is "$second" PENDING
        has_no_lease n1 "slurm-$second"
        scancel "$first"
        until_true 60 "job $second runs" state_is "$second" RUNNING
        until_true 60 "the guest of job $second has tagged its memory" touched "$second"
        has_no_lease n1 "slurm-$first"
        scancel "$second"
        until_true 60 "job $second has ended" state_is "$second" CANCELLED
        say "round $round: job $first ran, job $second waited for it"
    done
    until_true 60 'the last has no lease' has_no_lease n1 "slurm-$second"
}
# Two VMs at once, without Slurm, beside the holder of race_of_jobs, which has 12 of n1's 16 MiB: the broker refuses one.
race_of_vms() {
    local round a b status ended winner loser both=ab
    for round in {1..10}; do
        racer a "$round" &
        a=$!
        racer b "$round" &
        b=$!
        status=0
        wait -n -p ended "$a" "$b" || status=$?
        ((status == 69)) || die "round $round: one has ended with $status: $(cat "$work/race-a" "$work/race-b")"
        winner=a
        [[ $ended == "$b" ]] || winner=b
        until_true 10 "the lease of $winner" has_lease n1 "race-$winner-$round"
        has_no_lease n1 "race-[^$winner]-$round"
        # Its lease comes before its control socket.
        until_true 10 "$winner's control socket" vm_answers "race-$winner-$round"
        tesseractl stop "race-$winner-$round" --force >/dev/null
        wait "$a" "$b" || :
        until_true 10 "the end of $winner's lease" has_no_lease n1 'race-.*'
        loser=${both/$winner/}
        say "round $round: $winner has it; $loser: $(grep -o 'tag storage is exhausted:[^:]*' "$work/race-$loser")"
    done
}
# racer NAME ROUND: a VM that wants the last 4 MiB of n1.
racer() {
    exec tessera run --id "race-$1-$2" --api-sock "$work/race-$1.socket" --broker "$work/brokers/n1" --tag-min 4M \
        --tag-max 4M --mte require --memory 96M --kernel /artifacts/Image --initrd /artifacts/initrd.cpio \
        --cmdline 'quiet workload=idle' --serial none \
        </dev/null >"$work/race-$1" 2>&1
}
race() {
    race_of_jobs
    race_of_vms
}

# ---- a VM that moves ----

# console EVENT [LINE]: sends the guest with a console a line, and prints its next report of that event.
console() {
    python3 - "$work/consoles/vm" "$@" <<'END'
import socket, sys, time
path, event, *line = sys.argv[1:]
end = time.monotonic() + 300
guest = socket.socket(socket.AF_UNIX)
while guest.connect_ex(path):
    if time.monotonic() > end:
        sys.exit(f"nothing at {path}")
    time.sleep(0.5)
guest.settimeout(300)
for text in line:
    guest.sendall(text.encode() + b"\n")
for report in guest.makefile("rb"):
    if f'"event":"{event}"'.encode() in report:
        print(report.decode().strip())
        sys.exit()
sys.exit(f"the guest has ended without {event}")
END
}
# verified: that all is as the guest has made it; prints what only this run of it knows.
verified() {
    local report
    report=$(console verified verify)
    echo "$report" >&2
    # Within $(verified) a failure alone ends nothing.
    [[ $report == *'"ok":true'* && $report == *'"wrong_tags":0'* && $report == *'"wrong_words":0'* ]] ||
        die "the guest has found: $report"
    sed -n 's/.*"nonce":"\([0-9a-f]*\)".*/\1/p' <<<"$report"
}
move() {
    local job from to before after saved
    # It listens from the start: what a guest says to no reader is lost.
    console ready >"$work/ready" &
    job=$(TESSERA_FLEET_MOVE=$work/moves guest 8 170M 128M snapshot,16 --serial "socket:$work/consoles/vm")
    until_true 60 "job $job runs" state_is "$job" RUNNING
    from=$(field job "$job" BatchHost) saved=$work/moves/slurm-$job
    wait $!
    [[ $(<"$work/ready") == *'"mte":true'* ]]
    before=$(verified)
    scontrol update NodeName="$from" State=DRAIN Reason=maintenance
    scontrol requeue "$job"
    until_true 60 "job $job is saved" test -e "$saved/vm/state"
    until_true 60 "$from is drained" is node "$from" State IDLE+DRAIN
    has_no_vm "$job"
    has_no_lease "$from" "slurm-$job"
    [[ ! -e $work/vms/$from/$job ]]
    say "job $job is saved: $(du -sh "$saved/vm" | cut -f 1), and $from is $(field node "$from" State)"
    until_true 60 "job $job runs again" state_is "$job" RUNNING
    to=$(field job "$job" BatchHost)
    [[ $to != "$from" ]]
    until_true 60 'the snapshot has been used' test ! -e "$saved/vm"
    after=$(verified)
    [[ -n $before && $after == "$before" ]] || die "another guest: $before on $from, $after on $to"
    has_lease "$to" "slurm-$job"
    say "the guest of job $job moved from $from to $to with its memory and tags"
    scontrol update NodeName="$from" State=RESUME
}

# ---- kill -9 ----

kill_all() {
    local jobs=() job name restarts before
    for name in 1 2 3; do jobs+=("$(guest 8 170M 128M $toucher)"); done
    for job in "${jobs[@]}"; do until_true 120 "the guest of job $job has tagged its memory" touched "$job"; done

    # A VM: requeued.
    job=${jobs[0]} name=$(field job "$job" BatchHost)
    kill -KILL "$(vm_of "$job")"
    until_true 30 "job $job is requeued" is job "$job" Restarts 1
    until_true 30 "the VM of job $job is gone from $name" has_no_vm "$job"
    until_true 5 "the lease of job $job is gone" has_no_lease "$name" "slurm-$job"
    until_true 30 "the folder of job $job is gone" test ! -e "$work/vms/$name/$job"
    is node "$name" State '*DRAIN*' && die "$name is drained: $(reason_of "$name")"
    until_true 60 "the guest of job $job has tagged its memory again" touched "$job" 2
    say "the VM of job $job was killed on $name; the job runs on $(field job "$job" BatchHost)"

    # A broker: the node is drained, its VM runs on, and has its lease back with the next broker.
    job=${jobs[1]} name=$(field job "$job" BatchHost)
    before=$(lease "$name" "slurm-$job")
    crash "broker-$name"
    until_true 60 "$name is drained" is node "$name" State '*DRAIN*'
    say "the broker of $name was killed: $(field node "$name" State), $(reason_of "$name")"
    [[ $(reason_of "$name") == *'the broker at'*'does not answer'* ]]
    vm_of "$job" >/dev/null || die "the VM of job $job has ended with the broker"
    start_broker "$name"
    until_true 20 "the lease of job $job is back" has_lease "$name" "slurm-$job"
    (($(lease "$name" "slurm-$job") >= before)) || die "job $job had $before bytes, and has $(lease "$name" "slurm-$job")"
    until_true 60 "$name is resumed" is node "$name" State '@(MIXED|ALLOCATED|IDLE)'
    say "$name is resumed, and job $job has its lease of $before bytes"

    # A slurmd: its jobs are requeued. What it left is ended when it is back.
    job=${jobs[2]} name=$(field job "$job" BatchHost) restarts=$(field job "$job" Restarts)
    crash "$name"
    until_true 60 "$name is down" is node "$name" State 'DOWN*'
    until_true 30 "job $job is requeued" is job "$job" Restarts $((restarts + 1))
    say "the slurmd of $name was killed: $(field node "$name" State), job $job is $(field job "$job" JobState)," \
        "and its VM $(vm_of "$job" >/dev/null && echo runs || echo 'has ended')"
    start_node "$name"
    until_true 60 "the lease of job $job is gone from $name" has_no_lease "$name" "slurm-$job"
    until_true 30 "the folder of job $job is gone" test ! -e "$work/vms/$name/$job"
    say "the slurmd of $name is back, and the VM that it had left is gone"
    until_true 60 "the guest of job $job has tagged its memory again" touched "$job" 2
    say "$name is $(field node "$name" State) with its slurmd; job $job runs on $(field job "$job" BatchHost)"
}

for part in ${PARTS:-place race move kill}; do
    began=$SECONDS
    case $part in
    place | race | move) $part ;;
    kill) kill_all ;;
    esac
    nothing_left "$part"
    say "$part: $((SECONDS - began)) s"
done
