import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto, smp
from smp_bridge.client import Client, Event, Request, ServerError
from smp_bridge.connecting import connect
from smp_bridge.encoding import short
from smp_bridge.messages import MessageBody
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL, Invalid, Session, encode_transmission, parse_block
from smp_bridge.transport import BlockConnection

ALL_VERSIONS = range(6, 19)


class Notifier:
    """A session that subscribes to notifications and collects the blocks of events."""

    client: Client

    def __init__(self) -> None:
        self.blocks: asyncio.Queue[Sequence[Event]] = asyncio.Queue()

    @classmethod
    async def connect(cls, server: SmpServer, version: int = 18) -> "Notifier":
        self = cls()
        self.client = await Client.connect(server.address, self.blocks.put, versions=(6, version))
        return self

    async def __aenter__(self) -> "Notifier":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()

    async def subscribe(self, queue: Queue) -> object:
        return await self.client.request(smp.NSub(), queue.notifier_id, queue.notifier_key)

    async def events(self) -> Sequence[Event]:
        return await asyncio.wait_for(self.blocks.get(), 5)

    async def event(self) -> Event:
        [event] = await self.events()
        return event


@dataclass
class Raw:
    """A session in which the test writes the transmissions."""

    connection: BlockConnection
    session: Session

    @classmethod
    async def connect(cls, server: SmpServer, version: int = 18) -> "Raw":
        return cls(*await connect(server.address, versions=(6, version)))

    async def __aenter__(self) -> "Raw":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.connection.close()

    async def receive(self) -> list[tuple[bytes, bytes, bytes]]:
        content = await asyncio.wait_for(self.connection.receive(), 5)
        out = []
        for t in parse_block(self.session, content):
            assert not isinstance(t, Invalid)
            out.append((t.corr_id, t.entity_id, t.command))
        return out

    async def ask(self, *transmissions: bytes) -> list[tuple[bytes, bytes, bytes]]:
        lengths = (len(t).to_bytes(2, "big") + t for t in transmissions)
        self.connection.send(bytes([len(transmissions)]) + b"".join(lengths))
        return await self.receive()

    async def command(self, command: bytes, entity_id: bytes = b"", key: crypto.AuthPrivateKey | None = None) -> bytes:
        """The answer, whose ids must be those of the command."""
        corr_id = os.urandom(24)
        [answer] = await self.ask(encode_transmission(self.session, corr_id, entity_id, command, key))
        assert answer[:2] == (corr_id, entity_id)
        return answer[2]


async def refused(awaitable: Awaitable[object]) -> str:
    with pytest.raises(ServerError) as e:
        await awaitable
    return str(e.value)


# --- a queue's life


@pytest.mark.parametrize("version", ALL_VERSIONS)
async def test_messages_and_notifications_in_every_version(server: SmpServer, version: int) -> None:
    async with (
        await Recipient.connect(server.address, versions=(6, version)) as recipient,
        await Notifier.connect(server, version) as notifier,
    ):
        assert recipient.client.session.version == version
        queue = await recipient.queue()
        assert await notifier.subscribe(queue) == (smp.SOk() if version >= 16 else smp.Ok())
        await queue.send("hello")
        event = await notifier.event()
        assert event.entity_id == queue.notifier_id
        assert isinstance(event.message, smp.NMsg)
        meta = queue.open_notification(event.message.nonce, event.message.meta)
        assert await queue.receive() == (meta.message_id, meta.timestamp, b"hello")
        await queue.delete()
        assert (await notifier.event()).message == (smp.Deld() if version >= 10 else smp.End())
        assert server.queues == 0


@pytest.mark.parametrize("make", [Ed25519PrivateKey.generate, Ed448PrivateKey.generate, X25519PrivateKey.generate])
@pytest.mark.parametrize("version", [7, 18])
async def test_every_key_type(server: SmpServer, make: Callable[[], crypto.AuthPrivateKey], version: int) -> None:
    async with (
        await Recipient.connect(server.address, versions=(6, version)) as recipient,
        await Notifier.connect(server, version) as notifier,
    ):
        queue = await recipient.queue(recipient_key=make(), notifier_key=make())
        await notifier.subscribe(queue)
        wrong = replace(queue, notifier_key=make())
        assert await refused(notifier.subscribe(wrong)) == "AUTH"
        await queue.send("x")
        assert (await notifier.event()).entity_id == queue.notifier_id


