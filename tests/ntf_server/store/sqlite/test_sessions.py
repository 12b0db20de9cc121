"""What is subscribed on SMP servers, how many subscriptions there are, and our services."""

import asyncio
import contextlib
import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ntf_server.store.records import (
    ALL_ASSOCIATIONS,
    START,
    WANTED,
    Added,
    Confirmed,
    LimitReached,
    Limits,
    NewSubscription,
    NewToken,
    Notification,
    Position,
    ServiceCertificate,
    ServiceState,
    ToAudit,
    Token,
    Wanted,
)
from ntf_server.store.sealing import MasterKey, Sealer
from ntf_server.store.sqlite import sessions as sqlite_servers
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus

MASTER = MasterKey(b"a master key of thirty-two bytes")
NOW = 1_800_000_000
SMP = ServerAddress("smp", ("smp.example.org", "abc.onion"), "", b"h" * 32)
OTHER_SMP = ServerAddress("smp", ("2001:db8::1",), "5224", b"i" * 32)
NEW, PENDING, ACTIVE = SubscriptionStatus.NEW, SubscriptionStatus.PENDING, SubscriptionStatus.ACTIVE
ENDS = [SubscriptionStatus.END, SubscriptionStatus.DELETED]
NOT_WANTED = sorted(set(SubscriptionStatus) - WANTED)
CODE = b"c" * 32
FIRST, SECOND = b"service id", b"another service id"
SMALL = 100


@contextlib.asynccontextmanager
async def reopened(store: SqliteStore, path: Path) -> AsyncIterator[SqliteStore]:
    await store.close()
    again = await SqliteStore.open(path, master_key=MASTER)
    yield again
    await again.close()


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file without the store."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        yield connection
    finally:
        connection.close()


async def activate(store: SqliteStore, device: bytes = b"phone", key: bytes = b"verify key") -> Token:
    new = NewToken(os.urandom(24), DeviceToken(Provider.APNS, device), key, b"dh", b"server dh", os.urandom(32), CODE)
    token = await store.register_token(new, NOW)
    assert token is not None
    assert await store.verify_token(token.ref, CODE) is not None
    return token


def new_subscription(queue: bytes, server: ServerAddress = SMP) -> NewSubscription:
    return NewSubscription(os.urandom(24), server, queue, b"key of " + queue)


async def subscribe(store: SqliteStore, token: Token, *queues: bytes, server: ServerAddress = SMP) -> list[Added]:
    added = [await store.add_subscription(token.ref, new_subscription(q, server), NOW) for q in queues]
    made = [a for a in added if isinstance(a, Added)]
    assert made == added
    return made


async def put(store: SqliteStore, token: Token, queue: bytes, status: SubscriptionStatus, association: int) -> Added:
    """A subscription that is as given."""
    [added] = await subscribe(store, token, queue)
    ended = status in ENDS
    await store.confirm([Confirmed(added.ref, ACTIVE if ended else status, "", association)])
    if ended:
        assert await store.end_subscriptions(SMP, [queue], status) == 1
    return added


async def look(store: SqliteStore, added: Added) -> tuple[str, str, int]:
    """Status, error, association."""
    found = await store.find_subscription(added.subscription_id)
    assert found is not None
    return found[1].status, found[1].error, found[1].association


async def associate(store: SqliteStore, added: Sequence[Added], server: ServerAddress = SMP) -> ServiceState:
    """All of them, with the service of this server."""
    generation = (await store.begin_service(server, FIRST)).generation
    await store.confirm([Confirmed(a.ref, ACTIVE, "", generation) for a in added])
    return await store.service_state(server)


async def pages(store: SqliteStore, server: ServerAddress = SMP, below: int = ALL_ASSOCIATIONS) -> list[Wanted]:
    return await store.page(server, START, below, SMALL)


def counts(path: Path) -> tuple[dict[int, int], dict[int, int]]:
    """Subscriptions by server and by token: what is kept, which has to be what there is."""
    kept: list[dict[int, int]] = []
    with raw(path) as c:
        for table, column in (("servers", "server"), ("tokens", "token")):
            kept.append(dict(c.execute(f"SELECT ref, subscriptions FROM {table}")))
            there = dict(c.execute(f"SELECT {column}, count(*) FROM subscriptions GROUP BY 1"))
            assert {ref: n for ref, n in kept[-1].items() if n} == there
    return kept[0], kept[1]


# --- which servers


