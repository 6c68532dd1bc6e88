"""The fake programs in a folder of their own."""

import os
import shutil
import stat
import sys
import tempfile
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


class WithPrograms(unittest.TestCase):
    """Tests to which `tessera` and `tesseractl` are the fakes, and whose VMs have their folders in `self.temporary`."""

    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="fakes-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()
        for name in ("tessera", "tesseractl"):
            program = self.folder / name
            fake = HERE / f"fake_{name}.py"
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{fake}" "$@"\n')
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        before = os.environ.get("TESSERA"), tempfile.tempdir
        os.environ["TESSERA"] = str(self.folder / "tessera")
        tempfile.tempdir = str(self.temporary)
        self.addCleanup(self.restore, *before)

    def restore(self, program, temporary):
        tempfile.tempdir = temporary
        if program is None:
            del os.environ["TESSERA"]
        else:
            os.environ["TESSERA"] = program

    def assert_nothing_left(self, *pids):
        self.assertEqual(list(self.temporary.iterdir()), [])
        for pid in pids:
            self.assertFalse(Path(f"/proc/{pid}").exists(), f"process {pid} is left")
