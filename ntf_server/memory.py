"""What a started relay does to stay small and even: garbage collection, and memory that only the start needed."""

import contextlib
import ctypes
import gc
from typing import Final

_THRESHOLDS: Final = 20_000, 20, 50  # a burst makes many objects that wait, none of them in a cycle


def settle() -> None:
    """To be called once, when all parts are started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
