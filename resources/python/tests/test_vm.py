"""A VM against programs that play `tessera` and `tesseractl`."""

import os
import signal
import subprocess
import sys
import threading
import unittest
from pathlib import Path

from support import HERE, WithPrograms

from tessera import Client, Ended, Fault, GuestError, NotFound, SnapshotError, Template, Vm


class Lifecycle(WithPrograms):
    def test_a_block_starts_a_vm_and_leaves_nothing(self):
        with Vm("Image", cmdline="quiet", memory="1G", rng=True, disk=["a", "b,ro"], id="vm1") as vm:
            pid = vm.pid
            self.assertEqual((vm.state, vm.status), ("Running", None))
            self.assertEqual(vm.history[0].name, "started")
            given = vm.config()["flags"]
            for flag in ("--kernel=Image", "--memory=1G", "--rng", "--disk=a", "--disk=b,ro", "--id=vm1"):
                self.assertIn(flag, given)
            self.assertEqual(len([flag for flag in given if flag.startswith("--vsock=")]), 1)
        self.assertEqual(vm.status, 143)
        self.assertEqual(vm.console, "booted with quiet\n")
        self.assertIn("a message", vm.log)
        self.assert_nothing_left(pid)

    def test_an_error_in_the_block_is_not_hidden_and_leaves_nothing(self):
        with self.assertRaises(ZeroDivisionError):
            with Vm("Image") as vm:
                1 / 0
        self.assert_nothing_left(vm.pid)

    def test_a_vm_that_is_refused_says_why_and_leaves_nothing(self):
        vm = Vm("Image", cmdline="refused")
        with self.assertRaises(Ended) as raised:
            vm.start()
        self.assertEqual(raised.exception.status, 69)
        self.assertIn("no KVM", str(raised.exception))
        self.assert_nothing_left(vm.pid)

    def test_a_vm_that_does_not_serve_its_socket_is_ended_in_time(self):
        vm = Vm("Image", cmdline="mute", timeout=0.3)
        with self.assertRaises(TimeoutError):
            vm.start()
        self.assert_nothing_left(vm.pid)

    def test_a_program_that_is_not_there_is_named(self):
        with self.assertRaises(NotFound) as raised:
            Vm("Image", program="/nowhere/tessera")
        self.assertIn("/nowhere/tessera", str(raised.exception))
        with Vm("Image") as vm:
            os.remove(self.folder / "tesseractl")
            before, os.environ["PATH"] = os.environ["PATH"], "/nowhere"
            try:
                with self.assertRaises(NotFound) as raised:
                    vm.exec("true")
            finally:
                os.environ["PATH"] = before
            self.assertIn("tesseractl", str(raised.exception))

    def test_stop_kill_and_force_have_their_statuses(self):
        for end, status in (
            (lambda vm: vm.stop(), 0),
            (lambda vm: vm.stop(force=True), 12),
            (lambda vm: vm.kill(), -signal.SIGKILL),
        ):
            with Vm("Image") as vm:
                self.assertEqual(end(vm), status)
                self.assertEqual(vm.wait(), status)
            self.assert_nothing_left(vm.pid)

    def test_a_guest_that_does_not_listen_is_a_fault_and_the_vm_runs_on(self):
        with Vm("Image", cmdline="deaf") as vm:
            with self.assertRaises(Fault) as raised:
                vm.stop()
            self.assertEqual((raised.exception.status, raised.exception.message), (400, "the guest does not listen"))
            self.assertEqual(vm.state, "Running")

    def test_what_is_asked_of_a_vm_that_has_ended_says_so(self):
        with Vm("Image") as vm:
            vm.kill()
            with self.assertRaises(Ended) as raised:
                vm.metrics()
            self.assertEqual(raised.exception.status, -signal.SIGKILL)

    def test_a_vm_without_a_kernel_is_configured_and_booted(self):
        with Vm() as vm:
            self.assertEqual((vm.state, vm.history), ("Not started", []))
            vm.client.put("/boot-source", {"kernel_image_path": "Image"})
            vm.boot()
            self.assertEqual(vm.state, "Running")
            sent = vm.client.get("/requests")
            self.assertEqual([path for _, path, _ in sent], ["/boot-source", "/actions"])

    def test_a_wait_for_a_vm_that_runs_ends_in_time(self):
        with Vm("Image") as vm, self.assertRaises(TimeoutError):
            vm.wait(0.05)

    def test_a_program_that_ends_without_a_block_leaves_nothing(self):
        script = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from tessera import Vm\n"
            "vm = Vm('Image').start(); print(vm.pid, flush=True)\n"
        )
        environment = {**os.environ, "TMPDIR": str(self.temporary)}
        done = subprocess.run(
            [sys.executable, "-c", script, str(HERE.parent)], env=environment, stdout=subprocess.PIPE, check=True
        )
        self.assert_nothing_left(int(done.stdout))

    def test_twenty_vms_at_once_have_ids_of_their_own(self):
        vms = [Vm("Image") for _ in range(20)]
        threads = [threading.Thread(target=vm.start) for vm in vms]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len({vm.instance()["id"] for vm in vms}), 20)
        for vm in vms:
            vm.close()
        self.assert_nothing_left(*[vm.pid for vm in vms])

    def test_an_image_has_a_copy_of_its_disk_for_each_vm(self):
        image = self.folder / "image"
        image.mkdir()
        (image / "debian.ext4").write_bytes(b"disk")
        with Vm(image=image, disk="more") as vm:
            given = vm.config()["flags"]
            disks = [flag.split("=", 1)[1] for flag in given if flag.startswith("--disk=")]
            self.assertEqual(disks[1], "more")
            self.assertEqual(Path(disks[0]).read_bytes(), b"disk")
            self.assertNotEqual(Path(disks[0]), image / "debian.ext4")
            self.assertIn(f"--kernel={image / 'Image'}", given)
            self.assertIn("--cmdline=console=ttyS0 quiet root=/dev/vda", given)
        self.assert_nothing_left(vm.pid)


