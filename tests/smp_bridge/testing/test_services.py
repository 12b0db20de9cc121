import asyncio
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import smp
from smp_bridge.client import Client, Event, Request, ServerError
from smp_bridge.connecting import connect
from smp_bridge.crypto import AuthPrivateKey
from smp_bridge.handshake import ServiceCredentials, ServiceRefusedError
from smp_bridge.identity import Credentials, generate_key, issue_leaf
from smp_bridge.service import ids_hash
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.tls import client_context
from smp_bridge.transmission import ERR_INTERNAL, ERR_SERVICE, Message, encode_transmission

CREDENTIALS, CA_KEY = Credentials.generate("ED25519", "service")
OTHER, _ = Credentials.generate("ED448", "other service")


@pytest.fixture
async def queues(recipient: Recipient) -> list[Queue]:
    return [await recipient.queue() for _ in range(3)]


def proof(credentials: Credentials) -> ServiceCredentials:
    return ServiceCredentials(tuple(credentials.chain_der), credentials.key, Ed25519PrivateKey.generate())


class Session:
    """A notifier's session, of a service unless it has no credentials; its events, as they come."""

    client: Client

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    @classmethod
    async def connect(
        cls, server: SmpServer, credentials: Credentials | None = CREDENTIALS, version: int = 20
    ) -> "Session":
        self = cls()
        self.client = await Client.connect(
            server.address,
            self._take,
            context=client_context("smp", credentials),
            service=proof(credentials) if credentials else None,
            versions=(6, version),
        )
        return self

    async def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            self._events.put_nowait(event)

    async def __aenter__(self) -> "Session":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.client.close()

    @property
    def service_id(self) -> bytes:
        assert self.client.session.service is not None
        return self.client.session.service.service_id

    @property
    def key(self) -> Ed25519PrivateKey:
        service = self.client.session.service
        assert service is not None
        assert isinstance(service.key, Ed25519PrivateKey)
        return service.key

    async def request(self, request: Request) -> Message | str:
        """The answer, or the error as text."""
        [answer] = self.client.send([request])
        try:
            return await asyncio.wait_for(answer, 5)
        except ServerError as e:
            return str(e)

    async def nsub(self, queue: Queue) -> Message | str:
        as_service = self.client.session.service is not None
        return await self.request(Request(smp.NSub(), queue.notifier_id, queue.notifier_key, as_service))

    async def nsubs(self) -> Message | str:
        """Its count; the hash has a test of its own."""
        answer = await self.request(Request(smp.NSubs(), self.service_id, self.key))
        return smp.SOks(answer.count) if isinstance(answer, smp.SOks) else answer

    async def event(self) -> Event:
        event = await asyncio.wait_for(self._events.get(), 5)
        if isinstance(event.message, smp.Ends):
            assert event.message.ids_hash is not None
            event.message = smp.Ends(event.message.count)
        return event

    async def nothing(self) -> None:
        """No event is there or under way: events of a moment are sent before what comes after it."""
        assert await self.request(Request(smp.Ping())) == smp.Pong()
        assert self._events.empty()


async def associate(server: SmpServer, queues: list[Queue], credentials: Credentials = CREDENTIALS) -> bytes:
    """In a session of its own; the service's id."""
    before = server.connections
    async with await Session.connect(server, credentials) as session:
        for queue in queues:
            assert await session.nsub(queue) == smp.SOk(session.service_id)
    await server.until(lambda: server.connections == before)
    assert not any(server.subscribed(q.notifier_id) for q in queues)
    assert all(server.associated(q.notifier_id) for q in queues)
    return session.service_id


# --- who a service is


async def test_the_same_service_has_the_same_id(server: SmpServer) -> None:
    async with await Session.connect(server) as first, await Session.connect(server) as again:
        assert first.service_id == again.service_id
        assert len(first.service_id) == 24
        async with await Session.connect(server, OTHER) as other:
            assert other.service_id != first.service_id
    await server.stop()
    await server.start()
    async with await Session.connect(server) as later:
        assert later.service_id == first.service_id


async def test_the_identity_certificate_is_the_service(server: SmpServer) -> None:
    key = generate_key("ED25519")
    ca = CREDENTIALS.chain[1]
    leaf = issue_leaf(key, "service", ca, CA_KEY, ca.not_valid_before_utc)
    renewed = Credentials((leaf, ca), key)
    async with await Session.connect(server) as first, await Session.connect(server, renewed) as again:
        assert first.service_id == again.service_id