async def test_servers_are_those_with_living_subscriptions(store: SqliteStore) -> None:
    token = await activate(store)
    assert await store.servers() == []
    await subscribe(store, token, b"q")
    [ended] = await subscribe(store, token, b"q", server=OTHER_SMP)
    assert set(await store.servers()) == {SMP, OTHER_SMP}
    await store.end_subscriptions(OTHER_SMP, [b"q"], SubscriptionStatus.END)
    assert await store.servers() == [SMP]
    assert [await store.is_wanted(s) for s in (SMP, OTHER_SMP)] == [True, False]
    assert (await look(store, ended))[0] is SubscriptionStatus.END


@pytest.mark.parametrize("status", SubscriptionStatus)
async def test_only_new_pending_and_active_ones_are_wanted(store: SqliteStore, status: SubscriptionStatus) -> None:
    token = await activate(store)
    added = await put(store, token, b"q", status, 3)
    wanted = status in WANTED
    assert await store.servers() == [SMP] * wanted
    assert await store.is_wanted(SMP) is wanted
    expected = [Wanted(added.ref, 3, status is not ACTIVE, b"q", b"key of q")] * wanted
    assert await pages(store) == expected
    assert await store.load_wanted([added.ref]) == expected
    assert await store.to_audit(0, SMALL, NOW) == [ToAudit(added.ref, SMP, silent=False)] * wanted


# --- keys


async def test_a_key_of_an_older_relay_is_the_same_key(store: SqliteStore) -> None:
    """It was kept without its public half."""
    token = await activate(store)
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]
    old = NewSubscription(os.urandom(24), SMP, b"q", crypto.encode_private(keys[0]))
    added = await store.add_subscription(token.ref, old, NOW)
    same, other = (replace(old, notifier_key=crypto.quick_private(k)) for k in keys)
    assert isinstance(added, Added)
    assert await store.add_subscription(token.ref, same, NOW) == replace(added, created=False)
    assert await store.add_subscription(token.ref, other, NOW) is None
    new = replace(same, subscription_id=os.urandom(24), notifier_id=b"r")
    assert isinstance(await store.add_subscription(token.ref, new, NOW), Added)
    assert await store.add_subscription(token.ref, replace(new, notifier_key=other.notifier_key), NOW) is None
    assert [w.notifier_key for w in await pages(store)] == [old.notifier_key, new.notifier_key]


# --- limits and counts


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_token_may_have_so_many(store: SqliteStore, path: Path, limit: int) -> None:
    token, other = await activate(store), await activate(store, b"tablet")
    limits = Limits(per_token=limit)

    async def add(queue: int, server: ServerAddress = SMP, token: Token = token) -> Added | LimitReached | None:
        return await store.add_subscription(token.ref, new_subscription(b"%d" % queue, server), NOW, limits)

    first = await add(0)
    assert isinstance(first, Added)
    for i in range(1, limit):
        assert isinstance(await add(i), Added)
    assert await add(limit) is LimitReached.TOKEN
    assert await add(limit, OTHER_SMP) is LimitReached.TOKEN
    assert await add(0) == replace(first, created=False)  # what it has, it may have
    assert await store.subscription_count() == limit
    assert isinstance(await add(limit, token=other), Added)
    await store.end_subscriptions(SMP, [b"0"], SubscriptionStatus.END)
    assert await add(limit + 1) is LimitReached.TOKEN  # one that ended is kept, so it counts
    await store.delete_subscription(first.ref)
    assert isinstance(await add(limit + 1), Added)
    assert await add(limit + 2) is LimitReached.TOKEN
    assert counts(path)[1] == {token.ref: limit, other.ref: 1}


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_server_may_have_so_many(store: SqliteStore, path: Path, limit: int) -> None:
    token, other = await activate(store), await activate(store, b"tablet")
    limits = Limits(per_server=limit)

    async def add(queue: int, server: ServerAddress = SMP, token: Token = token) -> Added | LimitReached | None:
        return await store.add_subscription(token.ref, new_subscription(b"%d" % queue, server), NOW, limits)

    for i in range(limit):
        assert isinstance(await add(i), Added)
    assert await add(limit) is LimitReached.SERVER
    assert await add(limit, token=other) is LimitReached.SERVER
    assert isinstance(await add(0), Added)
    assert isinstance(await add(limit, OTHER_SMP), Added)
    await store.delete_token(token.ref)
    assert isinstance(await add(limit, token=other), Added)
    assert counts(path)[1] == {other.ref: 1}