class Control(WithPrograms):
    def test_each_call_is_its_request(self):
        with Vm("Image") as vm:
            vm.pause()
            self.assertEqual(vm.state, "Paused")
            vm.resume()
            vm.balloon(64, reporting=False)
            self.assertEqual(vm.balloon(), {"amount_mib": 0})
            self.assertEqual(vm.metrics()["vcpus"]["exits_total"], 1)
            self.assertEqual(vm.client.text("/metrics"), "tessera_up 1\n")
            self.assertEqual(vm.footprint(), {"guest_bytes": 1})
            self.assertEqual(vm.tag_storage(), {"mode": "off"})
            self.assertEqual(
                vm.client.get("/requests"),
                [
                    ["PATCH", "/vm", {"state": "Paused"}],
                    ["PATCH", "/vm", {"state": "Resumed"}],
                    ["PATCH", "/balloon", {"amount_mib": 64, "free_page_reporting": False}],
                ],
            )

    def test_answers_that_are_no_answers_are_errors(self):
        with Vm("Image") as vm:
            with self.assertRaises(Fault) as raised:
                vm.client.get("/nothing")
            self.assertEqual(raised.exception.status, 400)
            self.assertEqual(raised.exception.message, "nothing is served at /nothing")
            with self.assertRaises(Fault) as raised:
                vm.client.get("/text")
            self.assertEqual((raised.exception.status, raised.exception.message), (500, "not JSON"))
            with self.assertRaises(ConnectionError):
                vm.client.get("/drop")
            with self.assertRaises(TimeoutError):
                Client(vm.client.path, timeout=0.1).get("/hang")
        with self.assertRaises(FileNotFoundError):
            vm.client.get("/")


class Snapshots(WithPrograms):
    def test_a_vm_is_saved_by_tesseractl(self):
        with Vm("Image") as vm:
            saved = vm.snapshot("/snapshots/one")
            self.assertEqual((saved["outcome"], saved["bytes"]), ("saved", 3))
            self.assertEqual(saved["words"], ["--json", "--timeout=600.0", "--", vm.client.path, "/snapshots/one"])
            saved = vm.snapshot(Path("two"), keep_paused=True, replace=True, timeout=5)
            self.assertEqual(saved["words"][1:4], ["--timeout=5", "--keep-paused", "--replace"])
            saved = vm.snapshot("/snapshots/two", diff=True)
            self.assertEqual(saved["words"][2:4], ["--diff", "--"])
            with self.assertRaises(SnapshotError) as raised:
                vm.snapshot("/full")
            self.assertIn("the disk is full", str(raised.exception))

    def test_a_vm_is_restored_and_runs_unless_it_is_to_be_paused(self):
        with Vm.restore("/snapshots/one", lazy=True, id="vm2", vsock=False) as vm:
            self.assertEqual([event.name for event in vm.history], ["restored", "started"])
            self.assertEqual(vm.state, "Running")
            given = vm.config()["flags"]
            self.assertEqual(given[-2:], ["--restore=/snapshots/one", "--lazy"])
            self.assertIn("--id=vm2", given)
            self.assertFalse([flag for flag in given if flag.startswith("--vsock")])
        with Vm.restore("/snapshots/one", shared=True) as vm:
            self.assertEqual(vm.config()["flags"][-2:], ["--restore=/snapshots/one", "--shared"])
        with Vm.restore(Path("/snapshots/one"), paused=True) as vm:
            self.assertEqual(vm.state, "Paused")
            vm.resume()
            vm.wait_for("resumed", 5)
        self.assert_nothing_left(vm.pid)


