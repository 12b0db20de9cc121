"""What a node asks of Redis: scripts for one shard or many, and what several operations read or write."""

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from ntf_server.store.contract import StoreError, StoreFullError, StoreUnavailableError
from ntf_server.store.redis.call import Call
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.handing import Handing
from ntf_server.store.redis.names import Names, server_id
from ntf_server.store.redis.script import Script, scripts
from smp_bridge.address import ServerAddress

K = TypeVar("K")

Word = bytes | str | int
Parts = Mapping[bytes, Sequence[Word]]  # of each shard
Tokens = Mapping[bytes, Sequence[Any]]  # of each shard
Ask = Callable[[str, Sequence[Word], Parts], Awaitable[list[Any]]]

_SOME: Final = 1000  # SMP servers, which may be read at any time
_OLD: Final = 30  # seconds
_AT_ONCE: Final = 100  # tokens in a call, or few more: none is to hold the server for long


class Some(NamedTuple):
    """Answers, and the shards that they are of, in their order."""

    answers: list[Any]
    shards: list[bytes]


class Asking:
    """`silent`: shards that cannot be had now, which `on_silent` is told of: their keys, and why."""

    def __init__(self, database: Database, names: Names) -> None:
        self.database: Final = database
        self.names: Final = names
        self.handed: Final = Handing()
        self.silent: set[int] = set()
        self.on_silent: Callable[[Mapping[bytes, StoreError]], None] = lambda _: None
        self._known: dict[bytes, bytes] = {}
        self._known_until = -math.inf
        self._scripts = {name: Script.load(name) for name in scripts()}

    async def run(self, name: str, keys: Sequence[bytes], *args: Word) -> Any:
        """What a script gives (`lua/NAME.lua`)."""
        try:
            return await self.database.run(self.call(name, keys, *args))
        except StoreUnavailableError:
            self._strand(keys)
            raise

    def call(self, name: str, keys: Sequence[bytes], *args: Word) -> Call:
        """To be run with others."""
        return Call(self._scripts[name], keys, args)

    async def run_on(self, name: str, head: Sequence[Word], parts: Parts, tokens: Tokens | None = None) -> list[Any]:
        """A script that takes several shards at once, each with its part of the arguments behind `head`.

        One call for each shard, or, where one primary has all slots, one for about _AT_ONCE of the `tokens` that the
        parts are of: an answer of each call, in the order of the parts.
        """
        try:
            return await self.database.run_all(self._calls(name, head, parts, tokens))
        except StoreUnavailableError:
            self._strand(parts)
            raise

    async def run_some(self, name: str, head: Sequence[Word], parts: Parts, tokens: Tokens | None = None) -> Some:
        """As `run_on`, for those shards that can be had now: where a primary of a cluster is away, what others have is
        not held up. Raises what cannot be mended so; and StoreUnavailableError, where one primary has all.
        """
        there = {shard: part for shard, part in parts.items() if self.names.number_of[shard] not in self.silent}
        calls = self._calls(name, head, there, tokens)
        answers = await self.database.run_prompt(calls)
        some, failed = Some([], []), dict[bytes, StoreError]()
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, StoreError):
                failed.update(dict.fromkeys(call.keys, answer))
            else:
                some.answers.append(answer)
                some.shards.extend(call.keys)
        self._strand(failed)
        for error in failed.values():
            if not isinstance(error, StoreUnavailableError) or (self.database.spans and not some.answers):
                raise error
        away = {shard: error for shard, error in failed.items() if not isinstance(error, StoreFullError)}
        if away and not self.database.spans:
            self.on_silent(away)
        return some

    async def run_those(self, calls: Mapping[K, Call]) -> dict[K, Any]:
        """Answers to them, but for those that a primary of a cluster has which is away. Raises StoreError."""
        found = {}
        for key, answer in zip(calls, await self.database.run_prompt(list(calls.values())), strict=True):
            if not isinstance(answer, StoreError):
                found[key] = answer
            elif self.database.spans or not isinstance(answer, StoreUnavailableError):
                raise answer
        return found

    async def run_by_key(self, name: str, head: Sequence[Word], parts: Parts) -> dict[bytes, Any]:
        """As `run_those`: what a script gives for each key that it takes, in a list."""
        calls = self._calls(name, head, parts, {key: (key,) for key in parts})
        lists = await self.run_those({tuple(call.keys): call for call in calls})
        return {key: answer for keys, answers in lists.items() for key, answer in zip(keys, answers, strict=True)}

    def _calls(self, name: str, head: Sequence[Word], parts: Parts, tokens: Tokens | None) -> list[Call]:
        calls, shards, words, count = [], list[bytes](), list[Word](), 0
        for shard, part in parts.items():
            shards.append(shard)
            words += part
            count += len(tokens[shard]) if tokens else 0
            if count >= _AT_ONCE or not self.database.spans:
                calls.append(self.call(name, shards, *head, *words))
                shards, words, count = [], [], 0
        if shards:
            calls.append(self.call(name, shards, *head, *words))
        return calls

    async def ask_some(self, name: str, head: Sequence[Word], parts: Parts) -> list[Any]:
        """The answers of `run_some` alone."""
        return (await self.run_some(name, head, parts)).answers

    def _strand(self, keys: Iterable[bytes]) -> None:
        """What was asked of those of these keys that are shards may have been done: see `Handing`."""
        self.handed.strand(n for key in keys if (n := self.names.number_of.get(key)) is not None)

    def is_silent(self, token: bytes) -> bool:
        """Whether its shard cannot be had now."""
        return bool(self.silent) and self.names.number(token) in self.silent

    def by_shard(self, tokens: Iterable[bytes]) -> dict[bytes, list[bytes]]:
        """Those of each shard."""
        out: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for token in tokens:
            out[self.names.shard(token)].append(token)
        return dict(out)

    # --- what several operations read or write

    async def fields(self, token: bytes, names: Sequence[bytes]) -> list[Any]:
        """Of a registration; None for each that it has not."""
        key, shard = self.names.token(token), self.names.shard(token)
        found: list[Any] = await self.database.command(b"HMGET", key, *names, key=shard, writes=False)
        return found

    async def exists(self, token: bytes) -> bool:
        """Whether there is such a registration."""
        key, shard = self.names.token(token), self.names.shard(token)
        return bool(await self.database.command(b"EXISTS", key, key=shard, writes=False))

    async def known(self) -> dict[bytes, bytes]:
        """Ids of all SMP servers, and their addresses."""
        name = self.names.servers
        found = await self.database.command(b"HGETALL", name, key=name, writes=False)
        return dict(zip(found[::2], found[1::2], strict=True))

    async def known_lately(self) -> dict[bytes, bytes]:
        """The same, but where there are many that may be some seconds old: a second for a thousand."""
        now = asyncio.get_running_loop().time()
        if now >= self._known_until:
            self._known = await self.known()
            self._known_until = now + min(len(self._known) // _SOME, _OLD)
        return self._known

    async def know(self, server: ServerAddress) -> None:
        """It is one of them."""
        name = self.names.servers
        await self.database.command(b"HSETNX", name, server_id(server), server.plain.encode(), key=name)
