"""A process that plays `tessera run`, and `tessera template`: its control socket, its events, its exit statuses; no guest.

Words of the guest's command line say how it behaves: see `behaves`.
"""

import argparse
import json
import os
import queue
import signal
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler

STOPPED = 12
REFUSED = 69


class FakeVm:
    def __init__(self, options):
        self.options = options
        self.state = "Not started"
        self.lines = []
        self.readers = []
        self.lock = threading.Lock()
        self.requests = []

    def behaves(self, word):
        return word in (self.options.cmdline or "").split()

    def publish(self, event, **members):
        with self.lock:
            seq = len(self.lines) + 1
            # A loss, as a slow reader sees it.
            seq += 10 if self.behaves("gap") and seq > 2 else 0
            line = json.dumps({"seq": seq, "time": "2026-01-01T00:00:00.000Z", "event": event, **members})
            self.lines.append(line)
            for reader in self.readers:
                reader.put(line)

    def follow(self):
        reader = queue.Queue()
        with self.lock:
            for line in self.lines:
                reader.put(line)
            self.readers.append(reader)
        return reader

    def start(self):
        self.state = "Running"
        self.publish("started")
        target = self.options.serial or ""
        if target.startswith("file:"):
            with open(target[len("file:") :], "w") as console:
                console.write(f"booted with {self.options.cmdline}\n")

    def end(self, status, reason):
        self.publish("ended", status=status, reason=reason)
        with self.lock:
            for reader in self.readers:
                reader.put(None)
        os.unlink(self.options.api_sock)
        # The readers' threads have the last line on its way once their queues are empty.
        for reader in list(self.readers):
            reader.join()
        os._exit(status)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def address_string(self):
        return "client"

    def do_GET(self):
        vm = self.server.vm
        if self.path == "/events":
            return self.stream(vm.follow())
        if self.path == "/metrics" and self.headers["Accept"] == "text/plain":
            return self.answer(200, b"tessera_up 1\n")
        if self.path == "/hang":
            threading.Event().wait()
        if self.path == "/drop":
            self.close_connection = True
            return None
        if self.path == "/text":
            return self.answer(500, b"not JSON")
        bodies = {
            "/": {"id": vm.options.id, "state": vm.state},
            "/vm/config": {"flags": sys.argv[1:]},
            "/metrics": {"vcpus": {"exits_total": 1}},
            "/footprint": {"guest_bytes": 1},
            "/tag-storage": {"mode": "off"},
            "/balloon": {"amount_mib": 0},
            "/requests": vm.requests,
        }
        if self.path not in bodies:
            return self.fault(400, f"nothing is served at {self.path}")
        return self.json(200, bodies[self.path])

    def do_PUT(self):
        vm, body = self.server.vm, self.body()
        action = body.get("action_type")
        if vm.behaves("broken"):
            return self.fault(500, "the host has none left")
        if action == "InstanceStart":
            vm.start()
        elif action == "SendCtrlAltDel" and vm.behaves("deaf"):
            return self.fault(400, "the guest does not listen")
        self.empty()
        if action == "SendCtrlAltDel":
            vm.end(0, "power_off")
        if action == "Stop":
            vm.end(STOPPED, "stopped")
        return None

    def do_PATCH(self):
        vm, body = self.server.vm, self.body()
        if "state" in body:
            vm.state = {"Paused": "Paused", "Resumed": "Running"}[body["state"]]
            vm.publish(body["state"].lower())
        self.empty()

    def body(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(content)
        self.server.vm.requests.append([self.command, self.path, body])
        return body

    def stream(self, reader):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while True:
            line = reader.get()
            try:
                if line is None:
                    return
                self.wfile.write(line.encode() + b"\n")
                self.wfile.flush()
                if self.server.vm.behaves("forgetful") and reader.empty():
                    # As one that makes room for another client.
                    return
            finally:
                reader.task_done()

    def json(self, status, body):
        self.answer(status, json.dumps(body).encode())

    def fault(self, status, message):
        self.json(status, {"fault_message": message})

    def empty(self):
        self.send_response(204)
        self.end_headers()

    def answer(self, status, content):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        pass


def hold(words):
    """Plays `tessera template`: of the folder /none there is nothing to hold, and /slow is never read."""
    if "/none" in words:
        print("tessera: there is no snapshot in /none", file=sys.stderr)
        sys.exit(66)
    print(f"tessera: {' '.join(words)}", file=sys.stderr, flush=True)
    if "/slow" not in words:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
    threading.Event().wait()


def main():
    if sys.argv[1] == "template":
        hold(sys.argv[1:])
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run"])
    for flag in ("--api-sock", "--id", "--kernel", "--initrd", "--cmdline", "--serial", "--memory", "--vsock"):
        parser.add_argument(flag)
    parser.add_argument("--restore")
    for flag in ("--rng", "--lazy", "--shared", "--paused"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--disk", action="append")
    vm = FakeVm(parser.parse_args())
    if vm.behaves("refused"):
        print("tessera: the host has no KVM", file=sys.stderr)
        sys.exit(REFUSED)
    if vm.behaves("mute"):
        threading.Event().wait()
    if vm.behaves("stuck"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    server = Server(vm.options.api_sock, Handler)
    server.vm = vm
    if vm.options.restore:
        vm.publish("restored")
        vm.state = "Paused"
    if vm.options.kernel or (vm.options.restore and not vm.options.paused):
        vm.start()
    print("tessera: a message", file=sys.stderr, flush=True)
    if vm.behaves("reset"):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        vm.end(10, "reset")
    server.serve_forever()


main()
