#!/bin/bash
# The commands of "Slurm on three hosts" in docs/fleet.md as they stand there, run on three fresh Debian hosts with real
# guests with MTE. The hosts are containers in one emulated arm64 host, each with a systemd, an address and files of its
# own; its packages are those of the archive, without a network to it. Not a part of make test.
# The lab runs its scripts with sh.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

if [[ -z ${TESSERA_NESTED:-} ]]; then
    cd "$(dirname "$0")/../.."
    # shellcheck source=tests/fleet/common.sh
    . tests/fleet/common.sh hosts.sh 1
    make_lab
    resources/debian/build.sh "$TESSERA_LAB/bin" "$TESSERA_LAB/share" "$TESSERA_LAB/debs"
    # What apt has fetched for the image, as a disk.
    apt=${TESSERA_CACHE:-$HOME/.cache/tessera}/apt/trixie
    tree=$TESSERA_LAB/hosts
    rm -rf "$tree"
    mkdir "$tree"
    cp -r "$apt/state/lists" "$apt/cache/archives" "$apt/etc/sources.list" "$tree"
    # The hosts' archives are links to the same files: each makes its own lock.
    rm -f "$tree/archives/lock"
    truncate -s 1G "$tree.ext4"
    mke2fs -q -F -t ext4 -m 0 -E nodiscard -d "$tree" "$tree.ext4"
    rm -rf "$tree"
    in_lab tests/fleet/hosts.sh --memory 6G --disk "$tree.ext4" --file docs/fleet.md:/fleet.md \
        --file "$TESSERA_LAB/debs:/debs" --file "$TESSERA_LAB/bin/guest-init:/guest-init"
fi

# shellcheck source=tests/fleet/common.sh
. /fleet/common.sh hosts.sh 10
readonly work=/tmp/hosts nodes='n1 n2 n3'
readonly memory=4 # MiB that a guest fills and tags

# on NAME COMMAND...: on that host, as root.
on() {
    local pid=0
    read -r pid <"/sys/fs/cgroup/$1/payload/init.scope/cgroup.procs"
    nsenter --all --root --wdns=/root --target "$pid" env -i HOME=/root TERM=dumb \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "${@:2}"
}
scontrol() { on n1 scontrol "$@"; }
squeue() { on n1 squeue "$@"; }

finish() {
    local status=$? name
    trap - ERR
    set +e
    ((status)) || return
    tail -n 30 "$work"/n?.log >&2
    for name in $nodes; do
        say "$name:" >&2
        on "$name" journalctl --no-pager --lines=40 --unit=munge --unit=slurmd --unit=slurmctld --unit=tessera-broker
        on "$name" sh -c 'tail -n 20 /home/vms/*.out'
    done >&2
    scontrol show nodes --oneliner >&2
    squeue >&2
}
trap finish EXIT

# ---- three hosts ----

# Layers of a file system are no parts of each other: these are not on the image's own.
layer() {
    mkdir -p "$work/$1"/{upper,work,root}
    mount -t overlay overlay -o "lowerdir=$2,upperdir=$work/$1/upper,workdir=$work/$1/work" "$work/$1/root"
}
# put PATH: standard input, in every host.
put() {
    mkdir -p "$fresh${1%/*}"
    cat >"$fresh$1"
}

mkdir "$work" /disk
mount /dev/vda /disk
for module in overlay veth bridge; do modprobe $module; done
layer fresh /
readonly fresh=$work/fresh/root
put /etc/hosts <<END
127.0.0.1 localhost
192.0.2.1 n1
192.0.2.2 n2
192.0.2.3 n3
END
rm -f "$fresh/etc/hostname" "$fresh/etc/apt/sources.list.d/debian.sources"
# The emulated host has a number for the addresses of its bridge. Each of the three makes its own.
systemd-id128 new >/etc/machine-id
put /etc/machine-id </dev/null
put /etc/apt/sources.list </disk/sources.list
# Nobody is there to be asked, and what is only recommended is not on the disk.
put /etc/apt/apt.conf.d/90hosts <<END
APT::Get::Assume-Yes "true";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
END
cp -r /disk/lists "$fresh/var/lib/apt/"
install -d -m 700 "$fresh/root/.ssh"
ssh-keygen -q -t ed25519 -N '' -f "$fresh/root/.ssh/id_ed25519"
put /root/.ssh/authorized_keys <"$fresh/root/.ssh/id_ed25519.pub"
put /root/.ssh/config <<<'StrictHostKeyChecking accept-new'
# Names are in /etc/hosts.
ln -s /dev/null "$fresh/etc/systemd/system/systemd-resolved.service"
# The emulated host has these, and fresh hosts do not.
rm -f "$fresh/usr/bin/tessera" "$fresh/usr/bin/tesseractl"
mount --bind /proc "$fresh/proc"
mount --bind /dev "$fresh/dev"
DEBIAN_FRONTEND=noninteractive chroot "$fresh" \
    apt-get purge --auto-remove munge slurmctld slurmd slurm-client systemd-container >"$work/purge.log" 2>&1 ||
    die "$(tail -n 20 "$work/purge.log")"
