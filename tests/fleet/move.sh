#!/bin/bash
# A guest with MTE that moves by the job script of resources/fleet/slurm, in the emulated host; Slurm is a stand-in:
# make lab SCRIPT=tests/fleet/move.sh IMAGE=1 FILES=resources/fleet/slurm/vm.job:/bin/vm.job
# The guest has data and tags that only its own run knows, and checks both before and after. Not a part of make test.
# The lab runs its scripts with sh.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0"
set -euo pipefail

work=$(mktemp -d /tmp/tessera-move.XXXXXX)
readonly work saved=$work/shared/slurm-7
mkdir -p "$work"/{bin,jobs/7,shared}
# What Slurm says of the job: how often it has been requeued, and its tag storage.
cat >"$work/bin/scontrol" <<END
#!/bin/sh
[ "\$*" != '--oneliner show job 7' ] || echo "JobId=7 Requeue=1 Restarts=\$(cat $work/restarts) TresPerNode=gres:tagmib:8"
END
chmod 755 "$work/bin/scontrol"
export PATH=$work/bin:$PATH TESSERA_FLEET_CONFIG=/nonexistent TESSERA_BROKER=$work/broker TESSERA_FLEET_DIR=$work/jobs
export TESSERA_FLEET_MOVE=$work/shared TESSERA_FLEET_SAMPLE=600 SLURM_JOB_ID=7

# console EVENT [LINE]: sends the guest a line, and prints its next report of that event.
console() {
    python3 - "$work/serial" "$@" <<'END'
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
# start NODE RESTARTS
start() {
    echo "$2" >"$work/restarts"
    SLURMD_NODENAME=$1 SLURM_RESTART_COUNT=$2 bash /bin/vm.job --kernel /artifacts/Image --initrd /artifacts/initrd.cpio \
        --cmdline 'quiet workload=snapshot,16' --memory 128M --mte --serial "socket:$work/serial" &
    job=$!
}
# verified: that all is as the guest has made it; prints what only this run of it knows.
verified() {
    local report
    report=$(console verified verify)
    echo "$report" >&2
    [[ $report == *'"ok":true'* && $report == *'"wrong_tags":0'* && $report == *'"wrong_words":0'* ]]
    sed -n 's/.*"nonce":"\([0-9a-f]*\)".*/\1/p' <<<"$report"
}

tessera broker --socket "$work/broker" --capacity 16M >"$work/broker.log" 2>&1 &
broker=$!
for ((i = 0; i < 100; i++)); do [[ ! -S $work/broker ]] || break; sleep 0.1; done

start n1 0
[[ $(console ready) == *'"mte":true'* ]]
before=$(verified)
echo 1 >"$work/restarts"
kill -TERM $job
wait $job || echo "move.sh: the job has ended on n1 with $?"
[[ -e $saved/vm/state ]]

start n2 1
after=$(verified)
[[ -n $before && $after == "$before" ]]
# Only one VM continues from a snapshot.
[[ ! -e $saved/vm ]]
tesseractl stop "$work/jobs/7/api"
wait $job
[[ ! -e $saved ]]
kill $broker
echo 'move.sh: the guest has moved with its memory and tags'
