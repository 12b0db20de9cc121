"""Tokens made INVALID behind a device's back, by an operator, and what the device sees of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Phone
from store_world import CODE, MASTER, OTHER_KEY, activate, look, new_token, register, subscribe

from ntf_server.admin import tokens
from ntf_server.admin.socket import AdminError, ask
from ntf_server.admin.tokens import (
    INVALIDATE,
    NOBODY,
    Chosen,
    chosen_of,
    invalidate,
    on_invalidate,
    on_list,
    on_purge,
    on_show,
    page,
    purge,
    show,
)
from ntf_server.config.files import Config
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing import MockApns
from smp_bridge import ntf
from smp_bridge.client import Client
from smp_bridge.encoding import b64url
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, TokenStatus

pytestmark = pytest.mark.usefixtures("quiet")

Invalidate = Callable[..., Any]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(tmp_path / "relay.db", master_key=MASTER)
    yield opened
    await opened.close()


@pytest.fixture
async def active(mock_apns: MockApns, client: Client) -> Phone:
    phone = Phone(mock_apns)
    await phone.register(client)
    await phone.verify(client)
    return phone


@pytest.fixture
async def ask_relay(make_config: Callable[..., Config], client: Client) -> AsyncIterator[Invalidate]:
    async def asked(**arguments: Any) -> Any:
        return await asyncio.to_thread(ask, make_config().admin_socket, INVALIDATE, **arguments)

    yield asked


async def test_a_device_is_told_why(active: Phone, client: Client, ask_relay: Invalidate) -> None:
    assert await ask_relay(status="ACTIVE", reason="BAD") == {"tokens": 1}
    assert await active.status(client) == ntf.Tkn(TokenStatus.INVALID, InvalidReason.BAD)
    assert await ask_relay(status="ACTIVE", reason="BAD") == {"tokens": 0}


async def test_registering_again_brings_it_back(active: Phone, client: Client, ask_relay: Invalidate) -> None:
    await ask_relay(status="ACTIVE", reason="BAD")
    before = active.token_id
    await active.register(client)
    assert active.token_id == before
    assert await active.status(client) == ntf.Tkn(TokenStatus.REGISTERED)
    await active.verify(client)
    assert await active.status(client) == ntf.Tkn(TokenStatus.ACTIVE)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"status": "ACTIVE"},
        {"reason": "BAD"},
        {"status": "active", "reason": "BAD"},
        {"status": "ACTIVE", "reason": "NONE"},
        {"status": ["ACTIVE"], "reason": "BAD"},
        {"status": "ACTIVE", "reason": {}},
    ],
)
async def test_what_is_no_status_or_reason(
    active: Phone, client: Client, ask_relay: Invalidate, arguments: dict[str, Any]
) -> None:
    with pytest.raises(AdminError, match=r"^no such status, or no such reason$"):
        await ask_relay(**arguments)
    assert await active.status(client) == ntf.Tkn(TokenStatus.ACTIVE)


async def test_all_slices_are_done(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens, "_SLICE", 2)
    made = [await activate(store, DeviceToken(Provider.APNS, b"phone %d" % n)) for n in range(5)]
    other = await register(store, DeviceToken(Provider.FCM, b"other"))
    with caplog.at_level(logging.WARNING):
        assert await invalidate(store, TokenStatus.ACTIVE, InvalidReason.TOPIC) == 5
    assert [r.getMessage() for r in caplog.records] == [
        "5 tokens that were ACTIVE are INVALID (TOPIC) now: an operator asked for it"
    ]
    assert {(await look(store, t)).reason for t in made} == {InvalidReason.TOPIC}
    assert (await look(store, other)).status is TokenStatus.REGISTERED


async def test_a_store_that_fails_is_told(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.register(new_token())

    async def fail(*_: Any) -> Any:
        raise StoreUnavailableError("locked")

    monkeypatch.setattr(store, "invalidate", fail)
    with pytest.raises(AdminError, match=r"^locked$"):
        await on_invalidate(store, {"status": "ACTIVE", "reason": "BAD"})


# --- which there are, and those that go; of a running relay: test_inquiries.py


async def test_pages_of_those_that_are_meant(store: SqliteStore) -> None:
    for n in range(5):
        await activate(store, DeviceToken(Provider.FCM, b"phone %d" % n))
        await register(store, DeviceToken(Provider.APNS, b"%d" % n))
    found, after = [], None
    while True:
        one = await page(store, Chosen("ACTIVE"), after, 2)
        assert len(one["tokens"]) <= 2
        found += one["tokens"]
        if (after := one["next"]) is None:
            break
    assert len({token["fingerprint"] for token in found}) == len(found) == 5
    assert {token["status"] for token in found} == {"ACTIVE"}
    assert (await page(store, Chosen("ACTIVE", Provider.APNS)))["tokens"] == []
    assert len((await page(store, Chosen(None, Provider.APNS)))["tokens"]) == 5


async def test_a_token_is_shown_by_its_id_or_its_device(store: SqliteStore) -> None:
    token = await activate(store, DeviceToken(Provider.FCM, b"phone"))
    await subscribe(store, token, b"one", b"two")
    twin = await register(store, DeviceToken(Provider.FCM, b"phone"), OTHER_KEY)
    fingerprint = store.fingerprint(DeviceToken(Provider.FCM, b"phone"))
    by_id = await show(store, b64url(token.token_id))
    assert [t["statuses"] for t in by_id["tokens"]] == [{"NEW": 2}]
    by_device = await show(store, fingerprint)
    assert [t["status"] for t in by_device["tokens"]] == ["ACTIVE", "REGISTERED"]
    assert (await show(store, b64url(twin.token_id)))["tokens"] == by_device["tokens"][1:]
    for what in ("", "rubbish", "0" * 12, b64url(bytes(24)), b64url(token.token_id)[:-1]):
        with pytest.raises(AdminError, match=NOBODY):
            await show(store, what)


async def test_a_purge_takes_what_is_meant_and_no_more(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens, "_LOOK", 3)
    monkeypatch.setattr(tokens, "_AT_ONCE", 2)
    old = [await activate(store, DeviceToken(Provider.FCM, b"phone %d" % n)) for n in range(7)]
    await subscribe(store, old[0], b"one", b"two")
    await store._database.run(lambda c: c.execute("UPDATE tokens SET active_at = active_at - 10 * 86400") and None)
    young = await activate(store, DeviceToken(Provider.FCM, b"young"))
    other = await register(store, DeviceToken(Provider.APNS, b"other"))
    chosen = Chosen("ACTIVE", None, 9 * 86400.0)
    assert await purge(store, chosen, delete=False) == {"tokens": 7, "subscriptions": 2, "next": None}
    assert (await store.census(None, 100))[0].tokens.total() == 9
    assert not caplog.records
    assert (await purge(store, Chosen("ACTIVE", None, 11 * 86400.0), delete=True))["tokens"] == 0
    assert await purge(store, chosen, delete=True) == {"tokens": 7, "subscriptions": 2, "next": None}
    assert [r.getMessage() for r in caplog.records] == [
        "7 tokens that were ACTIVE are deleted: an operator asked for it"
    ]
    assert [await store.find_token(t.token_id) for t in old] == [None] * 7
    assert (await look(store, young)).status is TokenStatus.ACTIVE
    assert (await look(store, other)).status is TokenStatus.REGISTERED
    assert await store.subscription_count() == 0


async def test_one_that_comes_back_this_moment_stays(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [await register(store, DeviceToken(Provider.FCM, b"phone %d" % n)) for n in range(2)]
    found = await page(store, Chosen())
    seen = store.inspection.tokens

    async def then_it_verifies(*args: Any, **options: Any) -> Any:
        answer = await seen(*args, **options)
        assert await store.verify(made[1].ref, CODE)
        return answer

    monkeypatch.setattr(store.inspection, "tokens", then_it_verifies)
    assert (await purge(store, Chosen("REGISTERED", None, 0.0), delete=True))["tokens"] == 1
    assert len(found["tokens"]) == 2
    assert (await look(store, made[1])).status is TokenStatus.ACTIVE


async def test_damaged_ones_can_be_purged(store: SqliteStore) -> None:
    for n in range(2):
        await register(store, DeviceToken(Provider.FCM, b"phone %d" % n))
    await store._database.run(lambda c: c.execute("UPDATE tokens SET damaged = 1 WHERE ref = 1") and None)
    assert [t["status"] for t in (await page(store, Chosen("damaged")))["tokens"]] == ["damaged"]
    assert (await purge(store, Chosen("damaged", None, 0.0), delete=True))["tokens"] == 1
    assert [t["status"] for t in (await page(store, Chosen()))["tokens"]] == ["REGISTERED"]


@pytest.mark.parametrize(
    "request_",
    [
        {"status": "active"},
        {"status": ["ACTIVE"]},
        {"provider": "APNS"},
        {"days": "1"},
        {"days": -1},
        {"limit": 0},
        {"limit": "1"},
        {"after": 7},
    ],
)
async def test_what_cannot_be_listed(store: SqliteStore, request_: dict[str, Any]) -> None:
    with pytest.raises(AdminError):
        await on_list(store, request_)


async def test_what_is_not_deleted(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    await activate(store, DeviceToken(Provider.FCM, b"phone"))
    whole = {"status": "ACTIVE", "days": 0, "delete": True}
    for name in whole:
        with pytest.raises(AdminError, match="are missing"):
            await on_purge(store, {key: value for key, value in whole.items() if key != name})
    with pytest.raises(AdminError, match="are missing"):
        await on_purge(store, {**whole, "delete": "no"})
    with pytest.raises(AdminError, match="named"):
        await on_show(store, {"what": 1})

    async def fail(*_: Any, **__: Any) -> Any:
        raise StoreUnavailableError("locked")

    monkeypatch.setattr(store.inspection, "tokens", fail)
    with pytest.raises(AdminError, match=r"^locked$"):
        await on_purge(store, whole)
    assert (await store.census(None, 9))[0].tokens.total() == 1


def test_days_are_seconds_without_a_command() -> None:
    assert chosen_of({"days": 2}) == Chosen(None, None, 2 * 86400)
