"""What each NTF command means (wire.md, section 6), through a relay's socket."""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from harness import Phone
from scrape import samples

from ntf_server import commands as commands_module
from ntf_server import listener as listener_module
from ntf_server.app import Relay
from ntf_server.config.files import Config
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import ANSWERS, KindCounter, PairCounter
from ntf_server.store.clock import since_boot
from ntf_server.store.sealing import Sealer
from ntf_server.store.sqlite import upkeep
from ntf_server.testing import Answer, Delay, MockApns
from smp_bridge import crypto, ntf, smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, ServerError
from smp_bridge.encoding import short, word16
from smp_bridge.names import Names
from smp_bridge.network import Network, ResolveError, Route
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient
from smp_bridge.transmission import (
    ERR_AUTH,
    ERR_BLOCK,
    ERR_HAS_AUTH,
    ERR_NO_AUTH,
    ERR_PROHIBITED,
    ERR_QUOTA,
    ERR_SESSION,
    ERR_SYNTAX,
    ERR_UNKNOWN,
    Err,
    Message,
)

pytestmark = pytest.mark.usefixtures("quiet")

KEYS = [Ed25519PrivateKey, Ed448PrivateKey, X25519PrivateKey]
ED25519, X25519 = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
ID = os.urandom(24)
SMP = ServerAddress("smp", ("localhost",), "5223", os.urandom(32))

Phones = Callable[[], Phone]
Until = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


def tnew(phone: Phone, **other: Any) -> ntf.TNew:
    fields = {"token": phone.device, "verify_key": phone.key.public_key(), "dh_key": phone.dh_key.public_key()}
    return ntf.TNew(**(fields | other))


def snew(token_id: bytes, queue: Queue | None = None, **other: Any) -> ntf.SNew:
    fields = {"token_id": token_id, "server": SMP, "notifier_id": ID, "notifier_key": ED25519}
    if queue is not None:
        fields |= {"notifier_id": queue.notifier_id, "notifier_key": queue.notifier_key}
    return ntf.SNew(**(fields | other))


@pytest.fixture
async def wire(relay: Relay, dial: Any) -> Any:
    return await dial(relay)


@pytest.fixture
async def device(phone: Phones, client: Client) -> Phone:
    """An active one."""
    made = phone()
    await made.register(client)
    await made.verify(client)
    return made


