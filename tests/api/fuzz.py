#!/usr/bin/env python3
"""Holds the control socket's server to resources/openapi.yaml by generated requests, before the start and after it.

The server is the product's, over a hypervisor that is played (the test `serve` of vmm/src/run/start/tests.rs), so that
it runs on any machine. schemathesis makes the requests, right and wrong ones, and judges the answers; it and
openapi-spec-validator come from PyPI into target/api-fuzz. Needs Python 3.10 or later.

    tests/api/fuzz.py [REQUESTS]    at least so many in each of the two states (default 10000)
"""

import collections
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTION = ROOT / "resources/openapi.yaml"
TOOLS = ROOT / "target/api-fuzz"
PACKAGES = ["schemathesis==4.*", "openapi-spec-validator==0.9.*"]
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
#: It has no end while the VM runs; the tests of the server have it.
ENDLESS = "followEvents"
#: It would end the server: sent at the end.
STOP = b'"Stop"'
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def tools():
    """The programs of PACKAGES."""
    stamp = TOOLS / "packages"
    if not stamp.exists() or stamp.read_text() != " ".join(PACKAGES):
        venv.create(TOOLS, with_pip=True, clear=True)
        subprocess.run([TOOLS / "bin/pip", "install", "--quiet", *PACKAGES], check=True)
        stamp.write_text(" ".join(PACKAGES))
    return TOOLS / "bin"


class Server:
    """A VM that waits for its configuration."""

    def __init__(self, folder):
        self.folder = folder
        self.path = str(folder / "api")
        command = ["cargo", "test", "--quiet", "--package", "tessera", "--lib", "--no-run", "--message-format=json"]
        built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        messages = map(json.loads, built.stdout.splitlines())
        program = [message["executable"] for message in messages if message.get("executable")][-1]
        # Files that requests name without a folder are made in this one.
        self.process = subprocess.Popen(
            [program, "--ignored", "--exact", "--nocapture", "run::start::tests::serve"],
            cwd=folder,
            env={**os.environ, "TESSERA_SERVE": str(folder)},
        )
        while not os.path.exists(self.path):
            if self.process.poll() is not None:
                sys.exit("fuzz: the server did not start")
            time.sleep(0.01)

    def put(self, path, body):
        """Sends a request that is right."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(self.path)
            body = json.dumps(body)
            head = f"PUT {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall((head + body).encode())
            answer = client.recv(1 << 16)
        if not answer.startswith(b"HTTP/1.1 204"):
            sys.exit(f"fuzz: PUT {path}: {answer.decode()}")


class Relay:
    """A TCP port of this machine that leads to the socket, and counts the answers by status.

    A request that would stop the server gets an answer here.
    """

    def __init__(self, path):
        self.path = path
        self.counts = collections.Counter()
        self.stops = 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.relay, args=(client,), daemon=True).start()

    def relay(self, client):
        server = socket.socket(socket.AF_UNIX)
        server.connect(self.path)
        threading.Thread(target=self.back, args=(server, client), daemon=True).start()
        while data := received(client):
            # The client sends each request's head and body in one go or two, one request after the other.
            if STOP in data and b"action_type" in data:
                self.stops += 1
                data = data.replace(STOP, b'"Step"')
            server.sendall(data)
        shut(server)

    def back(self, server, client):
        while data := received(server):
            with self.lock:
                self.counts.update(STATUS.findall(data))
            try:
                client.sendall(data)
            except OSError:
                break
        shut(client)
        server.close()


def received(stream):
    try:
        return stream.recv(1 << 16)
    except OSError:
        return b""


def shut(stream):
    try:
        stream.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def fuzz(programs, relay, wanted):
    """Requests, until there are so many; whether each answer was as described."""
    relay.counts.clear()
    right, seed = True, 1
    while sum(relay.counts.values()) < wanted and right:
        command = [programs / "schemathesis", "run", DESCRIPTION, f"--url={relay.url}", "--mode=all"]
        command += [f"--checks={','.join(CHECKS)}", f"--exclude-operation-id={ENDLESS}", f"--seed={seed}"]
        command += ["--max-examples=300", "--phases=examples,coverage,fuzzing", "--continue-on-failure"]
        command += ["--suppress-health-check=all", "--no-color", "--generation-database=none"]
        right = subprocess.run(command, cwd=ROOT / "target").returncode == 0
        seed += 1
    return right


def hold(programs, folder, started, wanted):
    """Requests to a VM of one state; whether all was as described."""
    folder.mkdir()
    server = Server(folder)
    try:
        # Without a kernel every generated start is refused, and the VM stays in its state.
        if started:
            server.put("/boot-source", {"kernel_image_path": str(folder / "kernel")})
            server.put("/machine-config", {"vcpu_count": 1, "mem_size_mib": 64})
            server.put("/serial", {"target": "none"})
            server.put("/actions", {"action_type": "InstanceStart"})
        relay = Relay(server.path)
        right = fuzz(programs, relay, wanted)
        counts = {status.decode(): count for status, count in sorted(relay.counts.items())}
        print(f"fuzz: {folder.name}: {sum(counts.values())} answers, by status {counts}", flush=True)
        server.put("/actions", {"action_type": "Stop"})
        return server.process.wait(30) == 0 and right
    finally:
        server.process.kill()


def main():
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 10000
    programs = tools()
    subprocess.run([programs / "openapi-spec-validator", DESCRIPTION], check=True)
    with tempfile.TemporaryDirectory(prefix="api-fuzz-") as folder:
        states = {"before the start": False, "after the start": True}
        right = [hold(programs, Path(folder) / state, started, wanted) for state, started in states.items()]
    if not all(right):
        sys.exit("fuzz: not every answer is as described")
    print("fuzz: every answer is as described")


if __name__ == "__main__":
    main()
