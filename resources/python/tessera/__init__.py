"""Virtual machines of Tessera: started, watched and controlled."""

from .client import Client
from .errors import Ended, Fault, GuestError, NotFound, TesseraError
from .events import Event
from .guest import Completed
from .vm import Vm

__all__ = [
    "Client",
    "Completed",
    "Ended",
    "Event",
    "Fault",
    "GuestError",
    "NotFound",
    "TesseraError",
    "Vm",
]
