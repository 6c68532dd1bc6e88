#!/bin/busybox sh
# First program of the nested host: sets it up, runs the payload, tells how it ended, powers off.
#
# Two serial lines. ttyAMA0 carries the kernel's log and nothing else: what this program has to tell
# goes through the log as well, whole lines marked with a number that only the lab knows. ttyAMA1
# carries the payload's output, byte for byte. So neither can be taken for the other.
export PATH=/bin:/test HOME=/tmp TERM=linux TESSERA_NESTED=1
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b --install -s /bin
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

# Sets token (of this boot), mode (run or shell), rows, columns.
. /lab/settings
rm /lab/settings

# Level 0 passes every filter, and the kernel never mixes two lines of its log.
tell() { echo "<0>tessera-lab $token $*" >/dev/kmsg; }
# The host's clock in ns; with -icount also the instructions so far. No fork, so that it costs little.
now() {
  while read -r first second rest; do
    if [ "$first $second" = "now at" ]; then now=${rest%% *}; break; fi
  done </proc/timer_list
}

# Only a dying kernel speaks on the console from here on; dmesg has the rest.
dmesg -n 1
# Held open: a serial line that nobody has open forgets its window size.
exec 3<>/dev/ttyAMA1
stty raw -echo <&3
cd /tmp
now; start=$now
tell start $start
if [ "$mode" = shell ]; then
  stty sane rows "$rows" columns "$columns" <&3
  setsid -c sh /lab/payload <&3 >&3 2>&1 3>&-
  status=$?
else
  setsid sh /lab/payload </dev/null >&3 2>&1 3>&-
  status=$?
fi
now; end=$now
# Changing a line's settings waits until all that was written has left.
stty raw -echo <&3
tell end $status $start $end
poweroff -f
