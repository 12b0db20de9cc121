"""A small in-memory SMP server over real TLS, with faults on demand."""

import asyncio
import contextlib
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Literal, Self

from smp_bridge import smp
from smp_bridge.address import ServerAddress
from smp_bridge.handshake import HandshakeError, ServiceHello, Versions
from smp_bridge.identity import Credentials
from smp_bridge.testing import commands
from smp_bridge.testing.faults import AnswersFault
from smp_bridge.testing.queues import ID_SIZE, Notifier, Queues, ServiceRecord
from smp_bridge.testing.services import Services, dissociate
from smp_bridge.testing.tls import OpenSslTls, service_context, show_web_page
from smp_bridge.tls import SslTls, TlsFactory, server_context
from smp_bridge.transmission import (
    Err,
    Invalid,
    Message,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
)
from smp_bridge.transport import HANDSHAKE_TIMEOUT, BlockConnection, ConnectionClosedError, accept, serve

QUOTA = 128
_ERR_STORE = Err("STORE", "the store fails on purpose")
_OF_NOTIFIERS = frozenset([smp.NSub.tag, smp.NSubs.tag])


class _Connection:
    """A session: its subscriptions, and the events that wait to go out in one block."""

    def __init__(
        self, server: "SmpServer", connection: BlockConnection, session: Session, service: ServiceRecord | None
    ) -> None:
        self.connection = connection
        self.session = session
        self.state = commands.SessionState(session, self, service)
        self._server = server
        self._events: list[tuple[bytes, Message]] = []

    def push(self, entity_id: bytes, event: Message) -> None:
        """Queue an event; those of the same moment share blocks."""
        if isinstance(event, smp.End | smp.Deld) and self._server.end_delay:
            asyncio.get_running_loop().call_later(self._server.end_delay, self._queue, entity_id, event)
        else:
            self._queue(entity_id, event)

    def _queue(self, entity_id: bytes, event: Message) -> None:
        if isinstance(event, smp.Deld) and self.session.version < smp.DELETED_EVENT:
            event = smp.End()
        if not self._events:
            asyncio.get_running_loop().call_later(self._server.event_delay, self._send_events)
        self._events.append((entity_id, event))

    def _send_events(self) -> None:
        """What the client left behind is kept for the next session."""
        events, self._events = self._events, []
        if self.connection.is_over:
            self._server.keep([(entity_id, event) for entity_id, event in events if isinstance(event, smp.NMsg)])
            return
        s = self.session
        self.send([encode_transmission(s, b"", entity_id, event.encode(s.version)) for entity_id, event in events])

    def send(self, transmissions: list[bytes]) -> None:
        """Send in as few blocks as hold them, unless the connection is closed."""
        if self._server.slow:
            asyncio.get_running_loop().call_later(self._server.slow, self._send, transmissions)
        else:
            self._send(transmissions)

    def _send(self, transmissions: list[bytes]) -> None:
        with contextlib.suppress(ConnectionClosedError):
            for block in encode_blocks(self.session, transmissions):
                self.connection.send(block)


