"""Records: there and back, also of what scripts pack; damaged bytes are damaged records."""

import os
import struct
from contextlib import suppress

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from redis_stores import SHARDS, Nodes, ask, bucket

from ntf_server.store.records import LastPush, NewToken, Replacement, Subscription
from ntf_server.store.redis.engine import RedisStore
from ntf_server.store.redis.names import Names, server_id
from ntf_server.store.redis.rows import (
    ATTEMPT,
    FIND,
    HEAD,
    NUMBERS,
    STAMP,
    STATUSES,
    Cursor,
    DamagedError,
    Lead,
    Queue,
    Registration,
    Row,
    address,
    arrival,
    contents,
    entry,
    lane_of,
    lead,
    new_registration,
    pack_registration,
    packed_push,
    pushed,
    queue,
    queue_on,
    registration,
    replaced,
    row,
    split,
    stored,
    subscription_record,
    token_record,
)
from ntf_server.store.sealing import CLIENT_DH, DEVICE_TOKEN, SECRET, SERVER_DH, Sealer
from ntf_server.testing.store_suite.medium import (
    SMP,
    acquire,
    activate,
    again,
    found,
    new_token,
    notify,
    register,
    subscribe,
    take_one,
)
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

SEALER = Sealer(os.urandom(32))
short = st.binary(max_size=255)
ids = st.binary(min_size=1, max_size=64)
new_tokens = st.builds(
    NewToken, ids, st.builds(DeviceToken, st.sampled_from(Provider), ids), ids, ids, ids, ids, ids,
    st.just(""), st.text(max_size=20), short,
)  # fmt: skip


@given(st.builds(Row, short, short, st.binary(max_size=600), short), st.binary(min_size=22, max_size=22))
def test_a_subscription(kept: Row, head: bytes) -> None:
    assert HEAD.size == 22
    assert row(head + kept.packed) == kept


@given(st.binary(min_size=8, max_size=8), short)
def test_a_ref_of_a_subscription(server: bytes, notifier_id: bytes) -> None:
    assert queue(Queue(server, notifier_id).packed) == Queue(server, notifier_id)
    assert queue_on(SMP, notifier_id) == Queue(server_id(SMP), notifier_id)


stamps = st.tuples(st.integers(0, 2**53), st.integers(0, 2**32 - 1), st.integers(0, 2**40), st.booleans())


@given(stamps, short, st.binary(max_size=600), st.integers(-10, 10))
def test_a_notification(stamp: tuple[int, int, int, bool], nonce: bytes, meta: bytes, shift: int) -> None:
    fence, number, received_at, sent = stamp
    stored = struct.pack(">dI", fence, number) + arrival(received_at, SMP.encode(), nonce, meta)
    stored = stored[:20] + bytes([sent]) + stored[21:]  # as scripts do
    ref = Queue(server_id(SMP), b"queue")
    e = entry(ref.packed, stored, {}, shift)
    assert (e.subscription, e.seq, e.sent, e.server) == (ref, (fence << 32) + number, sent, SMP)
    assert (e.notifier_id, e.received_at, e.nonce, e.meta) == (b"queue", received_at - shift, nonce, meta)


def test_servers_of_notifications_are_parsed_once_and_strangers_fill_no_memory() -> None:
    addresses: dict[bytes, ServerAddress] = {}
    ref = Queue(server_id(SMP), b"q").packed
    for number in range(5000):
        server = ServerAddress("smp", (f"smp{number}.example.org",), "", b"h" * 32)
        stored = struct.pack(">dI", 1, 1) + arrival(1, server.encode(), b"", b"")
        assert entry(ref, stored, addresses, 0).server is entry(ref, stored, addresses, 0).server
    assert len(addresses) <= 4097


@given(new_tokens)
def test_a_registration(new: NewToken) -> None:
    r = registration(new_registration(SEALER, new, b"12345678"))
    assert (r.provider, r.verify_key, r.app, r.vapid_key, r.attempt) == (
        new.device.provider.value, new.verify_key, new.app, new.vapid_key, b"12345678"
    )  # fmt: skip
    assert r.lookup == SEALER.lookup(new.device.provider, new.device.token)
    sealed = (
        (r.device_token, DEVICE_TOKEN, new.device.token), (r.client_dh, CLIENT_DH, new.client_dh),
        (r.server_dh, SERVER_DH, new.server_dh), (r.secret, SECRET, new.secret),
    )  # fmt: skip
    for value, context, plain in sealed:
        assert SEALER.open(value, context + new.token_id) == plain
    assert repr(r) == "Registration()"


