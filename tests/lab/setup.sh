#!/usr/bin/env bash
# Sets a machine up for this project, or says what is missing. Usage: setup.sh [GOAL]...
#
# GOALs are the Makefile's: `test`, `check` and `bench` also need cargo-nextest, `lint` and `check` shellcheck, clippy and
# rustfmt, `fuzz` a C++ compiler, `audit`, `deb` and `mutants` tools of cargo's, `miri` a nightly toolchain, `image` what
# installs Debian into a file; `test` and `check` want passt, and do without. What is there is used; what is missing is
# installed: packages by apt-get on Debian 12 and 13 (as root or through sudo), Rust by rustup into the user's home,
# cargo-nextest from its crate into the project's cache. Nothing is done twice.
# The decisions go to target/lab/setup.mk (TESSERA_LAB names another folder), which the Makefile includes.
set -euo pipefail

readonly RUST_VERSION=1.95.0 # what is installed where no Rust, or an older one, is found
readonly QEMU_MINIMUM=9.1    # a second serial line in a machine with EL2 and MTE
readonly CYCLONEDX_VERSION=0.5.9
readonly DENY_VERSION=0.20.2
readonly MUTANTS_VERSION=27.1.0
readonly RUST_HOST=https://static.rust-lang.org
readonly DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

root=$(cd "$(dirname "$0")/../.." && pwd)
RUST_MINIMUM=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml")
readonly RUST_MINIMUM
: "${HOME:=$(getent passwd "$(id -u)" | cut -d: -f6)}"
readonly CACHE=${TESSERA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tessera}
readonly CARGO_BIN=${CARGO_HOME:-$HOME/.cargo}/bin
readonly SETTINGS=${TESSERA_LAB:-$root/target/lab}/setup.mk
machine=$(uname -m)
goals=" $* "

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
wants() { [[ $goals == *" $1 "* ]]; }

# at_least VERSION MINIMUM: compares dotted versions number by number.
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

os_field() { sed -n "s/^$1=\"\{0,1\}\([^\"]*\)\"\{0,1\}$/\1/p" /etc/os-release 2>/dev/null || true; }
distribution=$(os_field ID)
codename=$(os_field VERSION_CODENAME)
is_debian() { [[ $distribution == debian && ($codename == bookworm || $codename == trixie) ]]; }

# ---------------------------------------------------------------- packages

packages=()  # from the release itself
backports=() # from its backports
reasons=()
need() { # need "PACKAGE..." WHY
    local words
    read -ra words <<<"$1"
    packages+=("${words[@]}")
    reasons+=("$(printf '  %-34s %s' "$1" "$2")")
}

# become_root: sets `as_root` to the words to put before a command, or fails.
become_root() {
    as_root=()
    [[ $(id -u) -eq 0 ]] && return
    have sudo || return 1
    as_root=(sudo)
    sudo -n true 2>/dev/null || [[ -t 0 && -t 2 ]] # a person can type the password, a script cannot
}

backports_source() { # prints the deb822 source for bookworm-backports, on the mirror that this machine uses
    local mirror
    mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v release="$codename" '($1 == release || $1 == "oldstable") && $2 == "main" && $3 !~ /security/ { print $3; exit }')
    [[ -n $mirror ]] || return 1
    printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\nSigned-By: %s\n' \
        "${mirror%/}" "$codename" "$DEBIAN_KEYRING"
}

lacks_backports() {
    ! apt-get indextargets --format '$(RELEASE)' 'Created-By: Packages' 2>/dev/null | grep -qE '^(bookworm|oldstable)-backports$'
}

