"""Batches of notifications, pushes and outcomes: what test_sqlite.py sees one by one."""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntf_server.store.records import (
    DeadToken,
    Delivered,
    Due,
    NewSubscription,
    NewToken,
    Notification,
    Notified,
    Outcome,
    Push,
    PushKind,
    Token,
)
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite import deliveries as sqlite_pushes
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, TokenStatus

NOW = 1_800_000_000
SMP = ServerAddress("smp", ("smp.example.org",), "", b"h" * 32)
OTHER_SMP = ServerAddress("smp", ("other.example.org",), "", b"i" * 32)


async def add_token(store: SqliteStore, number: int, *, active: bool = True) -> Token:
    device = DeviceToken(Provider.APNS, b"%d" % number)
    new = NewToken(os.urandom(24), device, os.urandom(44), *(os.urandom(32) for _ in range(4)))
    token = await store.register_token(new, NOW)
    assert token is not None
    if active:
        assert await store.verify_token(token.ref, token.code) == []
    return token


async def subscribe(store: SqliteStore, token: Token, *queues: bytes, server: ServerAddress = SMP) -> None:
    for queue in queues:
        assert await store.add_subscription(token.ref, NewSubscription(os.urandom(24), server, queue, b"key"), NOW)


def nmsg(queue: bytes, meta: bytes = b"meta", *, nonce: bytes = b"n" * 24, at: int = NOW) -> Notification:
    return Notification(queue, at, nonce, meta)


async def held(store: SqliteStore, *tokens: Token) -> list[list[Notification]]:
    pushes = {p.token: p for p in await store.load_pushes([t.ref for t in tokens], NOW)}
    return [[n.notification for n in pushes[t.ref].notifications] if t.ref in pushes else [] for t in tokens]


def messages(*tokens: Token) -> list[Due]:
    return [Due(t.ref, Provider.APNS, PushKind.MESSAGES) for t in tokens]


# --- NMSG


@pytest.mark.parametrize(
    "block",
    [
        [nmsg(b"a"), nmsg(b"b" * 24), nmsg(b"c" * 255)],
        [nmsg(b"a", b""), nmsg(b"b" * 24, b"")],
        [nmsg(b"a", b"m" * 144), nmsg(b"b" * 24, b""), nmsg(b"c" * 255, b"m" * 255)],
        [nmsg(b"a", nonce=b""), nmsg(b"b" * 24, nonce=b"x")],
        [nmsg(b"a", at=NOW - 1), nmsg(b"b" * 24, at=NOW)],
        [nmsg(b"a", b"\0" * 3), nmsg(b"b" * 24, b"\xff\0'\"")],
    ],
    ids=["ids", "no metadata", "metadata", "nonces", "times", "any bytes"],
)
async def test_a_block_of_any_sizes(store: SqliteStore, block: list[Notification]) -> None:
    token = await add_token(store, 1)
    await subscribe(store, token, b"a", b"b" * 24, b"c" * 255)
    assert await store.notify(SMP, block) == Notified(messages(token), 0)
    assert await held(store, token) == [block]


async def test_a_block_for_many_tokens(store: SqliteStore) -> None:
    """Some of which are not active, some unknown, some on another server."""
    tokens = [await add_token(store, i, active=i != 2) for i in range(4)]
    for i, token in enumerate(tokens):
        await subscribe(store, token, b"q%d" % i, b"r%d" % i, server=OTHER_SMP if i == 3 else SMP)
    block = [nmsg(b"%b%d" % (kind, i)) for kind in (b"q", b"r") for i in range(5)]
    assert await store.notify(SMP, block) == Notified(messages(*tokens[:2]), 4)
    assert await held(store, *tokens) == [[nmsg(b"q%d" % i), nmsg(b"r%d" % i)] for i in range(2)] + [[], []]
    assert await store.notify(OTHER_SMP, block) == Notified(messages(tokens[3]), 8)


async def test_the_last_of_a_queue_in_a_block_is_its_newest(store: SqliteStore) -> None:
    token = await add_token(store, 1)
    await subscribe(store, token, b"a", b"b")
    block = [nmsg(b"a", b"1"), nmsg(b"b", b"2"), nmsg(b"a", b"3"), nmsg(b"a", b"4"), nmsg(b"x", b"5")]
    assert await store.notify(SMP, block) == Notified(messages(token), 1)
    assert await held(store, token) == [[nmsg(b"b", b"2"), nmsg(b"a", b"4")]]


async def test_a_block_of_strangers_and_an_empty_one(store: SqliteStore) -> None:
    assert await store.notify(SMP, [nmsg(b"x"), nmsg(b"y" * 24)]) == Notified([], 2)
    assert await store.notify(SMP, []) == Notified([], 0)


async def test_a_block_that_is_late_replaces_nothing(store: SqliteStore) -> None:
    """It was numbered before, and had to be tried again."""
    token = await add_token(store, 1)
    await subscribe(store, token, b"a", b"b")
    first = store.arrival(2)
    await store.notify(SMP, [nmsg(b"a", b"new")])
    assert await store.notify(SMP, [nmsg(b"a", b"old"), nmsg(b"b", b"old")], first) == Notified(messages(token), 0)
    assert await held(store, token) == [[nmsg(b"b", b"old"), nmsg(b"a", b"new")]]


# --- loading and recording


async def test_what_many_tokens_are_sent_is_what_each_is_sent_alone(store: SqliteStore) -> None:
    tokens = [await add_token(store, i, active=i % 4 != 3) for i in range(24)]
    for i, token in enumerate(tokens):
        await subscribe(store, token, *(b"%d-%d" % (i, n) for n in range(i % 12)))
        await store.notify(SMP, [nmsg(b"%d-%d" % (i, n)) for n in range(i % 12)])
    refs = [t.ref for t in tokens]
    await store.record([Delivered(p, NOW, p.notifications[:3]) for p in await store.load_pushes(refs[::2], NOW)])
    together = await store.load_pushes([*refs, 10**6], NOW)
    alone = [push for ref in refs for push in await store.load_pushes([ref], NOW)]
    assert sorted(together, key=token_of) == sorted(alone, key=token_of)
    assert {p.kind for p in together} == {PushKind.VERIFICATION, PushKind.MESSAGES}


def token_of(push: Push) -> int:
    return push.token


async def test_outcomes_of_all_kinds_at_once(store: SqliteStore) -> None:
    verified, delivered, dead, checked, renewed = tokens = [await add_token(store, i, active=i != 0) for i in range(5)]
    for i, token in enumerate((delivered, dead, renewed)):
        await subscribe(store, token, b"q%d" % i)
    await store.notify(SMP, [nmsg(b"q%d" % i) for i in range(3)])
    await store.set_period(checked.ref, 20, NOW)
    assert len(await store.due_checks(NOW + 1200)) == 1
    pushes = {p.token: p for p in await store.load_pushes([t.ref for t in tokens], NOW)}
    assert await store.replace_token(renewed.ref, renewed.device, b"c" * 32, NOW)
    outcomes: list[Outcome] = [
        Delivered(pushes[verified.ref], NOW),
        Delivered(pushes[delivered.ref], NOW, pushes[delivered.ref].notifications),
        DeadToken(pushes[dead.ref], InvalidReason.UNREGISTERED),
        Delivered(pushes[checked.ref], NOW + 1200),
        DeadToken(pushes[renewed.ref], InvalidReason.BAD),
    ]
    await store.record(outcomes)
    now = [await store.find_token(t.token_id) for t in tokens]
    assert [t and (t.status, t.reason) for t in now] == [
        (TokenStatus.CONFIRMED, None),
        (TokenStatus.ACTIVE, None),
        (TokenStatus.INVALID, InvalidReason.UNREGISTERED),
        (TokenStatus.ACTIVE, None),
        (TokenStatus.REGISTERED, None),  # since then
    ]
    assert [p.token for p in await store.load_pushes([t.ref for t in tokens], NOW)] == [renewed.ref]
    assert await store.due_checks(NOW + 2399) == []
    assert len(await store.due_checks(NOW + 2400)) == 1


async def test_nothing_at_once(store: SqliteStore) -> None:
    assert await store.load_pushes([], NOW) == []
    await store.record([])


blocks = st.lists(
    st.lists(st.tuples(st.integers(0, 4), st.binary(max_size=3)), min_size=1, max_size=6), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None)
@given(blocks)
async def test_a_push_holds_the_newest_of_each_queue_by_arrival(sent: Sequence[Sequence[tuple[int, bytes]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = await SqliteStore.open(Path(folder, "relay.db"), master_key=MasterKey(bytes(range(32))))
        try:
            token = await add_token(store, 1)
            await subscribe(store, token, *(b"%d" % i for i in range(4)))
            newest: dict[int, bytes] = {}
            for block in sent:
                notified = await store.notify(SMP, [nmsg(b"%d" % queue, meta) for queue, meta in block])
                assert notified.unknown == sum(queue == 4 for queue, _ in block)
                for queue, meta in block:
                    if queue < 4:
                        newest.pop(queue, None)
                        newest[queue] = meta
            assert await held(store, token) == [[nmsg(b"%d" % queue, meta) for queue, meta in newest.items()]]
        finally:
            await store.close()


# --- how


STATEMENTS = "NOTIFY OWNERS TOKENS UNSENT SENT_BEFORE SENT VERIFIED CHECKED DEAD"


@pytest.mark.parametrize("name", STATEMENTS.split())
async def test_no_statement_goes_through_a_whole_table(store: SqliteStore, name: str) -> None:
    sql = getattr(sqlite_pushes, f"_{name}")
    parameters = dict.fromkeys(re.findall(r":(\w+)", sql), 1) if ":" in sql else ("[]",)
    plan = await store._database.run(lambda c: c.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall())
    steps = [step for *_, step in plan]
    tables = [s for s in steps if re.match(r"SCAN (n|s|t|o|notifications|subscriptions|tokens)\b(?! VIRTUAL)", s)]
    assert steps
    assert tables == []
