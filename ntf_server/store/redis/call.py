"""What Redis is asked for, packed for the wire."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, cast

import hiredis

from ntf_server.store.contract import StoreError
from ntf_server.store.redis.script import Script
from ntf_server.store.redis.url import Endpoint

Word = bytes | str | int  # of a command

# redis-py packs in Python, at several times the cost. hiredis's own annotation is of a tuple with one word.
packed = cast("Callable[[tuple[Word, ...]], bytes]", hiredis.pack_command)

ASKING: Final = packed((b"ASKING",))


class Call(NamedTuple):
    """A script, its KEYS and its ARGV. In a cluster all keys are of one slot.

    The script is to be idempotent: it is repeated when its answer did not come, and one that timed out may be done once
    more even after later calls, as long as the server has not seen the end of its connection.
    """

    script: Script
    keys: Sequence[bytes]
    args: Sequence[Word] = ()


class Pending:
    """A call or a command from when it is asked for until it is answered.

    `slot` says where it goes, unless `target` does; `asking`: that server has the slot only half. `deadline` is in the
    loop's time; `room` is where it takes a place until it has ended. `tries` is how often it came back, and `reason`
    why it did last. `unknown` is how often the server did not have the script.
    """

    __slots__ = (
        "asking",
        "deadline",
        "future",
        "moves",
        "packed",
        "reason",
        "room",
        "script",
        "slot",
        "target",
        "tries",
        "unknown",
        "words",
        "writes",
    )

    def __init__(
        self,
        words: tuple[Word, ...],
        *,
        script: Script | None,
        writes: bool,
        slot: int,
        future: "asyncio.Future[Any]",
        deadline: float,
    ) -> None:
        self.words: Final = words
        self.script: Final = script
        self.writes: Final = writes
        self.slot: Final = slot
        self.future: Final = future
        self.deadline: Final = deadline
        self.packed: Final = packed(words if script is None else (b"EVALSHA", script.sha1, *words))
        self.room: asyncio.Semaphore | None = None
        self.target: Endpoint | None = None
        self.asking = False
        self.tries = 0
        self.unknown = 0
        self.reason = ""
        self.moves = False  # its slot goes to another primary just now: nothing fails

    @property
    def name(self) -> str:
        """For people: it has none of the arguments."""
        if self.script is not None:
            return f"script {self.script.name}"
        word = self.words[0]
        return word.decode(errors="replace") if isinstance(word, bytes) else str(word)

    def wire(self, sent: set[str]) -> bytes:
        """What is sent. `sent`: scripts that this pipeline has in full already, so that their sums will do.

        Twice unknown: those did not stay there, so it goes in full itself.
        """
        script = self.script
        if script is None or not self.unknown or (self.unknown == 1 and script.sha1 in sent):
            return self.packed
        sent.add(script.sha1)
        return packed((b"EVAL", script.text, *self.words))


def script_words(call: Call) -> tuple[Word, ...]:
    """What follows EVALSHA's sum and EVAL's text."""
    return len(call.keys), *call.keys, *call.args


async def answers(asking: Iterable[Awaitable[Pending]], asked: list[Pending | StoreError] | None = None) -> list[Any]:
    """In their order, StoreErrors among them. `asked` grows by what is on its way."""
    asked = [] if asked is None else asked
    answers: list[Any] = []
    try:
        for one in asking:
            try:
                asked.append(await one)
            except StoreError as e:
                asked.append(e)
        for pending in asked:  # most have their answers when the first one has it
            try:
                answers.append(pending if isinstance(pending, StoreError) else await pending.future)
            except StoreError as e:
                answers.append(e)
    except BaseException:
        for pending in asked:
            if isinstance(pending, Pending):
                _forget(pending)
        raise
    return answers


def without_errors(answers: list[Any]) -> list[Any]:
    """Raises the first one."""
    for answer in answers:
        if isinstance(answer, StoreError):
            raise answer
    return answers


async def get_room(room: asyncio.Semaphore, deadline: float) -> bool:
    """Whether there was some before this time of the loop."""
    try:
        async with asyncio.timeout_at(deadline):
            await room.acquire()
    except TimeoutError:
        return False
    return True


def _forget(pending: Pending) -> None:
    """Nobody waits for its answer any more."""
    future = pending.future
    if not future.cancel() and not future.cancelled():
        future.exception()  # which nobody will have seen
