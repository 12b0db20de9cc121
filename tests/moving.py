"""What is moved between stores: records that Hypothesis makes, content that relays make; how both stores are seen."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from msgspec.structs import replace
from store_world import (
    CODE,
    OTHER_SMP,
    SMP,
    acquire,
    again,
    anywhere,
    delivered,
    new_token,
    notify,
    register,
    subscribe,
    take,
)

from ntf_server.store.contract import Store
from ntf_server.store.portable import (
    Mark,
    Moved,
    MovedNotification,
    MovedQueue,
    MovedServer,
    MovedToken,
    Portable,
)
from ntf_server.store.records import Confirmed, Ended, Outcome, Registered, ServiceCertificate, Session
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import short
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

MARK = Mark("source", (0, 0))
NOW = 1_790_000_000
SERVERS = (SMP, OTHER_SMP, ServerAddress("smp", ("smp4.simplex.im",), "", b"j" * 32))
_times = st.integers(NOW - 10**7, NOW + 3000)
_maybe = st.one_of(st.just(0), _times)
_bytes = st.binary(max_size=40)
_words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def browser(host: bytes, port: bytes = b"") -> DeviceToken:
    """A device token of Web Push, as it is kept."""
    return DeviceToken(
        Provider.WEB_PUSH, short(host) + short(port) + short(b"/" + os.urandom(4).hex().encode()) + short(b"a") * 2
    )


@st.composite
def notifications(draw: st.DrawFn) -> MovedNotification:
    return MovedNotification(
        draw(st.integers(1, 2**31 - 1)),
        draw(st.integers(0, 2**32 - 1)),
        draw(_times),
        draw(_bytes),
        draw(_bytes),
        draw(st.integers(0, 2)),
    )


@st.composite
def tokens(draw: st.DrawFn, number: int) -> MovedToken:
    provider = draw(st.sampled_from(list(Provider)))
    name = b"%d" % number
    device = browser(b"push%d.example" % (number % 3)).token if provider is Provider.WEB_PUSH else name
    status = draw(st.sampled_from([s for s in TokenStatus if s is not TokenStatus.NEW]))
    private = draw(st.booleans())
    period = draw(st.sampled_from([0, 20, 1440]))
    return MovedToken(
        token_id=name.rjust(24, b"t"),
        provider=provider.value,
        device_token=device,
        verify_key=draw(_bytes),
        client_dh=b"" if private else draw(_bytes),
        server_private=bytes([1]) * 32 if private else b"",
        server_dh=draw(_bytes),
        secret=draw(_bytes),
        code=draw(_bytes),
        app=draw(_words),
        vapid_key=draw(_bytes),
        status=status.value,
        reason=draw(st.sampled_from(["", *(r.value for r in InvalidReason)])),
        registration=draw(st.integers(0, 1000)),
        registered_at=draw(_times),
        active_at=draw(_times),
        proven=draw(st.booleans()),
        period=period,
        period_at=draw(_times) if period else draw(_maybe),
        verification_due=draw(_maybe),
        check_due=draw(_maybe),
        due_ms=draw(_times) * 1000 + draw(st.integers(0, 999)),
        attempts=draw(st.integers(0, 9)),
        push_id=draw(st.sampled_from([b"", b"p" * 16])),
        pushed_at=draw(_maybe),
        ended=draw(st.sampled_from(["", *(e.value for e in Ended)])),
        ended_reason=draw(_words),
        delivered_at=draw(_maybe),
    )


@st.composite
def contents(draw: st.DrawFn) -> tuple[list[MovedServer], list[Moved]]:
    """Servers and registrations that a store may have."""
    servers = [draw(moved_servers(server)) for server in SERVERS]
    moved = []
    place = 0
    for number in range(draw(st.integers(0, 6))):
        queues = []
        for _ in range(draw(st.integers(0, 3))):
            place += 1
            status = draw(st.sampled_from(list(SubscriptionStatus)))
            wanted = status in {SubscriptionStatus.NEW, SubscriptionStatus.PENDING, SubscriptionStatus.ACTIVE}
            server = draw(st.sampled_from(SERVERS))
            queues.append(
                MovedQueue(
                    server=server.plain.encode(),
                    notifier_id=b"queue%d" % place,
                    subscription_id=b"subscription%d" % place,
                    key=draw(_bytes),
                    spelling=draw(st.sampled_from([b"", server.encode()])),
                    status=status.value,
                    error=draw(_words),
                    associated=wanted and draw(st.booleans()),
                    created_at=draw(_times),
                    place=place,
                    notification=draw(st.none() | notifications()),
                )
            )
        moved.append(Moved(draw(tokens(number)), tuple(queues)))
    return servers, moved


@st.composite
def moved_servers(draw: st.DrawFn, server: ServerAddress) -> MovedServer:
    chain = draw(st.sampled_from([b"", b"chain"]))
    return MovedServer(
        address=server.plain.encode(),
        service_id=draw(st.sampled_from([None, b"service"])),
        counted=draw(st.integers(0, 2**31)),
        counted_hash=draw(st.binary(min_size=16, max_size=16)),
        released=draw(st.integers(0, 2**31)),
        released_hash=draw(st.binary(min_size=16, max_size=16)),
        prefixes=draw(st.sampled_from(["", "192.0.2.0/24", "* 192.0.2.0/24"])),
        proven=draw(_maybe),
        tried_since=draw(_times),
        unused_since=draw(_maybe),
        chain=chain,
        key=b"service key" if chain else b"",
    )


async def written(store: Portable, servers: Sequence[MovedServer], moved: Sequence[Moved]) -> None:
    """Into a new store, in parts that do not end with it."""
    await store.begin(MARK)
    await store.write_servers(servers)
    for one in moved:
        await store.write([one], MARK)
    await store.end(NOW)


async def copied(source: Portable, copy: Portable) -> None:
    """All of it, into one that was begun."""
    async for servers in source.servers():
        await copy.write_servers(servers.moved)
    cursor: bytes | None = b""
    while cursor is not None:
        slice_ = await source.read(cursor, 100)
        cursor = slice_.cursor
        await copy.write(slice_.moved, replace(MARK, cursor=cursor))


async def read(store: Portable, at_once: int = 2) -> tuple[list[MovedServer], list[Moved], dict[str, int]]:
    """All of it, in an order of its own; places are left out, which some engines do not keep."""
    servers: list[MovedServer] = []
    moved: list[Moved] = []
    left_out: dict[str, int] = {}
    async for some in store.servers():
        servers += some.moved
        left_out |= {kind: left_out.get(kind, 0) + count for kind, count in some.left_out.items()}
    cursor: bytes | None = b""
    while cursor is not None:
        slice_ = await store.read(cursor, at_once)
        assert len(slice_.moved) <= at_once
        moved += slice_.moved
        cursor = slice_.cursor
        for kind, count in slice_.left_out.items():
            left_out[kind] = left_out.get(kind, 0) + count
    return (*ordered(servers, moved), {kind: count for kind, count in left_out.items() if count})


def ordered(servers: Sequence[MovedServer], moved: Sequence[Moved]) -> tuple[list[Any], list[Any]]:
    """In an order that is no store's."""
    whole = [
        (_values(m.token), sorted(((*_values(q)[:-2], _values(q.notification)) for q in m.queues), key=repr))
        for m in moved
    ]
    return sorted(map(_values, servers), key=repr), sorted(whole, key=repr)