# install_packages: installs what need() collected, or ends with the commands that would.
install_packages() {
    ((${#reasons[@]})) || return 0
    say "missing on this machine:"
    printf '%s\n' "${reasons[@]}" >&2
    if ! is_debian; then
        say "this is not Debian 12 or 13: install the equivalents of these Debian packages with your system's"
        say "package manager (QEMU must be version $QEMU_MINIMUM or later), then run make again."
        exit 1
    fi

    local source="" foreign="" install="apt-get install -y --no-install-recommends"
    local file=/etc/apt/sources.list.d/bookworm-backports.sources
    if ((${#backports[@]})) && lacks_backports; then
        source=$(backports_source) ||
            die "apt has no Debian mirror in its sources: add one, and its bookworm-backports, then run make again."
    fi
    if [[ " ${packages[*]} " == *:arm64\ * ]] && ! dpkg --print-foreign-architectures | grep -qx arm64; then foreign=1; fi
    local commands=()
    [[ -z $foreign ]] || commands+=("dpkg --add-architecture arm64")
    commands+=("apt-get update")
    ((${#packages[@]} == 0)) || commands+=("$install ${packages[*]}")
    ((${#backports[@]} == 0)) || commands+=("$install -t bookworm-backports ${backports[*]}")

    if ! become_root; then
        say "installing needs root, and sudo is not usable here. Run this as root, then run make again:"
        [[ -z $source ]] || printf "  printf '%s' > %s\n" "${source//$'\n'/\\n}\\n" "$file" >&2
        printf '  %s\n' "${commands[@]}" >&2
        exit 1
    fi
    if [[ -n $source ]]; then
        say "adding $file: Debian 12's own QEMU is too old, its backports have a newer one"
        printf '%s\n' "$source" | "${as_root[@]}" tee "$file" >/dev/null
    fi
    local command words
    for command in "${commands[@]}"; do
        say "running: $command"
        read -ra words <<<"$command"
        [[ ${words[0]} != apt-get ]] || words+=(-q -o DPkg::Lock::Timeout=300)
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "${words[@]}" >&2 ||
            die "that failed: the lines above say why. Run make again when it is put right."
    done
    packages=() backports=() reasons=()
}

# try_passt: installs what the tests of `--net user` run, where that asks the user for nothing. Without it they are
# skipped, by name: no reason to fail.
try_passt() {
    ! have passt && is_debian && become_root || return 0
    [[ ${#as_root[@]} -eq 0 ]] || as_root=(sudo -n)
    local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    say "installing passt, with which guests have a network without privileges"
    "${apt[@]}" install -y --no-install-recommends passt >&2 ||
        { "${apt[@]}" update >&2 && "${apt[@]}" install -y --no-install-recommends passt >&2; } ||
        say "that failed: tests that need passt are skipped"
}

# ---------------------------------------------------------------- what every goal needs

links_programs() { have cc && printf 'int main(void) { return 0; }\n' | cc -x c -o /dev/null - 2>/dev/null; }

qemu_is_new_enough() {
    local version
    have qemu-system-aarch64 || return 1
    version=$(qemu-system-aarch64 --version | sed -n '1s/.*version \([0-9.]*\).*/\1/p')
    [[ -n $version ]] && at_least "$version" "$QEMU_MINIMUM"
}

# An arm64 machine with KVM and MTE runs guests itself, but some tests, and the lab, want a host of their own.
needs_emulator() {
    wants test || wants bench || wants lab || [[ $machine != aarch64 || ! -w /dev/kvm ]] || ! grep -qw mte /proc/cpuinfo
}

need_base() {
    links_programs || need "gcc libc6-dev" "link the programs that run on this machine"
    [[ -e /etc/ssl/certs/ca-certificates.crt || -d /etc/pki/tls/certs ]] || need ca-certificates "download over HTTPS"
    have apt-get || need apt "download the kernel that the lab and its guests run"
    [[ -e $DEBIAN_KEYRING ]] || need debian-archive-keyring "check the signature of that kernel"
    if needs_emulator && ! qemu_is_new_enough; then
        need qemu-system-arm "emulate the arm64 host that runs guests (QEMU $QEMU_MINIMUM or later)"
        if [[ $codename == bookworm ]]; then
            unset 'packages[-1]'
            backports=(qemu-system-arm)
        fi
    fi
    has_rust || find_rustup || have curl || have wget || need curl "download Rust"
}

# libFuzzer is C++.
compiles_cxx() { have c++ && printf '#include <vector>\nint main() { return 0; }\n' | c++ -x c++ -o /dev/null - 2>/dev/null; }

need_mke2fs() {
    have mke2fs || [[ -x /usr/sbin/mke2fs ]] || need e2fsprogs "make file systems for guests"
}

# What `make image` runs.
need_image() {
    have mmdebstrap || need mmdebstrap "install Debian into the image"
    need_mke2fs
    [[ $(id -u) -eq 0 ]] || have newuidmap || need uidmap "make files of all owners without being root"
}

# ---------------------------------------------------------------- Rust

rust_is_new_enough() { # rust_is_new_enough CARGO-DIRECTORY
    local version
    [[ -x $1/cargo && -x $1/rustc ]] || return 1
    version=$("$1/rustc" --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p')
    [[ -n $version ]] && at_least "$version" "$RUST_MINIMUM"
}

# has_arm64_target CARGO-DIRECTORY: sets `arm64_target` to a target that this Rust has the library for.
has_arm64_target() {
    local libraries
    libraries=$("$1/rustc" --print sysroot)/lib/rustlib
    for arm64_target in aarch64-unknown-linux-musl aarch64-unknown-linux-gnu; do
        [[ -d $libraries/$arm64_target/lib ]] || continue
        [[ $arm64_target == *-musl ]] || have aarch64-linux-gnu-gcc || [[ $machine == aarch64 ]] || continue
        return
    done
    return 1
}

# has_rust: sets `rust_bin` to the directory of a Rust that is new enough and builds arm64 programs; when there is
# only one without the arm64 library, sets `rust_without_arm64` instead and fails.
has_rust() {
    local found pinned
    found=$(command -v cargo || true)
    pinned=${RUSTUP_HOME:-$HOME/.rustup}/toolchains/$RUST_VERSION-$machine-unknown-linux-gnu/bin
    rust_without_arm64=""
    for rust_bin in "${found%/*}" "$CARGO_BIN" "$pinned" /usr/bin; do
        rust_is_new_enough "$rust_bin" || continue
        ! has_arm64_target "$rust_bin" || return 0
        : "${rust_without_arm64:=$rust_bin}"
    done
    return 1
}

find_rustup() {
    if [[ -x $CARGO_BIN/rustup ]]; then rustup=$CARGO_BIN/rustup; else rustup=$(command -v rustup); fi
}

download() { # download URL FILE
    if have curl; then
        curl --fail --location --progress-bar --connect-timeout 15 --retry 3 --output "$2" "$1" >&2
    else
        wget --tries=3 --timeout=30 --output-document="$2" "$1" >&2
    fi
}

install_rustup() {
    local triple=$machine-unknown-linux-gnu directory
    directory=$(mktemp -d)
    say "downloading Rust's installer for $triple"
    if ! { download "$RUST_HOST/rustup/dist/$triple/rustup-init.sha256" "$directory/sum" &&
        download "$RUST_HOST/rustup/dist/$triple/rustup-init" "$directory/rustup-init"; }; then
        rm -rf "$directory"
        return 1
    fi
    if ! (cd "$directory" && printf '%s  rustup-init\n' "$(cut -d ' ' -f 1 sum)" | sha256sum --check --quiet) >&2; then
        rm -rf "$directory"
        die "the download of rustup-init does not match its checksum: run make again."
    fi
    chmod +x "$directory/rustup-init"
    say "installing Rust $RUST_VERSION under $CARGO_BIN (no shell profile is changed)"
    local status=0 # its standard output only tells how to change the shell's PATH, which make needs not
    RUSTUP_INIT_SKIP_PATH_CHECK=yes "$directory/rustup-init" -y --no-modify-path --profile minimal \
        --default-toolchain "$RUST_VERSION" --target aarch64-unknown-linux-musl >/dev/null || status=$?
    rm -rf "$directory"
    return "$status"
}

# toolchain DIRECTORY: prints the name that rustup has for the Rust there, nothing for one that is not rustup's.
toolchain() {
    local sysroot
    sysroot=$("$1/rustc" --print sysroot)
    [[ $sysroot != */toolchains/* ]] || printf '%s\n' "${sysroot##*/}"
}

rust_by_rustup() {
    local name=""
    find_rustup || {
        install_rustup
        return
    }
    [[ -z $rust_without_arm64 ]] || name=$(toolchain "$rust_without_arm64")
    if [[ -n $name ]]; then
        say "adding to Rust its library for static arm64 programs"
        "$rustup" target add aarch64-unknown-linux-musl --toolchain "$name" >&2
    else
        say "adding Rust $RUST_VERSION beside what is there (version $RUST_MINIMUM or later is needed)"
        "$rustup" toolchain install "$RUST_VERSION" --profile minimal --no-self-update \
            --target aarch64-unknown-linux-musl >&2
    fi
}

# debian_suffix: Debian has two packagings of Rust; prints what tells the newer one's names from the older one's.
debian_suffix() {
    rust_is_new_enough /usr/bin && [[ $(dpkg-query --search "$(readlink -f /usr/bin/rustc)" 2>/dev/null) != *-web* ]] ||
        printf -- -web
}

rust_by_debian() {
    local suffix
    suffix=$(debian_suffix)
    rust_is_new_enough /usr/bin || need "cargo$suffix rustc$suffix" "build the project; they replace an older cargo and rustc of Debian"
    if [[ $machine != aarch64 ]]; then
        need "libstd-rust$suffix-dev:arm64" "build programs for arm64"
        need "gcc-aarch64-linux-gnu libc6-dev-arm64-cross" "link programs for arm64"
    fi
    install_packages
    hash -r
}

# Debian 12's newer Rust comes through its security archive, which a machine may lack.
debian_rust_is_new_enough() {
    local version
    rust_is_new_enough /usr/bin && return
    version=$(apt-cache policy rustc-web 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
    [[ -n $version ]] && at_least "$version" "$RUST_MINIMUM"
}

install_rust() {
    rust_by_rustup && has_rust && return
    say "Rust could not be downloaded from $RUST_HOST"
    if ! is_debian || ! debian_rust_is_new_enough; then
        say "and no package here has Rust $RUST_MINIMUM or later. Either let this machine reach that address, or install"
        die "Rust with the target aarch64-unknown-linux-musl (on Debian 12, its security archive has rustc-web 1.96)."
    fi
    say "so Debian's own Rust is used instead"
    rust_by_debian
    has_rust || die "the Rust in /usr/bin does not build for arm64: install Rust with rustup, then run make again."
}

# rustup's minimal profile has neither tool.
add_lint_tools() {
    "$rust_bin/cargo" clippy --version >/dev/null 2>&1 && "$rust_bin/cargo" fmt --version >/dev/null 2>&1 && return
    local name suffix
    name=$(toolchain "$rust_bin")
    if [[ -n $name ]] && find_rustup; then
        say "adding clippy and rustfmt"
        "$rustup" component add clippy rustfmt --toolchain "$name" >&2 ||
            die "clippy and rustfmt could not be downloaded: try again when the network is back."
        return
    fi
    suffix=$(debian_suffix)
    need "rust-clippy$suffix rustfmt$suffix" "check style and lints"
    install_packages
}

# ---------------------------------------------------------------- cargo-nextest

has_nextest() {
    nextest_bin=$(command -v cargo-nextest || true)
    nextest_bin=${nextest_bin%/*}
    [[ -n $nextest_bin ]] || { [[ -x $CACHE/tools/bin/cargo-nextest ]] && nextest_bin=$CACHE/tools/bin; }
}

# Unoptimised: a test runner waits for tests, and building it this way takes a fifth of the time.
install_nextest() {
    local version=0.9.148 rust
    rust=$("$rust_bin/rustc" --version | cut -d ' ' -f 2)
    at_least "$rust" 1.91 || version=0.9.100
    say "building the test runner cargo-nextest $version; this takes two to three minutes on two cores, once"
    PATH=$rust_bin:$PATH CARGO_TARGET_DIR=$CACHE/nextest-build \
        CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_DEV_STRIP=true CARGO_PROFILE_DEV_INCREMENTAL=false \
        "$rust_bin/cargo" install --debug --locked --root "$CACHE/tools" \
        --no-default-features --features default-no-update --version "$version" cargo-nextest >&2 ||
        die "cargo-nextest could not be built: its last lines above say why. What was built is kept; run make again."
    rm -rf "$CACHE/nextest-build"
    has_nextest
}

# ---------------------------------------------------------------- other tools of cargo's

# Nightly toolchains alone have it.
install_miri() {
    find_rustup || die "Miri is a part of nightly Rust, which rustup installs: there is no rustup"
    [[ $("$rustup" component list --installed --toolchain nightly 2>/dev/null) != *miri* ]] || return 0
    say "adding a nightly Rust with Miri, which finds undefined behaviour"
    "$rustup" toolchain install nightly --profile minimal --component miri --component rust-src >&2 ||
        die "there is no nightly Rust with Miri for this machine today; try again tomorrow"
}

# install_tool NAME VERSION WHAT: into the cache, in this version, once.
install_tool() {
    [[ $("$CACHE/tools/bin/$1" "${1#cargo-}" --version 2>/dev/null) != *" $2"* ]] || return 0
    say "building $1 $2, $3; this takes some minutes, once"
    PATH=$rust_bin:$PATH CARGO_TARGET_DIR=$CACHE/$1-build \
        CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_DEV_STRIP=true CARGO_PROFILE_DEV_INCREMENTAL=false \
        "$rust_bin/cargo" install --debug --locked --root "$CACHE/tools" --version "$2" "$1" >&2 ||
        die "$1 could not be built: its last lines above say why. What was built is kept; run make again."
    rm -rf "$CACHE/$1-build"
}

# ---------------------------------------------------------------- the decisions

write_settings() {
    local directory path="" text
    for directory in "$rust_bin" "$nextest_bin"; do
        [[ :$path == *":$directory:"* ]] || path+=${directory:+$directory:}
    done
    text="# Written by tests/lab/setup.sh: what it decided for this machine."$'\n'
    text+="ARM64_TARGET := $arm64_target"$'\n'
    text+="TOOLS := $CACHE/tools/bin"$'\n'
    [[ -z $path ]] || text+="export PATH := $path\$(PATH)"$'\n'
    if [[ $arm64_target == *-gnu ]]; then
        [[ $machine == aarch64 ]] ||
            text+="export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER := aarch64-linux-gnu-gcc"$'\n'
        text+="export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS := -C target-feature=+crt-static"$'\n'
    fi
    # Left alone when it already says this: make starts over whenever the file changes.
    [[ -e $SETTINGS && $(<"$SETTINGS") == "${text%$'\n'}" ]] && return
    mkdir -p "${SETTINGS%/*}"
    printf '%s' "$text" >"$SETTINGS"
}

[[ $(uname -s) == Linux ]] || die "this project needs Linux."
[[ $machine == x86_64 || $machine == aarch64 ]] || die "this project is built on x86_64 or arm64, not on $machine."
need_base
! wants image || need_image
! wants fuzz || compiles_cxx || need g++ "compile libFuzzer"
! wants test || wants image || need_mke2fs
! { wants lint || wants check; } || have shellcheck || need shellcheck "check scripts of shells"
install_packages
! { wants test || wants check; } || try_passt
has_rust || install_rust
! { wants lint || wants check; } || add_lint_tools
has_nextest || ! { wants test || wants check || wants bench || wants calls || wants mutants; } || install_nextest
! wants deb || install_tool cargo-cyclonedx "$CYCLONEDX_VERSION" "which lists what a package is made of"
! wants audit || install_tool cargo-deny "$DENY_VERSION" "which checks licences, sources and advisories"
! wants mutants || install_tool cargo-mutants "$MUTANTS_VERSION" "which changes code to see whether a test fails"
! wants miri || install_miri
write_settings
