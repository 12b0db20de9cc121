from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto, smp
from smp_bridge.client import Client, ServerError, UnexpectedAnswerError
from smp_bridge.testing import Received, Recipient, SmpServer


@pytest.mark.parametrize("credentials", ["NKEY", "NEW"])
@pytest.mark.parametrize("secure", ["KEY", "SKEY", None])
async def test_a_message_from_end_to_end(server: SmpServer, credentials: str, secure: str | None) -> None:
    async with await Recipient.connect(server.address) as recipient:
        queue = await recipient.queue(credentials=credentials, secure=secure)  # type: ignore[arg-type]
        await queue.send("text")
        await queue.send(b"\0bytes", notify=False)
        first, second = [await queue.receive() for _ in range(2)]
        assert isinstance(first, Received)
        assert (first.body, second.body) == (b"text", b"\0bytes")
        assert first.message_id != second.message_id
        assert first.timestamp <= second.timestamp


async def test_receive_has_a_timeout(server: SmpServer) -> None:
    async with await Recipient.connect(server.address) as recipient:
        queue = await recipient.queue()
        with pytest.raises(TimeoutError):
            await queue.receive(timeout=0.05)
        await queue.send("late")
        assert (await queue.receive()).body == b"late"


async def test_queues_do_not_mix(server: SmpServer) -> None:
    async with await Recipient.connect(server.address) as recipient:
        a, b = [await recipient.queue() for _ in range(2)]
        await a.send("a")
        await b.send("b")
        assert (await b.receive()).body == b"b"
        assert (await a.receive()).body == b"a"


async def test_given_keys_are_used(server: SmpServer) -> None:
    recipient_key, notifier_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    async with await Recipient.connect(server.address) as recipient:
        queue = await recipient.queue(recipient_key=recipient_key, notifier_key=notifier_key)
        assert queue.recipient_key is recipient_key
        assert queue.notifier_key is notifier_key
        assert await recipient.client.request(smp.NSub(), queue.notifier_id, notifier_key) == smp.SOk()


async def test_a_sender_on_another_connection(server: SmpServer) -> None:
    async with (
        await Recipient.connect(server.address) as recipient,
        await Client.connect(server.address, versions=(6, 6)) as sender,
    ):
        queue = await recipient.queue()
        await queue.send("x", client=sender)
        assert (await queue.receive()).body == b"x"


async def test_notification_metadata_opens_for_its_queue_only(server: SmpServer) -> None:
    async with await Recipient.connect(server.address) as recipient:
        queue, other = [await recipient.queue() for _ in range(2)]
        await recipient.client.request(smp.NSub(), queue.notifier_id, queue.notifier_key)
        await queue.send("x")
        event = await recipient.other_events.get()
        assert event.entity_id == queue.notifier_id
        assert isinstance(event.message, smp.NMsg)
        meta = queue.open_notification(event.message.nonce, event.message.meta)
        assert meta.message_id == (await queue.receive()).message_id
        with pytest.raises(crypto.CryptoError):
            other.open_notification(event.message.nonce, event.message.meta)


async def test_what_is_waiting_comes_after_resubscribing(server: SmpServer) -> None:
    async with await Recipient.connect(server.address) as first:
        queue = await first.queue()
        await queue.send("x")
    async with await Recipient.connect(server.address) as second:
        queue = replace(queue, recipient=second)
        await queue.resubscribe()
        assert (await queue.receive()).body == b"x"


async def test_errors(server: SmpServer) -> None:
    async with await Recipient.connect(server.address, versions=(6, 16)) as recipient:
        with pytest.raises(UnexpectedAnswerError):
            await recipient.queue(credentials="NEW")
        queue = await recipient.queue()
        await queue.delete()
        with pytest.raises(ServerError, match="AUTH"):
            await queue.delete()


async def test_secrets_are_not_in_the_repr(server: SmpServer) -> None:
    async with await Recipient.connect(server.address) as recipient:
        assert repr(await recipient.queue()) == "Queue()"