def _values(record: Any) -> tuple[Any, ...]:
    return () if record is None else tuple(getattr(record, name) for name in record.__struct_fields__)


# --- what relays make


QUEUES = [b"queue%02d" % n for n in range(20)]


async def mixed(store: Store) -> dict[str, Any]:
    """Registrations, subscriptions and notifications of every state, made as a relay makes them; what is looked at."""
    first, second = await acquire(store), await acquire(store, OTHER_SMP)
    known: dict[str, Any] = {"tokens": {}, "subscriptions": {}}
    state = await store.begin(first, b"service id")
    await store.service_certificate(SMP, lambda: ServiceCertificate(b"chain", b"service key"))
    await store.prove(first, "192.0.2.0/24")

    async def token(name: str, provider: Provider = Provider.APNS, *, active: bool = True) -> Registered:
        device = browser(b"push.example.org") if provider is Provider.WEB_PUSH else DeviceToken(provider, name.encode())
        origin = "https://push.example.org" if provider is Provider.WEB_PUSH else ""
        made = await register(store, device, name.encode(), origin)
        if active:
            assert await store.verify(made.ref, CODE)
        known["tokens"][name] = made.token_id
        return made

    await token("registered", active=False)
    waiting = await store.register(new_token(DeviceToken(Provider.FCM, b"waiting"), b"waiting"), 3600.0)
    assert waiting is not None
    known["tokens"]["waiting"] = waiting.token_id
    busy, quiet, web = await token("busy"), await token("quiet", Provider.FCM), await token("web", Provider.WEB_PUSH)
    await store.set_period(quiet.ref, 30)
    added = await subscribe(store, busy, *QUEUES[:10])
    added += await subscribe(store, quiet, *QUEUES[10:14], server=OTHER_SMP)
    added += await subscribe(store, web, *QUEUES[14:])
    known["subscriptions"] = [a.subscription_id for a in added]
    await settle(store, first, associated=True)
    await notify(store, first, *QUEUES[:3])
    claim = next(c for c in await take(store) if c.entries)
    assert await store.record([delivered(claim)]) == 0
    await notify(store, first, *((q, b"second") for q in QUEUES[2:9]), *QUEUES[14:16])
    await notify(store, second, *QUEUES[10:12])
    [failed] = [c for c in await take(store, Provider.FCM) if c.token == quiet.ref]
    assert await store.record([again(failed, 600.0)]) == 0
    await store.end(first, QUEUES[9:10], SubscriptionStatus.END)
    await store.end(second, QUEUES[13:14], SubscriptionStatus.DELETED)
    removed = await subscribe(store, busy, b"removed")
    await settle(store, first, associated=True)
    found = await store.find_subscription(removed[0].subscription_id)
    assert found is not None
    await store.unsubscribe(found[1].ref)
    dead = await token("dead")
    await store.register(new_token(DeviceToken(Provider.APNS, b"dead"), b"dead"))
    for c in await take(store):
        if c.token == dead.ref:
            await store.record([Outcome(c, Ended.DEAD, "Unregistered", InvalidReason.UNREGISTERED)])
        else:
            await store.record([Outcome(c, Ended.UNTRIED)])
    for session in (first, second):
        await store.release(session)
    del state
    return known


