"""Virtual machines of Tessera: started, watched and controlled."""

from .client import Client
from .errors import Ended, Fault, GuestError, NotFound, SnapshotError, TesseraError
from .events import Event
from .guest import Completed
from .template import Template
from .vm import Vm

__all__ = [
    "Client",
    "Completed",
    "Ended",
    "Event",
    "Fault",
    "GuestError",
    "NotFound",
    "SnapshotError",
    "Template",
    "TesseraError",
    "Vm",
]
