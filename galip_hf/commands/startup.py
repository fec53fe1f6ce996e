"""Settings of the whole process: a command of our own may make them, a library must not."""

import ctypes
import gc
import platform
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEPT_BYTES = 2**31 - 1


@contextmanager
def collector_paused() -> Iterator[None]:
    """Collect no garbage in the block, and never look at the objects made in it again.

    Importing torch and transformers makes a million objects and hardly any garbage. Collections take a fifth
    of the import's time, and the last one, at the end of the process, a second.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def keep_freed_memory() -> None:
    """Let malloc keep freed blocks for reuse, where it is glibc's.

    By default it returns large blocks to the kernel, which must clear every page before it hands it out
    again; a network's activations are allocated and freed in the same sizes for every slice.

    glibc caps M_MMAP_THRESHOLD, the size above which a block is returned when freed, at 32 MB; a feature map
    of two images is larger. M_MMAP_MAX=0 allocates no block that way.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


__all__ = ["collector_paused", "keep_freed_memory"]
