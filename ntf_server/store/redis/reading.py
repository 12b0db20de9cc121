"""What a Redis has as records that are no engine's: see `portable`."""

import asyncio
import struct
from collections import Counter as Tally
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ntf_server.store.portable import (
    Moved,
    MovedNotification,
    MovedQueue,
    MovedServer,
    MovedToken,
    Servers,
    Slice,
    batches,
    common_fence,
    due_at,
    fitting,
)
from ntf_server.store.redis.call import Call, Word
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.names import Names
from ntf_server.store.redis.rows import (
    HEAD,
    NO_PUSH,
    STAMP,
    STATUSES,
    WANTED,
    DamagedError,
    Queue,
    Registration,
    address,
    contents,
    lead,
    pushed,
    queue,
    registration,
    row,
    split,
)
from ntf_server.store.redis.script import Script
from ntf_server.store.sealing import (
    CLIENT_DH,
    CODE,
    DEVICE_TOKEN,
    NOTIFIER_KEY,
    SECRET,
    SERVER_DH,
    SERVER_PRIVATE,
    SERVICE_KEY,
    Sealer,
    SealingError,
)
from smp_bridge.ntf import InvalidReason, Provider, TokenStatus
from smp_bridge.service import xor

Fields = Mapping[bytes, bytes]

_READ_TOKENS: Final = Script.load("read_tokens")
_SERVERS: Final = 500  # at once
_TOKENS: Final = 25  # that one script reads, with
_ENOUGH: Final = 100  # queues each at most: it is not to hold the server for long
_RECORDS: Final = 500  # that one command reads
_NO_IDS: Final = bytes(16)
_COUNTS: Final = (b"assoc_g", b"assoc_n", b"assoc_x", b"rel_g", b"rel_n", b"rel_x")
_RUBBISH: Final = (DamagedError, SealingError, ValueError, TypeError, LookupError, OverflowError, struct.error)


class Reading:
    """`ahead`: seconds by which the times that are kept are ahead of those that are given."""

    def __init__(self, database: Database, names: Names, sealer: Sealer, ahead: int) -> None:
        self._database = database
        self._names = names
        self._sealer = sealer
        self._ahead = ahead
        self._servers: dict[bytes, tuple[bytes, int]] = {}  # addresses and generations, once they are read

    async def _read(self, *words: Word, key: bytes) -> Any:
        return await self._database.command(*words, key=key, writes=False)

    async def servers(self) -> AsyncIterator[Servers]:
        """See `Portable.servers`."""
        known = await self._read(b"HKEYS", self._names.servers, key=self._names.servers)
        for some in batches(sorted(known), _SERVERS):
            keys = [self._names.server(server) for server in some]
            found = await asyncio.gather(*(self._read(b"HGETALL", key, key=key) for key in keys))
            counts = await asyncio.gather(*map(self._counts, some))
            moved, left_out = [], Tally[str]()
            for server, fields, in_buckets in zip(some, found, counts, strict=True):
                try:
                    if b"address" in fields:  # else nothing is known of it but its name
                        moved.append(self._server(server, _fields(fields), in_buckets, left_out))
                except _RUBBISH:
                    left_out["servers"] += 1
            yield Servers(moved, left_out)

    async def _counts(self, server: bytes) -> Sequence[Sequence[bytes | None]]:
        """What each bucket of a server counts of our service there."""
        key = self._names.server(server)
        buckets = [self._names.bucket(server, int(n)) for n in await self._read(b"ZRANGE", key + b":b", 0, -1, key=key)]
        return list(await asyncio.gather(*(self._read(b"HMGET", bucket, *_COUNTS, key=bucket) for bucket in buckets)))

    def _server(
        self, server: bytes, f: Fields, in_buckets: Iterable[Sequence[bytes | None]], left_out: Tally[str]
    ) -> MovedServer:
        chain, key = f.get(b"chain", b""), b""
        if chain:
            try:
                key = self._sealer.open(f.get(b"key", b""), SERVICE_KEY + server)
            except SealingError:
                chain = b""
                left_out["certificates"] += 1
        address(f[b"address"])
        count, ids = int(f.get(b"assoc_n", 0)), f.get(b"assoc_x", _NO_IDS)
        released, released_ids = int(f.get(b"rel_n", 0)), f.get(b"rel_x", _NO_IDS)
        for generation, n, x, since, rel_n, rel_x in in_buckets:  # what they count of others is void
            if generation == f.get(b"generation"):
                count, ids = count + int(n or 0), xor(ids, x or _NO_IDS)
            if since == f.get(b"since"):
                released, released_ids = released + int(rel_n or 0), xor(released_ids, rel_x or _NO_IDS)
        moved = MovedServer(
            f[b"address"],
            f.get(b"service") or None,
            count + released,
            xor(ids, released_ids),
            released,
            released_ids,
            f.get(b"prefixes", b"").decode(),
            self._moment(f, b"proven"),
            self._moment(f, b"tried"),
            self._moment(f, b"unused"),
            chain,
            key,
        )
        self._servers[server] = f[b"address"], int(f.get(b"generation", 0))
        return moved

    async def tokens(self, after: bytes, limit: int) -> Slice:
        """See `Portable.read`. A cursor is the number of a shard and a token id."""
        if not self._servers:
            async for _ in self.servers():
                pass
        number, last, shards = int.from_bytes(after[:2]), after[2:], self._names.shards
        parts: list[tuple[int, Sequence[bytes]]] = []
        left = limit
        while left and number < len(shards):
            shard, begin = shards[number], b"(" + last if last else b"-"
            ids = await self._read(b"ZRANGEBYLEX", shard + b":all", begin, b"+", b"LIMIT", 0, left, key=shard)
            parts += ((number, some) for some in batches(ids, _TOKENS))
            left -= len(ids)
            number, last = (number + 1, b"") if left else (number, ids[-1])
        calls = [Call(_READ_TOKENS, [shards[n]], (_ENOUGH, *some)) for n, some in parts]
        answers = [item for answer in await self._database.run_all(calls) for item in answer]
        places = [(n, token_id) for n, some in parts for token_id in some]
        fits = fitting([count for _, _, count, _, _ in answers])
        if fits < len(places):
            number, last = places[fits - 1]
        cursor = number.to_bytes(2) + last if number < len(shards) else None
        moved, left_out = await self._read_tokens([token_id for _, token_id in places[:fits]], answers[:fits])
        return Slice(moved, cursor, left_out)

    async def _read_tokens(self, ids: Sequence[bytes], answers: Sequence[Any]) -> tuple[list[Moved], Tally[str]]:
        found = dict(zip(ids, await asyncio.gather(*map(self._whole, ids, answers)), strict=True))
        records = await self._records({packed for _, queues, _ in found.values() for packed in queues})
        left_out: Tally[str] = Tally()
        tokens: dict[bytes, tuple[MovedToken, Registration]] = {}
        for token_id, (facts, queues, _) in found.items():
            try:
                tokens[token_id] = self._token(token_id, *facts)
            except _RUBBISH:
                left_out["registrations"] += 1
                left_out["subscriptions"] += len(self._owned(token_id, queues, records))
        moved = []
        superseded = await self._superseded({token_id: r for token_id, (_, r) in tokens.items()})
        for token_id, (token, _) in tokens.items():
            if token_id in superseded:
                left_out["superseded registrations"] += 1
                continue
            _, queues, notifications = found[token_id]
            owned = self._owned(token_id, queues, records)
            moved.append(Moved(token, tuple(self._readable(owned, records, notifications, left_out))))
        return moved, left_out

    async def _whole(self, token_id: bytes, answer: Any) -> tuple[tuple[Fields, bytes, bytes], list[bytes], Fields]:
        at, unsent, count, queues, kept = answer
        if count > _ENOUGH:
            shard = self._names.shard(token_id)
            queues = await self._read(b"SMEMBERS", self._names.queues_of(token_id), key=shard)
            kept = await self._read(b"HGETALL", self._names.token(token_id), key=shard)
        fields, notifications = split(_fields(kept))
        return (fields, at, unsent), queues, notifications

    async def _records(self, queues: Iterable[bytes]) -> dict[bytes, tuple[bytes, bytes]]:
        """Of queues, as their servers have them: record and error."""
        by_bucket: defaultdict[bytes, list[Queue]] = defaultdict(list)
        for ref in map(queue, queues):
            by_bucket[self._names.bucket(ref.server, self._names.bucket_number(ref.notifier_id))].append(ref)
        parts = [(key, some) for key, refs in by_bucket.items() for some in batches(refs, _RECORDS)]

        async def of(key: bytes, refs: Sequence[Queue]) -> Iterator[tuple[bytes, tuple[bytes, bytes]]]:
            ids = [ref.notifier_id for ref in refs]
            kept, errors = await asyncio.gather(
                self._read(b"HMGET", key + b":q", *ids, key=key), self._read(b"HMGET", key + b":e", *ids, key=key)
            )
            pairs = zip(refs, kept, errors, strict=True)
            return ((ref.packed, (record, error or b"")) for ref, record, error in pairs if record is not None)

        return dict(pair for some in await asyncio.gather(*(of(*part) for part in parts)) for pair in some)

    @staticmethod
    def _owned(token_id: bytes, queues: Iterable[bytes], records: Mapping[bytes, tuple[bytes, bytes]]) -> list[bytes]:
        """Those that are its own on their servers too; the others are what commands that were cut off have left."""
        out = []
        for packed in sorted(q for q in queues if q in records):
            try:
                owner = row(records[packed][0]).token
            except DamagedError:
                owner = token_id
            if owner == token_id:
                out.append(packed)
        return out

    async def _superseded(self, found: Mapping[bytes, Registration]) -> set[bytes]:
        """Those that another one took the device of, and which only are not deleted yet."""

        async def leads_to(token_id: bytes, r: Registration) -> bool:
            index = self._names.device(r.lookup)
            has, ends = await self._read(b"HMGET", index, r.verify_key, b"-" + token_id, key=index)
            return ends is None and (has is None or lead(has).token == token_id)

        leads = await asyncio.gather(*(leads_to(*item) for item in found.items()))
        return {token_id for token_id, alive in zip(found, leads, strict=True) if not alive}

    def _token(self, token_id: bytes, f: Fields, at: bytes, unsent: bytes) -> tuple[MovedToken, Registration]:
        if b"x" in f:
            raise DamagedError("tokens", token_id)
        r, open_ = registration(f[b"r"]), self._sealer.open
        device_token = open_(r.device_token, DEVICE_TOKEN + token_id)
        status, verification_due, check_due = (
            TokenStatus(f[b"s"].decode()),
            self._moment(f, b"v"),
            self._moment(f, b"k"),
        )
        known = int(at) - self._ahead * 1000 if at else None
        first = int(unsent) - self._ahead if unsent else None
        private, push = r.server_private, pushed(f[b"i"]) if b"i" in f else NO_PUSH
        moved = MovedToken(
            token_id=token_id,
            provider=Provider(r.provider).value,
            device_token=device_token,
            verify_key=r.verify_key,
            client_dh=b"" if private else open_(r.client_dh, CLIENT_DH + token_id),
            server_private=open_(private, SERVER_PRIVATE + token_id) if private else b"",
            server_dh=open_(r.server_dh, SERVER_DH + token_id),
            secret=open_(r.secret, SECRET + token_id),
            code=open_(f[b"c"], CODE + token_id),
            app=r.app,
            vapid_key=r.vapid_key,
            status=status.value,
            reason=InvalidReason(f[b"w"].decode()).value if f.get(b"w") else "",
            registration=int(f[b"g"]),
            registered_at=self._moment(f, b"ra"),
            active_at=self._moment(f, b"aa"),
            proven=b"o" in f,
            period=int(f.get(b"p", 0)),
            period_at=self._moment(f, b"pa"),
            verification_due=verification_due,
            check_due=check_due,
            due_ms=due_at(known, status, first, verification_due, check_due),
            attempts=int(f.get(b"n", 0)),
            push_id=push.push_id,
            pushed_at=push.at - self._ahead if push.at else 0,
            ended=push.outcome,
            ended_reason=push.reason,
            delivered_at=self._moment(f, b"d"),
        )
        return moved, r

    def _readable(
        self,
        queues: Iterable[bytes],
        records: Mapping[bytes, tuple[bytes, bytes]],
        notifications: Fields,
        left_out: Tally[str],
    ) -> Iterator[MovedQueue]:
        for packed in queues:
            try:
                yield self._queue(queue(packed), *records[packed], notifications.get(packed))
            except _RUBBISH:
                left_out["subscriptions"] += 1

    def _queue(self, ref: Queue, record: bytes, error: bytes, value: bytes | None) -> MovedQueue:
        status, damaged, generation, number, created = HEAD.unpack_from(record)
        if damaged:
            raise DamagedError("subscriptions", ref.packed)
        kept, (server, counts) = row(record), self._servers[ref.server]
        address(kept.spelling or server)
        return MovedQueue(
            server=server,
            notifier_id=ref.notifier_id,
            subscription_id=kept.subscription_id,
            key=self._sealer.open(kept.key, NOTIFIER_KEY + kept.subscription_id),
            spelling=kept.spelling,
            status=STATUSES[status].value,
            error=error.decode(),
            associated=0 < generation == counts and status <= WANTED,
            created_at=int(created) - self._ahead,
            place=int(number),
            notification=None if value is None else self._notification(value),
        )

    def _notification(self, value: bytes) -> MovedNotification:
        fence, number, received_at, _ = STAMP.unpack_from(value)
        _, nonce, meta = contents(value)
        sent = value[STAMP.size - 1]
        return MovedNotification(common_fence(int(fence)), number, int(received_at) - self._ahead, nonce, meta, sent)

    def _moment(self, f: Fields, name: bytes) -> int:
        at = int(f.get(name) or 0)
        return at - self._ahead if at else 0


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