@pytest.fixture
def database(make_config: Callable[..., Config]) -> Callable[..., list[tuple[Any, ...]]]:
    """Statements on the relay's file, past the relay."""

    def execute(sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(make_config().store)
        try:
            rows = connection.execute(sql, parameters).fetchall()
            connection.commit()
            return rows
        finally:
            connection.close()

    return execute


async def status_is(wire: Any, phone: Phone, *expected: Any) -> None:
    """Wait for it."""
    async with asyncio.timeout(10):
        while await wire.ask(ntf.TChk(), phone.token_id, phone.key) != ntf.Tkn(*expected):
            await asyncio.sleep(0.01)


# --- syntax and credentials


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_an_unknown_command(relay: Relay, dial: Any, version: int) -> None:
    wire = await dial(relay, version)
    for command in (b"", b"X", b"tnew", b" PING", b"PING2", b"NSUB", b"\xff" * 40):
        assert await wire.ask(command) == ERR_UNKNOWN, command
        assert await wire.ask(command, ID, ED25519) == ERR_UNKNOWN, command


PUBLIC = short(crypto.encode_public(ED25519.public_key()))
DH = short(crypto.encode_public(X25519.public_key()))
X448 = short(crypto.encode_public(X448PrivateKey.generate().public_key()))
PRIVATE = short(crypto.encode_private(ED25519))
SNEW = b"SNEW S" + short(ID) + SMP.encode() + short(ID)


BAD_PARAMETERS = [
    b"PING ",
    b"PING x",
    b"TCHK ",
    b"TDEL x",
    b"SCHK ",
    b"SDEL\x20\x20",
    b"TVFY",
    b"TVFY ",
    b"TVFY \x05abcd",
    b"TVFY \x01aa",
    b"TCRN",
    b"TCRN \x00",
    b"TCRN \x00\x14\x00",
    b"TRPL",
    b"TRPL ",
    b"TRPL AT",
    b"TRPL ZZ\x01a",
    b"TRPL at\x01a",
    b"TRPL AT\x01ab",
    b"TRPL \xff\xff\x01a",
    b"TNEW",
    b"TNEW T",
    b"TNEW S" + b"AT\x01a" + PUBLIC + DH,
    b"TNEW T" + b"AT\x01a" + PUBLIC,
    b"TNEW T" + b"AT\x01a" + PUBLIC + DH + b"x",
    b"TNEW T" + b"AT\x01a" + DH + PUBLIC,
    b"TNEW T" + b"AT\x01a" + X448 + DH,
    b"TNEW T" + b"AT\x01a" + short(b"not a key") + DH,
    b"TNEW T" + b"ZZ\x01a" + PUBLIC + DH,
    b"TNEW T" + b"WP" + short(b"push.example") + short(b"443") + short(b"/") + short(bytes(15)) + PUBLIC + DH,
    b"SNEW",
    b"SNEW T" + SNEW[6:] + PRIVATE,
    SNEW,
    SNEW + PRIVATE + b"x",
    SNEW + PUBLIC,
    SNEW + short(crypto.encode_private(X448PrivateKey.generate())),
    b"SNEW S" + short(ID) + b"\x00" + short(b"") + short(bytes(32)) + short(ID) + PRIVATE,
    b"SNEW S" + short(ID) + b"\x01" + short(b"a b") + short(b"") + short(bytes(32)) + short(ID) + PRIVATE,
    b"SNEW S" + short(ID) + b"\x01" + short(b"host") + short(b"0") + short(bytes(32)) + short(ID) + PRIVATE,
    b"SNEW S" + short(ID) + b"\x01" + short(b"host") + short(b"") + short(bytes(31)) + short(ID) + PRIVATE,
]


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_bad_parameters(relay: Relay, dial: Any, version: int) -> None:
    wire = await dial(relay, version)
    for command in BAD_PARAMETERS:
        assert await wire.ask(command) == ERR_SYNTAX, command
        assert await wire.ask(command, ID, ED25519) == ERR_SYNTAX, command


TOKEN_COMMANDS = [
    ntf.TChk(),
    ntf.TVfy(bytes(32)),
    ntf.TRpl(DeviceToken(Provider.APNS_NULL, b"t")),
    ntf.TDel(),
    ntf.TCrn(20),
    ntf.TCrn(1),
]
ENTITY_COMMANDS = [*TOKEN_COMMANDS, ntf.SChk(), ntf.SDel()]
NO_ENTITY_COMMANDS = [
    ntf.TNew(DeviceToken(Provider.APNS_NULL, b"t"), ED25519.public_key(), X25519.public_key()),
    snew(ID),
]


CREDENTIALS = [
    (ENTITY_COMMANDS, b"", None, ERR_NO_AUTH),
    (ENTITY_COMMANDS, ID, None, ERR_NO_AUTH),
    (ENTITY_COMMANDS, b"", ED25519, ERR_NO_AUTH),
    (NO_ENTITY_COMMANDS, b"", None, ERR_NO_AUTH),
    (NO_ENTITY_COMMANDS, ID, None, ERR_NO_AUTH),
    (NO_ENTITY_COMMANDS, ID, ED25519, ERR_HAS_AUTH),
    ([ntf.Ping()], ID, None, ERR_HAS_AUTH),
    ([ntf.Ping()], b"", ED25519, ERR_HAS_AUTH),
]


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_credentials(relay: Relay, dial: Any, version: int) -> None:
    wire = await dial(relay, version)
    for commands, entity_id, key, error in CREDENTIALS:
        for command in commands:
            assert await wire.ask(command, entity_id, key) == error, (command, entity_id, key)


@pytest.mark.parametrize("key_type", KEYS)
async def test_an_entity_that_does_not_exist(wire: Any, key_type: Any) -> None:
    for command in ENTITY_COMMANDS:
        assert await wire.ask(command, ID, key_type.generate()) == ERR_AUTH, command
    assert await wire.ask(snew(ID), key=key_type.generate()) == ERR_AUTH


@pytest.mark.parametrize("other", KEYS)
@pytest.mark.parametrize("key_type", KEYS)
async def test_a_wrong_key(
    *, relay: Relay, dial: Any, phone: Phones, client: Client, key_type: Any, other: Any
) -> None:
    device, wire = phone(), await dial(relay)
    device.key = key_type.generate()
    await device.register(client)
    await device.verify(client)
    subscribed = await wire.ask(snew(device.token_id), key=device.key)
    wrong = other.generate()
    for command in TOKEN_COMMANDS:
        assert await wire.ask(command, device.token_id, wrong) == ERR_AUTH
    for command in (ntf.SChk(), ntf.SDel()):
        assert await wire.ask(command, subscribed.subscription_id, wrong) == ERR_AUTH
    assert await wire.ask(snew(device.token_id, notifier_id=b"another"), key=wrong) == ERR_AUTH
    assert await wire.ask(tnew(device), key=wrong) == ERR_AUTH
    assert await wire.ask(ntf.TChk(), device.token_id, device.key) == ntf.Tkn(TokenStatus.ACTIVE)


@pytest.mark.parametrize("key_type", KEYS)
@pytest.mark.parametrize("part", ["authenticator", "correlation id", "entity id", "command"])
async def test_every_byte_is_authorized(
    *, relay: Relay, dial: Any, phone: Phones, client: Client, key_type: Any, part: str
) -> None:
    first, second, wire = phone(), phone(), await dial(relay)
    first.key = second.key = key_type.generate()
    await first.register(client)
    await second.register(client)
    corr_id = os.urandom(24)
    raw = wire.encode(ntf.TCrn(20), first.token_id, first.key, corr_id)
    changed = {
        "authenticator": raw[:1] + bytes([raw[1] ^ 1]) + raw[2:],
        "correlation id": raw.replace(corr_id, os.urandom(24)),
        "entity id": raw.replace(first.token_id, second.token_id),
        "command": raw[:-1] + b"\x15",
    }[part]
    assert changed != raw
    answer = await wire.ask_raw(changed)
    assert answer.command == b"ERR AUTH"
    assert (await wire.ask_raw(raw)).command == b"OK"


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_an_authenticator_of_no_known_size(relay: Relay, dial: Any, version: int) -> None:
    wire = await dial(relay, version)
    for size in (1, 63, 65, 79, 81, 113, 115, 255):
        answer = await wire.ask_raw(short(bytes(size)) + wire.encode(ntf.TChk(), ID, corr_id=b"corr")[1:])
        assert (answer.command, answer.corr_id, answer.entity_id) == (b"ERR BLOCK", b"corr", b""), size


async def test_the_session_id_of_version_1(relay: Relay, dial: Any) -> None:
    wire, other = await dial(relay, 1), await dial(relay, 1)
    answer = await wire.ask_raw(other.encode(ntf.TChk(), ID, corr_id=b"corr"))
    # What answers carry is this session's id: it would not parse otherwise.
    assert (answer.command, answer.corr_id, answer.entity_id) == (b"ERR SESSION", b"corr", b"")
    assert await wire.ask(ntf.Ping()) == ntf.Pong()


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_ids_too_long_to_be_echoed(relay: Relay, dial: Any, version: int) -> None:
    wire = await dial(relay, version)
    room = 510 if version == 1 else 507
    fixed = len(wire.encode(b"", b"", corr_id=b""))
    raw = wire.encode(b"", bytes(room - fixed - 255), corr_id=bytes(255))
    assert len(raw) == room
    wire.connection.send(raw if version == 1 else b"\x01" + word16(len(raw)) + raw)
    [answer] = await wire.receive()
    assert (answer.command, answer.corr_id, answer.entity_id) == (ERR_BLOCK.encode(version), b"", b"")
    assert await wire.ask(ntf.Ping()) == ntf.Pong()


# --- tokens


@pytest.mark.parametrize(
    ("version", "key_type"),
    [(1, Ed25519PrivateKey), (1, Ed448PrivateKey), *((v, k) for v in (2, 3) for k in KEYS)],
)
async def test_a_tokens_life(relay: Relay, dial: Any, mock_apns: MockApns, version: int, key_type: Any) -> None:
    wire = await dial(relay, version)
    device = Phone(mock_apns, key=key_type.generate())
    answer = await wire.ask(tnew(device), key=device.key)
    device.token_id, device.secret = answer.token_id, crypto.dh(device.dh_key, answer.dh_key)
    assert len(device.token_id) == 24
    code = device.open(await mock_apns.next(device.token), "verification")
    assert len(code) == 32
    await status_is(wire, device, TokenStatus.CONFIRMED)
    assert await wire.ask(ntf.TVfy(code), device.token_id, device.key) == ntf.Ok()
    await status_is(wire, device, TokenStatus.ACTIVE)
    assert await wire.ask(ntf.TDel(), device.token_id, device.key) == ntf.Ok()
    assert await wire.ask(ntf.TChk(), device.token_id, device.key) == ERR_AUTH


async def test_version_1_has_no_key_for_authenticators(relay: Relay, dial: Any, phone: Phones) -> None:
    wire, device = await dial(relay, 1), phone()
    raw = wire.encode(tnew(device, verify_key=X25519.public_key()))
    answer = await wire.ask_raw(short(bytes(80)) + raw[1:])
    assert answer.command == b"ERR AUTH"


def low_order() -> X25519PublicKey:
    return X25519PublicKey.from_public_bytes(bytes(32))


@pytest.mark.parametrize("field", ["verify_key", "dh_key"])
async def test_a_key_of_low_order(wire: Any, phone: Phones, field: str) -> None:
    device = phone()
    key = X25519 if field == "verify_key" else device.key
    assert await wire.ask(tnew(device, **{field: low_order()}), key=key) == ERR_AUTH


@pytest.mark.parametrize("provider", [Provider.APNS, Provider.APNS_SANDBOX, Provider.FCM])
async def test_a_provider_that_is_not_configured(wire: Any, device: Phone, provider: Provider) -> None:
    other = DeviceToken(provider, b"token")
    assert await wire.ask(tnew(device, token=other), key=device.key) == ERR_PROHIBITED
    assert await wire.ask(tnew(device, token=other), key=ED25519) == ERR_AUTH
    assert await wire.ask(ntf.TRpl(other), device.token_id, device.key) == ERR_PROHIBITED
    await status_is(wire, device, TokenStatus.ACTIVE)


async def test_a_web_push_subscription_is_understood_but_not_served(wire: Any, device: Phone) -> None:
    fields = (b"push.example", b"443", b"/path", bytes(16), bytes(65))
    token = DeviceToken(Provider.WEB_PUSH, b"".join(map(short, fields)))
    assert await wire.ask(tnew(device, token=token), key=device.key) == ERR_PROHIBITED


async def test_the_null_provider_answers_as_if_delivered(wire: Any, phone: Phones, mock_apns: MockApns) -> None:
    device = phone()
    token = DeviceToken(Provider.APNS_NULL, b"anything")
    device.token_id = (await wire.ask(tnew(device, token=token), key=device.key)).token_id
    await status_is(wire, device, TokenStatus.CONFIRMED)
    assert not mock_apns.pushes


async def test_registering_again(wire: Any, phone: Phones, mock_apns: MockApns) -> None:
    device = phone()
    first = await wire.ask(tnew(device), key=device.key)
    device.secret = crypto.dh(device.dh_key, first.dh_key)
    code = device.open(await mock_apns.next(device.token), "verification")
    assert await wire.ask(tnew(device), key=device.key) == first
    assert device.open(await mock_apns.next(device.token), "verification") == code
    another_key = X25519PrivateKey.generate().public_key()
    assert await wire.ask(tnew(device, dh_key=another_key), key=device.key) == ERR_AUTH
    assert await wire.ask(ntf.TVfy(code), first.token_id, device.key) == ntf.Ok()


async def test_registering_an_active_token_again_leaves_it_active(
    wire: Any, device: Phone, mock_apns: MockApns, client: Client
) -> None:
    token_id = device.token_id
    await device.register(client)
    assert device.token_id == token_id
    await mock_apns.next(device.token)
    await status_is(wire, device, TokenStatus.ACTIVE)


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        ("BadDeviceToken", InvalidReason.BAD),
        ("DeviceTokenNotForTopic", InvalidReason.TOPIC),
        ("Unregistered", InvalidReason.UNREGISTERED),
    ],
)
@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_refused_token_is_invalid_until_it_is_registered_again(
    *, relay: Relay, dial: Any, phone: Phones, client: Client, refusal: str, reason: InvalidReason, version: int
) -> None:
    device, wire = phone(), await dial(relay, version)
    refuse = {
        "BadDeviceToken": device.apns.reject_token,
        "DeviceTokenNotForTopic": lambda token: device.apns.bind_token(token, "another.app"),
        "Unregistered": device.apns.unregister,
    }[refusal]
    refuse(device.token)
    await device.register(client)
    token_id = device.token_id
    await status_is(wire, device, TokenStatus.INVALID, reason if version == 3 else None)
    device.apns.reregister(device.token)
    await device.register(client)
    assert device.token_id == token_id
    await device.verify(client)
    await status_is(wire, device, TokenStatus.ACTIVE)


