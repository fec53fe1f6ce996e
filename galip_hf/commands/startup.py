"""What a process of the command line does to itself, and a library must not do to its host."""

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEPT_BYTES = 2**31 - 1


@contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection in the block, and none of what it leaves afterwards.

    The import of torch and transformers makes a million objects and hardly any garbage. To look through them
    again and again takes a fifth of the time, and once more at the end of the process a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> None:
    """Let malloc keep freed blocks for the next use, where it is glibc's.

    By default it hands large blocks back to the kernel, which clears every page when it is asked for it
    again; a network's activations come and go in the same sizes for every slice.

    The size above which blocks are handed back cannot be set beyond 32 MB, less than two images' feature map;
    but that there be none can.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


__all__ = ["collector_paused", "keep_freed_memory"]
