#!/bin/sh
# Lays the programs for a host, or those for a guest, into a file system. Usage:
#
#   install.sh host|guest PREFIX DESTDIR PROGRAMS [SHARE]
#
# PROGRAMS is the folder of the arm64 programs, SHARE that of the generated manual pages and completions. What is laid
# below DESTDIR has paths for PREFIX.
set -eu

part=$1 prefix=$2 destdir=$3 programs=$4 share=${5-}
resources=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$resources")
umask 022

# put MODE FILE PATH: PATH is below PREFIX.
put() {
    install -D -m "$1" "$2" "$destdir$prefix/$3"
}
# unit FILE: with the programs where they are installed.
unit() {
    install -d "$destdir$prefix/lib/systemd/system"
    sed "s|/usr/bin/tessera|$prefix/bin/tessera|g" "$resources/$1" >"$destdir$prefix/lib/systemd/system/${1##*/}"
    chmod 644 "$destdir$prefix/lib/systemd/system/${1##*/}"
}
# generated PROGRAM...: their manual pages and completions, where they have been made.
generated() {
    [ -n "$share" ] && [ -d "$share" ] || return 0
    for program; do
        for file in "$share/man/man1/$program.1" "$share/man/man1/$program"-*.1; do
            [ ! -f "$file" ] || put 644 "$file" "share/man/man1/${file##*/}"
        done
        for file in "bash-completion/completions/$program" "zsh/site-functions/_$program" \
            "fish/vendor_completions.d/$program.fish"; do
            [ ! -f "$share/$file" ] || put 644 "$share/$file" "share/$file"
        done
    done
}

# Only an arm64 system can use them.
if [ "${destdir%/}" = "" ] && [ "$(uname -m)" != aarch64 ]; then
    echo "install.sh: the programs are for arm64, and this machine is $(uname -m): give DESTDIR, or use make deb" >&2
    exit 69
fi
destdir=${destdir%/}

case $part in
host)
    put 755 "$programs/tessera" bin/tessera
    put 755 "$programs/tesseractl" bin/tesseractl
    unit systemd/tessera-broker.service
    unit systemd/tessera@.service
    put 644 "$resources/60-tessera.rules" lib/udev/rules.d/60-tessera.rules
    put 644 "$resources/tmpfiles.conf" lib/tmpfiles.d/tessera.conf
    put 644 "$resources/openapi.yaml" share/tessera/openapi.yaml
    put 644 "$resources/grafana/tessera.json" share/tessera/grafana/tessera.json
    put 644 "$resources/demo.json" share/tessera/demo.json
    for file in tessera.conf gres.conf tessera-fleet.default; do
        put 644 "$resources/fleet/slurm/$file" "share/tessera/fleet/slurm/$file"
    done
    for file in slurm/prolog slurm/epilog slurm/health slurm/vm.job pacemaker/vm; do
        put 755 "$resources/fleet/$file" "share/tessera/fleet/$file"
    done
    for file in "$root/README.md" "$root"/docs/*.md "$root"/docs/*.svg "$root"/docs/*.png; do
        case ${file##*/} in
        # For those who build it.
        benches.md | dependencies.md | fuzzing.md | lab.md | image.md | mutants.md | threads.svg) ;;
        *) put 644 "$file" "share/doc/tessera/${file##*/}" ;;
        esac
    done
    generated tessera tesseractl
    ;;
guest)
    put 755 "$programs/tessera-agent" bin/tessera-agent
    unit tessera-agent.service
    put 644 "$root/docs/agent.md" share/doc/tessera-agent/agent.md
    put 644 "$resources/tessera-agent.1" share/man/man1/tessera-agent.1
    ;;
*)
    echo "install.sh: '$part' is no part: host or guest" >&2
    exit 64
    ;;
esac
