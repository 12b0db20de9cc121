"""SMP servers and subscriptions, as a running relay tells of them."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from harness import Phone
from store_world import MASTER, SMP, activate, subscribe

from ntf_server.admin import servers
from ntf_server.admin.servers import (
    COUNT,
    LOOK,
    SHOW,
    UNKNOWN,
    add,
    count,
    look,
    on_count,
    on_look,
    on_show,
    show,
    wanted,
)
from ntf_server.admin.socket import AdminError, ask
from ntf_server.config.files import Config
from ntf_server.smp.looks import ServerLook
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import Subscription
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing import MockApns
from smp_bridge.address import ServerAddress
from smp_bridge.agent import Way
from smp_bridge.client import Client
from smp_bridge.encoding import b64url
from smp_bridge.failure import ConnectFailure
from smp_bridge.ntf import Sub, SubscriptionStatus
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

pytestmark = pytest.mark.usefixtures("quiet")


def server(number: int) -> ServerAddress:
    return ServerAddress("smp", (f"smp{number:03}.example",), "", bytes(32))


class Many:
    """Speaks for many servers."""

    def __init__(self, number: int) -> None:
        failed = ConnectFailure.TCP, "x" * 200, 1.0, 1.0
        self.found = [ServerLook(Way(server(n), False, False, 1.0, *failed), own=False) for n in range(number)]

    def looks(self, limit: int, after: str = "") -> list[ServerLook]:
        return [one for one in self.found if one.name > after][:limit]

    def status(self, _: Subscription) -> Sub:
        return Sub(SubscriptionStatus.INACTIVE)


@pytest.fixture
async def store() -> AsyncIterator[SqliteStore]:
    opened = await SqliteStore.open(sqlite3.connect(":memory:", isolation_level=None), master_key=MASTER)
    yield opened
    await opened.close()


async def test_what_a_relay_wants_and_has(
    make_config: Callable[..., Config], client: Client, mock_apns: MockApns, smp_server: SmpServer
) -> None:
    async def asked(command: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(ask, make_config().admin_socket, command, **arguments)

    phone = Phone(mock_apns)
    await phone.register(client)
    await phone.verify(client)
    assert await asked(COUNT) == await asked(LOOK) == {"servers": {}, "next": None}
    name = str(smp_server.address.plain)
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        subscription = await phone.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        async with asyncio.timeout(10):
            while (told := (await asked(LOOK))["servers"][name])["active"] != 1:
                await asyncio.sleep(0.01)
            while (shown := await asked(SHOW, what=b64url(subscription)))["status"] != "ACTIVE":
                await asyncio.sleep(0.01)
    assert (told["connected"], told["complete"], told["pending"], told["failure"]) == (True, True, 0, "")
    counted = {"servers": {name: {"statuses": {"ACTIVE": 1}, "associated": 0}}, "next": None}
    assert await asked(COUNT) == counted
    assert (shown["server"], shown["told"], shown["token"]) == (name, "ACTIVE", "ACTIVE")
    assert b64url(queue.notifier_id) not in str(shown) and phone.token not in str(shown)
    await smp_server.stop()
    async with asyncio.timeout(10):
        while (told := (await asked(LOOK))["servers"][name])["connected"] or not told["failure"]:
            await asyncio.sleep(0.01)
    assert (told["failure"], told["active"]) == ("tcp", 0) and told["reason"]
    assert (await asked(SHOW, what=b64url(subscription)))["told"] == "INACTIVE"


async def test_many_servers_come_in_several_answers(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await activate(store)
    for n in range(150):
        await subscribe(store, token, b"one", b"two", server=server(n))
    found: dict[str, Any] = {}
    after, answers = None, 0
    monkeypatch.setattr(servers, "_SLICE", 33)  # so that a server is in two of them
    while True:
        answer = await count(store, after)
        for name, more in answer["servers"].items():
            add(found.setdefault(name, {"statuses": {}, "associated": 0}), more)
        answers += 1
        if (after := answer["next"]) is None:
            break
    assert answers > 2
    assert found == {str(server(n).plain): {"statuses": {"NEW": 2}, "associated": 0} for n in range(150)}
    looked: list[str] = []
    while True:
        answer = look(Many(150), after)
        assert len(str(answer)) < 60_000
        looked += answer["servers"]
        if (after := answer["next"]) is None:
            break
    assert looked == sorted(found)


def test_what_should_be_active() -> None:
    assert wanted({"ACTIVE": 1, "NEW": 2, "PENDING": 4, "END": 8, "damaged": 16}) == 7


async def test_a_subscription_by_its_id(store: SqliteStore) -> None:
    token = await activate(store)
    [added] = await subscribe(store, token, b"queue")
    name = b64url(added.subscription_id)
    found = await show(store, Many(0), name)
    assert (found["server"], found["status"], found["told"]) == (str(SMP.plain), "NEW", "INACTIVE")
    assert (await show(store, None, name))["told"] is None
    for what in ("", "rubbish", b64url(token.token_id), b64url(bytes(24)), name[:-1]):
        with pytest.raises(AdminError, match=UNKNOWN):
            await show(store, None, what)
    await store.delete_token(token.ref)
    with pytest.raises(AdminError, match=UNKNOWN):
        await show(store, None, name)


async def test_what_is_refused(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for asking in (on_count(store, {"after": 1}), on_look(Many(0), {"after": {}}), on_show(store, Many(0), {})):
        with pytest.raises(AdminError):
            await asking

    async def fail(*_: Any) -> Any:
        raise StoreUnavailableError("locked")

    monkeypatch.setattr(store.inspection, "subscriptions", fail)
    monkeypatch.setattr(store, "find_subscription", fail)
    for asking in (on_count(store, {}), on_show(store, Many(0), {"what": b64url(bytes(24))})):
        with pytest.raises(AdminError, match=r"^locked$"):
            await asking
