"""An S3 server (moto) in a process of its own, behind a relay that a test can take down."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request


class Relay:
    """Forwards TCP connections on its ``port`` to ``target`` on this machine.

    `down` cuts all connections and refuses new ones, `hang` accepts them and forwards nothing, `up` ends both.
    """

    def __init__(self, target):
        self._target, self._open, self._hangs = target, [], False
        self._listener, self.port = None, 0
        self.up()

    def up(self):
        self.down()
        self._hangs = False
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self):
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self._cut()

    def hang(self):
        self._hangs = True
        self._cut()

    def _cut(self):
        while self._open:
            end = self._open.pop()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._open.append(client)
                if not self._hangs:
                    server = socket.create_connection(("127.0.0.1", self._target))
                    self._open.append(server)
                    for ends in ((client, server), (server, client)):
                        threading.Thread(target=self._copy, args=ends, daemon=True).start()

    @staticmethod
    def _copy(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def unused_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@contextlib.contextmanager
def s3_server(log):
    """The `Relay` before a server that has the bucket `bucket`; ``log`` is the path for its output."""
    port = unused_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "PYTHONSAFEPATH": "1"})
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                request(port, "/bucket", "PUT")
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, "the S3 server did not start within 60 s"
                time.sleep(0.2)
        relay = Relay(port)
        relay.server_port = port
        yield relay
        relay.down()
    finally:
        server.kill()
        server.wait()


def request(port, path, method, data=None):
    """Send a request to the server itself, not through its relay."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "text/plain"}, method=method
    )
    with urllib.request.urlopen(asked, timeout=10) as answer:
        return answer.read()
