"""A process, and the folder that it has while it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import weakref
from pathlib import Path
from typing import Mapping, Optional, Sequence

#: How much of a console or of messages is read: the end of it.
_MOST_TEXT = 1 << 20
#: Longest path of a folder in which a socket's path, with a port behind it, still fits into an address (unix(7)).
_LONGEST_FOLDER = 80
#: Seconds that a VM has to end in order. A guest that is stuck does not delay it.
_ORDERLY = 10.0


class Process:
    """A process of `tessera` with a folder for its sockets, console and messages. Both are gone at the end."""

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        if len(parent) > _LONGEST_FOLDER - len("/tessera-12345678"):
            parent = "/tmp"
        self.folder = Path(tempfile.mkdtemp(prefix="tessera-", dir=parent))
        self._child: Optional["subprocess.Popen[bytes]"] = None
        # Also where this object is dropped, or the interpreter ends, without `close`.
        self._removed = weakref.finalize(self, _remove, self.folder)
        self._ended: Optional["weakref.finalize[..., Process]"] = None

    def start(
        self, command: Sequence[str], pass_fds: Sequence[int], variables: Optional[Mapping[str, str]] = None
    ) -> None:
        """Starts it, with more variables in its environment. The messages go to a file: no reader is needed for the VM to run on."""
        with open(self.folder / "messages", "wb") as messages:
            # In a session of its own: Ctrl-C is for this process, which then ends the VM.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=subprocess.STDOUT,
                pass_fds=tuple(pass_fds),
                env={**os.environ, **(variables or {})},
                start_new_session=True,
            )
        self._child = child
        self._ended = weakref.finalize(self, _end, child)

    @property
    def pid(self) -> Optional[int]:
        """Its number."""
        return None if self._child is None else self._child.pid

    @property
    def status(self) -> Optional[int]:
        """Its exit status, negative for a signal; `None` while it runs."""
        return None if self._child is None else self._child.poll()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._child is not None and self._child.poll() is None

    def wait(self, timeout: Optional[float]) -> int:
        """Its exit status, once it has ended; `TimeoutError` if it has not by then."""
        if self._child is None:
            raise ValueError("the VM has not been started")
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the VM runs after {timeout} s") from None

    def kill(self) -> None:
        """Ends it at once (SIGKILL)."""
        if self._child is not None:
            self._child.kill()

    def end(self) -> None:
        """Ends it, in order where it can."""
        if self._ended is not None:
            self._ended()

    def remove(self) -> None:
        """Removes the folder."""
        self._removed()

    def text(self, name: str) -> str:
        """The end of a file of its folder; empty where there is none."""
        try:
            with open(self.folder / name, "rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _MOST_TEXT))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""


def _end(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is not None:
        return
    child.terminate()
    deadline = time.monotonic() + _ORDERLY
    try:
        child.wait(deadline - time.monotonic())
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Nothing happens to one that has ended.
        child.kill()
        child.wait()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
