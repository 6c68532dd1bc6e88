#!/usr/bin/env bash
# Clients of Firecracker's API that others wrote, unchanged, against this VMM in the nested host: builds fctools-client,
# fetches the others from PyPI, and runs nested.sh. Needs the Debian image, which it makes where it is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly work=target/clients
readonly python=3.13 # Debian's.
mkdir -p $work/site
make setup >/dev/null
target=$(sed -n 's/^ARM64_TARGET := //p' "${TESSERA_LAB:-target/lab}/setup.mk")
CARGO_TARGET_DIR=$PWD/$work/fctools cargo build --release --target "$target" --manifest-path tests/clients/fctools/Cargo.toml
python3 -m pip install --quiet --upgrade --target $work/site --python-version $python --only-binary=:all: \
    --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 \
    hysn-firecracker-python==1.0.7 bandsox==3.5 microheart==0.3.0
tar -cf $work/clients.tar -C tests clients/api_clients.py clients/hysn.py -C "$PWD/$work" site
make lab IMAGE=1 MEMORY=4G CPUS=2 SCRIPT=tests/clients/nested.sh \
    FILES="$PWD/$work/clients.tar:/test/clients.tar $PWD/$work/fctools/$target/release/fctools-client:/test/fctools-client"
