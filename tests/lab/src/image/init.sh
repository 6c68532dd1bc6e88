#!/bin/busybox sh
# First program of the image's initramfs: loads the drivers, mounts the root file system, starts its init.
#
# From the kernel command line it takes root= (default /dev/vda), rootfstype=, rootflags=, ro and rw (default ro,
# as the kernel's: systemd checks the file system, then makes it writable) and init=.
export PATH=/bin
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b --install -s /bin
dmesg -n 4

# The kernel panics when its first program ends, and panic= says what follows.
fail() { echo "initrd: $*" >/dev/console; exit 1; }

for module in /modules/*.ko; do
  insmod "$module" || echo "initrd: cannot load $module" >/dev/kmsg
done

root=/dev/vda type=ext4 flags= access=ro init=/sbin/init
for word in $(cat /proc/cmdline); do
  case $word in
  root=*) root=${word#root=} ;;
  rootfstype=*) type=${word#rootfstype=} ;;
  rootflags=*) flags=,${word#rootflags=} ;;
  init=*) init=${word#init=} ;;
  ro | rw) access=$word ;;
  esac
done

# A driver finds its devices after its module has been loaded.
tries=0
until [ -b "$root" ]; do
  tries=$((tries + 1))
  [ $tries -lt 600 ] || fail "there is no $root: name the disk with root=, for instance root=/dev/vdb"
  usleep 50000
done
mkdir -p /root
mount -t "$type" -o "$access$flags" "$root" /root || fail "cannot mount $root as $type"
[ -x "/root$init" ] || [ -L "/root$init" ] || fail "$root has no $init"
for folder in dev proc sys; do
  mount --move /$folder /root/$folder
done
exec switch_root /root "$init"