async def test_the_tokens_limit_is_told_first(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"q")
    new = new_subscription(b"r")
    assert await store.add_subscription(token.ref, new, NOW, Limits(1, 1)) is LimitReached.TOKEN
    assert await store.add_subscription(token.ref, new, NOW, Limits(2, 1)) is LimitReached.SERVER
    assert isinstance(await store.add_subscription(token.ref, new, NOW, Limits(0, 0)), Added)


async def test_another_tokens_queue_is_refused_whatever_the_limit(store: SqliteStore) -> None:
    token, other = await activate(store), await activate(store, b"tablet")
    await subscribe(store, token, b"q")
    await subscribe(store, other, b"r")
    assert await store.add_subscription(other.ref, new_subscription(b"q"), NOW, Limits(1, 1)) is None


async def test_a_refused_subscription_leaves_no_trace(store: SqliteStore, path: Path) -> None:
    """Else one token could fill the table of servers."""
    token = await activate(store)
    await subscribe(store, token, b"q")
    added = store.add_subscription(token.ref, new_subscription(b"r", OTHER_SMP), NOW, Limits(per_token=1))
    assert await added is LimitReached.TOKEN
    assert await store.add_subscription(token.ref + 1, new_subscription(b"r", OTHER_SMP), NOW) is None
    assert counts(path) == ({1: 1}, {token.ref: 1})


async def test_limits_hold_for_many_at_once(store: SqliteStore) -> None:
    token = await activate(store)
    new = [new_subscription(b"%d" % i) for i in range(20)]
    added = await asyncio.gather(*(store.add_subscription(token.ref, n, NOW, Limits(7)) for n in new))
    assert [type(a) for a in added] == [Added] * 7 + [LimitReached] * 13


async def test_counts_follow_every_way_in_and_out(store: SqliteStore, path: Path) -> None:
    mine, other = await activate(store), await activate(store, b"tablet")
    [gone, *_] = await subscribe(store, mine, b"a", b"b", b"c")
    await subscribe(store, mine, b"d", server=OTHER_SMP)
    await subscribe(store, other, b"e", b"f")
    assert counts(path) == ({1: 5, 2: 1}, {mine.ref: 4, other.ref: 2})
    await subscribe(store, mine, b"a")  # again
    await store.end_subscriptions(SMP, [b"a", b"e"], SubscriptionStatus.END)
    await store.notify(SMP, [Notification(b"b", NOW, bytes(24), b"meta")])
    assert counts(path) == ({1: 5, 2: 1}, {mine.ref: 4, other.ref: 2})
    await store.delete_subscription(gone.ref)
    await store.delete_subscription(gone.ref)
    assert counts(path) == ({1: 4, 2: 1}, {mine.ref: 3, other.ref: 2})
    assert await store.subscription_count() == 5
    thief = await activate(store, b"phone", b"another key")  # TVFY: other registrations go
    assert counts(path) == ({1: 2, 2: 0}, {other.ref: 2, thief.ref: 0})
    await store.delete_token(other.ref)
    assert counts(path) == ({1: 0, 2: 0}, {thief.ref: 0})
    assert await store.subscription_count() == 0


async def test_there_is_nothing_to_count_in_a_new_file(store: SqliteStore) -> None:
    assert await store.subscription_count() == 0


# --- pages


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_pages_go_through_all_that_is_wanted(store: SqliteStore, limit: int) -> None:
    token = await activate(store)
    names = [bytes([i]) for i in range(11)]
    added = await subscribe(store, token, *names)
    await subscribe(store, token, *names, server=OTHER_SMP)
    associations = [3, 0, 5, 3, 4, 0, 5, 3, 3, 4, 0]
    await store.confirm([Confirmed(a.ref, ACTIVE, "", n) for a, n in zip(added, associations, strict=True)])
    await store.end_subscriptions(SMP, [names[8]], SubscriptionStatus.DELETED)
    order = sorted((n, a.ref) for i, (a, n) in enumerate(zip(added, associations, strict=True)) if i != 8)
    for below in (ALL_ASSOCIATIONS, 6, 5, 4, 1, 0):
        found: list[Wanted] = []
        position = START
        while page := await store.page(SMP, position, below, limit):
            assert len(page) == min(limit, len([1 for n, _ in order if n < below]) - len(found))
            found += page
            position = (page[-1].association, page[-1].ref)
            assert len(found) <= len(names)
        assert [(w.association, w.ref) for w in found] == [o for o in order if o[0] < below]
        assert {w.notifier_key for w in found} <= {b"key of " + n for n in names}