@pytest.mark.parametrize("version", [6, 15])
async def test_no_services_before_16(server: SmpServer, recipient: Recipient, version: int) -> None:
    queue = await recipient.queue()
    async with await Session.connect(server, version=version) as session:
        assert session.client.session.service is None
        assert await session.nsub(queue) == smp.Ok()
        assert await session.request(Request(smp.NSubs(), bytes(24), queue.notifier_key)) == "CMD UNKNOWN"


async def test_a_service_must_show_its_certificate_to_tls(server: SmpServer) -> None:
    with pytest.raises(ServiceRefusedError):
        await connect(server.address, context=client_context("smp", OTHER), service=proof(CREDENTIALS))
    await server.until(lambda: server.connections == 0)
    assert server.accepted == 0


async def test_a_certificate_without_a_service(server: SmpServer, recipient: Recipient) -> None:
    queue = await recipient.queue()
    async with await Client.connect(server.address, context=client_context("smp", CREDENTIALS)) as client:
        assert await client.request(smp.NSub(), queue.notifier_id, queue.notifier_key) == smp.SOk()


@pytest.mark.parametrize("off", ["services", "versions"])
async def test_a_server_without_services(off: str) -> None:
    server = SmpServer(services=False) if off == "services" else SmpServer(versions=(6, 15))
    async with server:
        async with await Session.connect(server) as session:  # none is shown: TLS did not ask for a certificate
            assert session.client.session.service is None
        async with await Session.connect(server, version=15) as session:
            assert session.client.session.service is None


async def test_refused_for_a_while(server: SmpServer) -> None:
    server.refuse_services = True
    with pytest.raises(ServiceRefusedError):
        await Session.connect(server)
    async with await Session.connect(server, None) as session:
        assert session.client.session.version == 20
    server.refuse_services = False
    async with await Session.connect(server) as session:
        assert session.service_id


async def test_a_record_that_cannot_be_read_once(server: SmpServer) -> None:
    server.bad_service = 1
    with pytest.raises(ServiceRefusedError):
        await Session.connect(server)
    async with await Session.connect(server) as session:
        assert session.service_id


# --- subscriptions


async def test_nsubs_subscribes_what_is_associated(server: SmpServer, queues: list[Queue]) -> None:
    *ours, other = queues
    service_id = await associate(server, ours)
    async with await Session.connect(server) as session:
        assert session.service_id == service_id
        server.notify(*(q.notifier_id for q in queues))
        await session.nothing()
        assert await session.nsubs() == smp.SOks(2)
        assert [server.subscribed(q.notifier_id) for q in queues] == [True, True, False]
        waited = [await session.event() for _ in ours]  # what had come before
        assert {e.entity_id for e in waited} == {q.notifier_id for q in ours}
        for queue in queues:
            await queue.send("x")
        for queue in ours:
            event = await session.event()
            assert event.entity_id == queue.notifier_id
            assert isinstance(event.message, smp.NMsg)
            assert queue.open_notification(event.message.nonce, event.message.meta)
        await session.nothing()
        assert await session.nsub(other) == smp.SOk(service_id)
        for _ in range(2):  # all that had come
            assert isinstance((await session.event()).message, smp.NMsg)
        assert await session.nsubs() == smp.SOks(3)
        await session.nothing()
    assert server.nsubs_commands == 2
    await server.until(lambda: not any(server.subscribed(q.notifier_id) for q in queues))


async def test_a_ping_is_answered_behind_a_slow_nsubs(server: SmpServer, queues: list[Queue]) -> None:
    await associate(server, queues[:2])
    server.nsubs_delay = 0.3
    async with await Session.connect(server) as session, await Session.connect(server, None) as other:
        nsubs, pong = (
            asyncio.create_task(session.request(r))
            for r in (Request(smp.NSubs(), session.service_id, session.key), Request(smp.Ping()))
        )
        assert await other.request(Request(smp.Ping())) == smp.Pong()
        done, _ = await asyncio.wait([nsubs, pong], timeout=0.2)
        assert not done
        assert isinstance(await nsubs, smp.SOks)
        assert await pong == smp.Pong()


