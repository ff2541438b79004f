"""Allocator settings for a process that allocates and frees large buffers many times a second."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Make glibc keep freed buffers of up to 32 MiB for reuse. Does nothing if the C library is not glibc.

    By default glibc returns freed buffers of several megabytes to the operating system. Each new buffer then costs a
    page fault per page. The setting affects the whole process: call this only from code that owns the process.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)