@pytest.mark.parametrize(
    ("after", "below", "expected"),
    [
        ((0, 2), 9, [3, 4, 5, 6]),  # in the middle of an association
        ((0, 3), 9, [4, 5, 6]),  # at the end of one
        ((2, 0), 9, [4, 5, 6]),
        ((1, 99), 9, [4, 5, 6]),
        ((2, 99), 9, [6]),  # a position need not exist
        ((2, 4), 2, []),  # what is behind is not below
        ((2, 4), 3, [5]),
        ((5, 6), 9, []),
        ((9, 0), 5, []),
        ((0, 0), 0, []),
    ],
)
async def test_a_page_begins_behind_its_position_and_ends_below_its_generation(
    store: SqliteStore, after: Position, below: int, expected: list[int]
) -> None:
    token = await activate(store)
    await subscribe(store, token, *(bytes([i]) for i in range(6)))
    await store.confirm([Confirmed(ref, ACTIVE, "", n) for ref, n in ((4, 2), (5, 2), (6, 5))])
    assert [w.ref for w in await store.page(SMP, after, below, SMALL)] == expected
    assert [w.ref for w in await store.page(SMP, after, below, 2)] == expected[:2]


async def test_what_is_associated_while_pages_are_read_is_not_read_again(store: SqliteStore) -> None:
    """As a service does: it pages what is below its generation, and confirms with it."""
    token = await activate(store)
    added = await subscribe(store, token, *(bytes([i]) for i in range(10)))
    generation = (await store.begin_service(SMP, FIRST)).generation
    seen: list[int] = []
    position = START
    while page := await store.page(SMP, position, generation, 3):
        seen += [w.ref for w in page]
        position = (page[-1].association, page[-1].ref)
        await store.confirm([Confirmed(w.ref, ACTIVE, "", generation) for w in page])
    assert seen == [a.ref for a in added]
    assert await pages(store, below=generation) == []
    assert (await store.service_state(SMP)).associated == 10
    later = await store.reassociate(SMP)
    assert [w.ref for w in await pages(store, below=later.generation)] == seen


async def test_the_wanted_are_loaded_in_the_order_asked_for(store: SqliteStore) -> None:
    token = await activate(store)
    added = await subscribe(store, token, b"a", b"b", b"c")
    await subscribe(store, token, b"d", server=OTHER_SMP)
    await store.confirm([Confirmed(2, ACTIVE, "", 7)])
    await store.delete_subscription(added[0].ref)
    loaded = await store.load_wanted([4, 1, 3, 2, 99])
    assert [(w.ref, w.association, w.fresh, w.notifier_id, w.notifier_key) for w in loaded] == [
        (4, 0, True, b"d", b"key of d"),
        (3, 0, True, b"c", b"key of c"),
        (2, 7, False, b"b", b"key of b"),
    ]
    assert await store.load_wanted([]) == []


async def test_pages_and_counts_of_a_server_are_found_by_its_index(store: SqliteStore, path: Path) -> None:
    """Else a connection would cost a walk through all subscriptions of all servers."""
    await subscribe(store, await activate(store), b"q")
    with raw(path) as c:
        statements: list[str] = []
        c.set_trace_callback(statements.append)
        sqlite_servers.page(c, NoSealer(), SMP, after=(1, 5), below=9, limit=5)
        sqlite_servers.service_state(c, SMP)
        sqlite_servers.is_wanted(c, SMP)
        sqlite_servers.wanted_servers(c)
        c.set_trace_callback(None)
        plans = [
            [step for *_, step in c.execute(f"EXPLAIN QUERY PLAN {s}") if "subscriptions" in step]
            for s in statements
            if "FROM subscriptions" in s
        ]
    [same], [later], *others = plans
    assert same.endswith("INDEX subscriptions_server (server=? AND association=? AND rowid>?)")
    assert later.endswith("INDEX subscriptions_server (server=? AND association>? AND association<?)")
    assert len(others) == 3
    assert all("SEARCH" in plan and "INDEX subscriptions_server (server=?" in plan for [plan] in others)


class NoSealer(Sealer):
    """Opens nothing."""

    def __init__(self) -> None:
        super().__init__(bytes(32))

    def open(self, sealed: bytes, context: bytes) -> bytes:
        return b""


# --- answers and ends


async def test_a_confirmation_sets_what_it_says(store: SqliteStore) -> None:
    token = await activate(store)
    added = await subscribe(store, token, b"a", b"b", b"c", b"d")
    outcome = [ACTIVE, SubscriptionStatus.AUTH, SubscriptionStatus.ERR, SubscriptionStatus.SERVICE]
    results = [Confirmed(a.ref, s, "ERR text" * (s == "ERR")) for a, s in zip(added, outcome, strict=True)]
    await store.confirm(results)
    assert [await look(store, a) for a in added] == [
        ("ACTIVE", "", 0),
        ("AUTH", "", 0),
        ("ERR", "ERR text", 0),
        ("SERVICE", "", 0),
    ]
    assert [w.ref for w in await pages(store)] == [added[0].ref]


async def test_a_confirmation_without_an_association_leaves_it_as_it_was(store: SqliteStore) -> None:
    token = await activate(store)
    [added] = await subscribe(store, token, b"q")
    for association, expected in ((None, 0), (4, 4), (None, 4), (7, 7)):
        await store.confirm([Confirmed(added.ref, ACTIVE, "", association)])
        assert await look(store, added) == ("ACTIVE", "", expected)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("result", [ACTIVE, SubscriptionStatus.AUTH])
async def test_a_confirmation_does_not_undo_an_end(
    store: SqliteStore, end: SubscriptionStatus, result: SubscriptionStatus
) -> None:
    token = await activate(store)
    [ended, other] = await subscribe(store, token, b"ended", b"other")
    assert await store.end_subscriptions(SMP, [b"ended", b"unknown"], end) == 1
    assert await store.end_subscriptions(OTHER_SMP, [b"other"], end) == 0
    await store.confirm([Confirmed(a.ref, result, "text", 5) for a in (ended, other)])
    assert await look(store, ended) == (end, "", 0)
    assert await look(store, other) == (result, "text", 5)


async def test_an_answer_about_a_deleted_subscription_does_not_touch_the_next_one(store: SqliteStore) -> None:
    token = await activate(store)
    [gone] = await subscribe(store, token, b"gone")
    await store.delete_subscription(gone.ref)
    [fresh] = await subscribe(store, token, b"fresh", server=OTHER_SMP)
    await store.confirm([Confirmed(gone.ref, SubscriptionStatus.AUTH)])
    assert await look(store, fresh) == ("NEW", "", 0)


async def test_ends_tell_how_many_were_known(store: SqliteStore) -> None:
    token = await activate(store)
    await subscribe(store, token, b"a", b"b", b"c")
    await subscribe(store, token, b"d", server=OTHER_SMP)
    assert await store.end_subscriptions(SMP, [b"a", b"x", b"c", b"d"], SubscriptionStatus.END) == 2
    assert [w.notifier_id for w in await pages(store)] == [b"b"]
    assert [w.notifier_id for w in await pages(store, OTHER_SMP)] == [b"d"]
    assert await store.end_subscriptions(SMP, [], SubscriptionStatus.END) == 0


# --- the service on a server


async def test_a_service_never_seen(store: SqliteStore) -> None:
    await subscribe(store, await activate(store), b"q")
    assert await store.service_state(SMP) == ServiceState(0, 0, 0)  # though all have association 0
    assert await store.service_state(OTHER_SMP) == ServiceState(0, 0, 0)
    assert await store.begin_service(SMP, None) == ServiceState(0, 0, 0)


async def test_a_service_is_another_when_its_id_is(store: SqliteStore) -> None:
    added = await subscribe(store, await activate(store), b"a", b"b", b"c")
    state = await store.begin_service(SMP, FIRST)
    assert state == ServiceState(1, 0, 0)  # the first is no change
    await store.confirm([Confirmed(a.ref, ACTIVE, "", 1) for a in added[:2]])
    await store.set_released(SMP, 5)
    assert await store.begin_service(SMP, FIRST) == ServiceState(1, 2, 5)
    assert await store.begin_service(SMP, SECOND) == ServiceState(2, 0, 0, changed=True)
    assert await store.begin_service(SMP, SECOND) == ServiceState(2, 0, 0)
    await store.confirm([Confirmed(added[2].ref, ACTIVE, "", 2)])
    await store.set_released(SMP, 4)
    # A session without a service dissolves what it subscribes.
    assert await store.begin_service(SMP, None) == ServiceState(3, 0, 0, changed=True)
    assert await store.begin_service(SMP, None) == ServiceState(3, 0, 0)
    assert await store.begin_service(SMP, SECOND) == ServiceState(4, 0, 0)
    assert await store.service_state(OTHER_SMP) == ServiceState(0, 0, 0)


async def test_after_reassociation_no_association_holds(store: SqliteStore) -> None:
    added = await subscribe(store, await activate(store), b"a", b"b")
    other = await subscribe(store, await activate(store, b"tablet"), b"a", server=OTHER_SMP)
    assert await associate(store, added) == ServiceState(1, 2, 0)
    assert await associate(store, other, OTHER_SMP) == ServiceState(1, 1, 0)
    await store.set_released(SMP, 3)
    assert await store.reassociate(SMP) == ServiceState(2, 0, 3)  # what the server has too many, it has still
    assert await store.service_state(SMP) == ServiceState(2, 0, 3)
    assert await store.service_state(OTHER_SMP) == ServiceState(1, 1, 0)
    await store.confirm([Confirmed(added[0].ref, ACTIVE, "", 2)])
    assert await store.service_state(SMP) == ServiceState(2, 1, 3)
    assert await store.begin_service(SMP, FIRST) == ServiceState(2, 1, 3)


async def test_released_is_what_was_set(store: SqliteStore) -> None:
    await store.set_released(SMP, 3)
    assert await store.service_state(SMP) == ServiceState(0, 0, 3)
    await store.set_released(SMP, 0)
    assert await store.service_state(SMP) == ServiceState(0, 0, 0)


async def test_services_survive_reopening(store: SqliteStore, path: Path) -> None:
    added = await subscribe(store, await activate(store), b"a", b"b")
    await associate(store, added)
    await store.delete_subscription(added[0].ref)
    await store.set_service_certificate(SMP, ServiceCertificate(b"chain", b"key"))
    async with reopened(store, path) as again:
        assert await again.begin_service(SMP, FIRST) == ServiceState(1, 1, 1)
        assert await again.service_certificate(SMP) == ServiceCertificate(b"chain", b"key")
        assert await look(again, added[1]) == ("ACTIVE", "", 1)


async def sdel(store: SqliteStore, token: Token, added: Added) -> None:
    await store.delete_subscription(added.ref)


async def tdel(store: SqliteStore, token: Token, added: Added) -> None:
    await store.delete_token(token.ref)


async def tvfy(store: SqliteStore, token: Token, added: Added) -> None:
    await activate(store, token.device.token, b"the key of another registration")


Delete = Callable[[SqliteStore, Token, Added], Awaitable[None]]


@pytest.mark.parametrize("delete", [sdel, tdel, tvfy])
@pytest.mark.parametrize(
    ("status", "association", "released"),
    [(s, 2, 1) for s in sorted(WANTED)]
    + [(s, 2, 0) for s in NOT_WANTED]
    + [(ACTIVE, 1, 0), (ACTIVE, 3, 0), (NEW, 0, 0), (ACTIVE, 0, 0)],
)
async def test_what_is_deleted_while_it_was_associated_is_released(
    store: SqliteStore, *, delete: Delete, status: SubscriptionStatus, association: int, released: int
) -> None:
    token, other = await activate(store), await activate(store, b"tablet")
    await store.begin_service(SMP, FIRST)
    await store.begin_service(SMP, SECOND)
    await store.begin_service(OTHER_SMP, FIRST)
    added = await put(store, token, b"q", status, association)
    await put(store, other, b"kept", ACTIVE, 2)
    associated = 1 + (status in WANTED and association == 2)
    assert await store.service_state(SMP) == ServiceState(2, associated, 0)
    await delete(store, token, added)
    assert await store.find_subscription(added.subscription_id) is None
    assert await store.service_state(SMP) == ServiceState(2, 1, released)
    assert await store.service_state(OTHER_SMP) == ServiceState(1, 0, 0)


@pytest.mark.parametrize("delete", [tdel, tvfy])
async def test_a_deleted_token_releases_on_every_server(store: SqliteStore, delete: Delete) -> None:
    token = await activate(store)
    added = await subscribe(store, token, b"a", b"b", b"c")
    others = await subscribe(store, token, b"d", b"e", server=OTHER_SMP)
    await associate(store, added)
    await associate(store, others, OTHER_SMP)
    await delete(store, token, added[0])
    assert await store.service_state(SMP) == ServiceState(1, 0, 3)
    assert await store.service_state(OTHER_SMP) == ServiceState(1, 0, 2)


async def test_without_a_service_nothing_is_released(store: SqliteStore) -> None:
    added = await subscribe(store, await activate(store), b"a", b"b")
    await store.confirm([Confirmed(added[0].ref, ACTIVE)])
    for each in added:  # both have association 0, and the generation is 0
        await store.delete_subscription(each.ref)
    assert await store.service_state(SMP) == ServiceState(0, 0, 0)


@pytest.mark.parametrize(("unknown", "left"), [(0, 3), (1, 2), (3, 0), (5, 0)])
@pytest.mark.parametrize("status", ENDS)
async def test_ends_of_unknown_queues_are_ends_of_released_ones(
    store: SqliteStore, status: SubscriptionStatus, unknown: int, left: int
) -> None:
    added = await subscribe(store, await activate(store), b"a", b"b", b"c")
    await associate(store, added)
    for server in (SMP, OTHER_SMP):
        await store.set_released(server, 3)
    names = [b"a", *(b"unknown %d" % i for i in range(unknown)), b"b"]
    assert await store.end_subscriptions(SMP, names, status) == 2
    assert await store.service_state(SMP) == ServiceState(1, 1, left)
    assert await store.service_state(OTHER_SMP) == ServiceState(0, 0, 3)


# --- certificates


async def test_every_server_has_its_own_certificate(store: SqliteStore) -> None:
    one, two, three = (ServiceCertificate(b"chain %d" % i, b"key %d" % i) for i in range(3))
    assert await store.service_certificate(SMP) is None
    await store.set_service_certificate(SMP, one)
    assert await store.service_certificate(OTHER_SMP) is None
    await store.set_service_certificate(OTHER_SMP, two)
    assert [await store.service_certificate(s) for s in (SMP, OTHER_SMP)] == [one, two]
    await store.set_service_certificate(SMP, three)
    assert [await store.service_certificate(s) for s in (SMP, OTHER_SMP)] == [three, two]


async def test_a_server_without_a_certificate_has_none(store: SqliteStore) -> None:
    await subscribe(store, await activate(store), b"q")
    assert await store.service_certificate(SMP) is None


async def test_records_show_no_secrets(store: SqliteStore) -> None:
    await subscribe(store, await activate(store), b"SECRET")
    certificate = ServiceCertificate(b"SECRET chain", b"SECRET key")
    page = await pages(store)
    assert page
    assert "SECRET" not in repr((page, certificate))


# --- the audit


async def test_silent_are_those_of_which_nothing_was_heard_since(store: SqliteStore) -> None:
    token = await activate(store)
    since = {b"never": None, b"long ago": NOW + 5, b"just then": NOW + 10, b"later": NOW + 11}
    for queue, at in since.items():
        await subscribe(store, token, queue)
        if at is not None:
            await store.notify(SMP, [Notification(queue, at, bytes(24), b"meta")])
    audited = await store.to_audit(0, SMALL, NOW + 10)
    assert [a.silent for a in audited] == [True, True, False, False]
    assert [a.silent for a in await store.to_audit(0, SMALL, NOW)] == [False] * 4
    [push] = await store.load_pushes([token.ref], NOW + 12)
    assert len(push.notifications) == 3  # the audit changed nothing


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_the_audit_goes_through_what_is_wanted_by_ref(store: SqliteStore, limit: int) -> None:
    token = await activate(store)
    servers = [SMP, OTHER_SMP] * 4
    added = [(await subscribe(store, token, b"q%d" % i, server=s))[0] for i, s in enumerate(servers)]
    await store.confirm([Confirmed(a.ref, ACTIVE, "", n) for n, a in enumerate(reversed(added))])
    await store.delete_subscription(added[2].ref)
    await store.end_subscriptions(OTHER_SMP, [b"q5"], SubscriptionStatus.END)
    found: list[ToAudit] = []
    while page := await store.to_audit(found[-1].ref if found else 0, limit, NOW + 1):
        assert len(page) <= limit
        found += page
        assert len(found) <= len(added)
    expected = [(i, s) for i, s in enumerate(servers) if i not in (2, 5)]
    assert found == [ToAudit(added[i].ref, s, silent=True) for i, s in expected]


# --- anything in any order: the counts are what a count of all would give