async def test_nsub_subscribes_its_queue_only(server: SmpServer, queues: list[Queue]) -> None:
    await associate(server, queues)
    async with await Session.connect(server) as session:
        await session.nsub(queues[0])
        server.notify(*(q.notifier_id for q in queues))
        assert (await session.event()).entity_id == queues[0].notifier_id
        await session.nothing()


async def test_nothing_is_associated_with_a_new_service(server: SmpServer, queues: list[Queue]) -> None:
    await associate(server, queues)
    async with await Session.connect(server, OTHER) as session:
        assert await session.nsubs() == smp.SOks(0)
        assert not server.subscribed(queues[0].notifier_id)


@pytest.mark.parametrize("make", [Ed25519PrivateKey.generate, Ed448PrivateKey.generate, X25519PrivateKey.generate])
async def test_every_key_type(server: SmpServer, recipient: Recipient, make: Callable[[], AuthPrivateKey]) -> None:
    queue = await recipient.queue(notifier_key=make())
    async with await Session.connect(server) as session:
        assert await session.nsub(queue) == smp.SOk(session.service_id)
        assert await session.nsub(replace(queue, notifier_key=make())) == "AUTH"
        assert await session.nsub(replace(queue, notifier_id=bytes(24))) == "AUTH"


async def test_another_session_of_the_service_takes_all(server: SmpServer, queues: list[Queue]) -> None:
    service_id = await associate(server, queues[:2])
    async with await Session.connect(server) as first, await Session.connect(server) as second:
        await first.nsubs()
        await first.nsub(queues[2])
        assert await second.nsubs() == smp.SOks(3)
        assert await first.event() == Event(service_id, smp.Ends(3))
        server.notify(queues[0].notifier_id)
        assert (await second.event()).entity_id == queues[0].notifier_id
        assert await first.nsubs() == smp.SOks(0)  # as the reference: once in a session
        await first.client.close()
        await server.until(lambda: server.connections == 2)
        assert all(server.subscribed(q.notifier_id) for q in queues)
        await second.nothing()


async def test_one_nsub_of_another_session_takes_all(server: SmpServer, queues: list[Queue]) -> None:
    service_id = await associate(server, queues)
    async with await Session.connect(server) as first, await Session.connect(server) as second:
        await first.nsubs()
        assert await second.nsub(queues[1]) == smp.SOk(service_id)
        assert await first.event() == Event(service_id, smp.Ends(3))
        assert [server.subscribed(q.notifier_id) for q in queues] == [False, True, False]
        assert await second.nsubs() == smp.SOks(3)
        await first.nothing()


async def test_a_session_without_service_dissolves(server: SmpServer, queues: list[Queue]) -> None:
    await associate(server, queues)
    async with await Session.connect(server) as service, await Session.connect(server, None) as single:
        await service.nsubs()
        assert await single.nsub(queues[0]) == smp.SOk(None)
        assert await service.event() == Event(queues[0].notifier_id, smp.End())
        assert not server.associated(queues[0].notifier_id)
        server.notify(*(q.notifier_id for q in queues))
        assert (await single.event()).entity_id == queues[0].notifier_id
        assert {(await service.event()).entity_id for _ in range(2)} == {q.notifier_id for q in queues[1:]}
        assert await service.nsubs() == smp.SOks(2)
        assert await service.nsub(queues[0]) == smp.SOk(service.service_id)
        assert await single.event() == Event(queues[0].notifier_id, smp.End())
        assert await service.nsubs() == smp.SOks(3)


async def test_another_service_takes_a_queue(server: SmpServer, queues: list[Queue]) -> None:
    await associate(server, queues)
    async with await Session.connect(server) as one, await Session.connect(server, OTHER) as other:
        await one.nsubs()
        assert await other.nsub(queues[0]) == smp.SOk(other.service_id)
        assert await one.event() == Event(queues[0].notifier_id, smp.End())
        assert await other.nsubs() == smp.SOks(1)
        assert await one.nsubs() == smp.SOks(2)


