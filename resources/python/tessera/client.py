"""A client of the control socket: HTTP over a Unix socket. `resources/openapi.yaml` describes what it serves."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Mapping, Optional, Union

from .errors import Fault

#: A body as it is sent and received.
Json = Any


class _UnixConnection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str, timeout: Optional[float]) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        self.sock = connection


class Stream:
    """An answer of lines that come as they happen."""

    def __init__(self, connection: _UnixConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response

    def readline(self) -> bytes:
        """The next line; empty at the end."""
        return self._response.readline()

    def close(self) -> None:
        """Ends the connection."""
        self._response.close()
        self._connection.close()


class Client:
    """The control socket of one VM.

    Each request has a connection of its own, so that any thread may use a client, and an idle one takes none of
    the few connections that a VM serves. An answer with an error status raises `Fault`; no answer within
    `timeout` seconds raises `TimeoutError`, and a VM that is not there another `OSError`.
    """

    def __init__(self, path: Union[str, Path], timeout: Optional[float] = 30.0) -> None:
        self.path = str(path)
        self.timeout = timeout

    def get(self, path: str) -> Json:
        """The body of an answer to GET."""
        return self.request("GET", path)

    def put(self, path: str, body: Json) -> None:
        """Sends a section or an action."""
        self.request("PUT", path, body)

    def patch(self, path: str, body: Json) -> None:
        """Sends a change."""
        self.request("PATCH", path, body)

    def text(self, path: str) -> str:
        """The same as `get` in text, where it is served so: `/metrics` in Prometheus's format."""
        content = self._exchange("GET", path, None, {"Accept": "text/plain"})
        return content.decode("utf-8", "replace")

    def request(self, method: str, path: str, body: Optional[Json] = None) -> Json:
        """Any request; the decoded body of its answer, or `None` for an answer without one."""
        data = None if body is None else json.dumps(body).encode()
        content = self._exchange(method, path, data, {"Accept": "application/json"})
        return json.loads(content) if content else None

    def follow(self, path: str = "/events") -> Stream:
        """The lines of an answer that ends with the VM."""
        connection = _UnixConnection(self.path, self.timeout)
        try:
            connection.request("GET", path)
            # The next line may take any time: only the answer's beginning is waited for.
            response = connection.getresponse()
            if response.status != 200:
                raise _fault(f"GET {path}", response.status, response.read())
            if connection.sock is not None:
                connection.sock.settimeout(None)
            return Stream(connection, response)
        except BaseException:
            connection.close()
            raise

    def _exchange(self, method: str, path: str, data: Optional[bytes], headers: Mapping[str, str]) -> bytes:
        connection = _UnixConnection(self.path, self.timeout)
        try:
            connection.request(method, path, body=data, headers=dict(headers))
            response = connection.getresponse()
            content = response.read()
        except http.client.HTTPException as error:
            # The connection has ended, or carried something else than an answer.
            raise ConnectionError(f"{method} {path}: no answer: {error!r}") from error
        finally:
            connection.close()
        if response.status >= 300:
            raise _fault(f"{method} {path}", response.status, content)
        return content


def _fault(request: str, status: int, content: bytes) -> Fault:
    try:
        message = str(json.loads(content)["fault_message"])
    except (ValueError, KeyError, TypeError):
        message = content.decode("utf-8", "replace")
    return Fault(status, message, request)
