#!/usr/bin/env bash
# Runs all tests through cargo-nextest: the unit tests on this machine, then the nested tests. The last line
# counts both runs; the exit status is 0 only when both ran to their end without a failure.
set -euo pipefail
cd "$(dirname "$0")/../.."

passed=0
failed=0
skipped=0
missing=""
status=0
record=$(mktemp)
trap 'rm -f "$record"' EXIT
if [[ -t 2 ]]; then export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-always}; fi

# run NAME ARGUMENT...: one nextest run, added to the counts by its summary line, for example
#   Summary [   2.1s] 12/14 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 3 skipped
run() {
    local name=$1 code=0 summary
    shift
    printf '\ntest: %s\n' "$name"
    cargo nextest run "$@" </dev/null 2>&1 | tee "$record" || code=$?
    ((code == 0)) || status=1
    summary=$(sed -e 's/\x1b\[[0-9;]*m//g' "$record" |
        sed -nE 's/^ *Summary \[[^]]*\] ([0-9]+)(\/[0-9]+)? tests? run: ([0-9]+) passed.* ([0-9]+) skipped.*$/\1 \3 \4/p' | tail -n 1)
    if [[ -z $summary ]]; then
        printf 'test: %s did not run (cargo nextest ended with status %d)\n' "$name" "$code"
        missing+="$name; "
        status=1
        return
    fi
    local ran ok left
    read -r ran ok left <<<"$summary"
    passed=$((passed + ok))
    failed=$((failed + ran - ok))
    skipped=$((skipped + left))
}

run "unit tests, on this machine" --workspace --exclude tessera-tests
run "nested tests, in the lab (directly on an arm64 machine with KVM and MTE)" --package tessera-tests --profile nested \
    --test-threads "$(($(nproc) + 1))"
[[ -z $missing ]] || printf '\ntest: not counted, as they did not run: %s\n' "${missing%; }"
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
exit "$status"
