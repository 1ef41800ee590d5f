"""Memory that a computation lets go of is kept for the next one, where the C library is glibc.

A forward pass takes and lets go of the same few megabytes over and over. By glibc's defaults the larger blocks come
from the system anew each time, and every page of them has to be cleared and mapped again, until the library has seen
enough of them to change its mind: a tenth of the time of a process's first batches. What is kept is at most a gigabyte.
"""

from __future__ import annotations

import ctypes
import platform

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of <malloc.h>
BLOCK = 32 << 20  # bytes: the largest that glibc lets come from kept memory
KEPT = 1 << 30  # bytes that are free at the end of the heap before any are given back
STEP = 64 << 20  # bytes by which the heap grows


def keep_memory() -> None:
    """Set the allocator of this process. May be called again; another C library is left as it is."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((MMAP_THRESHOLD, BLOCK), (TRIM_THRESHOLD, KEPT), (TOP_PAD, STEP)):
            mallopt(parameter, value)