async def test_messages_come_one_at_a_time_and_the_next_answers_ack(recipient: Recipient) -> None:
    queue = await recipient.queue()
    for text in ("one", "two", "three"):
        await queue.send(text)
    first = await recipient.next_message(queue.recipient_id)
    second = await queue.command(smp.Ack(first.message_id))
    assert isinstance(second, smp.Msg)
    assert MessageBody.open(queue.secret, second.message_id, second.body).body == b"two"
    third = await queue.command(smp.Ack(second.message_id))
    assert isinstance(third, smp.Msg)
    assert await queue.command(smp.Ack(third.message_id)) == smp.Ok()


async def test_ack_of_another_message(recipient: Recipient) -> None:
    queue = await recipient.queue()
    assert await refused(queue.command(smp.Ack(bytes(24)))) == "NO_MSG"
    await queue.send("x")
    message = await recipient.next_message(queue.recipient_id)
    assert await refused(queue.command(smp.Ack(bytes(24)))) == "NO_MSG"
    assert await queue.command(smp.Ack(message.message_id)) == smp.Ok()
    assert await refused(queue.command(smp.Ack(message.message_id))) == "NO_MSG"


async def test_an_unacknowledged_message_comes_again(server: SmpServer) -> None:
    async with await Recipient.connect(server.address) as first:
        queue = await first.queue()
        await queue.send("x")
        message = await first.next_message(queue.recipient_id)
    await server.until(lambda: server.connections == 0)
    async with await Recipient.connect(server.address) as second:
        again = await replace(queue, recipient=second).command(smp.Sub())
        assert isinstance(again, smp.Msg)
        assert again.message_id == message.message_id


async def test_sub_without_messages(recipient: Recipient, server: SmpServer) -> None:
    queue = await recipient.queue()
    assert await queue.command(smp.Sub()) == smp.SOk()
    async with await Recipient.connect(server.address, versions=(6, 15)) as older:
        assert await replace(queue, recipient=older).command(smp.Sub()) == smp.Ok()


