#!/usr/bin/env bash
# Runs tests through cargo-nextest: the unit tests on this machine, with the argument `nested` the nested tests too, and
# with `all` also those that are marked `#[ignore = "long"]`.
# The last line counts the runs; the exit status is 0 only when they ran to their end without a failure, and no
# test was skipped that this machine can run.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly SLOWEST=10
passed=0
failed=0
skipped=0
long=0 # Tests of the nested run that were left to a long one.
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
    if [[ $name == nested* ]]; then long=$left; else skipped=$((skipped + left)); fi
}

# python_tests: those of resources/python, added to the counts by the closing lines of unittest, for example
#   Ran 27 tests in 13.3s
#   FAILED (failures=1, errors=1, skipped=3)
# and the skipped ones to the notes, by lines such as
#   test_x (test_plugin.Plugin.test_x) ... skipped 'python-pytest: there is no pytest'
python_tests() {
    local record=$folder/python started=$SECONDS ran lost=0 left=0 count
    printf '\ntest: resources/python\n'
    if ! command -v python3 >/dev/null || ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'; then
        passed=$((passed + 1)) # Until it is taken out again as skipped.
        printf 'python\tresources/python\tthere is no Python 3.9\n' >>"$TESSERA_SKIPPED"
        return
    fi
    python3 -B -m unittest discover --verbose --start-directory resources/python/tests </dev/null >"$record" 2>&1 || status=1
    ran=$(sed -nE 's/^Ran ([0-9]+) tests? in .*/\1/p' "$record")
    if [[ -z $ran || $ran == 0 ]]; then
        cat "$record"
        missing+="resources/python; "
        status=1
        return
    fi
    for count in $(sed -nE '$s/.*(failures|errors)=([0-9]+).*(errors)=([0-9]+).*/\2 \4/p;t;$s/.*(failures|errors)=([0-9]+).*/\2/p' "$record"); do
        lost=$((lost + count))
    done
    left=$(sed -nE 's/^(test_[^ ]+) .* skipped .([a-z-]+): (.*).$/\2\t\1\t\3/p' "$record" | tee -a "$TESSERA_SKIPPED" | wc -l)
    ((lost == 0)) || cat "$record"
    printf '%d tests run: %d passed, %d failed, %d skipped\n' "$ran" "$((ran - lost - left))" "$lost" "$left"
    # The notes take the skipped ones out of those that passed.
    passed=$((passed + ran - lost))
    failed=$((failed + lost))
    times+=("$(printf '%5d s  %s' "$((SECONDS - started))" "resources/python")")
}

# can WHAT REASON: whether this machine has what a test says it lacks, as far as can be seen from here.
can() {
    local huge=/sys/kernel/mm/transparent_hugepage
    case $1 in
    userfaultfd)
        # The sysctl, the device (Documentation/admin-guide/mm/userfaultfd.rst), or CAP_SYS_PTRACE.
        [[ -e /proc/sys/vm/unprivileged_userfaultfd ]] || return 1
        [[ $(</proc/sys/vm/unprivileged_userfaultfd) == 1 || -w /dev/userfaultfd ]] || capable 19
        ;;
    huge-pages)
        [[ -e $huge/enabled && $(<$huge/enabled) != *'[never]'* && $(<$huge/hpage_pmd_size) == 2097152 ]]
        ;;
    collapse)
        # MADV_COLLAPSE came with Linux 6.1.
        local major minor
        IFS=. read -r major minor _ <<<"$(uname -r)"
        ((major > 6 || (major == 6 && ${minor%%[^0-9]*} >= 1)))
        ;;
    page-moves)
        # A kernel without nodes moves nothing, and a container's filter may forbid it.
        [[ -d /sys/devices/system/node ]] && grep -q $'^Seccomp:\t0' /proc/self/status
        ;;
    direct-io)
        local file status=0
        file=$(mktemp)
        dd if=/dev/zero of="$file" bs=4096 count=1 oflag=direct status=none 2>/dev/null || status=$?
        rm -f "$file"
        return "$status"
        ;;
    taps)
        [[ $EUID == 0 && -w /dev/net/tun ]] && command -v ip >/dev/null && capable 12
        ;;
    landlock)
        grep -q landlock /sys/kernel/security/lsm 2>/dev/null
        ;;
    passt)
        command -v passt >/dev/null
        ;;
    descriptors)
        [[ $(ulimit -Hn) == unlimited || $(ulimit -Hn) -ge ${2%% *} ]]
        ;;
    python)
        command -v python3 >/dev/null && python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'
        ;;
    python-pytest)
        python3 -c 'import pytest' 2>/dev/null
        ;;
    *) ;; # Nothing that a test may be skipped for.
    esac
}

# capable NUMBER: whether this process has a capability (capabilities(7)).
capable() { ((16#$(sed -n 's/^CapEff:\t//p' /proc/self/status) >> $1 & 1)); }

# count_skipped: takes the tests that ran into what is missing here from those that passed.
count_skipped() {
    local what test reason
    [[ -s $TESSERA_SKIPPED ]] || return 0
    printf '\ntest: skipped, as this machine lacks what they need:\n'
    while IFS=$'\t' read -r what test reason; do
        passed=$((passed - 1))
        if can "$what" "$reason"; then
            status=1
            failed=$((failed + 1))
            printf '  %s (%s: %s), but this machine has it: that is a failure\n' "$test" "$what" "$reason"
        else
            skipped=$((skipped + 1))
            printf '  %s (%s: %s)\n' "$test" "$what" "$reason"
        fi
    done < <(sort -u "$TESSERA_SKIPPED")
}

# Some wait more than they compute.
run "unit tests, on this machine" --workspace --exclude tessera-tests --test-threads "$(($(nproc) + 1))"
if [[ -n ${1-} ]]; then
    ignored=default
    if [[ $1 == all ]]; then ignored=all; fi
    run "nested tests, in the lab (directly on an arm64 machine with KVM and MTE)" --package tessera-tests --profile nested \
        --run-ignored "$ignored"
else
    run "unit tests of what integration tests stand on" --package tessera-tests --lib --test house --test packages
fi
python_tests
[[ -z $missing ]] || printf '\ntest: not counted, as they did not run: %s\n' "${missing%; }"
printf '\ntest: the %d slowest tests:\n' "$SLOWEST"
sort -rn "$folder/tests" | sed -n "1,${SLOWEST}p" | while read -r seconds name; do printf '%7.1f s  %s\n' "$seconds" "$name"; done
printf '\ntest: the parts, with what cargo built for them:\n'
printf '%s\n' "${times[@]}"
count_skipped
((long == 0)) || printf '\ntest: %d long nested tests were left out: "make test LONG=1" runs them too\n' "$long"
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
exit "$status"
