#!/bin/sh
# In the nested host: clients of Firecracker's API that others wrote, against the program under the name firecracker.
# run.sh puts the files of this folder, the clients and the program fctools-client here.
set -e
cd /tmp
tar xf /test/clients.tar
export PYTHONPATH=/tmp/site PYTHONDONTWRITEBYTECODE=1
mkdir -p /usr/local/bin /var/lib/firecracker
# In a jail the program's name is the one that it is given, where that is a link.
ln -sf /bin/tessera /usr/local/bin/firecracker
ln -sf /bin/tessera /usr/local/bin/jailer
cat /artifacts/initrd.cpio /artifacts/agent.cpio >initrd
truncate -s 16M disk
modprobe tun || true
status=0
mkdir fctools api
/test/fctools-client /usr/local/bin/firecracker /usr/local/bin/jailer /artifacts/Image /tmp/initrd /tmp/disk /tmp/fctools || status=1
python3 clients/api_clients.py /usr/local/bin/firecracker /artifacts/Image /tmp/initrd /tmp/disk /tmp/api || status=1
python3 clients/hysn.py /artifacts/Image /tmp/initrd /tmp/disk || status=1
exit $status
