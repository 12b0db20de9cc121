"""Inputs out of others, without a look at what they do: where there is no atheris, and in the tests."""

from collections.abc import Sequence
from random import Random
from typing import Final

_NUMBERS: Final = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0",
    b"\xff\xff",
    b"\x7f\xff",
    b"\x80\0",
    b"\xff" * 4,
    b"9" * 20,
)
_MAX_SPOTS: Final = 4


class Mutator:
    """Makes inputs of at most `size` bytes from `corpus`. `words`: what they are likely to hold."""

    def __init__(self, rng: Random, corpus: Sequence[bytes], words: Sequence[bytes], size: int) -> None:
        self._rng = rng
        self._corpus = list(corpus) or [b""]
        self._words = [*words, *_NUMBERS]
        self._size = size

    def next(self) -> bytes:
        """One."""
        rng = self._rng
        data = bytearray(rng.choice(self._corpus))
        for _ in range(rng.randint(1, _MAX_SPOTS)):
            self._change(data)
        return bytes(data[: self._size])

    def _change(self, data: bytearray) -> None:
        rng, size = self._rng, len(data)
        at = rng.randint(0, size)
        match rng.randrange(8):
            case 0 if size:
                data[at % size] ^= 1 << rng.randrange(8)
            case 1 if size:
                data[at % size] = rng.randrange(256)
            case 2 if size:
                data[at % size] = (data[at % size] + rng.choice((-1, 1))) % 256
            case 3:
                del data[at : at + rng.randint(1, 8)]
            case 4:
                data[at:at] = rng.choice(self._words)
            case 5:
                word = rng.choice(self._words)
                data[at : at + len(word)] = word
            case 6:
                other = rng.choice(self._corpus)
                start = rng.randint(0, len(other))
                data[at : at + rng.choice((0, 8, size))] = other[start : start + rng.choice((1, 8, 64, len(other)))]
            case _:
                start = rng.randint(0, size)
                data[at:at] = data[start : start + rng.randint(1, 16)] * rng.choice((1, 1, 1, 16))
