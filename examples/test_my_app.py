"""Tests of an app or a bot, with nothing but the plugin: copy this file, then `pytest test_my_app.py`.

Needs pytest and pytest-asyncio. The SMP server, the relay and the push services all run on loopback, in the test.
"""

import pytest

from ntf_server.testing import Answer, Device, MockApns
from smp_bridge.testing import Recipient, SmpServer

pytest_plugins = ["ntf_server.testing.pytest_plugin"]
pytestmark = pytest.mark.asyncio


async def test_a_message_wakes_the_device(smp_server: SmpServer, device: Device) -> None:
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        await device.subscribe(smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))

        await queue.send("hello")

        [entry] = await device.woken()
        notified = queue.open_notification(entry.nonce, entry.meta)
        message = await queue.receive()
        assert message.body == b"hello"
        assert notified.message_id == message.message_id


async def test_a_wake_up_survives_an_outage_of_apple(
    smp_server: SmpServer, device: Device, mock_apns: MockApns
) -> None:
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        await device.subscribe(smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))

        mock_apns.script(Answer(503, "ServiceUnavailable"), token=device.token)
        await queue.send("hello")

        [entry] = await device.woken()
        assert entry.notifier_id == queue.notifier_id
        assert [r.status for r in mock_apns.rejected] == [503]
