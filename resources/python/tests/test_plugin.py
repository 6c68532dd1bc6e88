"""The plugin under a real pytest, with VMs that are played."""

import os
import subprocess
import sys
import unittest

from support import HERE, WithPrograms

try:
    import pytest  # noqa: F401
except ImportError:
    pytest = None

TESTS = """
def test_runs(vm):
    assert vm.state == "Running"

def test_makes_two(make_vm):
    assert make_vm().id != make_vm(memory="1G").id

def test_fails(vm):
    vm.pause()
    vm.wait_for("paused")
    assert vm.state == "Running"

def test_does_not_start(make_vm):
    make_vm(cmdline="refused")
"""


@unittest.skipIf(pytest is None, "python-pytest: there is no pytest")
class Plugin(WithPrograms):
    def run_pytest(self, *words):
        (self.folder / "test_guest.py").write_text(TESTS)
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "TMPDIR": str(self.temporary)}
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        command = [sys.executable, "-m", "pytest", "-p", "tessera.pytest_plugin", "-p", "no:cacheprovider", *words]
        return subprocess.run(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def test_fixtures_boot_guests_and_a_failure_shows_their_consoles(self):
        done = self.run_pytest("--tessera-kernel=Image", "--tessera-cmdline=hello")
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("2 failed, 2 passed", done.stdout)
        self.assertEqual(done.stdout.count("booted with hello"), 1, done.stdout)
        self.assertIn("'event': 'paused'", done.stdout)
        self.assertIn("the host has no KVM", done.stdout)
        self.assert_nothing_left()

    def test_the_ini_file_says_what_is_booted(self):
        (self.folder / "pytest.ini").write_text("[pytest]\ntessera_kernel = Image\ntessera_memory = 256M\n")
        done = self.run_pytest("-k", "runs or two")
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_without_a_kernel_a_test_fails_with_what_to_give(self):
        done = self.run_pytest("-k", "runs")
        self.assertEqual(done.returncode, 1, done.stdout)
        self.assertIn("--tessera-kernel FILE", done.stdout)


if __name__ == "__main__":
    unittest.main()
