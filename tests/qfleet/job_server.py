"""An HTTP server that answers like Ray's job server, for clients and commands that a Ray would make slow to test."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import time

import ray

WEBSOCKET = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # the constant of RFC 6455
BUSY = "No available agent to submit job, please try again later."


class JobServerStub:
    """The jobs of a head node, of which none runs.

        with JobServerStub() as stub:
            stub.add("pong", qfleet_run="pong")
            JobServer(stub.url) ...

    ``busy``: so many submissions are answered as by a head node that has just started. ``lose_answer``: the connection
    breaks after a submission, which counts if ``accept``. ``stop_seconds``: from a stop to the end of the job.
    ``upload_seconds``: before an upload is read. ``holds``: seconds after which each connection to a log breaks; at the
    one after the last the job ends.
    """

    def __init__(self, busy=0, lose_answer=False, accept=True, stop_seconds=0.0, upload_seconds=0.0, holds=()):
        self.jobs, self.busy, self.lose_answer, self.accept = {}, busy, lose_answer, accept
        self.stop_seconds, self.upload_seconds, self.holds = stop_seconds, upload_seconds, list(holds)
        self.uploaded = 0  # bytes
        handler = type("Handler", (_Handler,), {"stub": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def add(self, job_id, status="RUNNING", entrypoint="true", **metadata):
        details = {"type": "SUBMISSION", "submission_id": job_id, "status": status, "entrypoint": entrypoint}
        self.jobs[job_id] = {**details, "metadata": metadata, "start_time": int(time.time() * 1000)}

    def end(self, job_id, status):
        self.jobs[job_id]["status"] = status

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    stub: JobServerStub

    def do_GET(self):
        parts = self.path.strip("/").split("/")[1:]
        if parts == ["version"]:
            self._answer({"version": "4", "ray_version": ray.__version__})
        elif parts == ["jobs"]:
            self._answer(list(self.stub.jobs.values()))
        elif parts[0] == "jobs" and parts[-1] == "tail":
            self._tail(parts[1])
        elif parts[0] == "jobs" and parts[-1] == "logs":
            self._answer({"logs": "a line\n"})
        elif parts[0] == "jobs" and parts[1] in self.stub.jobs:
            self._answer(self.stub.jobs[parts[1]])
        else:
            self._answer("not found", 404)

    def do_POST(self):
        parts, body = self.path.strip("/").split("/")[1:], self._body()
        if parts[-1] == "stop":
            threading.Timer(self.stub.stop_seconds, self.stub.end, [parts[1], "STOPPED"]).start()
            self._answer({"stopped": True})
        elif self.stub.busy:
            self.stub.busy -= 1
            self._answer(BUSY, 500)
        else:
            job = json.loads(body)
            if self.stub.accept:
                self.stub.add(job["submission_id"], entrypoint=job["entrypoint"], **job["metadata"])
            if not self.stub.lose_answer:
                self._answer({"job_id": job["submission_id"], "submission_id": job["submission_id"]})

    def do_PUT(self):
        time.sleep(self.stub.upload_seconds)
        self.stub.uploaded = len(self._body())
        self._answer({})

    def _tail(self, job_id):
        """Break the websocket, or end it with the end of the job."""
        accept = base64.b64encode(hashlib.sha1((self.headers["Sec-WebSocket-Key"] + WEBSOCKET).encode()).digest())
        self.wfile.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self.close_connection = True
        if self.stub.holds:
            time.sleep(self.stub.holds.pop(0))
        else:
            self.stub.end(job_id, "SUCCEEDED")
            self.wfile.write(b"\x88\x02\x03\xe8")  # a close frame with status 1000

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, body, status=200):
        text = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass
