"""Every script is done twice, as when its answer was lost: what the second time changed, and answered otherwise."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redis_stores import each_by, patched

from ntf_server.store.redis.call import Call
from ntf_server.store.redis.database import Database

_LOOK = b"""local out = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
    local kind = redis.call('TYPE', key).ok
    local words = {hash = {'HGETALL', key}, zset = {'ZRANGE', key, 0, -1, 'WITHSCORES'}, set = {'SMEMBERS', key},
        string = {'GET', key}, stream = {'XLEN', key}}
    out[#out + 1] = {key, kind, redis.call(unpack(words[kind]))}
end
return out
"""

State = dict[bytes, Any]
_REAL_TIME = b"filler_until"  # a time that no test moves
_FENCES = {"acquire", "hold"}


class Twice:
    """`changed`: by script, keys and fields, without what names one of many, that were otherwise after the second time;
    `answered`: scripts whose second answer was another; `done`: all that were done.
    """

    def __init__(self) -> None:
        self.done: set[str] = set()
        self.changed: defaultdict[str, set[str]] = defaultdict(set)
        self.answered: defaultdict[str, list[tuple[Any, Any]]] = defaultdict(list)
        self._turn = asyncio.Lock()

    @contextmanager
    def of(self, database: Database) -> Iterator[None]:
        """From now on it does each script twice; the first answer is what its caller gets, but of those that make
        fences the last one.
        """
        run = database.run

        async def run_one(call: Call) -> Any:
            async with self._turn:  # nobody else changes anything between the two
                first = await run(call)
                before = await _state(database)
                second = await run(call)
                after = await _state(database)
            self.done.add(call.script.name)
            if first != second:
                self.answered[call.script.name].append((first, second))
            self.changed[call.script.name] |= _changed(before, after)
            return second if call.script.name in _FENCES else first

        with patched(database, **each_by(run_one)):
            yield


async def _state(database: Database) -> State:
    pattern = f"{database.prefix}:*".encode()
    told = await database.command(b"EVAL", _LOOK, 0, pattern, key=pattern, writes=False)
    return {key: _value(kind, value) for key, kind, value in told}


def _value(kind: bytes, value: Any) -> Any:
    if kind in (b"hash", b"zset"):
        pairs = zip(value[::2], value[1::2], strict=True)
        return {field: of_it for field, of_it in pairs if field != _REAL_TIME}
    return frozenset(value) if kind == b"set" else value


def _changed(before: State, after: State) -> set[str]:
    found = set()
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found |= {f"{_kind(key)} {_kind(f)}" for f in old.keys() | new.keys() if old.get(f) != new.get(f)}
        else:
            found.add(_kind(key))
    return found


def _kind(name: bytes) -> str:
    """Without a prefix, a hash tag, and what names one of many."""
    words = name.decode(errors="replace").rpartition("}")[2].split(":")
    return ":".join(word for word in words if word.isascii() and len(word) < 9)
