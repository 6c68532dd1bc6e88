#!/bin/bash
# Lists what each program is made of, as CycloneDX in JSON: its crates with versions, licences and checksums. Usage:
#
#   sbom.sh TARGET OUTPUT
#
# TARGET is the one that the programs are built for. Writes OUTPUT/PROGRAM.cdx.json. cargo-cyclonedx must be in the PATH.
# SOURCE_DATE_EPOCH is the time that the lists name.
set -euo pipefail

target=$1
mkdir -p "$2"
output=$(cd "$2" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
: "${SOURCE_DATE_EPOCH:=$(git -C "$root" log -1 --format=%ct 2>/dev/null || date +%s)}"
export SOURCE_DATE_EPOCH
cd "$root"

# It writes a list beside the manifest of every package.
name=list-$$
trap 'find . -path ./target -prune -o -name "$name.json" -exec rm -f {} +' EXIT
cargo cyclonedx --quiet --manifest-path vmm/Cargo.toml --format json --spec-version 1.5 --target "$target" \
    --override-filename "$name"
for program in tessera:vmm tesseractl:vmm/ctl tessera-agent:vmm/agent; do
    # Where the source is on this machine says nothing of the program.
    sed "s|path+file://$root|path+file:///tessera|g" "${program#*:}/$name.json" >"$output/${program%%:*}.cdx.json"
done
