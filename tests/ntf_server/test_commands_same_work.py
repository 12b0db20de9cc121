"""An entity that does not exist, a wrong key and the right one are the same work, up to where the right one goes on."""

import os
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from store_world import MASTER

from ntf_server.admission.sessions import Peer
from ntf_server.commands import Commands, parse
from ntf_server.push.dispatcher import Dispatcher
from ntf_server.push.front import OneProvider
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.sealing import Sealer
from ntf_server.store.sqlite import file
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge import crypto, ntf, transmission
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider
from smp_bridge.transmission import ERR_AUTH, Message, Session, Transmission, encode_blocks, encode_transmission

KEYS = {"ed25519": Ed25519PrivateKey, "ed448": Ed448PrivateKey, "x25519": X25519PrivateKey}
NOBODYS_ID = os.urandom(24)
SMP = ServerAddress("smp", ("smp.example.org",), "", bytes(32))
SERVER_KEY = X25519PrivateKey.generate()
THEIRS = Session("ntf", 3, bytes(32), SERVER_KEY.public_key())
OURS = Session("ntf", 3, bytes(32), SERVER_KEY)
PHONE, TABLET = (DeviceToken(Provider.APNS_NULL, name) for name in (b"phone", b"tablet"))


class Work(NamedTuple):
    """Statements without their values, and how often sealed values were opened, keys parsed, authenticators tried."""

    statements: list[str]
    done: Counter[str]


class Tried:
    """Commands on a real file, with all that they do noted down."""

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.done: Counter[str] = Counter()

    def note(self, statement: str) -> None:
        self.statements.append(re.sub(r"x'[0-9a-f]*'|'[^']*'|\b\d+\b", "?", statement, flags=re.IGNORECASE))

    def counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.done[name] += 1
            return real(*args)

        return call

    async def open(self, path: Path) -> None:
        self.store = await SqliteStore.open(path, master_key=MASTER)
        subscriber = Subscriber(self.store, Dispatcher(self.store, {}), lambda coro, _: coro.close())
        self.commands = Commands(self.store, subscriber, {Provider.APNS_NULL: OneProvider()})

    async def ask(self, command: Message, entity_id: bytes, key: crypto.AuthPrivateKey) -> tuple[Message, Work]:
        self.statements, self.done = [], Counter()
        encoded = encode_transmission(THEIRS, os.urandom(24), entity_id, command.encode(3), key)
        [t] = transmission.parse_block(OURS, encode_blocks(THEIRS, [encoded])[0])
        assert isinstance(t, Transmission)
        parsed = parse(OURS, t)
        self.done.clear()  # of what it holds
        answer = await self.commands.handle(OURS, t, parsed, Peer((), lambda: None, 0.0))
        return answer, Work(self.statements, self.done)


@pytest.fixture
async def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tried]:
    made = Tried()
    connect = file._connect

    def traced(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.set_trace_callback(made.note)
        return connection

    monkeypatch.setattr(file, "_connect", traced)
    monkeypatch.setattr(Sealer, "open", made.counted("opened", Sealer.open))
    monkeypatch.setattr(crypto, "parse_public", made.counted("parsed", crypto.parse_public))
    monkeypatch.setattr(transmission, "_verify", made.counted("verified", transmission._verify))
    await made.open(tmp_path / "relay.db")
    yield made
    await made.store.close()


Ask = Callable[[bytes], Message]
ON_TOKENS: dict[str, Ask] = {
    "TCHK": lambda _: ntf.TChk(),
    "TVFY": lambda _: ntf.TVfy(bytes(32)),
    "TRPL": lambda _: ntf.TRpl(TABLET),
    "TDEL": lambda _: ntf.TDel(),
    "TCRN": lambda _: ntf.TCrn(30),
    "SNEW": lambda token_id: ntf.SNew(token_id, SMP, os.urandom(24), Ed25519PrivateKey.generate()),
}
ON_SUBSCRIPTIONS: dict[str, Ask] = {"SCHK": lambda _: ntf.SChk(), "SDEL": lambda _: ntf.SDel()}
CHECKS = ("TCHK", "SCHK")  # which do nothing more


@pytest.fixture
async def owner(tried: Tried) -> Callable[[crypto.AuthPrivateKey], Awaitable[tuple[bytes, bytes]]]:
    """Makes an ACTIVE token of a key, and a subscription: their ids."""

    async def make(key: crypto.AuthPrivateKey) -> tuple[bytes, bytes]:
        dh_key = X25519PrivateKey.generate().public_key()
        registered, _ = await tried.ask(ntf.TNew(PHONE, key.public_key(), dh_key), b"", key)
        assert isinstance(registered, ntf.IdTkn)
        await tried.store._database.run(lambda c: c.execute("UPDATE tokens SET status = 'ACTIVE', proven = 1"))
        subscribed, _ = await tried.ask(ON_TOKENS["SNEW"](registered.token_id), b"", key)
        assert isinstance(subscribed, ntf.IdSub)
        return registered.token_id, subscribed.subscription_id

    return make


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("name", [*ON_TOKENS, *ON_SUBSCRIPTIONS])
async def test_the_same_work(tried: Tried, owner: Any, kind: str, name: str) -> None:
    key, other = KEYS[kind].generate(), KEYS[kind].generate()
    token_id, subscription_id = await owner(key)
    make = {**ON_TOKENS, **ON_SUBSCRIPTIONS}[name]
    entity_id = token_id if name in ON_TOKENS else subscription_id

    async def ask(found: bytes, by: crypto.AuthPrivateKey) -> tuple[Message, Work]:
        return await tried.ask(make(found), b"" if name == "SNEW" else found, by)

    missing, wrong = await ask(NOBODYS_ID, other), await ask(entity_id, other)
    assert missing == wrong == (ERR_AUTH, Work(wrong[1].statements, Counter(parsed=1, verified=1)))
    assert len(wrong[1].statements) == 1
    _, right = await ask(entity_id, key)
    assert right.statements[0] == wrong[1].statements[0]
    if name in CHECKS:
        assert right == wrong[1]


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("used", KEYS)
async def test_the_same_work_by_a_key_of_another_type(tried: Tried, owner: Any, kind: str, used: str) -> None:
    token_id, subscription_id = await owner(KEYS[kind].generate())
    other = KEYS[used].generate()
    for command, entity_id in ((ntf.TChk(), token_id), (ntf.SChk(), subscription_id)):
        assert await tried.ask(command, NOBODYS_ID, other) == await tried.ask(command, entity_id, other)


@pytest.mark.parametrize("table", ["tokens", "subscriptions"])
async def test_what_is_set_aside_is_as_good_as_none(tried: Tried, owner: Any, table: str) -> None:
    key = Ed25519PrivateKey.generate()
    ids = dict(zip(("tokens", "subscriptions"), await owner(key), strict=True))
    await tried.store._database.run(lambda c: c.execute(f"UPDATE {table} SET damaged = 1"))
    command = ntf.TChk() if table == "tokens" else ntf.SChk()
    missing = await tried.ask(command, NOBODYS_ID, key)
    assert await tried.ask(command, ids[table], key) == missing