class SmpServer:
    """An SMP server for tests, demonstrations and load: `async with SmpServer() as server: server.address`.

    Versions 6 to 20 with everything that recipients, senders, notifiers and notifiers' services need of them. What
    it is not: nothing is persisted and nothing expires, there are no services of recipients, no short links, no
    proxying, no files, no queue passwords (any is taken), no quota messages. Stricter than the reference: a service's
    session gets the notifications of queues that it subscribed, by NSUBS or each by NSUB, where one NSUB opens all in
    the reference.

    `port` 0 picks one; `quota`: messages that wait in a queue; `event_delay`: seconds that events wait for others
    to share their block; `delivery_interval`: seconds between two deliveries, which all notifications wait for (real
    servers': 1.5), 0: each goes at once; `end_delay`: seconds that END and DELD come late (real servers': up to 15),
    perhaps after the answer to another NSUB; `services` off: client certificates are not asked for, and services
    refused; `sni` "web": who names a host in TLS gets another certificate, as from a server with a web page on the
    same port.

    Faults that last while they are set: `silent`: commands are taken, but neither done nor answered;
    `refuse_services`: the handshake answers `E`; `service_count_offset`: SOKS lies by so many; `answers`: what
    becomes of the answers to the NSUBs and NSUBS of one block, encoded, in order, and sent before others (see
    `testing.faults`); `slow`: seconds that everything is sent later; `nsubs_delay`: seconds that an NSUBS takes: what
    its session sends behind it waits, PING too; `store_fails`: all but PING is answered ERR STORE. For so many of the
    next services: `bad_service`: the server cannot read its record of it, `HANDSHAKE BAD_SERVICE`.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        credentials: Credentials | None = None,
        versions: Versions = smp.VERSIONS,
        quota: int = QUOTA,
        event_delay: float = 0.0,
        delivery_interval: float = 0.0,
        end_delay: float = 0.0,
        services: bool = True,
        sni: Literal["ignored", "web"] = "ignored",
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        self.credentials = credentials or Credentials.generate("ED25519", "localhost")[0]
        self.event_delay = event_delay
        self.delivery_interval = delivery_interval
        self.end_delay = end_delay
        self.silent = False
        self.refuse_services = False
        self.service_count_offset = 0
        self.answers: AnswersFault | None = None
        self.slow = 0.0
        self.nsubs_delay = 0.0
        self.store_fails = False
        self.bad_service = 0
        self._host, self._port = host, port
        self._web = Credentials.generate("ED25519", "web.localhost")[0] if sni == "web" else None
        self._versions = versions
        self._handshake_timeout = handshake_timeout
        self._queues = Queues(quota, on_pending=self._on_pending)
        self._pending: dict[Notifier, None] = {}  # wait for the next delivery
        self._services = Services() if services and versions[1] >= smp.SERVICES else None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[_Connection] = set()
        self._waiters: set[asyncio.Event] = set()
        self._nsubs: Counter[bytes] = Counter()
        self._nsubs_commands = 0
        self._scripts: defaultdict[bytes | None, deque[Message | None]] = defaultdict(deque)
        self._cut_after: int | None = None
        self._accepted = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    # --- running

    async def start(self) -> None:
        """Listen; after `stop` on the same port as before, with the same queues and services.

        Raises OSError, ssl.SSLError.
        """
        if self._server is None:
            self._server = await serve(
                "smp", self.credentials, self._on_connected, self._host, self._port, tls=self._tls()
            )
            self._port = self._server.sockets[0].getsockname()[1]

    def _tls(self) -> TlsFactory:
        if self._services is not None:
            context = service_context("smp", self.credentials, self._web)
            return lambda: OpenSslTls(context)
        plain = server_context("smp", self.credentials)
        if self._web is not None:
            show_web_page(plain, server_context("smp", self._web))
        return lambda: SslTls(plain, server_side=True)

    def protocol(self) -> BlockConnection:
        """The server's side of one more connection, for a transport of another's making (see `testing.link`)."""
        return BlockConnection("smp", self._tls()(), self._on_connected, self._handshake_timeout)

    async def stop(self) -> None:
        """Listen no more, and abort every connection; queues and services are kept, subscriptions are not."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def drop_all(self) -> None:
        """A fault: abort every connection."""
        for c in self._open:
            c.connection.abort()

    @property
    def address(self) -> ServerAddress:
        """Where it listens, as `localhost`, and who it is."""
        return ServerAddress("smp", ("localhost",), str(self._port), self.credentials.key_hash)

    # --- what tests look at and do

    @property
    def connections(self) -> int:
        """How many sessions there are, after their handshakes."""
        return len(self._open)

    @property
    def accepted(self) -> int:
        """How many sessions there have been."""
        return self._accepted

    @property
    def queues(self) -> int:
        """How many queues there are."""
        return len(self._queues)

    def subscribed(self, notifier_id: bytes) -> bool:
        """Whether a session is subscribed to this queue's notifications, by NSUB or by NSUBS."""
        notifier = self._queues.notifier(notifier_id)
        return notifier is not None and notifier.subscriber is not None

    def associated(self, notifier_id: bytes) -> bool:
        """Whether this queue is associated with a service."""
        notifier = self._queues.notifier(notifier_id)
        return notifier is not None and notifier.service is not None

    def nsubs(self, notifier_id: bytes | None = None) -> int:
        """How many NSUBs came, well-formed, for this queue or for all; those of scripted faults count too."""
        return self._nsubs.total() if notifier_id is None else self._nsubs[notifier_id]

    @property
    def nsubs_commands(self) -> int:
        """How many NSUBS came, well-formed; those of scripted faults count too."""
        return self._nsubs_commands

    def script_nsub(self, notifier_id: bytes, *answers: Message | None) -> None:
        """A fault: the next NSUBs for this queue get these answers, such as `ERR_AUTH`, or none for None, and do
        nothing else; those after them are done again."""
        self._scripts[notifier_id].extend(answers)

    def script_nsubs(self, *answers: Message | None) -> None:
        """A fault: the next NSUBS, of any service, get these answers, or none for None, and do nothing else."""
        self._scripts[None].extend(answers)

    def cut_after(self, nsubs: int) -> None:
        """A fault, once: the connection is aborted when so many more NSUBs are done, before their block is answered."""
        self._cut_after = nsubs

    def forget_services(self) -> None:
        """A fault: lose the records of all services, as a server that was restored without them.

        Associations are gone, and so are, without a word, the subscriptions that rest on them. The next handshake
        of a service gives another id; in sessions that go on NSUBS gets ERR AUTH.
        """
        if self._services is not None:
            self._services.forget()

    def change_service_ids(self) -> None:
        """A fault: services get new ids, and keep their associations and subscriptions.

        A session that goes on has the old id for NSUBS, and the new one in SOK.
        """
        if self._services is not None:
            self._services.change_ids()

    def block(self, *notifier_ids: bytes, words: str = "reason=spam") -> None:
        """Queues that break the operator's rules: NSUB gets ERR BLOCKED. Raises KeyError for an unknown id."""
        for notifier_id in notifier_ids:
            self._notifier(notifier_id).blocked = words

    def dissociate(self, *notifier_ids: bytes) -> None:
        """A fault: lose these associations, or all, and without a word the subscriptions that rest on them.

        Raises KeyError for an unknown id.
        """
        dissociate([self._notifier(i) for i in notifier_ids] if notifier_ids else self._queues.notifiers())

    def notify(self, *notifier_ids: bytes) -> None:
        """Notify as if a message had come, but without one. Raises KeyError for an unknown id."""
        for notifier_id in notifier_ids:
            self._queues.notify(self._notifier(notifier_id), os.urandom(ID_SIZE))

    def keep(self, events: Sequence[tuple[bytes, smp.NMsg]]) -> None:
        """Of a session that is over: they go to the next one of their queues, before what comes."""
        kept: dict[Notifier, list[smp.NMsg]] = {}
        for notifier_id, event in events:
            if (notifier := self._queues.notifier(notifier_id)) is not None:
                kept.setdefault(notifier, []).append(event)
        for notifier, first in kept.items():
            notifier.pending[:0] = first
            self._on_pending(notifier)

    def _notifier(self, notifier_id: bytes) -> Notifier:
        notifier = self._queues.notifier(notifier_id)
        if notifier is None:
            raise KeyError("no such notifier")
        return notifier

    async def until(self, condition: Callable[[], bool], timeout: float = 5.0) -> None:
        """Wait for a condition on this server, looked at after each change of it. Raises TimeoutError."""
        changed = asyncio.Event()
        self._waiters.add(changed)
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    changed.clear()
                    await changed.wait()
        finally:
            self._waiters.discard(changed)

    def _on_pending(self, notifier: Notifier) -> None:
        interval = self.delivery_interval
        if not interval:
            notifier.deliver()
            return
        if not self._pending:
            loop = asyncio.get_running_loop()
            loop.call_later(interval - loop.time() % interval, self._deliver)
        self._pending[notifier] = None

    def _deliver(self) -> None:
        pending, self._pending = self._pending, {}
        for notifier in pending:
            notifier.deliver()

    # --- sessions

    def _changed(self) -> None:
        for waiter in self._waiters:
            waiter.set()

    def _on_connected(self, connection: BlockConnection) -> None:
        task = asyncio.create_task(self._run(connection), name="smp server session")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, connection: BlockConnection) -> None:
        try:
            session = await accept(
                connection,
                self.credentials,
                versions=self._versions,
                timeout=self._handshake_timeout,
                services=self._service_id,
            )
            await self._session(_Connection(self, connection, session, self._service(session)))
        except HandshakeError:
            await connection.close()  # after the answer to a service
        except (ConnectionClosedError, TimeoutError):
            pass  # the client's fault, or it left
        finally:
            connection.abort()

    def _service_id(self, hello: ServiceHello) -> bytes:
        if self.bad_service:
            self.bad_service -= 1
            raise HandshakeError("the record of the service cannot be read")
        if self._services is None or self.refuse_services:
            raise HandshakeError("services are refused")
        return self._services.register(hello)

    def _service(self, session: Session) -> ServiceRecord | None:
        if self._services is None or session.service is None:
            return None
        return self._services.find(session.service.certificate_hash)

    async def _session(self, c: _Connection) -> None:
        self._open.add(c)
        self._accepted += 1
        self._changed()
        try:
            while True:
                content = await c.connection.receive()
                if not self.silent:
                    block = parse_block(c.session, content)
                    if any(isinstance(t, Transmission) and t.command.startswith(smp.NSubs.tag) for t in block):
                        await asyncio.sleep(self.nsubs_delay)
                    self._take(c, block)
                self._changed()
                await c.connection.drain()
        finally:
            self._open.discard(c)
            c.state.unsubscribe_all()
            self._changed()

    def _take(self, c: _Connection, block: list[Transmission | Invalid]) -> None:
        answers: list[bytes] = []
        of_notifiers: list[bytes] = []
        for t in block:
            answer = self._answer(c, t)
            if answer is not None:
                faulty = (
                    self.answers is not None and not isinstance(t, Invalid) and t.command[:6].rstrip() in _OF_NOTIFIERS
                )
                (of_notifiers if faulty else answers).append(answer)
        if self.answers is not None and of_notifiers:
            answers = self.answers(of_notifiers) + answers
        c.send(answers)

    def _answer(self, c: _Connection, t: Transmission | Invalid) -> bytes | None:
        if isinstance(t, Invalid):
            return encode_transmission(c.session, t.corr_id, b"", t.error.encode(c.session.version))
        answer = self._do(c, t)
        if answer is None:
            return None
        return encode_transmission(c.session, t.corr_id, t.entity_id, answer.encode(c.session.version))

    def _do(self, c: _Connection, t: Transmission) -> Message | None:
        command = commands.parse(c.session, t)
        if isinstance(command, Err):
            return command
        if self.store_fails and not isinstance(command, smp.Ping):
            return _ERR_STORE
        if isinstance(command, smp.NSub):
            return self._subscribe(c, t, command)
        if isinstance(command, smp.NSubs):
            return self._subscribe_service(c, t, command)
        return commands.execute(self._queues, c.state, t, command)

    def _subscribe(self, c: _Connection, t: Transmission, command: smp.NSub) -> Message | None:
        self._nsubs[t.entity_id] += 1
        if script := self._scripts.get(t.entity_id):
            answer = script.popleft()
        else:
            answer = commands.execute(self._queues, c.state, t, command)
        if self._cut_after is not None:
            self._cut_after -= 1
            if self._cut_after <= 0:
                self._cut_after = None
                raise ConnectionClosedError("cut on purpose")
        return answer

    def _subscribe_service(self, c: _Connection, t: Transmission, command: smp.NSubs) -> Message | None:
        self._nsubs_commands += 1
        if script := self._scripts.get(None):
            return script.popleft()
        answer = commands.execute(self._queues, c.state, t, command)
        if isinstance(answer, smp.SOks):
            return smp.SOks(max(0, answer.count + self.service_count_offset), answer.ids_hash)
        return answer
