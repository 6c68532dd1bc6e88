#!/usr/bin/env bash
# Builds the programs of a release twice and compares them byte by byte. Usage: reproducible.sh FOLDER ARM64-TARGET
#
# The two builds have different folders for the source, for what is built and for cargo's registry, as two machines
# have. The exit status is not 0 if a program differs. FOLDER is emptied first, and holds the last difference.
set -euo pipefail

folder=$1 target=$2
root=$(cd "$(dirname "$0")/.." && pwd)
rm -rf "$folder"
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
registry=${CARGO_HOME:-$HOME/.cargo}

# build PLACE: a copy of the source as git knows it, changes included, and a home for cargo with the same crates.
build() {
    local place=$folder/$1
    mkdir -p "$place/source" "$place/home/registry/src"
    (cd "$root" && git ls-files -z --cached --others --exclude-standard | xargs -0 -I{} sh -c '[ ! -e "$1" ] || printf "%s\0" "$1"' sh {} |
        tar --null --files-from - --create) | tar --extract --directory "$place/source"
    # What was downloaded is not downloaded again; what is unpacked lies elsewhere.
    cp -a "$registry/registry/cache" "$registry/registry/index" "$place/home/registry/" 2>/dev/null || true
    [[ ! -e $registry/config.toml ]] || cp "$registry/config.toml" "$place/home/"
    CARGO_HOME=$place/home CARGO_TARGET_DIR=$place/built TESSERA_LAB=$place/lab \
        make --no-print-directory --directory "$place/source" release-programs
}

build one
build two-with-another-length
status=0
for name in tessera tesseractl tessera-agent guest-init hold-vm; do
    one=$folder/one/built/$target/release/$name other=$folder/two-with-another-length/built/$target/release/$name
    if cmp "$one" "$other"; then
        echo "$name is the same: $(sha256sum <"$one" | cut -d ' ' -f 1)"
    else
        echo "$name differs: compare $one and $other, with diffoscope for instance" >&2
        status=1
    fi
done
[[ $status -ne 0 ]] || rm -rf "$folder"
exit "$status"