@pytest.mark.parametrize("subscribed", [True, False])
async def test_deleted_queues(server: SmpServer, queues: list[Queue], subscribed: bool) -> None:
    await associate(server, queues)
    async with await Session.connect(server) as session:
        if subscribed:
            await session.nsubs()
        await queues[0].delete()
        assert await queues[1].command(smp.NDel()) == smp.Ok()
        if subscribed:
            gone = [await session.event() for _ in range(2)]
            assert gone == [Event(q.notifier_id, smp.Deld()) for q in queues[:2]]
        await session.nothing()
        assert await session.nsubs() == smp.SOks(1)


# --- errors


async def test_errors_in_a_service_session(server: SmpServer, queues: list[Queue]) -> None:
    queue, stranger = queues[0], Ed25519PrivateKey.generate()
    new = smp.New(stranger.public_key(), X25519PrivateKey.generate().public_key())
    async with await Session.connect(server) as session:
        service_id, key = session.service_id, session.key
        cases = [
            (Request(smp.NSub(), queue.notifier_id, queue.notifier_key), "SERVICE"),
            (Request(smp.NSub(), queue.notifier_id, stranger), "SERVICE"),
            (Request(smp.NSub(), queue.notifier_id, stranger, True), "AUTH"),
            (Request(smp.NSub(), queue.notifier_id), "CMD NO_AUTH"),
            (Request(smp.NSubs(), service_id), "CMD NO_AUTH"),
            (Request(smp.NSubs(), b"", key), "CMD NO_AUTH"),
            (Request(smp.NSubs(), service_id, key, True), "SERVICE"),
            (Request(smp.NSubs(), service_id, stranger), "SERVICE"),
            (Request(smp.NSubs(), service_id, Ed448PrivateKey.generate()), "SERVICE"),
            (Request(smp.NSubs(), service_id, X25519PrivateKey.generate()), "SERVICE"),
            (Request(smp.NSubs(), bytes(24), key), "SERVICE"),
            (Request(new, b"", stranger, True), "CMD PROHIBITED"),
            (Request(smp.Sub(), queue.recipient_id, queue.recipient_key), "CMD PROHIBITED"),
            (Request(smp.Sub(), queue.recipient_id, queue.recipient_key, True), "CMD PROHIBITED"),
            (Request(smp.Send(True, b"x"), queue.sender_id, queue.sender_key), "CMD PROHIBITED"),
            (Request(smp.Ping(), b"", key), "CMD HAS_AUTH"),
        ]
        for request, error in cases:
            assert await session.request(request) == error, request
    assert not server.subscribed(queue.notifier_id)
    assert not server.associated(queue.notifier_id)


async def test_a_bad_service_signature(server: SmpServer, queues: list[Queue]) -> None:
    queue = queues[0]
    connection, session = await connect(
        server.address, context=client_context("smp", CREDENTIALS), service=proof(CREDENTIALS)
    )
    try:
        assert session.service is not None
        forged = replace(session, service=replace(session.service, key=Ed25519PrivateKey.generate()))
        for entity_id in (queue.notifier_id, bytes(24)):
            t = encode_transmission(forged, bytes(24), entity_id, b"NSUB", queue.notifier_key, as_service=True)
            connection.send(b"\x01" + len(t).to_bytes(2, "big") + t)
            assert (await asyncio.wait_for(connection.receive(), 5)).endswith(b"ERR SERVICE")
    finally:
        await connection.close()
    assert not server.associated(queue.notifier_id)


async def test_errors_in_a_session_without_service(server: SmpServer, queues: list[Queue]) -> None:
    queue = queues[0]
    connection, session = await connect(server.address)
    async with await Session.connect(server) as service:
        borrowed = replace(session, service=service.client.session.service)
    try:
        for command, entity_id, key, as_service in (
            (b"NSUB", queue.notifier_id, queue.notifier_key, True),
            (b"SUB", queue.recipient_id, queue.recipient_key, True),
            (b"DEL", queue.recipient_id, queue.recipient_key, True),
            (smp.NSubs().encode(20), bytes(24), queue.notifier_key, False),
            (smp.NSubs().encode(20), bytes(24), queue.notifier_key, True),
        ):
            t = encode_transmission(borrowed, bytes(24), entity_id, command, key, as_service=as_service)
            connection.send(b"\x01" + len(t).to_bytes(2, "big") + t)
            assert (await asyncio.wait_for(connection.receive(), 5)).endswith(b"ERR SERVICE")
    finally:
        await connection.close()


# --- faults of services


