#!/bin/busybox sh
# First program of the nested host: sets it up, runs the payload, tells how it ended, powers off.
#
# Two serial lines. ttyAMA0 carries the kernel's log and nothing else: what this program has to tell
# goes through the log as well, whole lines marked with a number that only the lab knows. ttyAMA1
# carries the payload's output, byte for byte. So neither can be taken for the other.
#
# Where settings name a disk as root, this program carries the boot's files to it and begins again there.
export HOME=/tmp TERM=linux TESSERA_NESTED=1
b=/bin/busybox
if [ "$1" = switched ]; then
  b=/lab/busybox
  export PATH=/test:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
else
  export PATH=/bin:/test
  $b mount -t proc proc /proc
  $b mount -t sysfs sysfs /sys
  $b mount -t devtmpfs devtmpfs /dev
  $b --install -s /bin
  # What the boot's own devices need.
  for module in /lab/modules/*.ko; do [ ! -e "$module" ] || insmod "$module"; done
fi

# Sets token (of this boot), mode (run, shell or serve), rows, columns, root (a disk, or nothing).
. /lab/settings
if [ -n "$root" ] && [ "$1" != switched ]; then
  while [ ! -b "$root" ]; do usleep 10000; done
  mkdir /disk
  mount -t ext4 "$root" /disk
  cp -r /lab /disk/
  cp $b /init /disk/lab/
  while read -r path; do
    mkdir -p "/disk${path%/*}"
    cp -a "$path" "/disk$path"
  done </lab/files
  for folder in dev proc sys; do mount --move /$folder /disk/$folder; done
  exec switch_root /disk /lab/busybox sh /lab/init switched
fi
rm /lab/settings

mkdir -p /dev/shm /dev/pts /tmp /run
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
chmod 1777 /tmp /dev/shm
chmod 755 /
ip link set lo up
# What an administrator of a host for guests would allow.
echo 1 >/proc/sys/vm/unprivileged_userfaultfd

# Level 0 passes every filter, and the kernel never mixes two lines of its log.
tell() { echo "<0>tessera-lab $token $*" >/dev/kmsg; }
# The host's clock in ns; with -icount also the instructions so far. No fork, so that it costs little.
now() {
  while read -r first second rest; do
    if [ "$first $second" = "now at" ]; then now=${rest%% *}; break; fi
  done </proc/timer_list
}

# Where processors are emulated side by side (one that counts instructions is alone), the first VM of a host is there
# before there are any others, and stays: see tests/guest/src/hold_vm.rs.
if [ -x /lab/hold-vm ] && [ -d /sys/devices/system/cpu/cpu1 ] && [ -c /dev/kvm ]; then
  /lab/hold-vm </dev/null >/dev/null 2>/dev/kmsg
fi

# Only a dying kernel speaks on the console from here on; dmesg has the rest.
$b dmesg -n 1
# Held open: a serial line that nobody has open forgets its window size.
exec 3<>/dev/ttyAMA1
$b stty raw -echo <&3
# The first VM would make it, and be taken for one that leaves something.
$b mkdir -p -m 700 /run/tessera
cd /tmp

# ---- serve: one program after another, and what each leaves behind ----

# Sets `found` to the processes of the last program that still run, a line each. Kernel threads and zombies
# have no command line. What holds a VM is the host's own.
processes() {
  found=
  for path in /proc/[0-9]*; do
    line=
    read -r line 2>/dev/null <"$path/cmdline"
    case $path$line in /proc/1/*) ;; /proc/*/lab/hold-vm) ;; *) [ -z "$line" ] || found="${found}process ${path#/proc/}: $line
" ;; esac
  done
}
# Sets `state` to what programs may change of this host and must set right again, a line each.
state() {
  state=
  while read -r device place rest; do state="${state}mount $place
"; done </proc/mounts
  while read -r module rest; do state="${state}module $module
"; done </proc/modules
  for path in /* /tmp/* /tmp/.[!.]* /run/* /dev/shm/* /sys/fs/cgroup/*/; do state="${state}file $path
"; done
  # The shell reads byte by byte, which a file below /proc/sys does not take.
  state="$state$(grep -s . $settings)
"
}
# Values that the kernel changes by itself, and files that do something when they are read, are no settings.
settings() {
  settings=
  for path in /proc/sys/vm/* /proc/sys/kernel/numa_balancing /proc/sys/kernel/core_pattern \
    /sys/module/kvm/parameters/* /sys/kernel/mm/transparent_hugepage/* \
    /sys/kernel/mm/transparent_hugepage/khugepaged/* /sys/kernel/mm/hugepages/*/nr_*hugepages; do
    case $path in
    */stat_refresh | */compact_memory | */drop_caches | */pages_collapsed | */full_scans) ;;
    *) [ -d "$path" ] || settings="$settings $path" ;;
    esac
  done
}
# Waits until the host is as it came up. Else sets `whole` to 0, and says what is different.
whole() {
  tries=0
  while :; do
    processes; state
    whole=1
    [ -n "$found" ] || [ "$state" != "$fresh" ] || return
    tries=$((tries + 1))
    [ $tries -lt 50 ] || break
    $b usleep 100000
  done
  whole=0
  printf '%s' "$fresh" >/lab/fresh
  printf '%s' "$state" >/lab/state
  printf '%s\n' "lab: left behind on the host (- as it came up, + now):"
  diff -U 0 /lab/fresh /lab/state | while read -r line; do
    case $line in ---* | +++* | @@*) ;; *) printf 'lab:   %s\n' "$line" ;; esac
  done
  printf '%s' "$found" | while read -r line; do printf 'lab:   + %s\n' "$line"; done
}
# Requests come on the line on which the output goes, a line of shell each. The lab finds the end of a
# program's output by the token, which no program knows.
serve() {
  settings; state; fresh=$state
  printf '\000%s ready\n' "$token"
  while read -r request; do
    $b setsid sh -c "$request" </dev/null 2>&1
    status=$?
    whole
    printf '\000%s end %s %s\n' "$token" "$status" "$whole"
  done
}
if [ "$mode" = serve ]; then
  tell start 0
  serve <&3 >&3 3>&-
  $b poweroff -f
fi

# ---- one program ----

now; start=$now
tell start $start
if [ "$mode" = shell ]; then
  $b stty sane rows "$rows" columns "$columns" <&3
  $b setsid -c sh /lab/payload <&3 >&3 2>&1 3>&-
  status=$?
else
  $b setsid sh /lab/payload </dev/null >&3 2>&1 3>&-
  status=$?
fi
now; end=$now
# Changing a line's settings waits until all that was written has left.
$b stty raw -echo <&3
tell end $status $start $end
$b poweroff -f
