"""The relay's inside for one input: a store that begins the same each time, and a listener before it, in memory."""

import asyncio
import sqlite3
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from fuzz import life, samples
from ntf_server.admission.gate import Admission
from ntf_server.commands import Commands
from ntf_server.config.limits import parse_limits, parse_networks
from ntf_server.config.server_list import ServerList, parse_pattern
from ntf_server.config.settings import Limits
from ntf_server.listener import Listener, ListenerConfig
from ntf_server.push.dispatcher import Dispatcher
from ntf_server.push.exchange import Endpoint, HttpRequest
from ntf_server.push.front import OneProvider
from ntf_server.push.verdict import NullProvider
from ntf_server.push.webpush.open import OpenWebPush
from ntf_server.push.webpush.settings import WebPushSettings
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.clock import Clock
from ntf_server.store.records import Limits as StoreLimits
from ntf_server.store.records import NewSubscription, NewToken
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.connecting import shake_hands
from smp_bridge.testing.link import link
from smp_bridge.tls import SslTls, client_context, server_context
from smp_bridge.transmission import Session
from smp_bridge.transport import BlockConnection

KEYS: Final = (samples.ED25519, samples.ED448, samples.X25519, samples.ED25519, samples.ED25519)
TOKENS: Final = tuple(b"token %d" % n + bytes(17) for n in range(len(KEYS)))
_VERIFIED, _INVALID = 3, 4  # so many of the first are; this one is, and never was ACTIVE
SUBSCRIPTIONS: Final = tuple(b"subscription %d" % n + bytes(10) for n in range(2))
CODE: Final = b"a code of thirty-two bytes, that"
HOST: Final = "198.51.100.7"
PROXY: Final = "192.0.2.1"
ADDRESS: Final = ServerAddress("ntf", ("localhost",), "", samples.credentials().key_hash)

_BUDGETS: Final = parse_limits(Limits(commands_per_session="8 + 1/s", registrations_per_address="2 + 1/s"))
_PROXIES: Final = parse_networks([PROXY])
_MASTER: Final = MasterKey(bytes(range(32)))
_START: Final = samples.NOW.timestamp()


def _clock() -> Clock:
    return Clock(lambda: _START + life.loop_time(), life.loop_time)


async def _open(connection: sqlite3.Connection) -> SqliteStore:
    return await SqliteStore.open(connection, master_key=_MASTER, clock=_clock())


def _connection() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


_FURNISHED: Final[list[bytes]] = []


async def furnished() -> bytes:
    """A database with tokens of each kind of key, and subscriptions. It is made once."""
    if _FURNISHED:
        return _FURNISHED[0]
    connection = _connection()
    store = await _open(connection)
    for n, token_id, key in sorted(zip(range(len(KEYS)), TOKENS, KEYS, strict=True), key=lambda t: t[0] != _INVALID):
        device = ntf.DeviceToken(ntf.Provider.APNS_TEST, b"device %d" % n)
        verify_key = crypto.encode_public(key.public_key())
        token = await store.register(NewToken(token_id, device, verify_key, b"c" * 32, b"s" * 32, b"k" * 32, CODE))
        assert token is not None
        if n == _INVALID:
            await store.invalidate(token.status, ntf.InvalidReason.BAD, None, 1)
        elif n < _VERIFIED:
            assert await store.verify(token.ref, CODE)
        for m, subscription_id in enumerate(SUBSCRIPTIONS if n == 0 else ()):
            key_of_queue = crypto.quick_private(samples.ED25519)
            new = NewSubscription(subscription_id, samples.ADDRESSES[m], samples.ID, key_of_queue)
            assert await store.subscribe(token.ref, new)
    await store.close()
    _FURNISHED.append(connection.serialize())
    return _FURNISHED[0]


@cache
def context() -> Any:
    """TLS of the listener."""
    return server_context("ntf", samples.credentials())


@cache
def _client_context() -> Any:
    return client_context("ntf")


class _NoEngine:
    """Nothing is pushed here."""

    def send(self, requests: list[tuple[HttpRequest, Any]]) -> None:
        """See `HttpEngine`."""
        raise AssertionError("nobody asked for a push")


@dataclass
class Inside:
    """What one input meets. Open it with `inside`."""

    store: SqliteStore
    listener: Listener
    connection: sqlite3.Connection

    async def dial(self, version: int) -> tuple[BlockConnection, Session]:
        """A session with it."""
        client = BlockConnection("ntf", SslTls(_client_context()))
        self.meet(client, HOST)
        return client, await shake_hands(client, ADDRESS, (version, version), None, _START)

    def meet(self, client: asyncio.BufferedProtocol, host: str) -> None:
        """A connection from there."""
        link(client, self.listener._door(), host=host)

    async def close(self) -> None:
        """The end of it."""
        await self.listener.close()
        await self.store.close()
        self.connection.close()


async def inside() -> Inside:
    """A relay whose store is as it was for every other input."""
    connection = _connection()
    connection.deserialize(await furnished())
    store = await _open(connection)
    ttl: dict[Any, int] = {}
    push = WebPushSettings((samples.P256,), "mailto:a@example.org", Endpoint("", "", http2_only=False), ttl)
    web_push = OpenWebPush(push, _NoEngine(), lambda: _START)  # type: ignore[arg-type]
    fronts = {p: OneProvider() for p in ntf.Provider} | {ntf.Provider.WEB_PUSH: web_push.front}
    del fronts[ntf.Provider.APNS_NULL]  # one that is switched off
    dispatcher = Dispatcher(store, {p: NullProvider() for p in fronts})
    subscriber = Subscriber(store, dispatcher, _spawn)
    admission = Admission(_BUDGETS, clock=life.loop_time)
    servers = ServerList(deny=(parse_pattern("denied.example"),))
    commands = Commands(store, subscriber, fronts, servers=servers, limits=StoreLimits(3), admission=admission)
    config = ListenerConfig(None, 0, proxies=_PROXIES)
    listener = Listener(config, samples.credentials(), commands, admission)
    listener._context = context()  # `use` makes one: a hundred times as long as an input takes
    return Inside(store, listener, connection)


def _spawn(coro: Any, name: str) -> None:
    coro.close()
    raise AssertionError(f"{name}: nothing of this goes on here")
