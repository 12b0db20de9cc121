"""Records that are no engine's, written to a Redis: see `portable`.

Nobody reads them yet, so its steps need no order; each may be done twice.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ntf_server.store.portable import Moved, MovedQueue, MovedServer, MovedToken, batches, origin_of
from ntf_server.store.records import LastPush
from ntf_server.store.redis.call import Call, Word
from ntf_server.store.redis.database import Database
from ntf_server.store.redis.names import Names, server_id
from ntf_server.store.redis.rows import (
    ATTEMPT,
    HEAD,
    NO_PUSH,
    NUMBERS,
    Lead,
    Queue,
    Registration,
    Row,
    address,
    arrival,
    lane_of,
    pack_registration,
    packed_push,
    stored,
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
)
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus
from smp_bridge.service import xor

_PUT_TOKEN: Final = Script.load("put_token")
_PUT_QUEUES: Final = Script.load("put_queues")
_PUT_BUCKETS: Final = Script.load("put_buckets")
_SERVERS: Final = 500  # at once
_QUEUES: Final = 100  # that one script writes
_GENERATION: Final = 1  # of all associations that hold, until their server's changes
_ATTEMPT: Final = bytes(ATTEMPT)  # by which registrations have their devices: that of no command


class Writing:
    """`ahead`: seconds by which the times that are kept are ahead of those that are given."""

    def __init__(self, database: Database, names: Names, sealer: Sealer, ahead: int) -> None:
        self._database = database
        self._names = names
        self._sealer = sealer
        self._ahead = ahead

    async def servers(self, servers: Sequence[MovedServer]) -> None:
        """See `Portable.write_servers`."""
        for some in batches(servers, _SERVERS):
            await asyncio.gather(*(self._write_server(server) for server in some))

    async def _write_server(self, s: MovedServer) -> None:
        server = address(s.address)
        name, known = self._names.server(server_id(server)), self._names.servers
        words: list[Word] = [b"address", s.address, b"generation", _GENERATION, b"since", _GENERATION]
        words += [b"assoc_n", s.counted - s.released, b"assoc_x", xor(s.counted_hash, s.released_hash)]
        words += [b"rel_n", s.released, b"rel_x", s.released_hash]
        words += [b"tried", self._time(s.tried_since), b"unused", self._time(s.unused_since)]
        if s.service_id is not None:
            words += [b"service", s.service_id]
        if s.prefixes:
            words += [b"prefixes", s.prefixes]
        if s.proven:
            words += [b"proven", self._time(s.proven)]
        if s.chain:
            words += [b"chain", s.chain, b"key", self._sealer.seal(s.key, SERVICE_KEY + server_id(server))]
        await self._database.command(b"HSET", name, *words, key=name)
        await self._database.command(b"HSET", known, server_id(server), server.plain.encode(), key=known)

    async def tokens(self, moved: Sequence[Moved]) -> None:
        """See `Portable.write`."""
        calls: list[Call] = []
        names = self._names
        by_bucket: defaultdict[tuple[bytes, bytes], list[Word]] = defaultdict(list)
        by_server: dict[bytes, dict[int, int]] = {}  # the highest number in each of its buckets
        indexes: defaultdict[bytes, list[Word]] = defaultdict(list)
        for one in moved:
            token_id = one.token.token_id
            index = self._names.device(self._sealer.lookup(one.token.provider, one.token.device_token))
            indexes[index] += (one.token.verify_key, Lead(token_id, _ATTEMPT).packed)
            words: list[Word] = []
            for q in one.queues:
                ref, bucket = Queue(server_id(address(q.server)), q.notifier_id), names.bucket_number(q.notifier_id)
                by_bucket[names.bucket(ref.server, bucket), q.server] += (
                    q.notifier_id,
                    self._record(token_id, q),
                    q.error,
                )
                numbers = by_server.setdefault(names.server(ref.server), {})
                numbers[bucket] = max(numbers.get(bucket, 0), q.place)
                indexes[self._names.subscription(q.subscription_id)] += (q.subscription_id, ref.packed)
                words += (ref.packed, self._value(q))
            calls += self._token_calls(one.token, words)
        calls += self._queue_calls(by_bucket)
        for key, numbers in by_server.items():
            calls.append(Call(_PUT_BUCKETS, [key], (max(numbers.values()), *numbers)))
        commands = [
            self._database.command(b"HSET", key, *some, key=key)
            for key, words in indexes.items()
            for some in batches(words, 2 * _QUEUES)
        ]
        await asyncio.gather(self._database.run_all(calls), *commands)

    def _queue_calls(self, by_bucket: Mapping[tuple[bytes, bytes], Sequence[Word]]) -> Iterator[Call]:
        """One call for each bucket, or, where one primary has all slots, one for about _QUEUES queues."""
        keys, args, count = list[bytes](), list[Word](), 0
        for (key, server), words in by_bucket.items():
            for some in batches(words, 3 * _QUEUES):
                keys.append(key)
                args += (server, len(some) // 3, *some)
                count += len(some) // 3
                if count >= _QUEUES or not self._database.spans:
                    yield Call(_PUT_QUEUES, keys, args)
                    keys, args, count = [], [], 0
        if keys:
            yield Call(_PUT_QUEUES, keys, args)

    def _token_calls(self, t: MovedToken, queues: Sequence[Word]) -> Iterator[Call]:
        shard, device = self._names.shard(t.token_id), DeviceToken(Provider(t.provider), t.device_token)
        lane = lane_of(self._sealer, device, origin_of(t.device_token))
        due: Word = b"" if t.due_ms is None else t.due_ms + self._ahead * 1000
        fields = self._token_fields(t, lane)
        first, rest = queues[: 2 * _QUEUES], queues[2 * _QUEUES :]
        yield Call(_PUT_TOKEN, [shard], (t.token_id, lane, due, len(fields), *fields, *first))
        for some in batches(rest, 2 * _QUEUES):
            yield Call(_PUT_TOKEN, [shard], (t.token_id, lane, b"", 0, *some))

    def _token_fields(self, t: MovedToken, lane: bytes) -> list[Word]:
        seal, token_id = self._sealer.seal, t.token_id
        record = Registration(
            t.provider,
            t.verify_key,
            self._sealer.lookup(t.provider, t.device_token),
            seal(t.device_token, DEVICE_TOKEN + token_id),
            seal(t.client_dh, CLIENT_DH + token_id),
            seal(t.server_dh, SERVER_DH + token_id),
            seal(t.secret, SECRET + token_id),
            t.app,
            t.vapid_key,
            _ATTEMPT,
            seal(t.server_private, SERVER_PRIVATE + token_id) if t.server_private else b"",
        )
        fields: dict[bytes, Word] = {
            b"s": t.status,
            b"g": t.registration,
            b"ra": self._time(t.registered_at),
            b"aa": self._time(t.active_at),
            b"l": lane,
            b"r": pack_registration(record),
            b"c": seal(t.code, CODE + token_id),
            b"p": t.period,
            b"pa": self._time(t.period_at),
            b"n": t.attempts,
        }
        some: dict[bytes, Word] = {
            b"w": t.reason,
            b"v": self._time(t.verification_due),
            b"k": self._time(t.check_due),
            b"o": int(t.proven),
            b"d": self._time(t.delivered_at),
        }
        fields |= {name: value for name, value in some.items() if value}
        push = LastPush(t.push_id, self._time(t.pushed_at), t.ended, t.ended_reason)
        if push != NO_PUSH:
            fields[b"i"] = packed_push(push)
        return [word for pair in fields.items() for word in pair]

    def _record(self, token_id: bytes, q: MovedQueue) -> bytes:
        generation, created = _GENERATION if q.associated else 0, q.created_at + self._ahead
        head = HEAD.pack(NUMBERS[SubscriptionStatus(q.status)], 0, generation, q.place, created)
        key = self._sealer.seal(q.key, NOTIFIER_KEY + q.subscription_id)
        return head + Row(token_id, q.subscription_id, q.spelling, key).packed

    def _value(self, q: MovedQueue) -> bytes:
        n = q.notification
        if n is None:
            return b""
        arrived = arrival(self._time(n.received_at), q.spelling or q.server, n.nonce, n.meta)
        return stored(n.fence, n.number, n.sent, arrived)

    def _time(self, at: int) -> int:
        return at + self._ahead if at else 0
