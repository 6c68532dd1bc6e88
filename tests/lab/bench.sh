#!/usr/bin/env bash
# Runs the benches through cargo-nextest, or those of one module of tests/benches, with LONG=1 also those that are marked
# `#[ignore = "long"]`, and makes a report of what they record:
#   [LONG=1] tests/lab/bench.sh FOLDER [MODULE]
# The report is in FOLDER/MODULE, or FOLDER/all, with what the benches print in its file `log`. The exit status is 0 only
# when all benches passed and there is a report.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly ONLY=${2-}
if [[ -n ${ONLY//[a-z_]/} ]]; then
    printf 'bench: %s is no name of a bench: ONLY is that of a file in tests/benches, without .rs\n' "$ONLY" >&2
    exit 1
fi
mkdir -p "$1/${ONLY:-all}"
out=$(cd "$1/${ONLY:-all}" && pwd)
rm -rf "$out"/{figures.jsonl,log,plots,report.html,report.json,report.md}
nextest=(--package tessera-tests --bench benches --profile bench)
if [[ -n ${LONG-} ]]; then nextest+=(--run-ignored all); fi
if [[ -n $ONLY ]]; then nextest+=(-E "test(/^$ONLY::/)"); fi

names=$(cargo nextest list "${nextest[@]}" --message-format oneline 2>"$out/log" </dev/null) || { cat "$out/log" >&2; exit 1; }
total=$(grep -c . <<<"$names" || true)
if ((total == 0)); then
    printf 'bench: there is no bench %s, or none that is not long: ONLY is the name of a file in tests/benches, without .rs;\n' "$ONLY" >&2
    printf 'bench: LONG=1 runs the long ones as well\n' >&2
    exit 1
fi

# progress TEXT: one line on a terminal, a line each elsewhere.
progress() {
    if [[ -t 2 ]]; then printf '\r\e[Kbench: %s' "$1" >&2; else printf 'bench: %s\n' "$1" >&2; fi
}

# watch: keeps what is printed, and says how far it is, by nextest's line at the end of each test, for example
#   PASS [  44.012s] ( 1/12) tessera-tests::bench/benches stall::the_api_answers
watch() {
    local ended=0 line
    progress "0 of $total done, the log is $out/log"
    while IFS= read -r line; do
        printf '%s\n' "$line" >>"$out/log"
        if [[ $line =~ ^\ *(PASS|FAIL|TIMEOUT|SIG[A-Z]+|ABORT)\ \[\ *([0-9.]+)s\].*\ ([a-z_0-9]+::[a-z_0-9]+)$ && $ended -lt $total ]]; then
            ended=$((ended + 1))
            progress "$ended of $total done: ${BASH_REMATCH[3]} ${BASH_REMATCH[1]} in ${BASH_REMATCH[2]} s"
        fi
    done
    if [[ -t 2 ]]; then printf '\n' >&2; fi
}

# Instructions that are counted do not depend on what runs beside. Times would: one bench at a time where guests run here.
# A host takes 8 GiB at most.
jobs=$(awk -v jobs="$(nproc)" '/^MemAvailable/ { fit = int($2 / 8388608); print fit < 1 ? 1 : fit < jobs ? fit : jobs }' /proc/meminfo)
if [[ $(uname -m) == aarch64 ]]; then jobs=1; fi

status=0
TESSERA_FIGURES=$out/figures.jsonl cargo nextest run "${nextest[@]}" --no-fail-fast --test-threads "$jobs" --success-output immediate \
    --color never </dev/null 2>&1 | watch || status=$?
((status == 0)) || { tail -n 40 "$out/log" >&2; printf 'bench: some benches failed (status %d): see %s\n' "$status" "$out/log" >&2; }

if [[ ! -s $out/figures.jsonl ]]; then
    printf 'bench: no figure was recorded, so there is no report\n' >&2
    exit 1
fi
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
if [[ -n $(git status --porcelain 2>/dev/null) ]]; then commit+=", changed"; fi
cargo run --quiet --package tesseractl -- bench report "$out/figures.jsonl" --out "$out" --note "commit=$commit" \
    --note "benches=${ONLY:-all}" --note "run on=$(uname -m), $(nproc) processors, $(date -u +%F)" || exit 1
exit "$status"
