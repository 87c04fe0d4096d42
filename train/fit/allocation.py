"""Memory that a step gives back stays with the process, for the next step to take."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD = -1  # the names and numbers of glibc's malloc.h
M_MMAP_THRESHOLD = -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc takes no greater one


def keep_freed_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the system; other allocators are left as they are.

    A step on a CPU allocates gradients, bf16 weights and activations anew. By default many of them come as fresh pages,
    which the system fills with zeros while all cores but one wait. The process needs no more than at its peak, but
    stays there.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
