# shellcheck shell=bash
# What the scripts beside it have in common. `. common.sh NAME PATIENCE`: NAME is for messages, and all waits are PATIENCE
# times as long.

readonly me=$1 patience=$2

say() { printf '%s: %s\n' "$me" "$*"; }
die() {
    say "$*" >&2
    exit 1
}
# A condition that ends the script says where, with the lines of the functions' callers. A subshell's failure is its
# caller's to judge.
lost() {
    local frame lines=''
    for ((frame = 1; frame < ${#FUNCNAME[@]}; frame++)); do
        lines+=" ${FUNCNAME[frame]}:${BASH_LINENO[frame - 1]}"
    done
    say "failed:$lines: $1" >&2
}
set -E
trap '((BASH_SUBSHELL)) || lost "$BASH_COMMAND"' ERR

# until_true SECONDS WHAT COMMAND...
until_true() {
    local deadline=$((SECONDS + $1 * patience)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < deadline)) || die "not in time: $what"
        sleep 0.5
    done
}

# ---- the emulated host ----

# Makes what it needs: an image of its own, as that of the tests has neither Slurm nor containers.
make_lab() {
    export TESSERA_LAB=${TESSERA_LAB:-$PWD/target/fleet}
    make image PACKAGES='munge slurmctld slurmd slurm-client systemd-container'
    make artifacts
}
# in_lab SCRIPT OPTIONS...: runs it there in place of this one, with this folder as /fleet and the scripts of Slurm in /slurm.
in_lab() {
    exec "${CARGO_TARGET_DIR:-target}/debug/lab" run "$1" --image --timeout 7200 --file tests/fleet:/fleet \
        --file resources/fleet/slurm:/slurm "${@:2}"
}

# ---- what Slurm says ----

# field KIND NAME FIELD: of scontrol show.
field() { scontrol --oneliner show "$1" "$2" | tr ' ' '\n' | sed -n "s/^$3=//p" | head -n 1; }
# is KIND NAME FIELD PATTERN
# shellcheck disable=SC2053
is() { [[ $(field "$1" "$2" "$3") == $4 ]]; }
state_is() { is job "$1" JobState "$2"; }
reason_of() { scontrol --oneliner show node "$1" | sed -n 's/.*Reason=\(.*\) \[.*/\1/p'; }
no_jobs() { [[ -z $(squeue -h) ]]; }
