"""Memory of a process that makes and drops megabytes many times a second."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees for its next use, where the C library is glibc.

    By default buffers of megabytes are given back when they are dropped, and the next ones fetched again page by page. Holds
    for buffers of up to 32 MiB. It changes the whole process, so it is for the process's owner to call.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
