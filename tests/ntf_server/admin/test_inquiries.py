"""What a running relay can be asked, and is told to delete, through its socket."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from harness import Phone

from ntf_server.admin import tokens
from ntf_server.admin.socket import AdminError, ask
from ntf_server.config.files import Config
from ntf_server.testing import MockApns
from smp_bridge.client import Client, ServerError
from smp_bridge.encoding import b64url
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

pytestmark = pytest.mark.usefixtures("quiet")

Ask = Callable[..., Any]


@pytest.fixture
def ask_relay(make_config: Callable[..., Config]) -> Ask:
    async def asked(command: str, **arguments: Any) -> Any:
        return await asyncio.to_thread(ask, make_config().admin_socket, command, **arguments)

    return asked


async def test_a_purge_lets_go_of_the_subscriptions(
    ask_relay: Ask, client: Client, mock_apns: MockApns, smp_server: SmpServer
) -> None:
    """Its queue is subscribed no more; its app hears that the registration is gone; others stay."""
    phone, other = Phone(mock_apns), Phone(mock_apns)
    for one in (phone, other):
        await one.register(client)
    await phone.verify(client)
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        await phone.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        counted = await ask_relay(tokens.PURGE, status="ACTIVE", days=0, delete=False)
        assert counted == {"tokens": 1, "subscriptions": 1, "next": None}
        assert len((await ask_relay(tokens.LIST))["tokens"]) == 2
        assert await ask_relay(tokens.PURGE, status="ACTIVE", days=0, delete=True) == counted
    with pytest.raises(ServerError, match="AUTH"):
        await phone.status(client)
    await other.status(client)
    [left] = (await ask_relay(tokens.LIST))["tokens"]
    assert (left["status"], left["subscriptions"]) != ("ACTIVE", 1)
    with pytest.raises(AdminError, match=tokens.NOBODY):
        await ask_relay(tokens.SHOW, what=b64url(phone.token_id))


async def test_a_registration_is_shown_without_its_secrets(ask_relay: Ask, client: Client, mock_apns: MockApns) -> None:
    phone = Phone(mock_apns)
    await phone.register(client)
    await phone.verify(client)
    [shown] = (await ask_relay(tokens.SHOW, what=b64url(phone.token_id)))["tokens"]
    [listed] = (await ask_relay(tokens.LIST, status="ACTIVE", provider="AT"))["tokens"]
    assert shown == {**listed, "statuses": {}}
    assert (await ask_relay(tokens.SHOW, what=shown["fingerprint"]))["tokens"] == [shown]
    assert (shown["status"], shown["provider"], shown["last_push"]["outcome"]) == ("ACTIVE", "AT", "delivered")
    assert phone.token not in str(shown) and b64url(phone.token_id) not in str(shown)
