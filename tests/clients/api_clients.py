#!/usr/bin/env python3
"""The API clients of bandsox and microheart (PyPI), unchanged, against the program under the name `firecracker`.

    api_clients.py FIRECRACKER KERNEL INITRD DISK FOLDER

Their own VMs need guests with their agents and a network; here each starts the process as they do.
"""

import json
import os
import subprocess
import sys

from bandsox.firecracker import FirecrackerClient
from microheart import api

firecracker, kernel, initrd, disk, folder = sys.argv[1:]


def show(client, call, answer):
    print(f"{client}: {call}: {getattr(answer, 'status_code', answer)}", flush=True)
    return answer


def refused(client, call, request):
    try:
        request()
    except Exception as error:
        return show(client, call, f"refused: {error}")
    sys.exit(f"{client}: {call} is not refused")


def bandsox():
    path = f"{folder}/bandsox.sock"
    process = subprocess.Popen([firecracker, "--api-sock", path], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    client = FirecrackerClient(path)
    assert client.wait_for_socket()
    for call, request in {
        "put_boot_source": lambda: client.put_boot_source(kernel, "quiet panic=1"),
        "put_machine_config": lambda: client.put_machine_config(2, 256),
        "put_drives": lambda: client.put_drives("rootfs", disk, True, False, 10, 100),
        "put_vsock": lambda: client.put_vsock("vsock0", 3, f"{folder}/bandsox.vsock"),
        "put_entropy": lambda: client.put_entropy(),
        "put_boot_source with an initrd": lambda: client._request(
            "PUT", "/boot-source", {"kernel_image_path": kernel, "initrd_path": initrd, "boot_args": "workload=agent"}
        ),
    }.items():
        assert show("bandsox", call, request()).status_code == 204
    refused("bandsox", "pause_vm before the start", client.pause_vm)
    refused("bandsox", "create_snapshot before the start", lambda: client.create_snapshot("a", "b"))
    assert show("bandsox", "instance_start", client.instance_start()).status_code == 204
    refused("bandsox", "instance_start again", client.instance_start)
    refused("bandsox", "put_entropy after the start", client.put_entropy)
    assert show("bandsox", "pause_vm", client.pause_vm()).status_code == 204
    saved = client.create_snapshot(f"{folder}/state", f"{folder}/memory")
    assert show("bandsox", "create_snapshot", saved).status_code == 204
    assert show("bandsox", "resume_vm", client.resume_vm()).status_code == 204
    assert show("bandsox", "patch_drive", client.patch_drive("rootfs", disk)).status_code == 204
    refused("bandsox", "patch_network_interface", lambda: client.patch_network_interface("eth0", "tap0"))
    refused("bandsox", "create_snapshot of a VM that runs", lambda: client.create_snapshot("a", "b"))
    refused("bandsox", "load_snapshot", lambda: client.load_snapshot("a", "b"))
    process.terminate()
    show("bandsox", "SIGTERM", process.wait(30))


def microheart():
    path, config = f"{folder}/microheart.sock", f"{folder}/config.json"
    with open(config, "w") as file:
        sections = {
            "boot-source": {
                "kernel_image_path": kernel,
                "initrd_path": initrd,
                "boot_args": "console=ttyS0 reboot=k panic=1 workload=agent",
            },
            "drives": [
                {"drive_id": "rootfs", "path_on_host": disk, "is_root_device": True, "is_read_only": False}
            ],
            "network-interfaces": [],
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 256},
        }
        json.dump(sections, file)
    command = [firecracker, "--api-sock", path, "--config-file", config, "--enable-pci"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not os.path.exists(path):
        assert process.poll() is None
    answer = show("microheart", "GET /machine-config", api.request(path, "GET", "/machine-config"))
    assert (answer["vcpu_count"], answer["mem_size_mib"]) == (1, 256)
    process.terminate()
    show("microheart", "SIGTERM", process.wait(30))


bandsox()
microheart()
print("bandsox, microheart: done")
