# Unpacks the tar archive, sets the system up for a VM, and makes the file system.
root=$WORK/root
step "unpacking the system"
mkdir "$root"
tar -x -f "$SYSTEM" -C "$root" --numeric-owner
mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/run"

step "setting the system up"
# put PATH [MODE]: writes standard input to a file of the image.
put() {
  mkdir -p "$root${1%/*}"
  cat >"$root$1"
  chmod "${2:-644}" "$root$1"
}
system=/etc/systemd/system

mkdir -p "$root/usr/lib/modules"
cp -r --no-preserve=ownership "$MODULES" "$root/usr/lib/modules/$RELEASE"
chroot "$root" depmod "$RELEASE"

echo tessera | put /etc/hostname
put /etc/hosts <<'EOF'
127.0.0.1 localhost tessera
::1 localhost ip6-localhost ip6-loopback
EOF
# Enlarging the image enlarges the file system at the next boot.
echo '/dev/vda / ext4 defaults,x-systemd.growfs 0 1' | put /etc/fstab
# An empty file: systemd writes a number of its own at the first boot (machine-id(5)).
: | put /etc/machine-id 444
: | put /etc/motd
rm -f "$root/etc/resolv.conf" "$root/etc/.resolv.conf.systemd-resolved.bak" "$root/var/lib/systemd/random-seed"
ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
rm -f "$root/etc/apt/sources.list" "$root/etc/apt/apt.conf.d/99mmdebstrap"
put /etc/apt/sources.list.d/debian.sources <<EOF
Types: deb
URIs: http://deb.debian.org/debian
Suites: $SUITE $SUITE-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: $SUITE-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
EOF

# ---- network: DHCP on whatever Ethernet there is; none is no failure ----
put /etc/systemd/network/80-ethernet.network <<'EOF'
[Match]
Type=ether
Kind=!*

[Link]
RequiredForOnline=no

[Network]
DHCP=yes
EOF
# Names are asked of the servers that DHCP gives, not of the neighbours.
put /etc/systemd/resolved.conf.d/tessera.conf <<'EOF'
[Resolve]
LLMNR=no
MulticastDNS=no
EOF

# What login and sshd look for.
echo LANG=C.UTF-8 | put /etc/default/locale

# ---- console: root is logged in on the serial lines that console= names ----
put $system/serial-getty@.service.d/autologin.conf <<'EOF'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noreset --noclear --keep-baud 115200,57600,38400,9600 - ${TERM}
EOF

# ---- ssh: by key only, over TCP and vsock; started by the first connection ----
# The host's keys are made on the machine that has them. One is enough, and an RSA key takes long.
rm -f "$root"/etc/ssh/ssh_host_*
put $system/sshd-keygen.service.d/first-boot.conf <<'EOF'
[Unit]
ConditionFirstBoot=
ConditionFileNotEmpty=!/etc/ssh/ssh_host_ed25519_key

[Service]
ExecStart=
ExecStart=rm -f /etc/ssh/ssh_host_ed25519_key
ExecStart=ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
EOF
put /etc/ssh/sshd_config.d/tessera.conf <<'EOF'
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
AuthorizedKeysFile .ssh/authorized_keys /run/ssh-keys/%u
EOF
# A key given to a boot is good for that boot: Debian's own line would write it to the disk, for ever.
put /etc/tmpfiles.d/provision.conf <<'EOF'
d /run/ssh-keys 0755 root root -
f^ /run/ssh-keys/root 0600 root root - ssh.authorized_keys.root
EOF
# Keys are needed for a connection, not for the listening socket.
rm -rf "$root$system/ssh.socket.wants"
put $system/sshd-vsock.socket <<'EOF'
[Unit]
Description=OpenSSH server socket on vsock port 22
ConditionPathExists=/dev/vsock

[Socket]
ListenStream=vsock::22
Accept=yes
PollLimitBurst=0

[Install]
WantedBy=sockets.target
EOF
put $system/sshd-vsock@.service <<'EOF'
[Unit]
Description=OpenSSH server for a connection over vsock
Wants=sshd-keygen.service
After=sshd-keygen.service

[Service]
ExecStart=-/usr/sbin/sshd -i
StandardInput=socket
RuntimeDirectory=sshd
RuntimeDirectoryPreserve=yes
EOF
# systemd's generator of such sockets fails where vsock comes up after it.
mkdir -p "$root/etc/systemd/system-generators"
ln -s /dev/null "$root/etc/systemd/system-generators/systemd-ssh-generator"

# ---- the guest agent ----
printf '%s' "$AGENT_UNIT" | put $system/tessera-agent.service
if [ -n "$AGENT" ]; then
  install -m 755 "$AGENT" "$root/usr/bin/tessera-agent"
fi

# ---- what a VM needs, and what it can do without ----
put /etc/systemd/journald.conf.d/tessera.conf <<'EOF'
[Journal]
Storage=volatile
EOF
mount --bind /proc "$root/proc"
units() { chroot "$root" systemctl --quiet "$@"; }
units enable systemd-networkd.service ssh.socket sshd-vsock.socket
[ -z "$AGENT" ] || units enable tessera-agent.service
units disable ssh.service e2scrub_reap.service systemd-pstore.service getty@tty1.service
units mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
  systemd-networkd-wait-online.service
# The kernel loads the modules that are asked for; formats of foreign programs are not.
units mask modprobe@.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount
umount "$root/proc"
# Caches are as new as /usr: nothing is to be built again at the first boot (systemd-update-done.service(8)).
for folder in etc var; do
  touch "$root/$folder/.updated"
done

step "making the file system"
# Blocks of a new file read as zero: nothing has to be written for empty tables, now or in the guest.
truncate -s "$SIZE" "$OUTPUT"
mke2fs -q -F -t ext4 -L tessera-root -m 1 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard -d "$root" "$OUTPUT"
