#!/usr/bin/env python3
"""Eight VMs: each runs a command, one is killed, one paused, one runs out of tag storage: lifecycle.py KERNEL INITRD"""
import contextlib, sys, threading, time
from tessera import Vm

kernel, initrd, *more = sys.argv[1:]
common = dict(initrd=initrd, cmdline=" ".join(["quiet", *more]), memory="256M", mte="require", timeout=300)
scarce = dict(tag_storage="demand", tag_max="4M", on_exhausted="pause,deadline=1")

def work(vm):
    done = vm.exec("sh", "-c", "echo $((6 * 7)); uname -m", timeout=300).check()
    assert done.stdout == "42\naarch64\n", done
    print(f"{vm.id}: works", flush=True)

with contextlib.ExitStack() as stack:
    vms = []
    for number in range(8):  # Staggered: the next one starts when the last one runs.
        vms.append(stack.enter_context(Vm(kernel, id=f"vm{number}", **common, **(scarce if number == 2 else {}))))
    workers = [threading.Thread(target=work, args=[vm]) for vm in vms]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]

    killed, paused, exhausted, *others = vms
    assert killed.kill() == -9
    paused.pause()
    until = time.monotonic() + 60
    exhausted.exec("sh", "-c", "dd if=/dev/zero of=/tmp/file bs=1M count=200 >/dev/null 2>&1 &").check()
    lacking = exhausted.wait_for("paused", 120)
    assert lacking["reason"] == "tag_storage" and exhausted.tag_storage()["expired"], lacking
    assert exhausted.stop(force=True) == 12
    time.sleep(max(0, until - time.monotonic()))
    paused.resume()
    work(paused)
    assert all(vm.stop(timeout=300) == 0 for vm in [paused, *others])

    told = [[event.name for event in vm.events(timeout=10)] for vm in vms]
    assert told[:2] == [["started"], ["started", "paused", "resumed", "ended"]], told
    assert told[2] == ["started", "tag_storage_exhausted", "paused", "ended"], told
    assert all(names == ["started", "ended"] for names in told[3:]), told
print("all as it should be")