class Services(RuleBasedStateMachine):
    """Subscriptions of three tokens on a server that knows us as a service.

    The model: each subscription's token, status and association; the server's generation, service id and released.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "relay.db"
        self.store = self.run(SqliteStore.open(self.path, master_key=MASTER))
        self.tokens = [self.run(activate(self.store, b"%d" % i)) for i in range(3)]
        self.keys = itertools.count()
        self.model: dict[bytes, dict[str, Any]] = {}
        self.generation, self.released = 0, 0
        self.service: bytes | None = None

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def state(self, *, changed: bool = False) -> ServiceState:
        wanted = [s for s in self.model.values() if s["status"] in WANTED]
        associated = sum(0 < self.generation == s["association"] for s in wanted)
        return ServiceState(self.generation, associated, self.released, changed)

    def forget(self, queue: bytes) -> None:
        s = self.model.pop(queue)
        self.released += s["status"] in WANTED and 0 < self.generation == s["association"]

    @rule(queue=st.integers(0, 7), token=st.integers(0, 2), limits=st.builds(Limits, *[st.integers(0, 4)] * 2))
    def add(self, queue: int, token: int, limits: Limits) -> None:
        name = bytes([queue])
        added = self.run(
            self.store.add_subscription(self.tokens[token].ref, new_subscription(name), NOW, limits=limits)
        )
        if name in self.model:
            own = self.model[name]["token"] == token
            assert isinstance(added, Added) is own
            assert isinstance(added, Added) or added is None
        elif 0 < limits.per_token <= sum(s["token"] == token for s in self.model.values()):
            assert added is LimitReached.TOKEN
        elif 0 < limits.per_server <= len(self.model):
            assert added is LimitReached.SERVER
        else:
            assert isinstance(added, Added)
            assert added.created
            self.model[name] = {"ref": added.ref, "token": token, "status": NEW, "association": 0}

    @rule(queues=st.sets(st.integers(0, 7)), status=st.sampled_from([ACTIVE, *NOT_WANTED]), lag=st.integers(-1, 2))
    def confirm(self, queues: set[int], status: SubscriptionStatus, lag: int) -> None:
        """`lag`: of the answers' generation behind the current; -1: without an association."""
        association = None if lag < 0 else max(0, self.generation - lag)
        chosen = [self.model[bytes([q])] for q in queues if bytes([q]) in self.model]
        self.run(self.store.confirm([Confirmed(s["ref"], status, "", association) for s in chosen]))
        for s in chosen:
            if s["status"] in WANTED:
                s["status"] = status
                s["association"] = s["association"] if association is None else association

    @rule(queues=st.sets(st.integers(0, 9)), status=st.sampled_from(ENDS))
    def end(self, queues: set[int], status: SubscriptionStatus) -> None:
        names = [bytes([q]) for q in queues]
        known = [self.model[n] for n in names if n in self.model]
        assert self.run(self.store.end_subscriptions(SMP, names, status)) == len(known)
        for s in known:
            s["status"] = status
        self.released = max(0, self.released - (len(names) - len(known)))

    @rule(queue=st.integers(0, 7))
    def delete(self, queue: int) -> None:
        name = bytes([queue])
        if name in self.model:
            self.run(self.store.delete_subscription(self.model[name]["ref"]))
            self.forget(name)

    @rule(token=st.integers(0, 2), verified=st.booleans())
    def replace_token(self, token: int, verified: bool) -> None:
        """TDEL, or TVFY of another registration."""
        key = b"key %d" % next(self.keys)
        if not verified:
            self.run(self.store.delete_token(self.tokens[token].ref))
        self.tokens[token] = self.run(activate(self.store, b"%d" % token, key))
        for name in [n for n, s in self.model.items() if s["token"] == token]:
            self.forget(name)

    @rule(service=st.sampled_from([None, FIRST, SECOND]))
    def begin(self, service: bytes | None) -> None:
        changed = self.service not in (None, service)
        if self.service != service:
            self.service, self.generation, self.released = service, self.generation + 1, 0
        assert self.run(self.store.begin_service(SMP, service)) == self.state(changed=changed)

    @rule()
    def reassociate(self) -> None:
        self.generation += 1
        assert self.run(self.store.reassociate(SMP)) == self.state()

    @rule(count=st.integers(0, 3))
    def set_released(self, count: int) -> None:
        self.run(self.store.set_released(SMP, count))
        self.released = count

    @rule()
    def reopen(self) -> None:
        self.run(self.store.close())
        self.store = self.run(SqliteStore.open(self.path, master_key=MASTER))

    @invariant()
    def the_state_is_the_models(self) -> None:
        assert self.run(self.store.service_state(SMP)) == self.state()
        assert self.run(self.store.subscription_count()) == len(self.model)
        servers, tokens = counts(self.path)
        assert servers in ({}, {1: len(self.model)})
        of_tokens = [s["token"] for s in self.model.values()]
        assert tokens == {t.ref: of_tokens.count(i) for i, t in enumerate(self.tokens)}

    @invariant()
    def pages_are_the_models(self) -> None:
        wanted = sorted((s["association"], s["ref"]) for s in self.model.values() if s["status"] in WANTED)
        for below in (ALL_ASSOCIATIONS, self.generation):
            found = self.run(pages(self.store, below=below))
            assert [(w.association, w.ref) for w in found] == [p for p in wanted if p[0] < below]
        audited = self.run(self.store.to_audit(0, SMALL, NOW))
        assert [a.ref for a in audited] == sorted(ref for _, ref in wanted)


TestServices = Services.TestCase
TestServices.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