class Templates(WithPrograms):
    def test_a_template_is_there_in_its_block(self):
        with Template("/snapshots/one", linger=5) as template:
            self.assertIn("template --linger=5 -- /snapshots/one", template.log)
            self.assertTrue(Path(f"/proc/{template.pid}").exists())
        self.assertIn("/snapshots/one", template.log)
        with Template(kernel="/Image", initrd=Path("/initrd")) as boot:
            self.assertIn("template --linger=600 --kernel=/Image --initrd=/initrd", boot.log)
        self.assert_nothing_left(template.pid, boot.pid)

    def test_one_that_does_not_come_is_an_error(self):
        with self.assertRaises(Ended) as raised:
            Template("/none").start()
        self.assertEqual(raised.exception.status, 66)
        self.assertIn("there is no snapshot", str(raised.exception))
        slow = Template("/slow", timeout=0.5)
        with self.assertRaises(TimeoutError):
            slow.start()
        with self.assertRaises(ValueError):
            Template("/snapshots/one", kernel="/Image")
        self.assert_nothing_left(slow.pid)


class Events(WithPrograms):
    def test_all_events_come_in_order_to_each_reader_until_the_end(self):
        with Vm("Image") as vm:
            vm.pause()
            vm.resume()
            vm.stop()
            names = ["started", "paused", "resumed", "ended"]
            self.assertEqual([event.name for event in vm.events(timeout=5)], names)
            self.assertEqual([event.name for event in vm.events(timeout=5)], names)
        self.assertEqual([event.seq for event in vm.history], [1, 2, 3, 4])
        self.assertEqual(vm.history[-1]["status"], 0)

    def test_a_reader_that_waits_in_vain_has_a_time_limit(self):
        with Vm("Image") as vm:
            events = vm.events(timeout=0.1)
            self.assertEqual(next(events).name, "started")
            with self.assertRaises(TimeoutError):
                next(events)
            with self.assertRaises(TimeoutError):
                vm.wait_for("paused", 0.1)

    def test_an_event_is_waited_for_behind_another_one(self):
        with Vm("Image") as vm:
            vm.pause()
            first = vm.wait_for("paused", 5)
            vm.resume()
            vm.pause()
            self.assertEqual(vm.wait_for("paused", 5, after=first.seq).seq, 4)

    def test_a_vm_that_ends_without_the_event_ends_the_wait(self):
        with Vm("Image") as vm:
            vm.kill()
            with self.assertRaises(Ended):
                vm.wait_for("ended", 5)

    def test_a_connection_that_made_room_for_another_is_made_again(self):
        with Vm("Image", cmdline="forgetful") as vm:
            for _ in range(3):
                vm.pause()
                vm.resume()
            vm.wait_for("resumed", 5, after=6)
            self.assertEqual([event.seq for event in vm.history], [1, 2, 3, 4, 5, 6, 7])

    def test_a_loss_shows_in_the_numbers(self):
        with Vm("Image", cmdline="gap") as vm:
            vm.pause()
            vm.resume()
            vm.wait_for("resumed", 5)
            self.assertEqual([event.seq for event in vm.history], [1, 2, 13])


class InTheGuest(WithPrograms):
    def test_a_command_has_its_words_its_input_and_its_status(self):
        with Vm("Image") as vm:
            done = vm.exec("cat", "-", input="hello", env={"A": "b"}, cwd="/", user="root", timeout=9)
            words, text = done.stdout.split("\n")
            self.assertEqual(
                words.split(),
                [vm.client.path, "--timeout=9", "--die-with-client", "--env=A=b", "--cwd=/", "--user=root"]
                + ["--", "cat", "-"],
            )
            self.assertEqual((text, done.status, done.args), ("hello", 0, ["cat", "-"]))
            failed = vm.exec("fail")
            self.assertEqual((failed.status, failed.stderr), (3, "it failed\n"))
            with self.assertRaises(subprocess.CalledProcessError):
                failed.check()

    def test_a_guest_that_is_lost_and_a_command_that_takes_too_long(self):
        with Vm("Image") as vm:
            with self.assertRaises(GuestError) as raised:
                vm.exec("lost")
            self.assertEqual(str(raised.exception), "the guest has no agent")
            with self.assertRaises(subprocess.TimeoutExpired) as late:
                vm.exec("sleep", "600", timeout=0.3)
            self.assertEqual(late.exception.cmd, ["sleep", "600"])

    def test_copies_go_in_and_out(self):
        with Vm("Image") as vm:
            vm.copy_in("file", "/root/")
            out = self.folder / "out"
            vm.copy_out("/etc/hostname", out)
            self.assertEqual(out.read_text(), f":/etc/hostname {out}")
            with self.assertRaises(GuestError) as raised:
                vm.copy_out("/missing", out)
            self.assertIn("no such file", str(raised.exception))


if __name__ == "__main__":
    unittest.main()