async def settle(store: Store, session: Any, *, associated: bool) -> None:
    """What should be active is, on a server."""
    page = await store.page(session, None, 100)
    answers = [Confirmed(w.ref, SubscriptionStatus.ACTIVE, "", associated) for w in page.wanted]
    await store.confirm(session, answers)


async def seen(store: Store, known: dict[str, Any]) -> dict[str, Any]:
    """What a relay sees of it, without what is an engine's own."""
    out: dict[str, Any] = {"servers": sorted(str(s) for s in await store.servers())}
    for name, token_id in known["tokens"].items():
        t = await store.find_token(token_id)
        assert t is not None, name
        last = await store.last_push(t.ref)
        out[name] = (t.verify_key, t.status, t.reason, t.period, t.active_at, t.proven, last)
    for subscription_id in known["subscriptions"]:
        found = await store.find_subscription(subscription_id)
        assert found is not None
        token, s = found
        out[subscription_id.hex()] = (token.token_id, s.server, s.notifier_id, s.status, s.error, s.associated)
    out["count"] = await store.subscription_count()
    return out


async def in_the_end(store: Store, server: ServerAddress) -> Session:
    """A relay that was stopped while it acquired a server has that for a lease."""
    async with asyncio.timeout(20):
        while (session := await store.acquire(server)) is None:
            await asyncio.sleep(0.1)
    return session


async def used(store: Store) -> dict[str, Any]:
    """And what it does: what is due, what pushes say, what is subscribed where with which keys, our services."""
    out: dict[str, Any] = {}
    for provider in Provider:
        claims = (await store.take(provider, anywhere()[provider])).claims
        out[provider.value] = sorted(
            (c.device.token, c.secret, c.kind, c.code, c.since, c.attempts, c.app, c.delivered_before,
             tuple((e.notifier_id, e.sent, e.received_at, e.nonce, e.meta, e.server) for e in c.entries))
            for c in claims
        )  # fmt: skip
    for server in (SMP, OTHER_SMP):
        session = await in_the_end(store, server)
        state = await store.begin(session, b"service id" if server is SMP else None)
        out[str(server)] = (
            state,
            [(w.notifier_id, w.notifier_key, w.fresh, w.associated)
             for w in sorted((await store.page(session, None, 100)).wanted, key=lambda w: w.notifier_id)],
            [(w.notifier_id, w.associated)
             for w in sorted((await store.page(session, None, 100, associated=True)).wanted,
                             key=lambda w: w.notifier_id)] if server is SMP else [],
        )  # fmt: skip
        standing = await store.standing(server)
        assert standing is not None
        out[f"prefixes {server}"] = standing.prefixes
    out["certificate"] = await store.service_certificate(SMP, lambda: ServiceCertificate(b"another", b"one"))
    return out


async def keeps(store: Any, content: Any) -> None:
    """An empty store gives back what is written into it, whatever the size of a slice."""
    assert await store.is_empty()
    await written(store, *content)
    assert not await store.is_empty()
    assert await store.tokens() == len(content[1])
    assert await read(store) == (*ordered(*content), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ntf_server.store.portable._MOST", 2)
        assert await read(store, 200) == (*ordered(*content), {})