async def test_get(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    assert await refused(queue.command(smp.Get())) == "CMD PROHIBITED"  # it is subscribed here
    async with await Recipient.connect(server.address) as other:
        there = replace(queue, recipient=other)
        assert await there.command(smp.Get()) == smp.Ok()
        await queue.send("one")
        await queue.send("two")
        one = await recipient.next_message(queue.recipient_id)
        got = await there.command(smp.Get())
        assert isinstance(got, smp.Msg)
        assert got.message_id == one.message_id
        assert await there.command(smp.Ack(got.message_id)) == smp.Ok()
        assert (await queue.receive()).body == b"two"
        assert await refused(there.command(smp.Sub())) == "CMD PROHIBITED"


async def test_create_only_mode_does_not_subscribe(server: SmpServer, recipient: Recipient) -> None:
    key, dh_key = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    new = smp.New(key.public_key(), dh_key.public_key(), mode="C")
    ids = await recipient.client.request(new, key=key)
    assert isinstance(ids, smp.Ids)
    assert ids.ntf_creds is None
    await recipient.client.request(smp.Send(False, b"x"), ids.sender_id)
    assert isinstance(await recipient.client.request(smp.Get(), ids.recipient_id, key), smp.Msg)


async def test_the_newest_recipient_wins(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    async with await Recipient.connect(server.address) as other:
        there = replace(queue, recipient=other)
        await there.resubscribe()
        assert await recipient.other_events.get() == Event(queue.recipient_id, smp.End())
        await queue.send("x")
        assert (await there.receive()).body == b"x"
        await queue.delete()
        assert await other.other_events.get() == Event(queue.recipient_id, smp.Deld())


# --- senders


async def test_who_may_send(recipient: Recipient) -> None:
    queue = await recipient.queue(secure=None)
    await queue.send("unsigned")
    stranger = Ed25519PrivateKey.generate()
    assert await refused(replace(queue, sender_key=stranger).send("signed too early")) == "AUTH"
    await queue.secure("KEY")
    await queue.send("signed")
    assert await refused(replace(queue, sender_key=None).send("unsigned")) == "AUTH"
    assert await refused(replace(queue, sender_key=stranger).send("by another")) == "AUTH"
    assert await refused(replace(queue, sender_id=bytes(24)).send("nowhere")) == "AUTH"
    assert await refused(queue.command(smp.Key(stranger.public_key()))) == "AUTH"
    assert queue.sender_key is not None
    assert await queue.command(smp.Key(queue.sender_key.public_key())) == smp.Ok()
    assert [(await queue.receive()).body for _ in range(2)] == [b"unsigned", b"signed"]


async def test_the_sender_secures_the_queue(recipient: Recipient) -> None:
    queue = await recipient.queue(secure="SKEY")
    await queue.send("x")
    other = Ed25519PrivateKey.generate()
    for key, signer in ((other, other), (queue.sender_key, other)):  # another key; not signed by the key it sets
        assert key is not None
        request = recipient.client.request(smp.SKey(key.public_key()), queue.sender_id, signer)
        assert await refused(request) == "AUTH"


async def test_only_the_recipient_secures_a_contact_queue(recipient: Recipient) -> None:
    key, dh_key = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    new = smp.New(key.public_key(), dh_key.public_key(), kind="C")
    ids = await recipient.client.request(new, key=key)
    assert isinstance(ids, smp.Ids)
    sender = Ed25519PrivateKey.generate()
    assert await refused(recipient.client.request(smp.SKey(sender.public_key()), ids.sender_id, sender)) == "AUTH"


@pytest.mark.parametrize(
    ("version", "size"), [(6, 16088), (7, 16088), (8, 16064), (10, 16064), (11, 16048), (18, 16048)]
)
async def test_message_size(server: SmpServer, version: int, size: int) -> None:
    async with (
        await Recipient.connect(server.address, versions=(6, version)) as recipient,
        await Recipient.connect(server.address) as newest,
    ):
        queue = await recipient.queue()
        await queue.send(bytes(size))
        assert await refused(queue.send(bytes(size + 1))) == "LARGE_MSG"
        first = await recipient.next_message(queue.recipient_id)
        await queue.send("short")
        second = await queue.command(smp.Ack(first.message_id))
        assert isinstance(second, smp.Msg)
        assert len(first.body) == len(second.body)
        assert MessageBody.open(queue.secret, first.message_id, first.body).body == bytes(size)
        await queue.send(bytes(size))
        there = replace(queue, recipient=newest)
        await there.resubscribe()
        assert [len((await there.receive()).body) for _ in range(2)] == [5, size]


async def test_quota() -> None:
    async with SmpServer(quota=2) as server, await Recipient.connect(server.address) as recipient:
        queue = await recipient.queue()
        await queue.send("1")
        await queue.send("2")
        assert await refused(queue.send("3")) == "QUOTA"
        await queue.receive()
        await queue.send("4")


async def test_a_suspended_queue_takes_no_messages_but_gives_them(recipient: Recipient) -> None:
    queue = await recipient.queue()
    await queue.send("before")
    assert await queue.command(smp.Off()) == smp.Ok()
    assert await refused(queue.send("after")) == "AUTH"
    assert (await queue.receive()).body == b"before"


async def test_a_deleted_queue_is_gone(recipient: Recipient) -> None:
    queue = await recipient.queue()
    await queue.delete()
    assert await refused(queue.command(smp.Sub())) == "AUTH"
    assert await refused(queue.send("x")) == "AUTH"


# --- notifiers


async def test_the_newest_notifier_wins(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    async with await Notifier.connect(server) as first, await Notifier.connect(server) as second:
        await first.subscribe(queue)
        await first.subscribe(queue)
        await second.subscribe(queue)
        assert await first.event() == Event(queue.notifier_id, smp.End())
        await queue.send("x")
        assert isinstance((await second.event()).message, smp.NMsg)
        assert first.blocks.empty()
        await first.client.close()
        await server.until(lambda: server.connections == 2)
        assert server.subscribed(queue.notifier_id)


async def test_only_flagged_messages_notify(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    async with await Notifier.connect(server) as notifier:
        await notifier.subscribe(queue)
        await queue.send("silent", notify=False)
        await queue.send("loud")
        event = await notifier.event()
        assert isinstance(event.message, smp.NMsg)
        silent, loud = [await queue.receive() for _ in range(2)]
        meta = queue.open_notification(event.message.nonce, event.message.meta)
        assert meta.message_id == loud.message_id != silent.message_id
        assert notifier.blocks.empty()


async def test_all_undelivered_notifications_wait_for_the_notifier(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    for text in ("one", "two", "three"):
        await queue.send(text)
    async with await Raw.connect(server) as raw:
        answer = await raw.command(b"NSUB", queue.notifier_id, queue.notifier_key)
        assert answer == b"SOK 0"
        block = await raw.receive()
        assert [ids for *ids, _ in block] == [[b"", queue.notifier_id]] * 3
        for _, _, command in block:
            event = smp.parse_answer(command, 18)
            assert isinstance(event, smp.NMsg)
            meta = queue.open_notification(event.nonce, event.meta)
            assert meta.message_id == (await queue.receive()).message_id
        assert await raw.command(b"NSUB", queue.notifier_id, queue.notifier_key) == b"SOK 0"
        assert await raw.command(b"PING") == b"PONG"  # and no notification before it


async def test_what_a_client_left_behind_waits_for_the_next_session(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    server.event_delay = 0.3
    async with await Notifier.connect(server) as notifier:
        await notifier.subscribe(queue)
        await queue.send("one")
    await server.until(lambda: not server.subscribed(queue.notifier_id))
    await queue.send("two")
    await asyncio.sleep(0.5)  # the first one could not be sent
    async with await Notifier.connect(server) as notifier:
        await notifier.subscribe(queue)
        messages = [event.message for event in await notifier.events()]
    metas = [queue.open_notification(m.nonce, m.meta) for m in messages if isinstance(m, smp.NMsg)]
    assert [meta.message_id for meta in metas] == [(await queue.receive()).message_id for _ in range(2)]


async def test_what_a_client_left_behind_comes_in_its_order_to_who_is_there_by_then(
    server: SmpServer, recipient: Recipient
) -> None:
    queue = await recipient.queue()
    server.event_delay = 0.3
    async with await Notifier.connect(server) as notifier:
        await notifier.subscribe(queue)
        await queue.send("one")
        await queue.send("two")
    await server.until(lambda: not server.subscribed(queue.notifier_id))
    async with await Notifier.connect(server) as notifier:
        await notifier.subscribe(queue)
        messages = [event.message for event in await notifier.events()]
    metas = [queue.open_notification(m.nonce, m.meta) for m in messages if isinstance(m, smp.NMsg)]
    assert [meta.message_id for meta in metas] == [(await queue.receive()).message_id for _ in range(2)]


@pytest.mark.parametrize("replaced", [False, True])
async def test_credentials_removed_or_replaced(server: SmpServer, recipient: Recipient, replaced: bool) -> None:
    queue = await recipient.queue(credentials="NEW")
    async with await Notifier.connect(server) as notifier:
        await notifier.subscribe(queue)
        if replaced:
            key = Ed25519PrivateKey.generate().public_key()
            creds = smp.NtfCreds(key, X25519PrivateKey.generate().public_key())
            answer = await queue.command(smp.NKey(creds))
            assert isinstance(answer, smp.Nid)
            assert answer.creds.notifier_id != queue.notifier_id
        else:
            assert await queue.command(smp.NDel()) == smp.Ok()
            assert await queue.command(smp.NDel()) == smp.Ok()
        assert await notifier.event() == Event(queue.notifier_id, smp.Deld())
        assert await refused(notifier.subscribe(queue)) == "AUTH"
        await queue.send("x")
        assert (await queue.receive()).body == b"x"


async def test_notifications_that_come_together_share_a_block(server: SmpServer, recipient: Recipient) -> None:
    queues = [await recipient.queue() for _ in range(5)]
    async with await Notifier.connect(server) as notifier:
        for queue in queues:
            await notifier.subscribe(queue)
        client = recipient.client
        sent = client.send([Request(smp.Send(True, b"x"), q.sender_id, q.sender_key) for q in queues])
        assert [e.entity_id for e in await notifier.events()] == [q.notifier_id for q in queues]
        assert set(await asyncio.gather(*sent)) == {smp.Ok()}


async def test_event_delay_lets_notifications_wait_for_each_other() -> None:
    async with (
        SmpServer(event_delay=0.2) as server,
        await Recipient.connect(server.address) as recipient,
        await Notifier.connect(server) as notifier,
    ):
        queue = await recipient.queue()
        await notifier.subscribe(queue)
        for text in ("one", "two"):
            await queue.send(text)
        assert len(await notifier.events()) == 2


async def test_notifications_are_delivered_together_at_an_interval() -> None:
    async with (
        SmpServer(delivery_interval=0.3) as server,
        await Recipient.connect(server.address) as recipient,
        await Notifier.connect(server) as notifier,
    ):
        one, other = [await recipient.queue() for _ in range(2)]
        server.notify(other.notifier_id)  # before its NSUB
        for queue in (one, other):
            await notifier.subscribe(queue)
        server.notify(one.notifier_id, one.notifier_id)
        assert notifier.blocks.empty()
        [first] = [[e.entity_id for e in await notifier.events()]]
        assert first == [other.notifier_id, one.notifier_id, one.notifier_id]
        times = []
        for _ in range(3):
            server.notify(one.notifier_id)
            await notifier.event()
            times.append(asyncio.get_running_loop().time())
        assert times[2] - times[0] >= 0.5


async def test_what_was_not_delivered_before_a_disconnect_comes_after_it() -> None:
    async with SmpServer(delivery_interval=0.2) as server, await Recipient.connect(server.address) as recipient:
        queue = await recipient.queue()
        async with await Notifier.connect(server) as notifier:
            await notifier.subscribe(queue)
            server.notify(queue.notifier_id)
        await server.until(lambda: not server.subscribed(queue.notifier_id))
        await asyncio.sleep(0.3)
        async with await Notifier.connect(server) as notifier:
            await notifier.subscribe(queue)
            assert (await notifier.event()).entity_id == queue.notifier_id


async def test_end_and_deld_come_late() -> None:
    async with (
        SmpServer(end_delay=0.2) as server,
        await Recipient.connect(server.address) as recipient,
        await Notifier.connect(server) as first,
        await Notifier.connect(server) as second,
    ):
        queue = await recipient.queue()
        for notifier in (first, second, first):
            assert await notifier.subscribe(queue) == smp.SOk()
        server.notify(queue.notifier_id)
        assert isinstance((await first.event()).message, smp.NMsg)
        assert isinstance((await first.event()).message, smp.End)  # of the second's, though it is subscribed again
        assert isinstance((await second.event()).message, smp.End)
        await queue.delete()
        assert first.blocks.empty()
        assert isinstance((await first.event()).message, smp.Deld)


async def test_batches_are_answered_in_order_in_as_few_blocks_as_hold_them(
    server: SmpServer, recipient: Recipient
) -> None:
    queue = await recipient.queue()
    async with await Raw.connect(server) as raw:
        corr_ids = [os.urandom(24) for _ in range(90)]
        nsubs = [encode_transmission(raw.session, c, queue.notifier_id, b"NSUB", queue.notifier_key) for c in corr_ids]
        answers = await raw.ask(*nsubs)
        assert answers == [(c, queue.notifier_id, b"SOK 0") for c in corr_ids]
        assert server.nsubs() == server.nsubs(queue.notifier_id) == 90


# --- errors


async def test_syntax_and_credentials(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    key = Ed25519PrivateKey.generate()
    new = smp.New(key.public_key(), X25519PrivateKey.generate().public_key()).encode(18)
    async with await Raw.connect(server) as raw:
        cases: list[tuple[bytes, bytes, crypto.AuthPrivateKey | None, bytes]] = [
            (b"HELLO", bytes(24), None, b"CMD UNKNOWN"),
            (b"NEW", b"", key, b"CMD SYNTAX"),
            (b"NEW \x00", b"", None, b"CMD SYNTAX"),
            (b"NSUB x", bytes(24), key, b"CMD SYNTAX"),
            (b"SEND T", bytes(24), None, b"CMD SYNTAX"),
            (new, b"", None, b"CMD NO_AUTH"),
            (new, bytes(24), key, b"CMD HAS_AUTH"),
            (new, b"", queue.recipient_key, b"AUTH"),
            (b"SEND T x", b"", None, b"CMD NO_ENTITY"),
            (b"PING", b"", key, b"CMD HAS_AUTH"),
            (b"PING", bytes(24), None, b"CMD HAS_AUTH"),
            (b"NSUB", queue.notifier_id, None, b"CMD NO_AUTH"),
            (b"NSUB", b"", queue.notifier_key, b"CMD NO_AUTH"),
            (b"NSUB", bytes(24), queue.notifier_key, b"AUTH"),
            (b"NSUB", queue.notifier_id, key, b"AUTH"),
            (b"NSUB", queue.recipient_id, queue.notifier_key, b"AUTH"),
            (b"SUB", queue.recipient_id, queue.notifier_key, b"AUTH"),
            (b"NSUBS", bytes(24), key, b"SERVICE"),
        ]
        for command, entity_id, signer, error in cases:
            assert await raw.command(command, entity_id, signer) == b"ERR " + error, (command, error)
        assert server.nsubs(queue.notifier_id) == 1


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"\x02\0\x01x", b"\x01\0\x05abc", b"\x01\0\x03abcd", b"\x01\0\x01\xff"]
)
async def test_a_block_that_does_not_parse(server: SmpServer, content: bytes) -> None:
    async with await Raw.connect(server) as raw:
        raw.connection.send(content)
        assert await raw.receive() == [(b"", b"", b"ERR BLOCK")]
        assert await raw.command(b"PING") == b"PONG"


async def test_an_authenticator_of_no_kind(server: SmpServer) -> None:
    async with await Raw.connect(server) as raw:
        t = short(bytes(63)) + b"0" + short(b"c" * 24) + short(b"e" * 24) + b"NSUB"
        assert await raw.ask(t) == [(b"c" * 24, b"", b"ERR BLOCK")]


async def test_a_bad_transmission_does_not_spoil_its_block(server: SmpServer) -> None:
    async with await Raw.connect(server) as raw:
        ping = encode_transmission(raw.session, b"c" * 24, b"", b"PING")
        assert await raw.ask(b"\xff", ping) == [(b"", b"", b"ERR BLOCK"), (b"c" * 24, b"", b"PONG")]


async def test_another_session_id(server: SmpServer) -> None:
    async with await Raw.connect(server, version=6) as raw:
        other = replace(raw.session, session_id=bytes(32))
        t = encode_transmission(other, b"c" * 24, b"e" * 24, b"NSUB")
        assert await raw.ask(t) == [(b"c" * 24, b"", b"ERR SESSION")]


async def test_a_low_order_dh_key(recipient: Recipient) -> None:
    key = Ed25519PrivateKey.generate()
    zero = crypto.parse_x25519(crypto.encode_public(X25519PrivateKey.generate().public_key())[:12] + bytes(32))
    assert await refused(recipient.client.request(smp.New(key.public_key(), zero), key=key)) == "CRYPTO"


# --- faults, and looking inside


async def test_scripted_nsub_answers(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    server.script_nsub(queue.notifier_id, ERR_AUTH, None, ERR_INTERNAL)
    async with await Notifier.connect(server) as notifier:
        nsub = [Request(smp.NSub(), queue.notifier_id, queue.notifier_key)]
        auth, nothing, internal, ok = (notifier.client.send(nsub)[0] for _ in range(4))
        assert await ok == smp.SOk()
        assert not nothing.done()
        assert [str(f.exception()) for f in (auth, internal)] == ["AUTH", "INTERNAL"]
        nothing.cancel()
    assert server.nsubs(queue.notifier_id) == 4


async def test_a_store_that_fails(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    async with await Notifier.connect(server) as notifier:
        server.store_fails = True
        assert (await refused(notifier.subscribe(queue))).startswith("STORE ")
        assert (await refused(queue.send("x"))).startswith("STORE ")
        assert await notifier.client.request(smp.Ping()) == smp.Pong()
        server.store_fails = False
        assert await notifier.subscribe(queue) == smp.SOk()


async def test_a_blocked_queue(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    async with await Notifier.connect(server) as notifier:
        server.block(queue.notifier_id)
        assert await refused(notifier.subscribe(queue)) == "BLOCKED reason=spam"
        assert await refused(notifier.subscribe(replace(queue, notifier_key=Ed25519PrivateKey.generate()))) == "AUTH"
        assert not server.subscribed(queue.notifier_id)
        server.block(queue.notifier_id, words="")
        assert await notifier.subscribe(queue) == smp.SOk()
    with pytest.raises(KeyError):
        server.block(bytes(24))


async def test_a_silent_server(server: SmpServer, recipient: Recipient) -> None:
    server.silent = True
    [unheard] = recipient.client.send([Request(smp.Ping())])
    with pytest.raises(TimeoutError):
        await recipient.client.request(smp.Ping(), timeout=0.1)
    server.silent = False
    assert await recipient.client.request(smp.Ping()) == smp.Pong()
    assert not unheard.done()
    unheard.cancel()


async def test_drop_all(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    async with await Notifier.connect(server) as notifier:
        await notifier.subscribe(queue)
        assert server.subscribed(queue.notifier_id)
        server.drop_all()
        await asyncio.wait_for(notifier.client.closed, 5)
        await server.until(lambda: server.connections == 0)
        assert not server.subscribed(queue.notifier_id)
    async with await Notifier.connect(server) as notifier:
        await notifier.subscribe(queue)
        assert server.accepted == 3


async def test_an_outage_keeps_port_and_queues(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    address = server.address
    await server.stop()
    await asyncio.wait_for(recipient.client.closed, 5)
    with pytest.raises(OSError):
        await connect(address)
    await server.start()
    assert server.address == address
    async with await Recipient.connect(address) as again:
        there = replace(queue, recipient=again)
        await there.resubscribe()
        await there.send("x")
        assert (await there.receive()).body == b"x"


async def test_notify_without_a_message(server: SmpServer, recipient: Recipient) -> None:
    queues = [await recipient.queue() for _ in range(2)]
    async with await Notifier.connect(server) as notifier:
        for queue in queues:
            await notifier.subscribe(queue)
        server.notify(*(q.notifier_id for q in queues))
        for queue, event in zip(queues, await notifier.events(), strict=True):
            assert isinstance(event.message, smp.NMsg)
            assert len(queue.open_notification(event.message.nonce, event.message.meta).message_id) == 24
    with pytest.raises(KeyError):
        server.notify(bytes(24))


async def test_until_gives_up(server: SmpServer) -> None:
    with pytest.raises(TimeoutError):
        await server.until(lambda: server.connections == 1, timeout=0.05)


async def test_versions_can_be_limited() -> None:
    async with SmpServer(versions=(8, 12)) as server, await Raw.connect(server) as raw:
        assert raw.session.version == 12
