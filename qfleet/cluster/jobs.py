"""Runs as jobs of a Ray cluster: submits, follows and stops them through the job server of its head node."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import ray
import requests
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from qfleet.cluster.faults import first_line, last_line
from qfleet.cluster.head import Tunnel
from rl.errors import BadInput, RunFault

CONNECT_TIMEOUT = 30.0  # seconds until the job server must have answered for the first time, with ssh before it
DIRECT_TIMEOUT = 10.0  # the same without ssh
RECONNECT_TIMEOUT = 60.0  # seconds for which a server that no longer answers is tried again
RETRY_PAUSE = 2.0  # seconds between two tries of ssh
REQUEST_TIMEOUT = 15.0  # seconds for a request; Ray's own client waits for ever
QUIET = 10.0  # seconds without a line of the log after which the server is asked whether it still answers
STOP_WAIT = 120  # seconds that a stopped job has for its last checkpoint before Ray kills it (Ray's default: 3)
# Modules of Ray that log which files are uploaded.
NOISY = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
    "_private.runtime_env.working_dir",
)
RUN, DIRECTORY = "qfleet_run", "qfleet_directory"  # keys of a job's metadata
T = TypeVar("T")


class Unreachable(RunFault):
    """The job server does not answer."""


@dataclass(frozen=True)
class Job:
    """A job of the cluster: a run from its start or a resume to its end."""

    id: str
    run: str
    """The run's name."""
    directory: str
    """The run's directory, relative to the checkout on the head node, or its URL."""
    state: JobStatus
    started: float
    """Unix time."""
    exit_code: int | None
    message: str

    @property
    def has_ended(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self.state.is_terminal()

    def exit_status(self) -> int:
        """The exit status of a job that has ended: its command's, and 143 when it was stopped.

        Raises RunFault if it ended without one: its node died, or it could not be started.
        """
        if self.state == JobStatus.STOPPED:
            return 143
        if self.state == JobStatus.SUCCEEDED:
            return 0
        if self.exit_code is None:
            raise RunFault(f"job {self.id} has failed: {last_line(RuntimeError(self.message))}")
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


class JobServer:
    """The job server of a cluster, at the URL ``jobs`` or, through ssh, of the `ray up` file ``cluster``.

    with JobServer(cluster="deploy/aws.yaml") as server:
        server.submit("pong", "cd ~/qfleet && exec .venv/bin/qfleet train ...", {RUN: "pong"}, {})
        status = server.follow("pong", print).exit_status()

    Entering raises BadInput if no job server answers there, if it is that of another version of Ray, or if it rejects
    this machine's token. A later method raises Unreachable if the server does not answer.
    """

    def __init__(self, jobs: str | None = None, cluster: str | None = None) -> None:
        self.where = f"the cluster of {cluster}" if cluster else str(jobs)
        self._tunnel = Tunnel(cluster) if cluster else None
        self._url = jobs or ""
        self._client: _Client | None = None

    def __enter__(self) -> JobServer:
        try:
            self._connect(CONNECT_TIMEOUT if self._tunnel else DIRECT_TIMEOUT)
        except Unreachable as error:
            self.close()
            raise BadInput(str(error)) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the tunnel, if there is one."""
        if self._tunnel is not None:
            self._tunnel.close()

    def _connect(self, timeout: float) -> None:
        """Connect, through a new tunnel if there was none or it is broken; tries again for ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        if self._tunnel is not None:
            self._tunnel.start()
        while True:
            try:
                self._client = _Client.connect(self._tunnel.url if self._tunnel else self._url, self.where)
                return
            except Unreachable as error:
                why = self._tunnel.why_ended() if self._tunnel else None
                if why is not None:
                    raise Unreachable(f"{self.where} cannot be reached: {why}") from error
                if time.monotonic() >= deadline:
                    hint = "is it up, and is the way to its port 8265 open?" if self._tunnel else "write the URL of one"
                    raise Unreachable(f"{self.where}: no job server answers within {timeout:g} s: {hint}") from error
            time.sleep(0.3)

    def _reconnect(self, timeout: float) -> None:
        """Connect again; an ssh that ends at once, as without a network, is started again for ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._connect(max(1.0, deadline - time.monotonic()))
            except Unreachable:
                if time.monotonic() + RETRY_PAUSE >= deadline:
                    raise
            time.sleep(RETRY_PAUSE)

    def _ask(self, question: Callable[[_Client], T]) -> T:
        """The client's answer. Raises Unreachable, or RunFault with the server's reason."""
        assert self._client is not None, "used outside `with`"
        try:
            return question(self._client)
        except (requests.RequestException, OSError) as error:
            raise Unreachable(f"{self.where} does not answer") from error
        except RuntimeError as error:
            # A 500 that does not contain the 400 of another server: the node or Ray's control is gone.
            kind = Unreachable if "code 50" in str(error) and "code 40" not in str(error) else RunFault
            said = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
            raise kind(f"{self.where} says: {said[-1] if said else 'an error'}") from error

    def submit(self, job_id: str, entrypoint: str, metadata: Mapping[str, str], upload: Mapping[str, Any]) -> None:
        """Submit the shell command ``entrypoint`` as a job; ``upload`` is its working_dir and excludes, or empty.

        Raises BadInput if the id is taken.
        """
        env = {**upload, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT)}}
        try:
            self._ask(
                lambda client: client.submit_job(
                    entrypoint=entrypoint, submission_id=job_id, metadata=dict(metadata), runtime_env=env
                )
            )
        except RunFault as error:
            if "already exists" in str(error):
                raise BadInput(f"a job {job_id} exists: write another --name") from error
            raise

    def runs(self) -> list[Job]:
        """All jobs that are runs, oldest first."""
        found = [_job(d) for d in self._ask(lambda client: client.list_jobs()) if RUN in (d.metadata or {})]
        return sorted(found, key=lambda job: job.started)

    def ids(self) -> set[str]:
        """The ids of all jobs."""
        return {d.submission_id for d in self._ask(lambda client: client.list_jobs()) if d.submission_id}

    def job(self, job_id: str) -> Job:
        """The job's present state."""
        return _job(self._ask(lambda client: client.get_job_info(job_id)))

    def log(self, job_id: str) -> str:
        """What the job has printed so far."""
        return _Log(job_id).feed(self._ask(lambda client: client.get_job_logs(job_id)))

    def stop(self, job_id: str) -> None:
        """Send SIGTERM to the job, which then has STOP_WAIT seconds."""
        self._ask(lambda client: client.stop_job(job_id))

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended from the server's list."""
        self._ask(lambda client: client.delete_job(job_id))

    def await_end(self, job_id: str, timeout: float) -> Job:
        """Wait until the job has ended. Raises RunFault after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while not (job := self.job(job_id)).has_ended:
            if time.monotonic() > deadline:
                raise RunFault(f"job {job_id} has not ended within {timeout:g} s: look at `ray job logs {job_id}`")
            time.sleep(0.5)
        return job

    def follow(self, job_id: str, write: Callable[[str], object]) -> Job:
        """Write the job's output, from its start on, until it has ended; returns it.

        A connection that breaks, or a server that is silent for QUIET + REQUEST_TIMEOUT seconds, is tried again for
        RECONNECT_TIMEOUT seconds. Raises Unreachable after that.
        """
        log = _Log(job_id)
        broken_since = math.inf
        while True:
            before = log.written
            try:
                asyncio.run(self._stream(job_id, log, write))
                job = self.job(job_id)
                if job.has_ended:
                    return job
            except Unreachable:
                now = time.monotonic()
                broken_since = now if log.written > before else min(broken_since, now)
                if (left := RECONNECT_TIMEOUT - (now - broken_since)) <= 0:
                    raise
                self._reconnect(left)
            log.restart()
            time.sleep(1.0)

    async def _stream(self, job_id: str, log: _Log, write: Callable[[str], object]) -> None:
        """Write the log until the server closes the stream. Raises Unreachable if the connection breaks."""
        assert self._client is not None
        chunks = self._client.tail_job_logs(job_id)
        try:
            while True:
                following = asyncio.ensure_future(anext(chunks))
                try:
                    while not (await asyncio.wait({following}, timeout=QUIET))[0]:
                        await asyncio.to_thread(self.job, job_id)  # raises Unreachable
                    write(log.feed(following.result()))
                finally:
                    following.cancel()
                    await asyncio.wait({following})
        except StopAsyncIteration:
            return
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise Unreachable(str(error)) from error
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]  # it is an async generator


class _Client(JobSubmissionClient):
    """Ray's client with a deadline for each request, and this machine's token."""

    @classmethod
    def connect(cls, url: str, where: str) -> _Client:
        """Connect to the server at ``url``. Raises Unreachable if none answers; BadInput if it refuses this client."""
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would go there instead of to `url`
            os.environ.pop(name, None)
        for module in NOISY:
            logging.getLogger(f"ray.{module}").setLevel(logging.ERROR)
        token = AuthenticationTokenLoader.instance()
        has_token = token.has_token(ignore_auth_mode=True)
        try:
            client = cls(url, headers=dict(token.get_token_for_http_header()) if has_token else {})
        except AuthenticationError as error:
            wanted = "copy ~/.ray/auth_token of the head node to the same path here"
            says = (
                "rejects Ray's token of this machine" if has_token else "asks for Ray's token, and there is none here"
            )
            raise BadInput(f"{where} {says}: {wanted}") from error
        except (RuntimeError, ValueError, KeyError, TypeError) as error:  # ValueError: the answer is no JSON
            raise BadInput(f"{where} is no job server of Ray ({first_line(error)}): write the URL of one") from error
        except (requests.RequestException, OSError) as error:
            raise Unreachable(last_line(error)) from error
        if client._server_ray_version != ray.__version__:
            raise BadInput(
                f"{where} runs Ray {client._server_ray_version}, and here is Ray {ray.__version__}: install the same version"
            )
        return client

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:
        return super()._do_request(method, endpoint, **{"timeout": REQUEST_TIMEOUT, **kwargs})


class _Log:
    """The output of a job, without the lines that Ray writes into it (at its start, but not always before all others)."""

    def __init__(self, job_id: str) -> None:
        line = rf"Running entrypoint for job {re.escape(job_id)}: |\d{{4}}-\d\d-\d\d \S+\s+\w+ job_manager\.py:\d+ -- "
        self._of_ray = re.compile(rf"^(?:{line}).*\n", re.MULTILINE)
        self.written = 0  # characters
        self._skip = 0

    def restart(self) -> None:
        """The text will come from its start again; what was written is skipped."""
        self._skip = self.written

    def feed(self, text: str) -> str:
        """The part of the next whole lines ``text`` that is new."""
        text = self._of_ray.sub("", text)
        new = text[self._skip :]
        self._skip = max(0, self._skip - len(text))
        self.written += len(new)
        return new


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id or "",
        run=metadata.get(RUN, ""),
        directory=metadata.get(DIRECTORY, ""),
        state=JobStatus(details.status),
        started=(details.start_time or 0) / 1000.0,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def free_id(name: str, taken: Set[str]) -> str:
    """The id of the next job of the run ``name``: the name, or with -2, -3, ... what is not ``taken``."""
    number = 1
    while (job_id := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return job_id
