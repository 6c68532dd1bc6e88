"""Commands and files in a guest, by way of `tesseractl` and the guest's agent."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import List, Mapping, Optional, Sequence, Union

from .errors import GuestError

#: Exit status of `tesseractl` where it failed itself (env(1)).
_FAILED = 125
_OWN_MESSAGE = "tesseractl: "


class Completed(subprocess.CompletedProcess):  # type: ignore[type-arg]
    """A command that has ended: `status` (`returncode`), `stdout`, `stderr`, `args`."""

    @property
    def status(self) -> int:
        """The exit status of the command, or 128 and the number of the signal that ended it."""
        return int(self.returncode)

    def check(self) -> "Completed":
        """Raises `subprocess.CalledProcessError` unless the status is 0."""
        self.check_returncode()
        return self


class Guest:
    """The guest behind a control socket."""

    def __init__(self, tesseractl: str, socket: Path) -> None:
        self._tesseractl = tesseractl
        self._socket = str(socket)

    def exec(
        self,
        command: Sequence[str],
        *,
        input: Optional[str],
        timeout: float,
        env: Optional[Mapping[str, str]],
        cwd: Optional[str],
        user: Optional[str],
    ) -> Completed:
        """Runs a command; the agent is waited for as long as the command may take."""
        words = ["exec", self._socket, f"--timeout={timeout}", "--die-with-client"]
        words += [f"--env={name}={value}" for name, value in (env or {}).items()]
        words += [f"--cwd={cwd}"] if cwd is not None else []
        words += [f"--user={user}"] if user is not None else []
        done = self._run([*words, "--", *command], input, timeout)
        if done.returncode == _FAILED and done.stderr.startswith(_OWN_MESSAGE):
            raise GuestError(done.stderr[len(_OWN_MESSAGE) :].strip())
        return Completed(list(command), done.returncode, done.stdout, done.stderr)

    def copy(self, source: str, destination: str, timeout: float) -> None:
        """Copies a file or a folder; `:/PATH` is the guest's."""
        done = self._run(["cp", self._socket, f"--timeout={timeout}", source, destination], None, timeout)
        if done.returncode != 0:
            message = done.stderr.strip() or f"status {done.returncode}"
            raise GuestError(f"copy of {source} to {destination}: {message}")

    def _run(
        self, words: List[str], input: Optional[str], timeout: float
    ) -> "subprocess.CompletedProcess[str]":
        # Without an input the command reads an empty one, never that of this process.
        given = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        return subprocess.run(
            [self._tesseractl, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=timeout,
            check=False,
            **given,
        )


def local(path: Union[str, "os.PathLike[str]"]) -> str:
    """A path of this machine, that is not taken for one of the guest, an option or standard input."""
    text = os.fspath(path)
    return f"./{text}" if text.startswith((":", "-")) else text
