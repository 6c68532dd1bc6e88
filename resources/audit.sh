#!/bin/bash
# Checks all dependencies by deny.toml with cargo-deny, which must be in the PATH: licences, sources, what is banned, and
# advisories. The exit status is not 0 if one is against it, or if the advisories cannot be had; OFFLINE=1 does without
# them.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo deny --all-features check --hide-inclusion-graph licenses bans sources
if [[ -n ${OFFLINE:-} ]]; then
    echo "audit: the advisories are NOT checked, as OFFLINE is set" >&2
    exit 0
fi
if ! git ls-remote --quiet --exit-code https://github.com/rustsec/advisory-db HEAD >/dev/null 2>&1; then
    echo "audit: this machine does not reach github.com, which has the advisories (rustsec/advisory-db)." >&2
    echo "audit: run it on one that does; make audit OFFLINE=1 does the other checks alone." >&2
    exit 69
fi
cargo deny --all-features check advisories
