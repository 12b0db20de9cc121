"""The keys of a Redis, and the commands on them that the relay uses, each with what real ones answer.

`test_keyspace` holds all this to a real server. Nothing ever expires by itself here, as the relay wants none of it.
"""

import copy
import pickle
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_LARGEST: Final = b"\xff" * 64  # behind any member of a sorted set


class ReplyError(Exception):
    """An error that Redis answers with: its code, and a text."""


class Status(str):
    """A simple string."""

    __slots__ = ()


OK: Final = Status("OK")


class ZSet:
    """Members by score, then by their bytes."""

    def __init__(self) -> None:
        self.scores: dict[bytes, float] = {}
        self.order: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self.order)

    def add(self, member: bytes, score: float) -> None:
        """Or change its score."""
        self.remove(member)
        self.scores[member] = score
        insort(self.order, (score, member))

    def remove(self, member: bytes) -> bool:
        """Whether it was there."""
        score = self.scores.pop(member, None)
        if score is None:
            return False
        del self.order[bisect_left(self.order, (score, member))]
        return True

    def by_score(self, low: bytes, high: bytes) -> list[tuple[float, bytes]]:
        """Those between; a bound that begins with ( is not itself between."""
        first, last = _score(low), _score(high)
        begin = bisect_left(self.order, (first, _LARGEST if low[:1] == b"(" else b""))
        end = bisect_left(self.order, (last, b"" if high[:1] == b"(" else _LARGEST))
        return self.order[begin:end]

    def by_member(self, low: bytes, high: bytes) -> list[tuple[float, bytes]]:
        """Those between, all of one score: - and + are the ends, [ is itself between, ( is not."""
        return [pair for pair in self.order if _is_above(pair[1], low) and _is_below(pair[1], high)]


@dataclass
class Stream:
    """Entries in the order of their ids."""

    entries: list[tuple[tuple[int, int], list[bytes]]] = field(default_factory=list)
    last: tuple[int, int] = (0, 0)

    def after(self, place: tuple[int, int], count: int) -> list[Any]:
        """As XREAD gives them."""
        begin = bisect_right(self.entries, place, key=lambda entry: entry[0])
        return [[entry_id(i), list(f)] for i, f in self.entries[begin : begin + count]]


Value = dict[bytes, bytes] | dict[bytes, None] | ZSet | Stream | bytes


def entry_id(place: tuple[int, int]) -> bytes:
    """As it is told."""
    return b"%d-%d" % place


def place_of(text: bytes) -> tuple[int, int]:
    """What `entry_id` told."""
    first, _, second = text.partition(b"-")
    return int(first), int(second or 0)


def number(score: float) -> bytes:
    """A score, as it is told."""
    return b"%d" % score if score == int(score) else repr(score).encode()


def _score(text: bytes) -> float:
    try:
        return float(text.removeprefix(b"("))
    except ValueError:
        raise ReplyError("ERR min or max is not a float") from None


def _is_above(member: bytes, low: bytes) -> bool:
    return low == b"-" or (member > low[1:] if low[:1] == b"(" else member >= low[1:])


def _is_below(member: bytes, high: bytes) -> bool:
    return high == b"+" or (member < high[1:] if high[:1] == b"(" else member <= high[1:])


