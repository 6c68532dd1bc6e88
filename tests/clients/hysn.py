#!/usr/bin/env python3
"""hysn-firecracker-python (PyPI), unchanged, against the program under the name `firecracker`, as root.

    hysn.py KERNEL INITRD DISK

Its class MicroVM wants a Docker daemon and the packet filter of the host, which have nothing to do with the VM: both are
played. All of the client is as it is.
"""

import http.server
import json
import os
import socketserver
import subprocess
import sys
import threading
import types

kernel, initrd, disk = sys.argv[1:]
DOCKER = "/tmp/docker.sock"


class Docker(http.server.BaseHTTPRequestHandler):
    """The version that a client asks for first."""

    def do_GET(self):
        body = json.dumps({"ApiVersion": "1.44", "Version": "0"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "client"

    def log_message(self, *_):
        pass


threading.Thread(target=socketserver.UnixStreamServer(DOCKER, Docker).serve_forever, daemon=True).start()
os.environ["DOCKER_HOST"] = f"unix://{DOCKER}"

class Nftables:
    """In the place of the module of nft(8): the packet filter of the host is none of the VM's."""

    def set_json_output(self, _):
        pass

    def json_cmd(self, _):
        return 0, {"nftables": []}, ""

    def cmd(self, _):
        return 0, "", ""


sys.modules["nftables"] = types.SimpleNamespace(Nftables=Nftables)

from firecracker.microvm import MicroVM  # noqa: E402


def show(call, answer):
    print(f"hysn: {call}: {answer}", flush=True)
    return answer


# The name is a part of the kernel's command line, which cannot be given otherwise.
name = "vm workload=agent rest"
vm = MicroVM(
    name=name, kernel_file=kernel, initrd_file=initrd, base_rootfs=disk, vcpu=2, memory=256, vsock_enabled=True
)
created = show("create", vm.create())
assert created.endswith(" created"), created
id = vm._microvm_id
listed = show("list", MicroVM.list())
assert [entry["id"] for entry in listed] == [id]
config = show("config", vm.config())
assert config["machine-config"]["mem_size_mib"] == 256, config
show("status", vm.status())
show("pause", vm.pause())
assert show("state", vm._vmm.get_vmm_state(id)) == "Paused"
show("resume", vm.resume())
assert show("state", vm._vmm.get_vmm_state(id)) == "Running"
show("snapshot", vm.snapshot(action="create"))
assert os.path.getsize(vm._mem_file_path) > 0
assert show("state", vm._vmm.get_vmm_state(id)) == "Running"
show("delete", vm.delete())
left = subprocess.run(["pgrep", "-x", "firecracker"], stdout=subprocess.PIPE, check=False).stdout
assert not left, left
print("hysn: done")
