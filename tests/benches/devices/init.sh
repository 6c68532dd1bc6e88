#!/bin/busybox sh
# First program of the guest whose devices are measured: runs the commands in /bench/jobs, a line each (name, amount,
# command), between two lines on the console.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b mkdir -p /tmp /dev/shm
$b mount -t tmpfs tmpfs /tmp
$b mount -t tmpfs tmpfs /dev/shm
# For fio's buffers of sequential transfers.
echo 4 >/proc/sys/vm/nr_hugepages
for module in /lib/modules-min/*/*.ko /lib/modules-agent/*/*.ko; do $b insmod "$module"; done
$b ip link set lo up
$b ip addr add 198.51.100.2/24 dev eth0
$b ip link set eth0 up
$b sleep 1
# The host and this system have everything in their caches then.
for program in fio iperf3 ping; do /bench/$program --version >/tmp/out 2>&1; done
/bench/ping -q -c 1 198.51.100.1 >/tmp/out 2>&1
while read -r name amount command; do
  echo BEGIN
  if $command >/tmp/out 2>&1 </dev/null; then result=WORK; else result=FAILED; fi
  echo END
  case $command in *iperf3*) $b cat /tmp/out;; esac
  echo "$result $name $amount"
  # The host starts another server.
  $b sleep 1
done </bench/jobs
echo DONE
$b poweroff -f