@given(new_tokens, new_tokens)
def test_a_replacement(new: NewToken, other: NewToken) -> None:
    """Has what TRPL gives, and the keys of before."""
    old = registration(new_registration(SEALER, new, b"12345678"))
    change = Replacement(other.device, other.code, "", other.app, other.vapid_key)
    r = registration(replaced(SEALER, new.token_id, old, change, b"87654321"))
    assert r.attempt == b"87654321"
    assert SEALER.open(r.device_token, DEVICE_TOKEN + new.token_id) == other.device.token
    assert (r.provider, r.app, r.vapid_key) == (other.device.provider.value, other.app, other.vapid_key)
    assert r.lookup == SEALER.lookup(other.device.provider, other.device.token)
    assert (r.client_dh, r.server_dh, r.secret) == (old.client_dh, old.server_dh, old.secret)


@given(st.binary(), st.binary(min_size=ATTEMPT, max_size=ATTEMPT))
def test_whose_a_pair_is(token: bytes, attempt: bytes) -> None:
    assert lead(Lead(token, attempt).packed) == (token, attempt)


@given(st.sampled_from(Provider), st.sampled_from(["", "https://push.example.org"]))
def test_a_lane_begins_with_its_provider(provider: Provider, origin: str) -> None:
    lane = lane_of(SEALER, DeviceToken(provider, b"t"), origin)
    assert lane[:2] == provider.encode()
    assert len(lane) == (18 if provider is Provider.WEB_PUSH and origin else 2)


def test_statuses_keep_their_numbers() -> None:
    assert [status.value for status in STATUSES[:3]] == ["NEW", "PENDING", "ACTIVE"]
    assert [NUMBERS[status] for status in STATUSES] == list(range(len(SubscriptionStatus)))


PACKED = new_registration(SEALER, new_token(), b"12345678")
RECORD = HEAD.pack(2, 0, 3, 7, 1e9) + Row(b"t" * 24, b"s" * 24, b"", b"k" * 60).packed
STORED = STAMP.pack(5, 1, 1000, False) + arrival(0, SMP.encode(), b"n" * 24, b"meta")[9:]


@given(st.binary(max_size=300))
@example(b"\x99\xa2\x00\x80")  # a text that is not UTF-8
def test_rubbish_is_damaged(rubbish: bytes) -> None:
    for packed in (rubbish, PACKED[: len(rubbish)], PACKED[:40] + rubbish):
        with suppress(DamagedError):
            registration(packed)
        with suppress(DamagedError):
            token_record(b"id", [b"ACTIVE", None, b"20", b"1000", None, None, packed])
    for record in (rubbish, RECORD[: len(rubbish)], RECORD[:30] + rubbish):
        with suppress(DamagedError):
            row(record)
        with suppress(DamagedError):
            subscription_record(Queue(server_id(SMP), b"q"), record, rubbish, 3, rubbish, bucket=0)
    for kept in (rubbish, STORED[: len(rubbish)], STORED[:30] + rubbish):
        with suppress(DamagedError):
            entry(Queue(server_id(SMP), b"q").packed, kept, {}, 0)
    with pytest.raises(DamagedError, match="tokens"):
        registration(b"\xc1" + rubbish)


def test_what_was_set_aside_is_damaged() -> None:
    values = [b"ACTIVE", None, b"20", b"1000", b"1", None, PACKED]
    token = token_record(b"id", values)
    assert token is not None
    assert (token.status, token.reason, token.period, token.active_at, token.proven) == (
        TokenStatus.ACTIVE, None, 20, 1000, True
    )  # fmt: skip
    assert len(FIND) == len(values)
    assert token_record(b"id", [None] * 7) is None
    invalid = token_record(b"id", [b"INVALID", b"BAD", b"0", b"1", None, None, PACKED])
    assert invalid is not None and invalid.reason is InvalidReason.BAD
    with pytest.raises(DamagedError) as caught:
        token_record(b"id", [b"ACTIVE", None, b"20", b"1000", None, b"1", PACKED])
    assert (caught.value.what, caught.value.key) == ("tokens", b"id")
    ref = Queue(server_id(SMP), b"q")
    with pytest.raises(DamagedError) as caught:
        subscription_record(ref, RECORD[:1] + b"\1" + RECORD[2:], b"", 3, SMP.encode(), bucket=0)
    assert (caught.value.what, caught.value.key) == ("subscriptions", ref.packed)


@pytest.mark.parametrize(("status", "generation", "associated"), [(2, 3, True), (2, 4, False), (5, 3, False)])
def test_a_subscription_is_the_services_in_its_generation_only(status: int, generation: int, associated: bool) -> None:
    record = bytes([status]) + RECORD[1:]
    s = subscription_record(Queue(server_id(SMP), b"q"), record, b"why", generation, SMP.encode(), bucket=3)
    assert isinstance(s, Subscription)
    assert (s.subscription_id, s.server, s.notifier_id, s.error) == (b"s" * 24, SMP, b"q", "why")
    assert (s.status, s.associated, s.cursor) == (STATUSES[status], associated, Cursor(3, 3, 7))