@pytest.mark.parametrize("status", list(TokenStatus))
async def test_verifying(wire: Any, phone: Phones, client: Client, database: Any, status: TokenStatus) -> None:
    device = phone()
    await device.register(client)
    code = device.open(await device.apns.next(device.token), "verification")
    await status_is(wire, device, TokenStatus.CONFIRMED)
    database("UPDATE tokens SET status = ?", status)
    for wrong in (b"", code[:-1], code + b"x", os.urandom(32)):
        assert await wire.ask(ntf.TVfy(wrong), device.token_id, device.key) == ERR_AUTH
    await status_is(wire, device, status)
    alive = status in {TokenStatus.REGISTERED, TokenStatus.CONFIRMED, TokenStatus.ACTIVE}
    assert await wire.ask(ntf.TVfy(code), device.token_id, device.key) == (ntf.Ok() if alive else ERR_AUTH)
    await status_is(wire, device, TokenStatus.ACTIVE if alive else status)


async def test_nothing_sealed_is_opened_to_authorize(
    wire: Any, device: Phone, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a wrong key takes as long as an unknown id."""
    subscribed = await wire.ask(snew(device.token_id), key=device.key)
    opened: list[bytes] = []
    original = Sealer.open

    def spy(self: Sealer, sealed: bytes, context: bytes) -> bytes:
        opened.append(context.partition(b":")[0])
        return original(self, sealed, context)

    monkeypatch.setattr(Sealer, "open", spy)
    assert await wire.ask(ntf.TChk(), device.token_id, device.key) == ntf.Tkn(TokenStatus.ACTIVE)
    for token_id in (device.token_id, os.urandom(24)):
        for command in (ntf.TChk(), ntf.TVfy(bytes(32)), ntf.TRpl(device.device), ntf.TDel(), ntf.TCrn(30)):
            assert await wire.ask(command, token_id, ED25519) == ERR_AUTH
        assert await wire.ask(snew(token_id), key=ED25519) == ERR_AUTH
    for subscription_id in (subscribed.subscription_id, os.urandom(24)):
        for check in (ntf.SChk(), ntf.SDel()):
            assert await wire.ask(check, subscription_id, ED25519) == ERR_AUTH
    assert opened == []
    assert await wire.ask(ntf.TVfy(bytes(32)), device.token_id, device.key) == ERR_AUTH
    assert opened == [b"tokens.code"]


async def test_a_damaged_record_is_as_good_as_none(wire: Any, phone: Phones, client: Client, database: Any) -> None:
    """Nobody is told to try again; the device registers anew, and others are not concerned."""
    device, bystander = phone(), phone()
    codes = []
    for each in (device, bystander):
        await each.register(client)
        codes.append(each.open(await each.apns.next(each.token), "verification"))
        await status_is(wire, each, TokenStatus.CONFIRMED)
    database("UPDATE tokens SET code = zeroblob(length(code)) WHERE token_id = ?", device.token_id)
    queue = {"notifier_id": os.urandom(24)}
    for command in (ntf.TVfy(codes[0]), ntf.TVfy(codes[0]), ntf.TChk(), ntf.TRpl(device.device), ntf.TCrn(30)):
        assert await wire.ask(command, device.token_id, device.key) == ERR_AUTH, command
    assert await wire.ask(snew(device.token_id, **queue), key=device.key) == ERR_AUTH
    assert await wire.ask(ntf.TVfy(codes[1]), bystander.token_id, bystander.key) == ntf.Ok()
    old = device.token_id
    await device.register(client)
    assert device.token_id != old
    await device.verify(client)
    assert isinstance(await wire.ask(snew(device.token_id, **queue), key=device.key), ntf.IdSub)


async def test_verifying_deletes_other_registrations_of_the_device(
    wire: Any, device: Phone, phone: Phones, client: Client
) -> None:
    subscribed = await wire.ask(snew(device.token_id), key=device.key)
    thief, bystander = phone(), phone()
    thief.token = device.token
    for other in (thief, bystander):
        await other.register(client)
    await status_is(wire, device, TokenStatus.ACTIVE)
    await thief.verify(client)
    assert await wire.ask(ntf.TChk(), device.token_id, device.key) == ERR_AUTH
    assert await wire.ask(ntf.SChk(), subscribed.subscription_id, device.key) == ERR_AUTH
    await status_is(wire, bystander, TokenStatus.CONFIRMED)
    assert isinstance(await wire.ask(snew(thief.token_id), key=thief.key), ntf.IdSub)


async def test_replacing(wire: Any, device: Phone, client: Client, mock_apns: MockApns) -> None:
    old_code = device.open(mock_apns.pushes[0], "verification")
    subscribed = await wire.ask(snew(device.token_id), key=device.key)
    device.token = "12" * 32
    assert await wire.ask(ntf.TRpl(device.device), device.token_id, device.key) == ntf.Ok()
    await status_is(wire, device, TokenStatus.CONFIRMED)
    assert await wire.ask(ntf.TVfy(old_code), device.token_id, device.key) == ERR_AUTH
    await device.verify(client)
    await status_is(wire, device, TokenStatus.ACTIVE)
    assert isinstance(await wire.ask(ntf.SChk(), subscribed.subscription_id, device.key), ntf.Sub)


async def test_replacing_revives(wire: Any, device: Phone, client: Client, database: Any) -> None:
    database("UPDATE tokens SET status = 'INVALID', reason = 'BAD'")
    device.token = "12" * 32
    assert await wire.ask(ntf.TRpl(device.device), device.token_id, device.key) == ntf.Ok()
    await device.verify(client)
    await status_is(wire, device, TokenStatus.ACTIVE)


async def test_deleting_frees_the_queues(wire: Any, device: Phone, phone: Phones, client: Client) -> None:
    subscribed = await wire.ask(snew(device.token_id), key=device.key)
    other = phone()
    await other.register(client)
    await other.verify(client)
    assert await wire.ask(snew(other.token_id), key=other.key) == ERR_AUTH
    assert await wire.ask(ntf.TDel(), device.token_id, device.key) == ntf.Ok()
    for command, entity_id in [(ntf.TDel(), device.token_id), (ntf.SChk(), subscribed.subscription_id)]:
        assert await wire.ask(command, entity_id, device.key) == ERR_AUTH
    assert await wire.ask(snew(device.token_id), key=device.key) == ERR_AUTH
    assert isinstance(await wire.ask(snew(other.token_id), key=other.key), ntf.IdSub)


async def test_an_answer_to_a_deleted_token_does_not_touch_the_next(
    wire: Any, phone: Phones, client: Client, mock_apns: MockApns, until: Until
) -> None:
    gone, next_one = phone(), phone()
    mock_apns.script(Delay(0.3, Answer(400, "BadDeviceToken")), token=gone.token)
    await gone.register(client)

    async def in_flight() -> bool:
        return mock_apns.counters.requests > 0

    async def is_answered() -> bool:
        return bool(mock_apns.rejected)

    await until(in_flight)
    assert await wire.ask(ntf.TDel(), gone.token_id, gone.key) == ntf.Ok()
    await next_one.register(client)
    await until(is_answered)
    await next_one.verify(client)
    await status_is(wire, next_one, TokenStatus.ACTIVE)


@pytest.mark.parametrize(
    ("minutes", "answer"),
    [(0, ntf.Ok()), (1, ERR_QUOTA), (19, ERR_QUOTA), (20, ntf.Ok()), (65535, ntf.Ok())],
)
async def test_periods(wire: Any, device: Phone, database: Any, minutes: int, answer: Message) -> None:
    assert await wire.ask(ntf.TCrn(30), device.token_id, device.key) == ntf.Ok()
    assert await wire.ask(ntf.TCrn(minutes), device.token_id, device.key) == answer
    assert database("SELECT period FROM tokens") == [(minutes if answer == ntf.Ok() else 30,)]


async def test_a_message_behind_a_code_is_not_forgotten(
    *,
    wire: Any,
    device: Phone,
    client: Client,
    smp_server: SmpServer,
    mock_apns: MockApns,
    database: Any,
    until: Until,
) -> None:
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        await device.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        await mock_apns.stop()
        await queue.send("hello")

        async def is_stored() -> bool:
            return database("SELECT count(*) FROM notifications") == [(1,)]

        await until(is_stored)
        await device.register(client)  # its code goes first
        await mock_apns.start()
        device.open(await mock_apns.next(device.token), "verification")
        [entry] = device.entries(await mock_apns.next(device.token))
        assert entry.notifier_id == queue.notifier_id


# --- subscriptions


@pytest.mark.parametrize("status", list(TokenStatus))
async def test_subscribing_in_each_status(wire: Any, device: Phone, database: Any, status: TokenStatus) -> None:
    subscribed = await wire.ask(snew(device.token_id), key=device.key)
    database("UPDATE tokens SET status = ?", status)
    allowed = status in {TokenStatus.ACTIVE, TokenStatus.INVALID, TokenStatus.EXPIRED}
    new = await wire.ask(snew(device.token_id, notifier_id=b"another"), key=device.key)
    assert isinstance(new, ntf.IdSub) if allowed else new == ERR_AUTH
    known = await wire.ask(ntf.SChk(), subscribed.subscription_id, device.key)
    assert known == (ntf.Sub(SubscriptionStatus.PENDING) if allowed else ERR_AUTH)
    deleted = await wire.ask(ntf.SDel(), subscribed.subscription_id, device.key)
    assert deleted == (ntf.Ok() if allowed else ERR_AUTH)


@pytest.mark.parametrize("key_type", KEYS)
async def test_subscribing_again(wire: Any, device: Phone, key_type: Any) -> None:
    new = snew(device.token_id, notifier_key=key_type.generate())
    first = await wire.ask(new, key=device.key)
    assert len(first.subscription_id) == 24
    assert await wire.ask(new, key=device.key) == first
    for other in KEYS:
        assert await wire.ask(snew(device.token_id, notifier_key=other.generate()), key=device.key) == ERR_AUTH
    assert await wire.ask(ntf.SDel(), first.subscription_id, device.key) == ntf.Ok()
    assert await wire.ask(ntf.SDel(), first.subscription_id, device.key) == ERR_AUTH
    again = await wire.ask(snew(device.token_id), key=device.key)
    assert again != first
    assert isinstance(again, ntf.IdSub)


async def test_the_same_notifier_id_on_other_servers(wire: Any, device: Phone) -> None:
    servers = [
        SMP,
        ServerAddress("smp", SMP.hosts, "5224", SMP.key_hash),
        ServerAddress("smp", SMP.hosts, SMP.port, bytes(32)),
        ServerAddress("smp", ("127.0.0.1",), SMP.port, SMP.key_hash),
    ]
    ids = {(await wire.ask(snew(device.token_id, server=s), key=device.key)).subscription_id for s in servers}
    assert len(ids) == len(servers)


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_subscriptions_life(
    *, relay: Relay, dial: Any, device: Phone, smp_server: SmpServer, until: Until, version: int
) -> None:
    wire = await dial(relay, version)

    async def status() -> Message:
        answer: Message = await wire.ask(ntf.SChk(), subscription_id, device.key)
        return answer

    async def is_active() -> bool:
        return await status() == ntf.Sub(SubscriptionStatus.ACTIVE)

    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        new = snew(device.token_id, queue, server=smp_server.address)
        subscription_id = (await wire.ask(new, key=device.key)).subscription_id
        assert await status() in (ntf.Sub(SubscriptionStatus.PENDING), ntf.Sub(SubscriptionStatus.ACTIVE))
        await until(is_active)
        assert await wire.ask(ntf.SDel(), subscription_id, device.key) == ntf.Ok()
        assert await status() == ERR_AUTH
        await queue.send("nobody is told")
        # A second subscription shows that the server is still there, and that the first made no push.
        second = await recipient.queue()
        await wire.ask(snew(device.token_id, second, server=smp_server.address), key=device.key)
        await smp_server.until(lambda: smp_server.subscribed(second.notifier_id))
        await second.send("this one counts")
        [entry] = device.entries(await device.apns.next(device.token))
        assert entry.notifier_id == second.notifier_id


async def test_a_new_subscription_is_pending_until_it_is_confirmed(
    *, wire: Any, device: Phone, client: Client, smp_server: SmpServer, until: Until
) -> None:
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        smp_server.script_nsub(queue.notifier_id, None)  # its answer is lost
        subscription_id = await device.subscribe(client, smp_server.address, queue)

        async def status() -> Message:
            answer: Message = await wire.ask(ntf.SChk(), subscription_id, device.key)
            return answer

        await smp_server.until(lambda: smp_server.nsubs(queue.notifier_id) == 1)
        for _ in range(5):
            assert await status() == ntf.Sub(SubscriptionStatus.PENDING)
        smp_server.drop_all()

        async def is_active() -> bool:
            return await status() == ntf.Sub(SubscriptionStatus.ACTIVE)

        await until(is_active)


async def test_subscribing_to_what_ended_subscribes_it_again(
    *, wire: Any, device: Phone, client: Client, smp_server: SmpServer, mock_apns: MockApns
) -> None:
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        subscription_id = await device.subscribe(client, smp_server.address, queue)

        async def status_is_(expected: SubscriptionStatus) -> None:
            async with asyncio.timeout(10):
                while await wire.ask(ntf.SChk(), subscription_id, device.key) != ntf.Sub(expected):
                    await asyncio.sleep(0.01)

        await status_is_(SubscriptionStatus.ACTIVE)
        async with await Client.connect(smp_server.address) as other:
            await other.request(smp.NSub(), queue.notifier_id, queue.notifier_key)
            await status_is_(SubscriptionStatus.END)
        assert await device.subscribe(client, smp_server.address, queue) == subscription_id
        await status_is_(SubscriptionStatus.ACTIVE)
        assert smp_server.subscribed(queue.notifier_id)
        await queue.send("hello")
        [entry] = device.entries(await mock_apns.next(device.token))
        assert entry.notifier_id == queue.notifier_id


@pytest.fixture
def quick_upkeep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK", 0.02)


TWO_DAYS = 2 * 24 * 3600


@pytest.mark.parametrize(
    "command", ["TCHK", "TCRN", "TVFY", "TRPL", "TNEW", "SNEW", "SCHK", "SDEL", "TCHK of nobody", "SCHK of nobody"]
)
async def test_a_device_that_sends_any_command_is_not_silent(
    *, quick_upkeep: None, wire: Any, device: Phone, client: Client, smp_server: SmpServer, database: Any, command: str
) -> None:
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        subscription_id = await device.subscribe(client, smp_server.address, queue)
    [(before,)] = database("SELECT active_at FROM tokens")
    database("UPDATE tokens SET active_at = ?", before - TWO_DAYS)
    nobody = Ed25519PrivateKey.generate() if command.endswith("nobody") else device.key
    match command.split(maxsplit=1)[0]:
        case "TCHK":
            await wire.ask(ntf.TChk(), device.token_id, nobody)
        case "TCRN":
            await wire.ask(ntf.TCrn(20), device.token_id, device.key)
        case "TVFY":
            await wire.ask(ntf.TVfy(bytes(32)), device.token_id, device.key)  # the wrong code, by the right key
        case "TRPL":
            await wire.ask(ntf.TRpl(device.device), device.token_id, device.key)
        case "TNEW":
            await wire.ask(tnew(device), b"", device.key)
        case "SNEW":
            await wire.ask(snew(device.token_id), b"", device.key)
        case "SCHK":
            await wire.ask(ntf.SChk(), subscription_id, nobody)
        case "SDEL":
            await wire.ask(ntf.SDel(), subscription_id, device.key)
    if command.endswith("nobody"):
        await asyncio.sleep(0.3)
        assert database("SELECT active_at FROM tokens") == [(before - TWO_DAYS,)]
        return
    async with asyncio.timeout(10):
        while database("SELECT active_at FROM tokens") == [(before - TWO_DAYS,)]:
            await asyncio.sleep(0.02)
    [(after,)] = database("SELECT active_at FROM tokens")
    assert before <= after <= before + 20


@pytest.fixture
async def open_relay(
    make_config: Callable[..., Config], address_of: Any, dial: Any, phone: Phones
) -> AsyncIterator[tuple[Any, Phone]]:
    """A session with a relay as it is set up for the world, and an active device."""
    async with Relay(make_config(subscriber__allow_private_hosts="false")) as relay:
        device = phone()
        async with await Client.connect(address_of(relay)) as client:
            await device.register(client)
            await device.verify(client)
        yield await dial(relay), device


Start = Callable[..., Awaitable[tuple[Any, Client, Metrics]]]


@pytest.fixture
async def start(
    make_config: Callable[..., Config], address_of: Any, dial: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Starts a relay with these settings of `[subscriber]`: a session, a client, and what the relay counts."""
    made: list[Metrics] = []

    class Observed(Metrics):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr("ntf_server.app.Metrics", Observed)
    async with contextlib.AsyncExitStack() as stack:

        async def open_session(**settings: Any) -> tuple[Any, Client, Metrics]:
            configuration = make_config(**{f"subscriber__{k}": v for k, v in settings.items()})
            relay = await stack.enter_async_context(Relay(configuration))
            client = await stack.enter_async_context(await Client.connect(address_of(relay)))
            return await dial(relay), client, made[-1]

        yield open_session


async def test_commands_and_what_became_of_registrations_are_counted(start: Start, phone: Phones) -> None:
    wire, client, metrics = await start(allow_private_hosts=True)
    device = phone()
    await device.register(client)
    assert await client.request(tnew(device), key=device.key) == await client.request(tnew(device), key=device.key)
    with pytest.raises(ServerError):
        await client.request(ntf.TVfy(bytes(32)), device.token_id, device.key)
    await device.verify(client)
    answer = await wire.ask(snew(device.token_id), key=device.key)
    assert isinstance(answer, ntf.IdSub)
    assert await wire.ask(ntf.SDel(), answer.subscription_id, device.key) == ntf.Ok()
    other = replace(device.device, token=os.urandom(32).hex().encode())
    assert await client.request(ntf.TRpl(other), device.token_id, device.key) == ntf.Ok()
    assert await wire.ask(b"NONSENSE", device.token_id, device.key) == ERR_UNKNOWN
    assert await client.request(ntf.TDel(), device.token_id, device.key) == ntf.Ok()
    with pytest.raises(ServerError):
        await client.request(ntf.TChk(), device.token_id, device.key)

    def kinds(name: KindCounter) -> dict[str, int]:
        return {kind: metrics.value(name, kind) for kind in name.kinds}

    counted = {
        (s.labels["command"], s.labels["answer"]): s.value for s in samples(metrics) if s.name == PairCounter.COMMANDS
    }
    assert {labels: n for labels, n in counted.items() if n} == {
        ("TNEW", "OK"): 3,
        ("TVFY", "AUTH"): 1,
        ("TVFY", "OK"): 1,
        ("SNEW", "OK"): 1,
        ("SDEL", "OK"): 1,
        ("TRPL", "OK"): 1,
        ("invalid", "CMD"): 1,
        ("TDEL", "OK"): 1,
        ("TCHK", "AUTH"): 1,
    }
    assert kinds(KindCounter.TOKEN_EVENTS) == {"created": 1, "verified": 1, "replaced": 1, "deleted": 1}
    assert kinds(KindCounter.SUBSCRIPTION_EVENTS) == {"created": 1, "deleted": 1}


def test_every_answer_has_a_label() -> None:
    answers = {
        v.code for module in (commands_module, listener_module) for v in vars(module).values() if isinstance(v, Err)
    }
    assert answers | {"OK", ERR_SESSION.code} == set(ANSWERS)


def refusals(metrics: Metrics) -> dict[str, int]:
    counts = {kind: metrics.value(KindCounter.SNEW_REFUSED, kind) for kind in KindCounter.SNEW_REFUSED.kinds}
    return {kind: count for kind, count in counts.items() if count}


PRIVATE_HOSTS = [
    ("localhost",),
    ("LOCALHOST",),
    ("localhost.",),
    ("smp.localhost",),
    ("printer.local",),
    ("db.internal",),
    ("intranet",),
    ("127.0.0.1",),
    ("127.1",),
    ("2130706433",),
    ("0x7f.1",),
    ("0x7f000001",),
    ("0.0.0.0",),
    ("10.1.2.3",),
    ("172.16.0.1",),
    ("192.168.1.1",),
    ("100.64.0.1",),
    ("169.254.169.254",),
    ("224.0.0.1",),
    ("255.255.255.255",),
    ("::1",),
    ("::",),
    ("fe80::1",),
    ("fc00::1",),
    ("::ffff:127.0.0.1",),
    ("64:ff9b::7f00:1",),
    ("2002:7f00:1::",),
    ("smp.example.org", "127.0.0.1"),
    ("10.0.0.1", "smp.example.org"),
]


async def test_private_hosts_are_refused(open_relay: tuple[Any, Phone]) -> None:
    wire, device = open_relay
    for hosts in PRIVATE_HOSTS:
        server = ServerAddress("smp", hosts, "", bytes(32))
        assert await wire.ask(snew(device.token_id, server=server), key=device.key) == ERR_AUTH, hosts


@pytest.mark.parametrize("host", ["smp.example.org", "8.8.8.8", "2606:4700:4700::1111", "localhost.example.org"])
async def test_a_public_host_is_taken(
    open_relay: tuple[Any, Phone], host: str, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    asked: list[tuple[str, bool]] = []

    async def find_route(host: str, _port: int, network: Network, _names: Names) -> Route:
        asked.append((host, network.allow_private))
        raise ResolveError("no network here")

    async def was_asked() -> bool:
        return bool(asked)

    monkeypatch.setattr("smp_bridge.turns.find_route", find_route)
    wire, device = open_relay
    server = ServerAddress("smp", (host,), "", bytes(32))
    assert isinstance(await wire.ask(snew(device.token_id, server=server), key=device.key), ntf.IdSub)
    await until(was_asked)
    assert asked[0] == (host, False)


async def test_servers_that_are_not_on_the_list(start: Start, phone: Phones) -> None:
    servers = {"allow_servers": "a.org, 127.0.0.0/8", "deny_servers": "bad.a.org 127.0.0.2"}
    wire, client, metrics = await start(**servers)
    device = phone()
    await device.register(client)
    await device.verify(client)
    taken = [("smp.a.org",), ("a.org", "127.0.0.1")]
    refused = [("b.org",), ("bad.a.org",), ("127.0.0.2",), ("::ffff:127.0.0.2",), ("a.org", "b.org")]
    for hosts in taken:
        new = snew(device.token_id, server=ServerAddress("smp", hosts, "1", bytes(32)))
        assert isinstance(await wire.ask(new, key=device.key), ntf.IdSub), hosts
    for hosts in refused:
        new = snew(device.token_id, server=ServerAddress("smp", hosts, "1", bytes(32)))
        assert await wire.ask(new, key=device.key) == ERR_AUTH, hosts
    assert refusals(metrics) == {"server_list": len(refused)}


async def test_a_host_on_the_list_that_is_private(start: Start, phone: Phones) -> None:
    wire, client, metrics = await start(allow_private_hosts="false", allow_servers="127.0.0.1 b.org")
    device = phone()
    await device.register(client)
    await device.verify(client)
    for host in ("127.0.0.1", "8.8.8.8"):
        server = ServerAddress("smp", (host,), "", bytes(32))
        assert await wire.ask(snew(device.token_id, server=server), key=device.key) == ERR_AUTH
    assert refusals(metrics) == {"host": 1, "server_list": 1}


async def test_limits(start: Start, phone: Phones) -> None:
    wire, client, metrics = await start(max_subscriptions_per_token=2, max_subscriptions_per_server=3)
    devices = [phone(), phone(), phone()]
    for device in devices:
        await device.register(client)
        await device.verify(client)
    first, second, third = devices
    other_server = ServerAddress("smp", SMP.hosts, "1", bytes(32))

    async def subscribe(device: Phone, notifier_id: bytes, server: ServerAddress = SMP) -> Any:
        new = snew(device.token_id, notifier_id=notifier_id, server=server)
        return await wire.ask(new, key=device.key)

    known = await subscribe(first, b"1")
    assert isinstance(await subscribe(first, b"2"), ntf.IdSub)
    assert await subscribe(first, b"3") == ERR_QUOTA
    assert await subscribe(first, b"3", other_server) == ERR_QUOTA
    assert await subscribe(first, b"1") == known  # what is there already is no more than before
    assert isinstance(await subscribe(second, b"4"), ntf.IdSub)
    assert refusals(metrics) == {"token_limit": 2}
    assert await subscribe(third, b"5") == ERR_QUOTA
    assert await subscribe(third, b"1") == ERR_AUTH  # another's queue: limits tell nothing of it
    assert isinstance(await subscribe(third, b"5", other_server), ntf.IdSub)
    assert refusals(metrics) == {"token_limit": 2, "server_limit": 1}
    assert await wire.ask(ntf.SDel(), known.subscription_id, first.key) == ntf.Ok()
    assert isinstance(await subscribe(third, b"5"), ntf.IdSub)


# --- budgets of strangers


@dataclass
class Ahead:
    """The clocks of a relay, moved ahead: time passes."""

    seconds: float = 0.0

    def wall(self) -> float:
        return time.time() + self.seconds

    def steady(self) -> float:
        return since_boot() + self.seconds


@pytest.fixture
def ahead() -> Ahead:
    return Ahead()


@pytest.fixture
async def among_strangers(make_config: Callable[..., Config], address_of: Any, ahead: Ahead) -> AsyncIterator[Client]:
    """A client of a relay with the default budgets."""
    async with (
        Relay(make_config(limits__enabled="true"), clock=ahead.wall, steady=ahead.steady) as relay,
        await Client.connect(address_of(relay)) as client,
    ):
        yield client


def twin(phone: Phone) -> Phone:
    """Another registration of its device token."""
    return Phone(phone.apns, phone.token)


async def nothing_is_pushed(phone: Phone) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(phone.apns.next(phone.token), 0.5)


async def test_codes_for_a_device_wait_for_their_turn(
    among_strangers: Client, phone: Phones, ahead: Ahead, mock_apns: MockApns
) -> None:
    """The second registration of a device token is answered at once, its code is pushed a minute later."""
    first, other = phone(), phone()
    second, third = twin(first), twin(first)
    await first.register(among_strangers)
    await mock_apns.next(first.token)
    await second.register(among_strangers)
    await third.register(among_strangers)  # by the same address: it takes the place of the second
    await nothing_is_pushed(first)
    with pytest.raises(ServerError, match="AUTH"):
        await second.status(among_strangers)
    assert (await third.status(among_strangers)).status is TokenStatus.REGISTERED
    ahead.seconds = 61
    await other.register(among_strangers)  # which has the relay look
    await third.verify(among_strangers)
    assert (await third.status(among_strangers)).status is TokenStatus.ACTIVE


async def test_an_active_registration_waits_for_nobody(
    among_strangers: Client, phone: Phones, mock_apns: MockApns, ahead: Ahead
) -> None:
    owner = phone()
    await owner.register(among_strangers)
    await owner.verify(among_strangers)
    await twin(owner).register(among_strangers)
    await nothing_is_pushed(owner)
    await owner.register(among_strangers)
    await owner.verify(among_strangers)


async def test_a_token_that_is_not_verified_may_be_replaced_twice(among_strangers: Client, phone: Phones) -> None:
    device = phone()
    await device.register(among_strangers)
    for _ in range(2):
        device.token = os.urandom(32).hex()
        assert await among_strangers.request(ntf.TRpl(device.device), device.token_id, device.key) == ntf.Ok()
    with pytest.raises(ServerError, match="QUOTA"):
        await among_strangers.request(ntf.TRpl(phone().device), device.token_id, device.key)
    await device.verify(among_strangers)
    device.token = os.urandom(32).hex()
    assert await among_strangers.request(ntf.TRpl(device.device), device.token_id, device.key) == ntf.Ok()
    await device.verify(among_strangers)


async def test_a_token_that_never_was_active_subscribes_nothing(
    start: Start, phone: Phones, mock_apns: MockApns
) -> None:
    wire, client, metrics = await start()
    bad, good = phone(), phone()
    for device in (bad, good):
        if device is good:
            await device.register(client)
            await device.verify(client)
        mock_apns.script(Answer(400, "BadDeviceToken"), token=device.token)
        await device.register(client)
        await status_is(wire, device, TokenStatus.INVALID, InvalidReason.BAD)
    assert await wire.ask(snew(bad.token_id), key=bad.key) == ERR_AUTH
    assert refusals(metrics) == {"never_active": 1}
    assert isinstance(await wire.ask(snew(good.token_id), key=good.key), ntf.IdSub)
