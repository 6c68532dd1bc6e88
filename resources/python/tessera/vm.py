"""A VM, from its start to its end."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Type, Union

from . import programs
from .client import Client, Json
from .errors import Ended, SnapshotError
from .events import Event, Recorder
from .guest import Completed, Guest, local
from .options import flags
from .process import Process

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import File, Options

_NUMBERS = itertools.count(1)
#: Seconds between two looks whether the socket is there.
_LOOK = 0.01
#: Seconds in which a VM whose connection broke off ends, if that was the reason.
_ENDING = 5.0


class Vm:
    """A VM of `tessera run`, which is started by `start` or a `with` block, and ended at the end of the block.

    Keyword arguments are the options of `tessera run` (`memory="1G"`, `cpus=2`, `disk=["a.img", "b.img,ro"]`).

    `kernel` or `image`, a folder that `make image` has made, is what the guest boots; of the image's disk the VM
    has a copy of its own. Without either, the VM waits to be configured: `client.put(...)`, then `boot()`.
    `vsock=False` leaves out the socket that commands and copies take. `timeout` is how long the VM may take to
    start, and to answer a request. `flags` are more words for the command line.
    """

    def __init__(
        self,
        kernel: Optional["File"] = None,
        *,
        image: Optional["File"] = None,
        id: Optional[str] = None,
        program: Optional["File"] = None,
        vsock: Union[bool, str] = True,
        timeout: float = 60.0,
        flags: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        **options: "Unpack[Options]",
    ) -> None:
        self.id = id if id is not None else f"py-{os.getpid()}-{next(_NUMBERS)}"
        self.timeout = timeout
        self._program = programs.tessera(None if program is None else os.fspath(program))
        self._image = None if image is None else Path(image)
        self._options: Dict[str, Any] = dict(options)
        self._flags = list(flags)
        self._pass_fds = pass_fds
        if kernel is not None:
            self._options["kernel"] = os.fspath(kernel)
        self._restored: Optional[str] = None
        self._configured = kernel is not None or image is not None or "config" in options
        self._kept: Dict[str, str] = {}
        self._process = Process()
        folder = self._process.folder
        self._options.setdefault("serial", f"file:{folder / 'console'}")
        if vsock:
            self._options["vsock"] = folder / "vsock" if vsock is True else vsock
        self.client = Client(folder / "api.sock", timeout)
        self._recorder = Recorder(self.client, _alive(self._process))

    @classmethod
    def restore(
        cls,
        folder: "File",
        *,
        lazy: bool = False,
        shared: bool = False,
        paused: bool = False,
        flags: Sequence[str] = (),
        **arguments: Any,
    ) -> "Vm":
        """The VM of a snapshot, which is restored by `start` or a `with` block, and runs unless it is to be `paused`.

        With `lazy` its memory is read when the guest touches it. With `shared` it is a clone: it shares memory with
        other VMs of the snapshot through a process that has to run, a `Template`. Other arguments are those of a VM,
        but for what would change the machine; `vsock=False` where the one that was saved had no vsock device.
        """
        words = [f"--restore={os.fspath(folder)}"]
        words += ["--lazy"] if lazy else []
        words += ["--shared"] if shared else []
        words += ["--paused"] if paused else []
        vm = cls(flags=[*words, *flags], **arguments)
        vm._restored = "restored" if paused else "started"
        return vm

    # ---- start and end ----

    def start(self) -> "Vm":
        """Starts the process, and waits until the guest runs, or, without a kernel, can be configured."""
        try:
            if self._image is not None:
                self._take_image(self._image)
            command = [self._program, "run", f"--api-sock={self.client.path}", f"--id={self.id}"]
            self._process.start([*command, *flags(self._options), *self._flags], self._pass_fds)
            deadline = time.monotonic() + self.timeout
            self._wait_for_socket(deadline)
            self._recorder.start()
            if self._restored is not None:
                self._await(self._restored, 0, deadline)
            elif self._configured:
                self._await("started", 0, deadline)
        except BaseException:
            self.close()
            raise
        return self

    def boot(self) -> None:
        """Starts the guest of a VM that was configured through `client`."""
        self._put("/actions", {"action_type": "InstanceStart"})
        self.wait_for("started", self.timeout)

    def stop(self, timeout: float = 60.0, *, force: bool = False) -> int:
        """Presses the power key and waits for the VM to end, or ends it without asking the guest; the exit status."""
        self._put("/actions", {"action_type": "Stop" if force else "SendCtrlAltDel"})
        return self.wait(timeout)

    def kill(self) -> int:
        """Ends the process at once (SIGKILL)."""
        self._process.kill()
        return self.wait(None)

    def wait(self, timeout: Optional[float] = None) -> int:
        """Waits for the VM to end: the exit status of its process, negative for a signal."""
        status = self._process.wait(timeout)
        self._recorder.join(_ENDING)
        return status

    def close(self) -> None:
        """Ends the VM if it runs, and removes what it has left. Console and messages can still be read."""
        try:
            self._process.end()
            self._recorder.join(_ENDING)
            for name in ("console", "messages"):
                self._kept.setdefault(name, self._process.text(name))
        finally:
            self._process.remove()

    def __enter__(self) -> "Vm":
        return self.start()

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Vm {self.id}>"

    # ---- what it is ----

    @property
    def pid(self) -> Optional[int]:
        """The number of its process."""
        return self._process.pid

    @property
    def status(self) -> Optional[int]:
        """The exit status of its process; `None` while it runs."""
        return self._process.status

    @property
    def state(self) -> str:
        """`Not started`, `Running` or `Paused`."""
        return str(self.instance()["state"])

    @property
    def console(self) -> str:
        """What the guest has written to its serial port; the last MiB of it."""
        return self._text("console")

    @property
    def log(self) -> str:
        """The messages of the VMM."""
        return self._text("messages")

    def instance(self) -> Json:
        """Name, state, version (`GET /`)."""
        return self._get("/")

    def config(self) -> Json:
        """The configuration, in the form of a configuration file."""
        return self._get("/vm/config")

    def metrics(self) -> Json:
        """The counters."""
        return self._get("/metrics")

    def footprint(self) -> Json:
        """What the guest takes of the host's memory."""
        return self._get("/footprint")

    def tag_storage(self) -> Json:
        """The tag storage that is reserved, and whether the guest waits for more."""
        return self._get("/tag-storage")

    # ---- what it does ----

    def pause(self) -> None:
        """Holds the vCPUs."""
        self._patch("/vm", {"state": "Paused"})

    def resume(self) -> None:
        """Lets the vCPUs run again."""
        self._patch("/vm", {"state": "Resumed"})

    def snapshot(
        self,
        folder: "File",
        *,
        diff: bool = False,
        keep_paused: bool = False,
        replace: bool = False,
        timeout: float = 600.0,
    ) -> Json:
        """Saves the VM in a folder, which is made: its size in `bytes` and what else `tesseractl` says.

        A VM that runs is paused meanwhile, and runs again then unless it is to be kept paused. A snapshot that the
        folder has is replaced only with `replace`. With `diff` it has only what has changed since the snapshot before,
        of a VM with `track_dirty_pages=True`. Raises `SnapshotError`.
        """
        flags = ["--diff"] if diff else []
        flags += ["--keep-paused"] if keep_paused else []
        flags += ["--replace"] if replace else []
        command = [programs.tesseractl(self._program), "snapshot", "--json", f"--timeout={timeout}", *flags, "--"]
        done = subprocess.run(
            [*command, self.client.path, os.fspath(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            check=False,
        )
        if done.returncode != 0:
            raise SnapshotError(done.stderr.strip() or f"tesseractl ended with status {done.returncode}")
        return json.loads(done.stdout)

    def balloon(self, target_mib: Optional[int] = None, *, reporting: Optional[bool] = None) -> Json:
        """The balloon, after the change that is asked for, if any."""
        change = {"amount_mib": target_mib, "free_page_reporting": reporting}
        change = {name: value for name, value in change.items() if value is not None}
        if change:
            self._patch("/balloon", change)
        return self._get("/balloon")

    # ---- events ----

    @property
    def history(self) -> List[Event]:
        """The events so far, also when the VM has ended."""
        return self._recorder.recorded()

    def events(self, timeout: Optional[float] = None) -> Iterator[Event]:
        """The events from the first one on, as they come, until the VM has ended.

        Raises `TimeoutError` if the next one takes longer than `timeout` seconds.
        """
        return self._recorder.iterate(timeout)

    def wait_for(self, name: str, timeout: float = 60.0, *, after: int = 0) -> Event:
        """The first event of this name whose number is higher than `after`.

        Raises `TimeoutError` if there is none in time, `Ended` if the VM has ended without it.
        """
        return self._await(name, after, time.monotonic() + timeout)

    # ---- in the guest ----

    def exec(
        self,
        *command: str,
        input: Optional[str] = None,
        timeout: float = 60.0,
        env: Optional[Mapping[str, str]] = None,
        cwd: Optional[str] = None,
        user: Optional[str] = None,
    ) -> Completed:
        """Runs a command in the guest, whose agent is waited for: status, stdout and stderr.

        Raises `GuestError` where it cannot be run, `subprocess.TimeoutExpired` after `timeout` seconds; the
        command is killed then.
        """
        try:
            return self._guest().exec(command, input=input, timeout=timeout, env=env, cwd=cwd, user=user)
        except subprocess.TimeoutExpired as error:
            error.cmd = list(command)
            raise

    def copy_in(self, source: "File", destination: str, timeout: float = 60.0) -> None:
        """Copies a file or a folder into the guest, by the rules of `cp -r`; `destination` is absolute."""
        self._guest().copy(local(source), f":{destination}", timeout)

    def copy_out(self, source: str, destination: "File", timeout: float = 60.0) -> None:
        """Copies a file or a folder out of the guest, by the rules of `cp -r`; `source` is absolute."""
        self._guest().copy(f":{source}", local(destination), timeout)

    # ---- inside ----

    def _take_image(self, image: Path) -> None:
        disk = self._process.folder / "disk"
        # Sparse, and shared with the original where the file system can.
        copy = ["cp", "--sparse=always", "--reflink=auto", "--", str(image / "debian.ext4"), str(disk)]
        subprocess.run(copy, check=True, stdin=subprocess.DEVNULL)
        others = self._options.get("disk", [])
        others = [others] if isinstance(others, str) else list(others)
        self._options.update(kernel=image / "Image", initrd=image / "initrd", disk=[str(disk), *others])
        self._options.setdefault("cmdline", "console=ttyS0 quiet root=/dev/vda")
        self._options.setdefault("memory", "1G")

    def _guest(self) -> Guest:
        return Guest(programs.tesseractl(self._program), Path(self.client.path))

    def _text(self, name: str) -> str:
        kept = self._kept.get(name)
        return self._process.text(name) if kept is None else kept

    def _wait_for_socket(self, deadline: float) -> None:
        while True:
            try:
                self.client.get("/")
                return
            except (FileNotFoundError, ConnectionError):
                if not self._process.alive:
                    raise self._has_ended() from None
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{self.id} does not serve its socket: {self.log.strip()}") from None
                time.sleep(_LOOK)

    def _await(self, name: str, after: int, deadline: float) -> Event:
        seq = after
        while True:
            try:
                event = self._recorder.after(seq, deadline)
            except TimeoutError:
                raise TimeoutError(f"{self.id}: no event '{name}' in time") from None
            if event is None:
                raise self._has_ended()
            if event.name == name:
                return event
            seq = event.seq

    def _has_ended(self) -> Ended:
        return Ended(self.id, self._process.status, self.log)

    def _get(self, path: str) -> Json:
        return self._ask("GET", path, None)

    def _put(self, path: str, body: Json) -> None:
        self._ask("PUT", path, body)

    def _patch(self, path: str, body: Json) -> None:
        self._ask("PATCH", path, body)

    def _ask(self, method: str, path: str, body: Optional[Json]) -> Json:
        try:
            return self.client.request(method, path, body)
        except (FileNotFoundError, ConnectionError) as error:
            # The connection closes before the process has ended.
            try:
                self.wait(_ENDING)
            except (TimeoutError, ValueError):
                raise error from None
            raise self._has_ended() from error


def _alive(process: Process) -> Any:
    return lambda: process.alive