# --- what scripts pack


async def test_a_record_as_scripts_make_it(nodes: Nodes, store: RedisStore) -> None:
    token = await activate(store)
    ids = await subscribe(store, token, *(b"%d" % n for n in range(3)))
    for number, subscription_id in enumerate(ids, 1):
        s = await found(store, subscription_id)
        record = await ask(store, b"HGET", bucket(store, s.notifier_id) + b":q", s.notifier_id)
        head = HEAD.unpack_from(record)
        assert head == (NUMBERS[SubscriptionStatus.NEW], 0, 0, number, int(nodes.clock.wall()))
        kept = row(record)
        assert (kept.token, kept.subscription_id) == (token.token_id, subscription_id)
        assert record == HEAD.pack(*head) + kept.packed


@given(st.builds(LastPush, st.binary(max_size=255), st.integers(0, 2**40), st.text(max_size=20), st.text(max_size=200)))
def test_a_last_push_comes_back(push: LastPush) -> None:
    assert pushed(packed_push(push)) == push


@pytest.mark.parametrize("size", range(18))
def test_a_last_push_that_is_cut(size: int) -> None:
    with pytest.raises(DamagedError):
        pushed(packed_push(LastPush(b"12345678", 1, "delivered", ""))[:size])


async def test_a_last_push_as_scripts_make_it(store: RedisStore) -> None:
    token = await register(store, new_token())
    claim = await take_one(store)
    assert await store.record([again(claim, reason="why ✓")]) == 0
    kept = await ask(store, b"HGET", store._node.names.token(token.token_id), b"i")
    assert kept == packed_push(LastPush(claim.push_id, int(store._node.wall()), "again", "why ✓"))
    assert await store.last_push(token.ref) == pushed(kept)


async def test_a_notification_as_scripts_make_it(nodes: Nodes, store: RedisStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a")
    session = await acquire(store)
    await notify(store, session, b"a", meta=b"what it says")
    names = Names(nodes.prefix, SHARDS)
    words = await ask(store, b"HGETALL", names.token(token.token_id))
    fields, notifications = split(dict(zip(words[::2], words[1::2], strict=True)))
    assert {b"s", b"r"} <= fields.keys()
    [(packed, value)] = notifications.items()
    fence, number, received_at, sent = STAMP.unpack_from(value)
    assert (fence, number, received_at, sent) == (session.fence, 1, int(nodes.clock.wall()), False)
    e = entry(packed, value, {}, 0)
    assert (e.notifier_id, e.meta, e.nonce) == (b"a", b"what it says", b"n" * 24)
    assert address(SMP.plain.encode()) == SMP


async def test_a_fence_is_exact_in_a_double(store: RedisStore) -> None:
    """Of the microseconds since 1970, for two hundred years."""
    session = await acquire(store)
    assert int(float(session.fence)) == session.fence < 2**53
    assert int(float(session.fence + 1)) == session.fence + 1


def test_a_record_of_the_largest_sizes() -> None:
    kept = Row(b"t" * 255, b"s" * 255, b"w" * 65535, b"")
    assert row(bytes(22) + kept.packed) == kept
    new = replace(new_token(), verify_key=b"k" * 5000)
    assert registration(new_registration(SEALER, new, b"12345678")).verify_key == b"k" * 5000


def test_nodes_of_two_versions_read_each_others_registrations() -> None:
    """One that has more at its end, and one that has less (docs/explanation/rolling-upgrades.md)."""
    kept = Registration(
        "AP", b"key", b"lookup", b"device", b"client", b"server", b"secret", "app", b"vapid", b"attempt", b"private"
    )
    values = [getattr(kept, name) for name in Registration.__struct_fields__]
    newer, older = msgspec.msgpack.encode([*values, b"more"]), msgspec.msgpack.encode(values[:10])
    assert registration(newer) == registration(pack_registration(kept)) == kept
    assert registration(older) == replace(kept, server_private=b"")


@given(st.integers(0, 2**53), st.integers(0, 2**32 - 1), st.integers(0, 2), st.integers(0, 2**40), st.binary())
def test_notifications_as_they_are_moved(fence: int, number: int, sent: int, received_at: int, meta: bytes) -> None:
    value = stored(fence, number, sent, arrival(received_at, b"spelling", b"nonce", meta))
    assert STAMP.unpack_from(value) == (fence, number, received_at, sent > 0)
    assert value[STAMP.size - 1] == sent
    assert contents(value) == (b"spelling", b"nonce", meta)
