"""Tokens made INVALID behind a device's back, by an operator, and what the device sees of it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Phone
from store_world import MASTER, activate, look, new_token, register

from ntf_server.admin import tokens
from ntf_server.admin.socket import AdminError, ask
from ntf_server.admin.tokens import INVALIDATE, invalidate, on_invalidate
from ntf_server.config.files import Config
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing import MockApns
from smp_bridge import ntf
from smp_bridge.client import Client
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
