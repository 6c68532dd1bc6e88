"""What happens to a VM, recorded by a thread, for any number of readers."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional

from .client import Client, Stream
from .errors import Fault

#: Events that are kept. A guest can cause some of them again and again.
_MOST = 4096


class Event(Dict[str, Any]):
    """An event: the object of the stream's line, whose common members have names here."""

    @property
    def name(self) -> str:
        """What happened: `started`, `paused`, ..., `ended`."""
        return str(self.get("event", ""))

    @property
    def seq(self) -> int:
        """Its number, one more than that of the event before; a gap means that events were lost."""
        return int(self.get("seq", 0))

    @property
    def time(self) -> str:
        """When, as RFC 3339 has it."""
        return str(self.get("time", ""))


class Recorder:
    """Follows the events of one VM until it ends."""

    def __init__(self, client: Client, alive: Callable[[], bool]) -> None:
        self._client = client
        self._alive = alive
        self._events: Deque[Event] = deque(maxlen=_MOST)
        self._changed = threading.Condition()
        self._over = False
        self._stream: Optional[Stream] = None
        self._thread = threading.Thread(target=self._run, name="tessera-events", daemon=True)

    def start(self) -> None:
        """Begins to follow."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Waits for the last event of a VM that has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def recorded(self) -> List[Event]:
        """The events so far."""
        with self._changed:
            return list(self._events)

    def after(self, seq: int, deadline: Optional[float]) -> Optional[Event]:
        """The first event with a higher number; `None` if the VM has ended without another one.

        Raises `TimeoutError` if there is none by then, on the monotonic clock.
        """
        with self._changed:
            while True:
                for event in self._events:
                    if event.seq > seq:
                        return event
                if self._over:
                    return None
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("no event in time")
                self._changed.wait(left)

    def iterate(self, timeout: Optional[float]) -> Iterator[Event]:
        """All events from the first one on; `TimeoutError` if the next one takes longer."""
        seq = 0
        while True:
            deadline = None if timeout is None else time.monotonic() + timeout
            event = self.after(seq, deadline)
            if event is None:
                return
            seq = event.seq
            yield event

    def _run(self) -> None:
        try:
            while self._alive():
                try:
                    self._follow()
                except (OSError, ValueError, Fault):
                    # The connection made room for another client, or the VM is about to end.
                    time.sleep(0.05)
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _follow(self) -> None:
        stream = self._client.follow()
        try:
            while True:
                line = stream.readline()
                if not line.endswith(b"\n"):
                    return
                self._append(Event(json.loads(line)))
        finally:
            stream.close()

    def _append(self, event: Event) -> None:
        with self._changed:
            # A new connection begins with what is kept.
            if not self._events or event.seq > self._events[-1].seq:
                self._events.append(event)
                self._changed.notify_all()