def _whole(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise ReplyError("ERR value is not an integer or out of range") from None


class Keyspace:
    """`do` commands. `clock`: Unix microseconds; `on_write` is told of each command that may have changed something, so
    that a replica may do it too.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self.values: dict[bytes, Any] = {}
        self.on_write: Callable[[Sequence[bytes]], None] = lambda _: None
        self._clock = clock

    def do(self, words: Sequence[bytes]) -> Any:
        """Answer a command: int, bytes, None, Status, or a list of such. Raises ReplyError."""
        name = words[0].upper()
        command = COMMANDS.get(name)
        if command is None:
            raise ReplyError(f"ERR unknown command '{name.decode(errors='replace')}', with args beginning with: ")
        writes = name in WRITES
        answer = command(self, *words[1:])
        if writes:
            self.on_write((b"XADD", words[1], answer, *_fields(words)) if name == b"XADD" else tuple(words))
        return answer

    def all(self) -> dict[bytes, Any]:
        """All, in a form that compares."""
        return {key: _comparable(value) for key, value in sorted(self.values.items())}

    def copy(self, other: "Keyspace") -> None:
        """Have what another one has."""
        self.values = copy.deepcopy(other.values)

    # --- values

    def _get(self, key: bytes, kind: type) -> Any:
        value = self.values.get(key)
        if value is not None and type(value) is not kind:
            raise ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value")
        return value

    def _make(self, key: bytes, kind: type) -> Any:
        value = self._get(key, kind)
        if value is None:
            value = self.values[key] = kind()
        return value

    def _drop_empty(self, key: bytes) -> None:
        if not len(self.values[key]):
            del self.values[key]

    # --- keys and strings

    def delete(self, *keys: bytes) -> int:
        """DEL."""
        return sum(self.values.pop(key, None) is not None for key in keys)

    def exists(self, *keys: bytes) -> int:
        """EXISTS."""
        return sum(key in self.values for key in keys)

    def dump(self, key: bytes) -> bytes | None:
        """DUMP."""
        return pickle.dumps(self.values[key]) if key in self.values else None

    def restore(self, key: bytes, _ttl: bytes, payload: bytes) -> Status:
        """RESTORE."""
        if key in self.values:
            raise ReplyError("BUSYKEY Target key name already exists.")
        self.values[key] = pickle.loads(payload)
        return OK

    def incrby(self, key: bytes, by: bytes) -> int:
        """INCRBY."""
        value = _whole(self._get(key, bytes) or b"0") + _whole(by)
        self.values[key] = b"%d" % value
        return value

    def time(self) -> list[bytes]:
        """TIME."""
        micros = self._clock()
        return [b"%d" % (micros // 1_000_000), b"%d" % (micros % 1_000_000)]

    # --- hashes

    def hset(self, key: bytes, *pairs: bytes) -> int:
        """HSET."""
        of = self._make(key, Hash)
        before = len(of)
        of.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(of) - before

    def hsetnx(self, key: bytes, name: bytes, value: bytes) -> int:
        """HSETNX."""
        of = self._make(key, Hash)
        if name in of:
            return 0
        of[name] = value
        return 1

    def hget(self, key: bytes, name: bytes) -> bytes | None:
        """HGET."""
        found: bytes | None = (self._get(key, Hash) or {}).get(name)
        return found

    def hmget(self, key: bytes, *names: bytes) -> list[bytes | None]:
        """HMGET."""
        of = self._get(key, Hash) or {}
        return [of.get(name) for name in names]

    def hgetall(self, key: bytes) -> list[bytes]:
        """HGETALL."""
        return [word for pair in (self._get(key, Hash) or {}).items() for word in pair]

    def hexists(self, key: bytes, name: bytes) -> int:
        """HEXISTS."""
        return int(name in (self._get(key, Hash) or ()))

    def hscan(self, key: bytes, cursor: bytes, *_: bytes) -> list[Any]:
        """HSCAN: all at once."""
        assert cursor == b"0"
        return [b"0", self.hgetall(key)]

    def hlen(self, key: bytes) -> int:
        """HLEN."""
        return len(self._get(key, Hash) or ())

    def hdel(self, key: bytes, *names: bytes) -> int:
        """HDEL."""
        of = self._get(key, Hash)
        if of is None:
            return 0
        count = sum(of.pop(name, None) is not None for name in names)
        self._drop_empty(key)
        return count

    def hincrby(self, key: bytes, name: bytes, by: bytes) -> int:
        """HINCRBY."""
        of = self._make(key, Hash)
        value = _whole(of.get(name, b"0")) + _whole(by)
        of[name] = b"%d" % value
        return value

    # --- sets

    def sadd(self, key: bytes, *members: bytes) -> int:
        """SADD."""
        of = self._make(key, Members)
        before = len(of)
        of.update(dict.fromkeys(members))
        return len(of) - before

    def srem(self, key: bytes, *members: bytes) -> int:
        """SREM."""
        of = self._get(key, Members)
        if of is None:
            return 0
        before = len(of)
        for member in members:
            of.pop(member, None)
        count = before - len(of)
        self._drop_empty(key)
        return count

    def sismember(self, key: bytes, member: bytes) -> int:
        """SISMEMBER."""
        return int(member in (self._get(key, Members) or ()))

    def scard(self, key: bytes) -> int:
        """SCARD."""
        return len(self._get(key, Members) or ())

    def smembers(self, key: bytes) -> list[bytes]:
        """SMEMBERS."""
        return list(self._get(key, Members) or ())

    def sscan(self, key: bytes, cursor: bytes, *_: bytes) -> list[Any]:
        """SSCAN: all at once."""
        assert cursor == b"0"
        return [b"0", list(self._get(key, Members) or ())]

    def srandmember(self, key: bytes, count: bytes) -> list[bytes]:
        """SRANDMEMBER of several, the oldest ones here."""
        return list(self._get(key, Members) or ())[: _whole(count)]

    # --- sorted sets

    def zadd(self, key: bytes, *words: bytes) -> int:
        """ZADD, with NX and LT."""
        flags, pairs = set[bytes](), list(words)
        while pairs[0].upper() in {b"NX", b"LT"}:
            flags.add(pairs.pop(0).upper())
        of = self._make(key, ZSet)
        added = 0
        for text, member in zip(pairs[::2], pairs[1::2], strict=True):
            score, before = float(text), of.scores.get(member)
            if before is None:
                added += 1
            elif b"NX" in flags or (b"LT" in flags and score >= before):
                continue
            of.add(member, score)
        return added

    def zrem(self, key: bytes, *members: bytes) -> int:
        """ZREM."""
        return self._zremove(key, members)

    def _zremove(self, key: bytes, members: Sequence[bytes]) -> int:
        of = self._get(key, ZSet)
        if of is None:
            return 0
        count = sum(of.remove(member) for member in members)
        self._drop_empty(key)
        return count

    def zcard(self, key: bytes) -> int:
        """ZCARD."""
        return len(self._get(key, ZSet) or ())

    def zcount(self, key: bytes, low: bytes, high: bytes) -> int:
        """ZCOUNT."""
        return len(self.zrangebyscore(key, low, high))

    def zscore(self, key: bytes, member: bytes) -> bytes | None:
        """ZSCORE."""
        of = self._get(key, ZSet)
        score = None if of is None else of.scores.get(member)
        return None if score is None else number(score)

    def _zorder(self, key: bytes) -> list[tuple[float, bytes]]:
        of = self._get(key, ZSet)
        return [] if of is None else of.order

    def zrange(self, key: bytes, first: bytes, last: bytes, *words: bytes) -> list[bytes]:
        """ZRANGE by index."""
        return _told(_piece(self._zorder(key), first, last), words)

    def zrevrange(self, key: bytes, first: bytes, last: bytes, *words: bytes) -> list[bytes]:
        """ZREVRANGE."""
        return _told(_piece(self._zorder(key)[::-1], first, last), words)

    def zrangebyscore(self, key: bytes, low: bytes, high: bytes, *words: bytes) -> list[bytes]:
        """ZRANGEBYSCORE."""
        of = self._get(key, ZSet) or ZSet()
        return _told(of.by_score(low, high), words)

    def zrangebylex(self, key: bytes, low: bytes, high: bytes, *words: bytes) -> list[bytes]:
        """ZRANGEBYLEX."""
        of = self._get(key, ZSet) or ZSet()
        return _told(of.by_member(low, high), words)

    def zremrangebyscore(self, key: bytes, low: bytes, high: bytes) -> int:
        """ZREMRANGEBYSCORE."""
        of = self._get(key, ZSet) or ZSet()
        return self._zremove(key, [member for _, member in of.by_score(low, high)])

    def zremrangebyrank(self, key: bytes, first: bytes, last: bytes) -> int:
        """ZREMRANGEBYRANK."""
        return self._zremove(key, [member for _, member in _piece(self._zorder(key), first, last)])

    # --- streams

    def xadd(self, key: bytes, *words: bytes) -> bytes:
        """XADD, with MAXLEN; the bound is kept exactly."""
        of = self._make(key, Stream)
        rest, most = list(words), None
        if rest[0].upper() == b"MAXLEN":
            most = int(rest[2 if rest[1] == b"~" else 1])
            rest = rest[3 if rest[1] == b"~" else 2 :]
        if rest[0] == b"*":
            now = self._clock() // 1000
            of.last = (now, 0) if now > of.last[0] else (of.last[0], of.last[1] + 1)
        else:
            of.last = place_of(rest[0])
        of.entries.append((of.last, rest[1:]))
        if most is not None:
            del of.entries[: max(0, len(of.entries) - most)]
        return entry_id(of.last)

    def xrevrange(self, key: bytes, _high: bytes, _low: bytes, *words: bytes) -> list[Any]:
        """XREVRANGE + - COUNT N."""
        of = self._get(key, Stream) or Stream()
        return [[entry_id(i), list(f)] for i, f in of.entries[::-1]][: int(words[1])]

    def xread(self, *words: bytes) -> list[Any] | None:
        """XREAD of what is there; whether to wait for more is the caller's."""
        at = [word.upper() for word in words].index(b"STREAMS")
        options = dict(zip(words[:at:2], words[1:at:2], strict=True))
        names = words[at + 1 :]
        out = []
        for key, after in zip(names[: len(names) // 2], names[len(names) // 2 :], strict=True):
            of = self._get(key, Stream) or Stream()
            found = of.after(place_of(after), int(options.get(b"COUNT", b"1000000")))
            if found:
                out.append([key, found])
        return out or None


class Hash(dict[bytes, bytes]):
    """Names and values."""


class Members(dict[bytes, None]):
    """A set, in the order in which its members came."""


def _comparable(value: Any) -> Any:
    if isinstance(value, ZSet):
        return [(number(score), member) for score, member in value.order]
    if isinstance(value, Stream):
        return [fields for _, fields in value.entries]
    return set(value) if isinstance(value, Members) else dict(value) if isinstance(value, Hash) else value


def _piece(order: Sequence[tuple[float, bytes]], first: bytes, last: bytes) -> Sequence[tuple[float, bytes]]:
    begin, end = _whole(first), _whole(last)
    begin = max(0, begin + len(order)) if begin < 0 else begin
    end = end + len(order) if end < 0 else end
    return order[begin : end + 1] if end >= begin else []


def _told(pairs: Sequence[tuple[float, bytes]], words: Sequence[bytes]) -> list[bytes]:
    options = [word.upper() for word in words]
    if b"LIMIT" in options:
        at = options.index(b"LIMIT")
        skip, count = _whole(words[at + 1]), _whole(words[at + 2])
        pairs = pairs[skip:] if count < 0 else pairs[skip : skip + count]
    if b"WITHSCORES" in options:
        return [word for score, member in pairs for word in (member, number(score))]
    return [member for _, member in pairs]


def _fields(words: Sequence[bytes]) -> Iterator[bytes]:
    """Of XADD: what follows the id."""
    yield from words[words.index(b"*", 2) + 1 :] if b"*" in words[2:] else words[3:]


COMMANDS: Final[dict[bytes, Callable[..., Any]]] = {
    name.upper().encode(): method
    for name, method in vars(Keyspace).items()
    if not name.startswith("_") and name not in {"do", "all", "copy", "delete"}
} | {b"DEL": Keyspace.delete}
FREEING: Final = frozenset([b"DEL", b"HDEL", b"SREM", b"ZREM", b"ZREMRANGEBYSCORE", b"ZREMRANGEBYRANK"])
WRITES: Final = FREEING | {b"HSET", b"HSETNX", b"HINCRBY", b"INCRBY", b"SADD", b"ZADD", b"XADD", b"RESTORE"}
