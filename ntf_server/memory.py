"""What a started relay does to stay small and even: garbage collection, and giving back what only the start needed."""

import contextlib
import ctypes
import gc
import re
from pathlib import Path
from typing import Final

_THRESHOLDS: Final = 20_000, 20, 50  # a burst makes many objects that wait, none of them in a cycle
_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp [0-9a-f]+ \S+ [1-9]\d* .*\n(?:(?![0-9a-f]+-).*\n)*")
_OF_THE_FILE: Final = re.compile(r"\nAnonymous: +0 kB\n")  # no page is a copy that this process has changed
_MADV_DONTNEED: Final = 4  # Linux: the same in all of its architectures


def settle() -> None:
    """To be called once, when all parts are started."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    with contextlib.suppress(OSError, AttributeError):  # another system, another C library
        libc = ctypes.CDLL(None)
        libc.malloc_trim(ctypes.c_size_t(0))
        _give_back_code(libc)


def _give_back_code(libc: ctypes.CDLL) -> None:
    """Unmap the pages of code that are in memory: those that are used from now on come back from the page cache.

    Importing and initializing what is linked in, three TLS libraries among it, runs through megabytes that are not used
    again.
    """
    libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for mapping in _MAPPING.finditer(Path("/proc/self/smaps").read_text()):
        if _OF_THE_FILE.search(mapping[0]):  # or the file would not bring back what was there
            start, end = int(mapping[1], 16), int(mapping[2], 16)
            libc.madvise(start, end - start, _MADV_DONTNEED)
