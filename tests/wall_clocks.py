"""A process whose wall clock is off, as an operator may have it: its other clocks, and those of others, are right."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from debian import files

_LIBRARIES: Final = ("usr/lib/*/faketime/libfaketimeMT.so.1", "usr/lib64/faketime/libfaketimeMT.so.1")


def libfaketime() -> Path:
    for pattern in _LIBRARIES:
        for found in files(pattern):
            return found
    raise AssertionError("there is no libfaketime: `scripts/test --all` takes Debian's; elsewhere install it")


class WallClock:
    """`environment`: what a process is started with whose clock this is; `ahead` of the true time, in seconds, may be
    set while it runs: it is seen within a second.
    """

    def __init__(self, file: Path, ahead: int) -> None:
        self._file = file
        self.ahead = ahead
        self.environment: Final = {
            "LD_PRELOAD": str(libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    @property
    def ahead(self) -> int:
        return self._ahead

    @ahead.setter
    def ahead(self, seconds: int) -> None:
        self._ahead = seconds
        new = self._file.with_suffix(".new")  # lest half of it is read
        new.write_text(f"{seconds:+}s\n")
        new.replace(self._file)

    async def seen(self) -> float:
        """What a process reads from it now, in Unix seconds."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import time; print(time.time())", env=os.environ | self.environment, stdout=-1
        )
        out, _ = await process.communicate()
        return float(out)
