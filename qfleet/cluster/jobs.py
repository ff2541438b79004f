"""Runs as jobs of a Ray cluster: submits, follows and stops them through the job server of its head node."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import requests
from ray.job_submission import JobDetails, JobStatus

from qfleet.cluster.faults import last_line
from qfleet.cluster.head import Tunnel
from qfleet.cluster.job_client import Client, NoJobServer
from rl.errors import BadInput, RunFault

# Seconds until the job server must have answered for the first time. ssh, which is before it, needs 20 s to notice that a
# connection which it kept open from the last command is dead.
CONNECT_TIMEOUT = 60.0
DIRECT_TIMEOUT = 10.0  # the same without ssh
HERE = "http://127.0.0.1:8265"  # the job server of this machine, if it is a head node
RECONNECT_TIMEOUT = 60.0  # seconds for which a server that no longer answers is tried again
RETRY_PAUSE = 2.0  # seconds between two tries of ssh
FOLLOW_PAUSE = 1.0  # seconds before the log is read again
QUIET = 10.0  # seconds without a line of the log after which the server is asked whether it still answers
AGENT_TIMEOUT = 60.0  # seconds for which a head node that has just started may not yet accept jobs
# Seconds that a stopped job has before Ray kills it (Ray's default: 3). Its last checkpoint may have to wait 180 s for
# the parts of a run, and its last upload 120 s for a URL.
STOP_WAIT = 300
RUN, DIRECTORY = "qfleet_run", "qfleet_directory"  # keys of a job's metadata
NO_AGENT = "No available agent"  # what Ray says while no node can start a job
T = TypeVar("T")


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
    """The job server of a cluster, at the URL ``jobs`` or, through ssh, of the `ray up` file ``cluster``; else HERE.

    with JobServer(cluster="deploy/aws.yaml") as server:
        server.submit("pong", "cd ~/qfleet && exec .venv/bin/qfleet train ...", {RUN: "pong"}, {})
        status = server.follow("pong", print).exit_status()

    Entering raises BadInput if no job server answers there, if it is that of another version of Ray, or if it rejects
    this machine's token. A later method raises NoJobServer if the server does not answer.
    """

    def __init__(self, jobs: str | None = None, cluster: str | None = None) -> None:
        self._is_named = bool(jobs or cluster)
        self._url = jobs or HERE
        self.where = f"the cluster of {cluster}" if cluster else self._url
        self._tunnel = Tunnel(cluster) if cluster else None
        self._client: Client | None = None

    def __enter__(self) -> JobServer:
        timeout = CONNECT_TIMEOUT if self._tunnel else DIRECT_TIMEOUT
        unnamed = (
            f"no cluster was named, and no job server answers at {self._url}: write --cluster with the file of `ray up`, or "
            "--jobs with a URL"
        )
        try:
            self._connect(timeout if self._is_named else 0.0)
        except NoJobServer as error:
            self.close()
            raise BadInput(str(error) if self._is_named else unnamed) from error
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
                self._client = Client.connect(self._tunnel.url if self._tunnel else self._url, self.where)
                return
            except NoJobServer as error:
                why = self._tunnel.why_ended() if self._tunnel else None
                if why is not None:
                    raise NoJobServer(f"{self.where} cannot be reached: {why}") from error
                if time.monotonic() >= deadline:
                    hint = "is it up, and is the way to its port 8265 open?" if self._tunnel else "write the URL of one"
                    raise NoJobServer(f"{self.where}: no job server answers within {timeout:g} s: {hint}") from error
            time.sleep(0.3)

    def _reconnect(self, timeout: float) -> None:
        """Connect again; an ssh that ends at once, as without a network, is started again for ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._connect(max(1.0, deadline - time.monotonic()))
            except NoJobServer:
                if time.monotonic() + RETRY_PAUSE >= deadline:
                    raise
            time.sleep(RETRY_PAUSE)

    def _ask(self, question: Callable[[Client], T]) -> T:
        """The client's answer. Raises NoJobServer, or RunFault with the server's reason."""
        assert self._client is not None, "used outside `with`"
        try:
            return question(self._client)
        except (requests.RequestException, OSError) as error:
            raise NoJobServer(f"{self.where} does not answer") from error
        except RuntimeError as error:
            # A 500 that does not contain the 400 of another server: the node or Ray's control is gone.
            kind = NoJobServer if "code 50" in str(error) and "code 40" not in str(error) else RunFault
            said = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
            raise kind(f"{self.where} says: {said[-1] if said else 'an error'}") from error

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        metadata: Mapping[str, str],
        upload: Mapping[str, Any],
        note: Callable[[str], object] = lambda line: None,
    ) -> None:
        """Submit the shell command ``entrypoint`` as a job; ``upload`` is its working_dir and excludes, or empty.

        A head node that has just started is tried again for AGENT_TIMEOUT seconds, about which ``note`` gets a line.
        Raises BadInput if the id is taken; NoJobServer if there was no answer: the job may nevertheless start.
        """
        env = {**upload, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT)}}
        deadline, is_noted = time.monotonic() + AGENT_TIMEOUT, False
        while True:
            try:
                self._ask(
                    lambda client: client.submit_job(
                        entrypoint=entrypoint, submission_id=job_id, metadata=dict(metadata), runtime_env=env
                    )
                )
                return
            except RunFault as error:
                if "already exists" in str(error):
                    raise BadInput(f"a job {job_id} exists: write another --name") from error
                is_starting = NO_AGENT in str(error)
                if isinstance(error, NoJobServer) and not is_starting and self._has(job_id):
                    return  # the answer was lost
                if not is_starting or time.monotonic() > deadline:
                    raise
            if not is_noted:
                note(f"the head node does not accept jobs yet; trying again for {AGENT_TIMEOUT:g} s ...")
                is_noted = True
            time.sleep(RETRY_PAUSE)

    def _has(self, job_id: str) -> bool:
        """Whether the server has this job; False if it does not answer."""
        try:
            return job_id in self.ids()
        except NoJobServer:
            return False

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
                raise RunFault(f"job {job_id} has not ended within {timeout:g} s: `qfleet logs` shows what it prints")
            time.sleep(0.5)
        return job

    def follow(self, job_id: str, write: Callable[[str], object]) -> Job:
        """Write the job's output, from its start on, until it has ended; returns it.

        A connection that breaks, or a server that is silent for QUIET + REQUEST_TIMEOUT seconds, is tried again for
        RECONNECT_TIMEOUT seconds. They begin anew with a connection that brought a line, or held for longer than that.
        Raises NoJobServer after that.
        """
        log = _Log(job_id)
        broken_since = math.inf
        while True:
            before, connected = log.written, time.monotonic()
            try:
                asyncio.run(self._stream(job_id, log, write))
                job = self.job(job_id)
                if job.has_ended:
                    return job
            except NoJobServer:
                now = time.monotonic()
                has_held = log.written > before or now - connected > RECONNECT_TIMEOUT
                broken_since = now if has_held else min(broken_since, now)
                if (left := RECONNECT_TIMEOUT - (now - broken_since)) <= 0:
                    raise
                self._reconnect(left)
            log.restart()
            time.sleep(FOLLOW_PAUSE)

    async def _stream(self, job_id: str, log: _Log, write: Callable[[str], object]) -> None:
        """Write the log until the server closes the stream. Raises NoJobServer if the connection breaks."""
        assert self._client is not None
        chunks = self._client.tail_job_logs(job_id)
        try:
            while True:
                following = asyncio.ensure_future(anext(chunks))
                try:
                    while not (await asyncio.wait({following}, timeout=QUIET))[0]:
                        await asyncio.to_thread(self.job, job_id)  # raises NoJobServer
                    write(log.feed(following.result()))
                finally:
                    following.cancel()
                    await asyncio.wait({following})
        except StopAsyncIteration:
            return
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            raise NoJobServer(str(error)) from error
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]  # it is an async generator


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