umount "$fresh/proc" "$fresh/dev" "$fresh"
say "the hosts' system is made, without Slurm and Tessera"

# What all hosts share.
cp /artifacts/Image /debs/tessera_*.deb /srv/
# guest TIMES: an initrd whose guest fills memory and tags it, and then looks at it each few seconds, so often.
guest() {
    local tree=$work/initrd
    rm -rf "$tree"
    mkdir -p "$tree/bin"
    cp /guest-init "$tree/checker"
    cp /lab/busybox "$tree/busybox"
    # The workload gets its orders on its input.
    cat >"$tree/init" <<END
#!/busybox sh
/busybox mkfifo /orders
{ for time in \$(/busybox seq $1); do /busybox sleep 3; echo verify; done; echo poweroff; } >/orders &
exec /checker </orders
END
    # Its name is in no command line of docs/fleet.md. tests/guest/src/main.rs has the terminal set up by this program
    # when /proc is there, and then looks for the name.
    cat >"$tree/bin/busybox" <<END
#!/busybox sh
echo 'workload=snapshot,$memory' >/cmdline
/busybox mount -o bind /cmdline /proc/cmdline
exec /busybox "\$@"
END
    chmod 755 "$tree/init" "$tree/bin/busybox"
    (cd "$tree" && find . | /lab/busybox cpio -o -H newc 2>/dev/null) | cat /artifacts/initrd.cpio - >/srv/initrd
}

