"""What a process that fuzzes tells another one, at every input: shared memory, which outlives its death.

So that the input that killed it, or that it does not come back from, is known.
"""

import mmap
import os
import struct
from pathlib import Path
from typing import Final

_NUMBERS: Final = struct.Struct("<QQQQ")  # inputs, microseconds of the slowest, bytes of memory when warm, and now
_LENGTH: Final = struct.Struct("<I")
_AT: Final = _NUMBERS.size
MAX_SIZE: Final = 1 << 16
_PAGE: Final = os.sysconf("SC_PAGESIZE")


class Board:
    """Made by `create`; the other process opens it by its path."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self.inputs = self.slowest = self.warm = self.memory = 0
        self.read()

    @classmethod
    def create(cls, path: Path) -> "Board":
        """An empty one."""
        path.write_bytes(bytes(_AT + _LENGTH.size + MAX_SIZE))
        return cls(path)

    def show(self, data: bytes) -> None:
        """This comes next."""
        self.inputs += 1
        length = len(data)
        _LENGTH.pack_into(self._memory, _AT, length)
        start = _AT + _LENGTH.size
        self._memory[start : start + length] = data
        _NUMBERS.pack_into(self._memory, 0, self.inputs, self.slowest, self.warm, self.memory)

    def read(self) -> bytes:
        """What came last; the numbers are up to date then."""
        self.inputs, self.slowest, self.warm, self.memory = _NUMBERS.unpack_from(self._memory, 0)
        [length] = _LENGTH.unpack_from(self._memory, _AT)
        start = _AT + _LENGTH.size
        return self._memory[start : start + length]

    def close(self) -> None:
        """Let it go."""
        self._memory.close()


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
