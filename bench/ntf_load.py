"""Commands to a notification server, pipelined over several connections: as many as it can answer.

Everything is encoded and signed before the clock starts, so that the server is what is measured.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from percentiles import percentile

from smp_bridge.address import ServerAddress
from smp_bridge.connecting import connect
from smp_bridge.transmission import (
    CORR_ID_SIZE,
    AuthKey,
    Invalid,
    Session,
    encode_blocks,
    encode_transmission,
    parse_block,
)
from smp_bridge.transport import BlockConnection, Scratch

_INDEX_SIZE: Final = 8

Connection = tuple[BlockConnection, Session]


@dataclass(frozen=True, slots=True)
class Command:
    """What is sent: the encoded command, the entity that it is for, and the key that authorizes it."""

    command: bytes = field(repr=False)
    entity_id: bytes = field(default=b"", repr=False)
    key: AuthKey | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Run:
    """What came back: `answers` in the order of the commands, `latencies` sorted, in seconds from sending a block."""

    answers: list[bytes] = field(repr=False)
    latencies: list[float] = field(repr=False)
    started: float
    ended: float
    cpu: float

    @property
    def seconds(self) -> float:
        """From the first command to the last answer."""
        return self.ended - self.started

    @property
    def rate(self) -> float:
        """Commands a second."""
        return len(self.answers) / self.seconds

    @property
    def p99(self) -> float:
        """Seconds."""
        return percentile(self.latencies, 99)

    @property
    def core(self) -> float:
        """How much of a core this generator took."""
        return self.cpu / self.seconds

    def check(self, tag: bytes) -> None:
        """Raises RuntimeError unless all answers have this tag."""
        wrong = [a for a in self.answers if a.split(b" ", 1)[0] != tag]
        if wrong:
            first = wrong[0].decode("latin-1") if wrong[0].startswith(b"ERR ") else "another answer"
            raise RuntimeError(f"{len(wrong)} of {len(self.answers)} commands were not answered with {tag!r}: {first}")


@asynccontextmanager
async def connected(address: ServerAddress, count: int) -> AsyncIterator[list[Connection]]:
    """So many connections. Raises what `connecting.connect` raises."""
    scratch = Scratch()
    out: list[Connection] = []
    try:
        for _ in range(count):
            out.append(await connect(address, scratch=scratch))
        yield out
    finally:
        await asyncio.gather(*(connection.close() for connection, _ in out))


Signed = Sequence[deque[tuple[bytes, list[int]]]]  # of each connection, blocks with the places of their commands


def sign(connections: Sequence[Connection], commands: Sequence[Command], *, filled: bool = False) -> Signed:
    """Blocks for these connections, which take the commands in turn; `filled`: as many in each as fit, else one."""
    count = len(connections)
    return [_blocks(c[1], commands, range(i, len(commands), count), filled) for i, c in enumerate(connections)]


async def run(
    connections: Sequence[Connection], commands: Sequence[Command], *, window: int, filled: bool = False
) -> Run:
    """Send commands, up to `window` unanswered on each connection; `filled` as in `sign`.

    Raises ConnectionClosedError, RuntimeError if an answer makes no sense.
    """
    return await send(connections, sign(connections, commands, filled=filled), window=window)


async def send(
    connections: Sequence[Connection], signed: Signed, *, window: int, answers: list[bytes] | None = None
) -> Run:
    """As `run`, of what is signed; which is used up. `answers`: a list to put them into as they come."""
    count = sum(len(indices) for blocks in signed for _, indices in blocks)
    answers = [] if answers is None else answers
    answers[:] = [b""] * count
    sent_at, seconds = [0.0] * count, [0.0] * count
    started, cpu = time.monotonic(), time.process_time()

    async def drive(connection: BlockConnection, session: Session, waiting: deque[tuple[bytes, list[int]]]) -> None:
        left, under_way = sum(len(indices) for _, indices in waiting), 0
        while left:
            while waiting and under_way + len(waiting[0][1]) <= max(window, len(waiting[0][1])):
                content, indices = waiting.popleft()
                now = time.monotonic()
                for i in indices:
                    sent_at[i] = now
                connection.send(content)
                under_way += len(indices)
            content = await connection.receive()
            now = time.monotonic()
            for t in parse_block(session, content):
                if isinstance(t, Invalid) or len(t.corr_id) != CORR_ID_SIZE:
                    raise RuntimeError("an answer belongs to no command")
                i = int.from_bytes(t.corr_id[-_INDEX_SIZE:], "big")
                answers[i], seconds[i] = t.command, now - sent_at[i]
                left -= 1
                under_way -= 1

    await asyncio.gather(*(drive(*c, b) for c, b in zip(connections, signed, strict=True)))
    ended, cpu = time.monotonic(), time.process_time() - cpu
    return Run(answers, sorted(seconds), started, ended, cpu)


def _blocks(
    session: Session, commands: Sequence[Command], indices: Sequence[int], filled: bool
) -> deque[tuple[bytes, list[int]]]:
    """(content, places of its commands in the whole)."""
    encoded = [_encode(session, commands[i], i) for i in indices]
    contents = encode_blocks(session, encoded) if filled else [encode_blocks(session, [e])[0] for e in encoded]
    places = iter(indices)
    return deque((content, [next(places) for _ in range(content[0])]) for content in contents)


def _encode(session: Session, c: Command, index: int) -> bytes:
    corr_id = os.urandom(CORR_ID_SIZE - _INDEX_SIZE) + index.to_bytes(_INDEX_SIZE, "big")
    return encode_transmission(session, corr_id, c.entity_id, c.command, c.key)
