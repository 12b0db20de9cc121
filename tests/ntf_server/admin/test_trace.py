"""What became of a device's pushes, as the running relay tells it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Phone
from store_world import MASTER, activate, subscribe

from ntf_server.admin.socket import AdminError, ask
from ntf_server.admin.trace import TRACE, UNKNOWN, on_trace, trace
from ntf_server.config.files import Config
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing import MockApns
from ntf_server.testing.faults import Answer
from smp_bridge.client import Client
from smp_bridge.encoding import b64url
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

pytestmark = pytest.mark.usefixtures("quiet")


def nothing(_fingerprint: str, after: int) -> tuple[list[dict[str, Any]], int]:
    """No push ended."""
    return [], after


async def test_a_push_is_found_by_all_its_names(
    make_config: Callable[..., Config], client: Client, mock_apns: MockApns, smp_server: SmpServer
) -> None:
    """Also one that was refused first, with Apple's own words."""

    async def asked(what: str, **more: int) -> dict[str, Any]:
        return await asyncio.to_thread(ask, make_config().admin_socket, TRACE, what=what, **more)

    phone = Phone(mock_apns)
    await phone.register(client)
    await phone.verify(client)
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        subscription = await phone.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        before = await asked(b64url(phone.token_id))
        mock_apns.script(Answer(503, "ServiceUnavailable"))
        smp_server.notify(queue.notifier_id)
        push = await mock_apns.next(phone.token)
        async with asyncio.timeout(10):
            while True:  # the store knows a moment later what came of it
                answer = await asked(b64url(phone.token_id))
                last = answer["token"]["last_push"]
                if (last["push"], last["outcome"]) == (push.apns_id, "delivered"):
                    break
                await asyncio.sleep(0.01)
    code, refused, taken = answer["pushes"]
    assert (code["kind"], code["outcome"], code["attempt"]) == ("verification", "delivered", 1)
    assert (refused["kind"], refused["outcome"], refused["attempt"]) == ("messages", "again", 1)
    assert "ServiceUnavailable" in refused["reason"]
    assert (taken["kind"], taken["outcome"], taken["attempt"]) == ("messages", "delivered", 2)
    assert refused["push"] == taken["push"] == push.apns_id
    token = answer["token"]
    assert (token["provider"], token["status"], token["reason"]) == ("AT", "ACTIVE", "")
    assert (token["last_push"]["push"], token["last_push"]["outcome"]) == (taken["push"], "delivered")
    found = await asked(b64url(subscription))
    assert found["subscription"] == {"server": smp_server.address.hosts[0], "status": "ACTIVE"}
    assert {**found, "subscription": None} == answer
    by_fingerprint = await asked(answer["fingerprint"])
    assert (by_fingerprint["pushes"], by_fingerprint["token"]) == (answer["pushes"], None)
    new = await asked(b64url(phone.token_id), after=before["next"])
    assert new["pushes"] == [refused, taken]
    assert phone.token not in str(answer)


@pytest.mark.parametrize("what", ["", "rubbish", "0" * 12, "A" * 32, "é" * 32, "A" * 31, "0" * 64])
async def test_who_is_unknown(make_config: Callable[..., Config], client: Client, what: str) -> None:
    with pytest.raises(AdminError) as e:
        await asyncio.to_thread(ask, make_config().admin_socket, TRACE, what=what)
    assert str(e.value) == UNKNOWN


@pytest.mark.parametrize("arguments", [{}, {"what": 1}, {"what": None}, {"what": "a", "after": "b"}])
async def test_what_names_nobody(arguments: dict[str, Any], tmp_path: Path) -> None:
    store = await SqliteStore.open(tmp_path / "relay.db", master_key=MASTER)
    try:
        with pytest.raises(AdminError, match=r"^no token, subscription or fingerprint was named$"):
            await on_trace(store, nothing, arguments)
    finally:
        await store.close()


async def test_a_store_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await SqliteStore.open(tmp_path / "relay.db", master_key=MASTER)
    token = await activate(store)
    [added] = await subscribe(store, token, b"queue")
    assert (await trace(store, b64url(added.subscription_id), nothing))["token"]["last_push"] is None

    async def fail(*_: Any) -> Any:
        raise StoreUnavailableError("locked")

    monkeypatch.setattr(store, "last_push", fail)
    with pytest.raises(AdminError, match=r"^locked$"):
        await trace(store, b64url(token.token_id), nothing)
    await store.close()
