#!/usr/bin/env bash
# Builds the fuzz targets as a program of libFuzzer's, and prints where it is. ASAN=1 adds the address sanitizer.
#
# Stable Rust counts what a program meets by a pass of LLVM's (https://clang.llvm.org/docs/SanitizerCoverage.html); the
# sanitizer is an option that only RUSTC_BOOTSTRAP opens, and the library for it comes with Rust.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
host=$(rustc -vV | sed -n 's/^host: //p')
flags=(--cfg fuzzing -Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
target=${CARGO_TARGET_DIR:-$root/target}
if [[ -n ${ASAN:-} ]]; then
    flags+=(-Zsanitizer=address)
    export RUSTC_BOOTSTRAP=1
    target+=/asan
fi
# Named as a target, the machine itself is one whose build scripts and macros have none of these flags.
RUSTFLAGS="${flags[*]}" CARGO_TARGET_DIR=$target \
    cargo build --package tessera-fuzz --bin tessera-fuzz --profile fuzz --target "$host" >&2
printf '%s\n' "$target/$host/fuzz/tessera-fuzz"
