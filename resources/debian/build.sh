#!/bin/bash
# Builds Debian packages for arm64 with dpkg-deb(1), on any machine that has it. Usage:
#
#   build.sh PROGRAMS SHARE OUTPUT
#
# PROGRAMS is the folder of the static arm64 programs, SHARE that of the generated manual pages and completions, and of
# what the programs are made of (sbom.sh), all of which may be missing. DEBFULLNAME and DEBEMAIL name the maintainer (else the last commit's committer), SOURCE_DATE_EPOCH the
# time of all files; DEB_VERSION replaces the version of the workspace.
set -euo pipefail

programs=$1 share=$2 output=$3
debian=$(cd "$(dirname "$0")" && pwd)
resources=$(dirname "$debian")
root=$(dirname "$resources")

version=${DEB_VERSION:-$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/Cargo.toml" | head -n 1)}
commit() { git -C "$root" log -1 --format="$1" 2>/dev/null; }
maintainer="${DEBFULLNAME:-$(commit %cn || echo Tessera)} <${DEBEMAIL:-$(commit %ce || echo root@localhost)}>"
: "${SOURCE_DATE_EPOCH:=$(commit %ct || date +%s)}"
export SOURCE_DATE_EPOCH
umask 022

# is_arm64 FILE: a 64-bit little-endian ELF file for EM_AARCH64 (elf(5)).
is_arm64() {
    [[ $(od -An -N 6 -t x1 "$1" | tr -d ' \n') == 7f454c460201 && $(od -An -j 18 -N 2 -t x1 "$1" | tr -d ' \n') == b700 ]]
}

# documents PACKAGE ROOT: what the policy wants in /usr/share/doc.
documents() {
    local folder=$2/usr/share/doc/$1 file
    install -d "$folder"
    {
        printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: Tessera\n\n'
        printf 'Files: *\nCopyright: %(%Y)T The Tessera authors\nLicense: Apache-2.0\n\n' "$SOURCE_DATE_EPOCH"
        printf 'License: Apache-2.0\n On Debian systems, the text of the Apache License, Version 2.0, is in\n'
        printf ' /usr/share/common-licenses/Apache-2.0.\n'
    } >"$folder/copyright"
    printf 'tessera (%s) unstable; urgency=medium\n\n  * See the history of the source.\n\n -- %s  %s\n' "$version" \
        "$maintainer" "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$folder/changelog.gz"
    while read -r file; do
        gzip -9n "$file"
    done < <(find "$2/usr/share/man" -name '*.1' -type f 2>/dev/null)
    find "$2" -name '*.md' -size +8k -exec gzip -9n {} +
}

# control PACKAGE ROOT: the control files.
control() {
    local package=$1 root=$2 file size
    install -d "$root/DEBIAN"
    # In KiB; each directory and link counts as one (deb-substvars(5)).
    size=$(find "$root" -path "$root/DEBIAN" -prune -o -type f -printf '%s\n' -o -printf '0\n' |
        awk '{ total += $1 ? int(($1 + 1023) / 1024) : 1 } END { print total }')
    sed -e "s|@VERSION@|$version|" -e "s|@MAINTAINER@|$maintainer|" -e "s|@SIZE@|$size|" "$debian/$package/control" \
        >"$root/DEBIAN/control"
    for file in postinst prerm postrm; do
        install -m 755 "$debian/$package/$file" "$root/DEBIAN/$file"
    done
    [[ ! -d $root/etc ]] || (cd "$root" && find etc -type f -printf '/%p\n' | LC_ALL=C sort >DEBIAN/conffiles)
    (cd "$root" && find . -path ./DEBIAN -prune -o -path ./etc -prune -o -type f -printf '%P\0' |
        LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
    chmod 644 "$root"/DEBIAN/{control,md5sums} "$root"/DEBIAN/conffiles 2>/dev/null || true
}

build() {
    local package=$1 part=$2 tree program
    shift 2
    for program; do
        is_arm64 "$programs/$program" || {
            echo "build.sh: $programs/$program is no arm64 program: make programs builds it" >&2
            exit 66
        }
    done
    tree=$work/$package
    install -d "$tree"
    "$resources/install.sh" "$part" /usr "$tree" "$programs" "$share"
    if [[ $part == host ]]; then
        install -d "$tree/etc/tessera"
        install -D -m 644 "$resources/tessera-broker.default" "$tree/etc/default/tessera-broker"
    fi
    install -D -m 644 "$debian/$package/lintian-overrides" "$tree/usr/share/lintian/overrides/$package"
    for program; do
        [[ ! -e $share/sbom/$program.cdx.json ]] ||
            install -D -m 644 "$share/sbom/$program.cdx.json" "$tree/usr/share/doc/$package/sbom/$program.cdx.json"
    done
    documents "$package" "$tree"
    control "$package" "$tree"
    find "$tree" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    dpkg-deb --root-owner-group -Zxz --build "$tree" "$output/${package}_${version}_arm64.deb" >/dev/null
    echo "$output/${package}_${version}_arm64.deb"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install -d "$output"
rm -f "$output"/*_arm64.deb
build tessera host tessera tesseractl
build tessera-agent guest tessera-agent