async def test_forgotten_services(server: SmpServer, queues: list[Queue]) -> None:
    service_id = await associate(server, queues)
    async with await Session.connect(server) as before:
        await before.nsubs()
        server.forget_services()
        assert not any(server.subscribed(q.notifier_id) or server.associated(q.notifier_id) for q in queues)
        assert await before.nsubs() == "AUTH"
        async with await Session.connect(server) as after:
            assert after.service_id != service_id
            assert await after.nsubs() == smp.SOks(0)
            assert await after.nsub(queues[0]) == smp.SOk(after.service_id)
        await before.nothing()
    async with await Session.connect(server) as later:
        assert later.service_id == after.service_id
        assert await later.nsubs() == smp.SOks(1)


async def test_changed_service_ids(server: SmpServer, queues: list[Queue]) -> None:
    service_id = await associate(server, queues)
    async with await Session.connect(server) as before:
        server.change_service_ids()
        async with await Session.connect(server) as after:
            assert before.service_id == service_id != after.service_id
            assert await before.nsubs() == smp.SOks(3)
            assert await before.nsub(queues[0]) == smp.SOk(after.service_id)
            assert await after.nsubs() == smp.SOks(3)
            assert await before.event() == Event(after.service_id, smp.Ends(3))


async def test_dissociated_queues(server: SmpServer, queues: list[Queue]) -> None:
    service_id = await associate(server, queues)
    async with await Session.connect(server) as session, await Session.connect(server, None) as single:
        await session.nsubs()
        await single.nsub(queues[2])
        assert (await session.event()).message == smp.End()
        server.dissociate(queues[0].notifier_id, queues[2].notifier_id)
        assert [server.subscribed(q.notifier_id) for q in queues] == [False, True, True]
        await session.nothing()
        await session.client.close()
        async with await Session.connect(server) as again:
            assert again.service_id == service_id
            assert await again.nsubs() == smp.SOks(1)
            server.dissociate()
            assert not any(server.associated(q.notifier_id) for q in queues)
            assert server.subscribed(queues[2].notifier_id)
    with pytest.raises(KeyError):
        server.dissociate(bytes(24))


async def test_a_count_that_lies(server: SmpServer, queues: list[Queue]) -> None:
    await associate(server, queues)
    async with await Session.connect(server) as session:
        server.service_count_offset = -1
        assert await session.nsubs() == smp.SOks(2)
        server.service_count_offset = -5
        assert await session.nsubs() == smp.SOks(0)
        server.service_count_offset = 10
        assert await session.nsubs() == smp.SOks(13)


async def test_scripted_nsubs_answers(server: SmpServer, queues: list[Queue]) -> None:
    await associate(server, queues)
    async with await Session.connect(server) as session:
        server.script_nsubs(ERR_SERVICE, smp.SOks(7), None, ERR_INTERNAL)
        assert await session.nsubs() == "SERVICE"
        assert await session.nsubs() == smp.SOks(7)
        [unanswered] = session.client.send([Request(smp.NSubs(), session.service_id, session.key)])
        assert await session.nsubs() == "INTERNAL"
        assert not unanswered.done()
        unanswered.cancel()
        assert not server.subscribed(queues[0].notifier_id)
        assert await session.nsubs() == smp.SOks(3)
    assert server.nsubs_commands == 5


async def test_a_client_without_alpn(server: SmpServer) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with await Client.connect(server.address, context=context) as client:
        assert client.session.version == 6
        assert await client.request(smp.Ping()) == smp.Pong()


async def test_counts_have_hashes(server: SmpServer, queues: list[Queue]) -> None:
    """Of what the session is subscribed to; ENDS too."""
    async with await Session.connect(server) as session:
        for queue in queues[:2]:
            await session.nsub(queue)
        held = ids_hash(q.notifier_id for q in queues[:2])
        assert await session.request(Request(smp.NSubs(), session.service_id, session.key)) == smp.SOks(2, held)
        async with await Session.connect(server) as other:
            await other.nsubs()
            ended = await asyncio.wait_for(session._events.get(), 5)
            assert ended.message == smp.Ends(2, held)
    async with await Session.connect(server, version=18) as older:
        answer = await older.request(Request(smp.NSubs(), older.service_id, older.key))
        assert answer == smp.SOks(2)
