"""A run's directory at a URL (fsspec): checks the URL, reads and writes its files, each call within a deadline."""

from __future__ import annotations

import queue
import re
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from learner.checkpoint import Checkpoint, CheckpointStore
from rl.errors import BadInput

T = TypeVar("T")

TIMEOUT = 30.0  # seconds for one call on small files
SAVE_TIMEOUT = 300.0  # seconds to read or write one file of a checkpoint
# Options of the file systems. A server that does not answer must not hold a request for minutes; s3fs itself tries a
# request five times, so botocore need not repeat it, too.
S3 = {"config_kwargs": {"connect_timeout": 10, "read_timeout": 20, "retries": {"max_attempts": 0}}}
OPTIONS: dict[str, dict[str, Any]] = {"s3": S3, "s3a": S3}
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"} | dict.fromkeys(("az", "abfs", "adl"), "adlfs")
EXAMPLE = "such as s3://bucket/pong"


class Unreachable(OSError):
    """Files at a URL could not be read or written. The message is one line, without the URL."""


def is_url(place: str | Path) -> bool:
    """Whether a run's directory is a URL; file:// is a local path. Raises BadInput for a URL with a single slash."""
    text = str(place)
    if found := re.match(r"([a-z][a-z0-9+]*):/(?!/)", text):
        raise BadInput(f"{text} is neither a directory nor a URL: write {found[1]}://, as text and not as a Path")
    return "://" in text and not text.startswith("file://")


def local_path(place: str | Path) -> Path:
    """The path of a run's directory that is not a URL: ``place``, without file:// if it begins so."""
    return Path(str(place).removeprefix("file://"))


def last_part(place: str | Path) -> str:
    """The last part of a path or URL: the name of the run in a cluster."""
    return str(place).rstrip("/").rpartition("/")[2]


def bounded(call: Callable[[], T], seconds: float) -> T:
    """The result of ``call``, which may use any file system of fsspec.

    Raises Unreachable for every failure but FileNotFoundError, and if there is no result after ``seconds``. The call then
    goes on in its thread, so it must be a single one.
    """
    results: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put((call(), None))
        except Exception as error:
            results.put((None, error))

    threading.Thread(target=work, daemon=True, name="remote call").start()
    try:
        value, error = results.get(timeout=seconds)
    except queue.Empty:
        raise Unreachable(f"no answer within {seconds:g} s") from None
    if isinstance(error, FileNotFoundError):
        raise error
    if error is not None:
        raise Unreachable(_reason(error)) from error
    return value  # type: ignore[no-any-return]


def _reason(error: Exception) -> str:
    """A failure of a file system in one line."""
    text = " ".join(str(error).split())
    if type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError", "PartialCredentialsError"):
        return "no credentials were found: set them, for S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, PermissionError):
        return f"access is refused: {text}"
    if isinstance(error, NotImplementedError):
        return "this file system is read-only"
    return text[:200] or type(error).__name__


class BoundedFiles:
    """The file system ``fs`` of fsspec, with each of its methods within a deadline (see `bounded`).

    ``data_timeout`` is the deadline, in seconds, of the methods that carry the data of a file.
    """

    def __init__(self, fs: Any, data_timeout: float) -> None:
        self._fs, self._data_timeout = fs, data_timeout

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._fs, name)
        if not callable(value):
            return value
        seconds = self._data_timeout if name in ("cat_file", "pipe_file") else TIMEOUT
        return lambda *args, **kwargs: bounded(lambda: value(*args, **kwargs), seconds)


class Remote:
    """The files at ``url``; ``files`` is their file system, for large ones.

    Raises BadInput if no file system knows the URL, or if a package is missing for it.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        protocol, _, rest = self.url.partition("://")
        self.options = OPTIONS.get(protocol, {})
        if protocol == "memory":
            raise BadInput(f"{url} would be lost at the end of this process: write a directory, or a URL {EXAMPLE}")
        try:
            fs, self.path = fsspec.core.url_to_fs(self.url, **self.options)
        except ImportError as error:
            package = PACKAGES.get(protocol)
            hint = f"write pip install {package}" if package else str(error)
            raise BadInput(f"{url}: the package for {protocol}:// is not installed: {hint}") from error
        except Exception as error:
            known = protocol in fsspec.available_protocols()
            reason = _reason(error) if known else f"{protocol}:// is unknown"
            raise BadInput(f"{url}: {reason}: write a directory, or a URL {EXAMPLE}") from error
        if not re.fullmatch(r"[^/]+(/[^/]+)+", rest):
            raise BadInput(f"{url} names no directory in a bucket: write a URL {EXAMPLE}")
        self.files, self._small_files = BoundedFiles(fs, SAVE_TIMEOUT), BoundedFiles(fs, TIMEOUT)

    def names(self) -> set[str]:
        """The names of all files and folders, empty if there are none. Raises Unreachable."""
        self.files.invalidate_cache()
        try:
            return {last_part(path) for path in self.files.ls(self.path, detail=False)}
        except FileNotFoundError:
            return set()

    def read(self, name: str) -> bytes | None:
        """The content of the file ``name``; None if there is none. Raises Unreachable."""
        try:
            return bytes(self._small_files.cat_file(f"{self.path}/{name}"))
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Replace the file ``name``. Raises Unreachable."""
        try:
            self._small_files.pipe_file(f"{self.path}/{name}", data)
        except FileNotFoundError as error:  # a store has no folders that could be missing
            raise Unreachable(str(error)) from error

    def remove(self, name: str) -> None:
        """Remove the file ``name`` if it exists. Raises Unreachable."""
        self.files.invalidate_cache()
        if self.files.exists(f"{self.path}/{name}"):
            self.files.rm_file(f"{self.path}/{name}")

    def probe(self) -> None:
        """Write a small file and remove it. Raises Unreachable."""
        name = f".probe-{uuid.uuid4().hex[:8]}"
        self.write(name, b"written by qfleet train, to try whether it can write here\n")
        self.remove(name)


class RemoteCheckpoints(CheckpointStore):
    """A `CheckpointStore` at a URL. Its calls fail with Unreachable or FileNotFoundError, both OSErrors.

    Once a run trains, ``later`` gets its saves as (store, step, checkpoint) and writes them in the background by `save_now`.
    """

    def __init__(self, remote: Remote, name: str, keep: int) -> None:
        super().__init__(f"{remote.url}/{name}", keep, remote.options)
        self.fs = remote.files
        self.later: Callable[[RemoteCheckpoints, int, Checkpoint], None] | None = None

    def save(self, step: int, checkpoint: Checkpoint) -> str:
        """As `CheckpointStore.save`, or in the background. Raises OSError."""
        if self.later is None:
            return self.save_now(step, checkpoint)
        self.later(self, step, checkpoint)
        return str(self.path)

    def save_now(self, step: int, checkpoint: Checkpoint) -> str:
        """As `CheckpointStore.save`. Raises OSError."""
        return super().save(step, checkpoint)
