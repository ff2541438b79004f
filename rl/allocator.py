"""Memory settings of a process that allocates and frees megabytes many times a second."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make this process keep the memory that it frees for its next use. Does nothing where the C library is not glibc.

    By default glibc returns buffers of megabytes to the system when they are freed, and fetches the next ones page by
    page. The change holds for buffers of up to 32 MiB. It affects the whole process, so the process's owner calls it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
