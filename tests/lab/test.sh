#!/usr/bin/env bash
# Runs all tests through cargo-nextest: the unit tests on this machine, then the nested tests. The last line
# counts both runs; the exit status is 0 only when both ran to their end without a failure, and no test was
# skipped that this machine can run.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly SLOWEST=10
passed=0
failed=0
skipped=0
missing=""
status=0
times=() # of the parts
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# Tests that find this machine without what they need say so here, a line each: what it is, the test, the
# reason (vmm/src/testing.rs).
export TESSERA_SKIPPED=$folder/skipped
: >"$TESSERA_SKIPPED"
: >"$folder/tests"
if [[ -t 2 ]]; then export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-always}; fi

# run NAME ARGUMENT...: one nextest run, added to the counts by its summary line, for example
#   Summary [   2.1s] 12/14 tests run: 10 passed (1 slow), 1 failed, 1 timed out, 3 skipped
# and to the times by the line of each test, for example
#   PASS [   0.044s] ( 1/90) tessera-arch layout::tests::windows_are_apart
run() {
    local name=$1 code=0 summary started=$SECONDS record=$folder/record
    shift
    printf '\ntest: %s\n' "$name"
    cargo nextest run "$@" </dev/null 2>&1 | tee "$record" || code=$?
    ((code == 0)) || status=1
    sed -i -e 's/\x1b\[[0-9;]*m//g' "$record"
    times+=("$(printf '%5d s  %s' "$((SECONDS - started))" "$name")")
    # A test that fails has its line again at the end.
    sed -nE 's/^ *[A-Z0-9-]+ \[ *([0-9.]+)s\] (\([ 0-9\/]+\) )?([^ ]+ [^ ]+)$/\1 \3/p' "$record" | sort -u >>"$folder/tests"
    summary=$(sed -nE 's/^ *Summary \[[^]]*\] ([0-9]+)(\/[0-9]+)? tests? run: ([0-9]+) passed.* ([0-9]+) skipped.*$/\1 \3 \4/p' "$record" |
        tail -n 1)
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

# can WHAT: whether this machine has what tests say it lacks, as far as can be seen from here.
can() {
    local capabilities
    case $1 in
    userfaultfd)
        # The kernel's word (Documentation/admin-guide/mm/userfaultfd.rst), the device, or CAP_SYS_PTRACE.
        [[ -e /proc/sys/vm/unprivileged_userfaultfd ]] || return 1
        [[ $(</proc/sys/vm/unprivileged_userfaultfd) != 1 && ! -w /dev/userfaultfd ]] || return 0
        capabilities=$(sed -n 's/^CapEff:\t//p' /proc/self/status)
        ((16#$capabilities & 1 << 19))
        ;;
    *) return 1 ;;
    esac
}

# count_skipped: takes the tests that ran into what is missing here from those that passed.
count_skipped() {
    local what test reason
    [[ -s $TESSERA_SKIPPED ]] || return 0
    printf '\ntest: skipped, as this machine lacks what they need:\n'
    while IFS=$'\t' read -r what test reason; do
        passed=$((passed - 1))
        skipped=$((skipped + 1))
        if can "$what"; then
            status=1
            printf '  %s (%s: %s), ALTHOUGH this machine has it: that is a failure\n' "$test" "$what" "$reason"
        else
            printf '  %s (%s: %s)\n' "$test" "$what" "$reason"
        fi
    done < <(sort -u "$TESSERA_SKIPPED")
}

run "unit tests, on this machine" --workspace --exclude tessera-tests
run "nested tests, in the lab (directly on an arm64 machine with KVM and MTE)" --package tessera-tests --profile nested \
    --test-threads "$(($(nproc) + 1))"
[[ -z $missing ]] || printf '\ntest: not counted, as they did not run: %s\n' "${missing%; }"
printf '\ntest: the %d slowest tests:\n' "$SLOWEST"
sort -rn "$folder/tests" | head -n "$SLOWEST" | while read -r seconds name; do printf '%7.1f s  %s\n' "$seconds" "$name"; done
printf '\ntest: the parts, with what cargo built for them:\n'
printf '%s\n' "${times[@]}"
count_skipped
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
exit "$status"
