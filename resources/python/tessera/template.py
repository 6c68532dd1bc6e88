"""The process that holds what VMs share: the memory of a snapshot, or kernel and initrd."""

from __future__ import annotations

import os
import socket
import time
from types import TracebackType
from typing import List, Optional, Sequence, Type, Union

from . import programs
from .errors import Ended
from .process import Process

#: Seconds between two looks at whether the process lives.
_LOOK = 0.1


class Template:
    """`tessera template`, as long as a `with` block: VMs that are restored with `shared` meanwhile are clones.

        with Template("/snapshots/one"):
            with Vm.restore("/snapshots/one", shared=True) as vm:
                ...

    With `kernel`, and `initrd` if there is one, it holds these instead of a snapshot, for VMs with `boot_image`.
    It ends with the block, or when nothing has used it for `linger` seconds. VMs do not need it to live on.
    """

    def __init__(
        self,
        folder: Optional[Union[str, "os.PathLike[str]"]] = None,
        *,
        kernel: Optional[Union[str, "os.PathLike[str]"]] = None,
        initrd: Optional[Union[str, "os.PathLike[str]"]] = None,
        linger: int = 600,
        program: Optional[Union[str, "os.PathLike[str]"]] = None,
        timeout: float = 60.0,
        flags: Sequence[str] = (),
    ) -> None:
        if (folder is None) == (kernel is None):
            raise ValueError("a template is of a snapshot's folder or of a kernel")
        self._command: List[str] = [
            programs.tessera(None if program is None else os.fspath(program)),
            "template",
            f"--linger={linger}",
            *flags,
        ]
        for flag, value in (("--kernel", kernel), ("--initrd", initrd)):
            if value is not None:
                self._command.append(f"{flag}={os.fspath(value)}")
        if folder is not None:
            self._command += ["--", os.fspath(folder)]
        self.timeout = timeout
        self._kept = ""
        self._process = Process()

    def start(self) -> "Template":
        """Starts the process, and waits until VMs can come."""
        try:
            path = self._process.folder / "ready"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
                ready.bind(os.fspath(path))
                ready.settimeout(_LOOK)
                self._process.start(self._command, (), {"NOTIFY_SOCKET": os.fspath(path)})
                self._wait(ready, time.monotonic() + self.timeout)
        except BaseException:
            self.close()
            raise
        return self

    def _wait(self, ready: socket.socket, deadline: float) -> None:
        while True:
            # In this order: one that is ready may end at once.
            alive = self._process.alive
            try:
                if b"READY=1" in ready.recv(4096).split(b"\n"):
                    return
            except socket.timeout:
                if not alive:
                    raise Ended("the template", self._process.status, self.log) from None
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the template is not there in time: {self.log.strip()}") from None

    def close(self) -> None:
        """Ends the process. Its messages can still be read."""
        try:
            self._process.end()
            self._kept = self._kept or self._process.text("messages")
        finally:
            self._process.remove()

    def __enter__(self) -> "Template":
        return self.start()

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    @property
    def pid(self) -> Optional[int]:
        """The number of its process."""
        return self._process.pid

    @property
    def log(self) -> str:
        """The end of its messages."""
        return self._kept or self._process.text("messages")
