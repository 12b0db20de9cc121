"""RESP2, from the server's side: commands in, answers out."""

from collections.abc import Iterator
from typing import Any

import hiredis

from sim.valkey.keyspace import ReplyError, Status


class Commands:
    """`feed` what came in; gives whole commands."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()

    def feed(self, data: bytes) -> Iterator[list[bytes]]:
        """Those that are whole by now."""
        self._reader.feed(data)
        while (words := self._reader.gets()) is not False:
            yield words


def packed(answer: Any) -> bytes:
    """An answer; a ReplyError is one too."""
    if answer is None:
        return b"$-1\r\n"
    if isinstance(answer, ReplyError):
        return b"-%s\r\n" % " ".join(str(answer).splitlines()).encode()
    if isinstance(answer, Status):
        return b"+%s\r\n" % answer.encode()
    if isinstance(answer, int):
        return b":%d\r\n" % answer
    if isinstance(answer, bytes):
        return b"$%d\r\n%s\r\n" % (len(answer), answer)
    return b"*%d\r\n%s" % (len(answer), b"".join(packed(part) for part in answer))
