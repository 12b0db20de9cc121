"""The process's memory: what a relay does so that it stays small and even, and that nobody else reads it."""

import contextlib
import ctypes
import gc
import resource
from typing import Final

_THRESHOLDS: Final = 20_000, 20, 50  # a burst makes many objects that wait, none of them in a cycle

_PR_SET_DUMPABLE: Final = 4  # of prctl(2)


def keep_private() -> None:
    """No core dump is written when the process dies, and no other process of its user may trace it: it holds keys.

    To be called before they are read. Root may still look, and so may who has CAP_SYS_PTRACE.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):  # another system; the limit alone has no say in dumps by a pipe
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *map(ctypes.c_ulong, (0, 0, 0, 0)))


def settle() -> None:
    """To be called once, when all parts are started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
