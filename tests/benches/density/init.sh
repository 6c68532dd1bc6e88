#!/bin/busybox sh
# First program of a guest with a server, Redis, and its client. It obeys lines on its console:
#   load    gives the server data and asks for it
#   clear   deletes all
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b mkdir -p /tmp
$b mount -t tmpfs tmpfs /tmp
for module in /lib/modules-min/*/*.ko; do $b insmod "$module"; done
server="-s /tmp/redis"
/service/redis-server --port 0 --unixsocket /tmp/redis --save '' --appendonly no >/tmp/log &
until /service/redis-cli $server ping >/tmp/out 2>&1; do $b sleep 0.1; done
echo 'REPORT {"event":"ready"}'
# info NAME: a number that the server counts.
info() { /service/redis-cli $server info | $b sed -n "s/^$1:\([0-9]*\).*/\1/p"; }
while read -r order; do
  before=$(info total_commands_processed)
  case $order in
    load)
      # Values of 16 KiB under 2,000 names drawn by lot.
      for what in set get; do
        /service/redis-benchmark $server -c 4 -P 8 -r 2000 -d 16384 -n 4000 -t $what -q >/tmp/out
      done
      event=loaded
      ;;
    clear)
      /service/redis-cli $server flushall >/tmp/out
      # The allocator gives back what is free at once, not after a while.
      /service/redis-cli $server memory purge >/tmp/out
      event=cleared
      ;;
    *) continue ;;
  esac
  requests=$(($(info total_commands_processed) - before))
  echo "REPORT {\"event\":\"$event\",\"requests\":$requests,\"data\":$(info used_memory)}"
done
