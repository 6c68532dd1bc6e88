"""What can go wrong."""

from __future__ import annotations

from typing import Optional


class TesseraError(Exception):
    """Any error of this package."""


class NotFound(TesseraError):
    """A program is not on this machine."""


class Fault(TesseraError):
    """The VMM has refused a request or failed at it.

    `status` is that of HTTP: 400 where the caller can mend it, 500 where the VMM or its host failed, 503 where
    the same request may succeed later. `message` says what to do.
    """

    def __init__(self, status: int, message: str, request: str) -> None:
        super().__init__(f"{request}: {status}: {message}")
        self.status = status
        self.message = message
        self.request = request


class Ended(TesseraError):
    """The VM has ended while something was asked of it.

    `status` is the exit status of its process, negative for a signal, and `log` the end of its messages.
    """

    def __init__(self, name: str, status: Optional[int], log: str) -> None:
        text = f"{name} has ended with status {status}"
        super().__init__(f"{text}: {log.strip()}" if log.strip() else text)
        self.status = status
        self.log = log


class GuestError(TesseraError):
    """A command could not be run in the guest, or a file not be copied."""


class SnapshotError(TesseraError):
    """A VM could not be saved. It does what it did before, unless the message says otherwise."""