ip link add fleet type bridge
ip address add 192.0.2.254/24 dev fleet
ip link set fleet up
for controller in $(</sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || say "no $controller in groups"
done
chown root:kvm /dev/kvm /dev/userfaultfd
chmod 660 /dev/kvm /dev/userfaultfd
# boot NAME ADDRESS
boot() {
    layer "$1" "$work/fresh/upper:/"
    mkdir -p "$work/$1/root/etc/systemd/network" "/sys/fs/cgroup/$1"
    printf '[Match]\nName=host0\n[Network]\nAddress=%s/24\n' "$2" >"$work/$1/root/etc/systemd/network/10-host0.network"
    # Each its own archive: apt locks it.
    cp -al /disk/archives "/disk/$1"
    (
        echo $BASHPID >"/sys/fs/cgroup/$1/cgroup.procs"
        # Guests need what no container has otherwise. There is no systemd outside to register with.
        SYSTEMD_SECCOMP=0 exec systemd-nspawn --quiet --boot --register=no --keep-unit --machine="$1" \
            --directory="$work/$1/root" --network-bridge=fleet --capability=all --link-journal=no --resolv-conf=off \
            --timezone=off --bind=/dev/kvm --bind=/dev/userfaultfd --bind=/srv --bind="/disk/$1:/var/cache/apt/archives"
    ) </dev/null >"$work/$1.log" 2>&1 &
}
# A look takes an emulated processor a while: once systemd answers, this is one that waits.
is_up() { [[ $(on "$1" systemctl is-system-running --wait 2>/dev/null) == @(running|degraded) ]]; }

for name in $nodes; do
    boot "$name" "192.0.2.${name#n}"
    until_true 60 "$name is up" is_up "$name"
    ! on "$name" sh -c 'command -v munged slurmd slurmctld sbatch tessera' || die "$name is not fresh"
    say "$name: $(on "$name" hostname), Debian $(on "$name" cat /etc/debian_version)," \
        "$(on "$name" systemctl list-units --failed --no-legend | wc -l) units failed"
done

# ---- the document's commands ----

awk -v folder="$work" '/^## / { in_section = /^## Slurm on three hosts/ }
    in_section && /^```/ { inside = !inside; if (inside) file = sprintf("%s/block%d", folder, ++number); next }
    in_section && inside { print >file }' /fleet.md
block=0
# next: runs the next block of the section, on the hosts and as the user that its first line names.
next() {
    local name hosts user=root
    local -A running
    block=$((block + 1))
    case $(head -n 1 "$work/block$block") in
    '# on each host, as root') hosts=$nodes ;;
    '# on n1, as root') hosts=n1 ;;
    '# on n1, as vms') hosts=n1 user=vms ;;
    *) die "block $block of docs/fleet.md does not say where it is run" ;;
    esac
    say "block $block on $hosts, as $user"
    cp "$work/block$block" /srv/block
    for name in $hosts; do
        on "$name" runuser --login "$user" --command 'bash -euxo pipefail /srv/block </dev/null 2>&1' |
            sed -u "s/^/$name| /" &
        running[$name]=$!
    done
    for name in $hosts; do wait "${running[$name]}" || die "block $block has failed on $name"; done
}
# last_job: the number of the job that was submitted last.
last_job() { squeue -h -o %i | sort -n | tail -n 1; }

next # packages
# An emulated processor needs longer than Slurm allows.
for name in $nodes; do
    on "$name" tee -a /etc/slurm/tessera.conf <<<'BatchStartTimeout=300
MessageTimeout=60
UnkillableStepTimeout=300' >/dev/null
done
next # configuration
for name in $nodes; do until_true 60 "$name is idle" is node "$name" State IDLE; done
next # sinfo

# reports NODE JOB: what the guest has found each time, with a nonce that only this run of it knows.
reports() { on "$1" grep '"event":"verified".*}' "/home/vms/slurm-$2.out"; }
# verified NODE JOB: whether its guest has, with tags and all of it as it set them; sets `nonce`.
verified() {
    local found
    found=$(reports "$1" "$2" 2>/dev/null | tail -n 1) || return
    [[ $found == *'"ok":true'* && $found == *'"wrong_tags":0'* ]] || die "the guest has found: $found"
    nonce=$(sed -n 's/.*"nonce":"\([0-9a-f]*\)".*/\1/p' <<<"$found")
}

guest 2
next # fleet run
on n1 sh -c 'tail -n 3 /home/vms/slurm-1.out'

guest 100000
next # sbatch
staying=$(last_job)
until_true 60 "job $staying runs" state_is "$staying" RUNNING
next # a folder for VMs that move
next # sbatch
moving=$(last_job)
until_true 60 "job $moving runs" state_is "$moving" RUNNING
for job in $staying $moving; do
    is job "$job" BatchHost n1 || die "job $job is on $(field job "$job" BatchHost): docs/fleet.md drains n1"
    until_true 120 "the guest of job $job has looked at its memory" verified n1 "$job"
    say "job $job on n1: $(reports n1 "$job" | tail -n 1)"
done
before=$nonce
next # drain and requeue
until_true 60 "n1 is drained" is node n1 State IDLE+DRAIN
for job in $staying $moving; do
    until_true 120 "job $job runs again" state_is "$job" RUNNING
    to=$(field job "$job" BatchHost)
    [[ $to != n1 ]]
    until_true 120 "the guest of job $job has looked at its memory" verified "$to" "$job"
    say "job $job on $to: $(reports "$to" "$job" | tail -n 1)"
done
[[ $nonce == "$before" ]]
say "the guest of job $moving moved from n1 to $to with its memory and tags"
next # resume
until_true 60 'n1 is resumed' is node n1 State IDLE
[[ ! -e $work/block$((block + 1)) ]] || die 'there are more blocks in docs/fleet.md than are run'

# ---- nothing is left ----

on n1 scancel "$staying" "$moving"
until_true 60 'all jobs end' no_jobs
for name in $nodes; do
    until_true 60 "$name is idle" is node "$name" State IDLE
    # There is no such folder where no job was.
    left=$(on "$name" sh -c 'ls -A /run/tessera-fleet 2>/dev/null || :')
    [[ -z $left ]] || die "left on $name: $left"
    [[ $(on "$name" tesseractl pool --broker /run/tessera-broker/socket --prometheus) != *'name="slurm-'* ]] ||
        die "a lease is left on $name"
done
[[ -z $(ls -A /srv/fleet/vms) ]]
say 'nothing is left on any host'
