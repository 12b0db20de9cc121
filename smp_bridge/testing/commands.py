"""What each SMP command does to the queues: credentials, authorization, answers (wire.md, sections 5 and 7)."""

from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from smp_bridge import crypto, smp
from smp_bridge.encoding import ParseError
from smp_bridge.service import ids_hash
from smp_bridge.testing.queues import Notifier, Queue, Queues, ServiceRecord, Subscriber
from smp_bridge.transmission import (
    ERR_AUTH,
    ERR_HAS_AUTH,
    ERR_NO_AUTH,
    ERR_PROHIBITED,
    ERR_QUOTA,
    ERR_SERVICE,
    ERR_SYNTAX,
    ERR_UNKNOWN,
    Err,
    Message,
    Session,
    Transmission,
    UnknownTagError,
    verify_service,
    verify_transmission,
)

_ERR_CRYPTO: Final = Err("CRYPTO")
_ERR_LARGE_MSG: Final = Err("LARGE_MSG")
_ERR_NO_ENTITY: Final = Err("CMD", "NO_ENTITY")
_ERR_NO_MSG: Final = Err("NO_MSG")
_OF_NOTIFIERS: Final = (smp.NSub, smp.NSubs)


def max_message_size(version: int) -> int:
    """Bytes of the largest message body that a sender may send."""
    if version >= smp.BLOCK_ENCRYPTION:
        return 16048
    return 16064 if version >= 8 else 16088


class SessionState:
    """A session as commands see it: what it subscribes, and which queues it takes messages from by GET.

    `service`: what the server keeps of the session's service, if it is one's.
    """

    def __init__(self, session: Session, events: Subscriber, service: ServiceRecord | None = None) -> None:
        self.session = session
        self.service = service
        self.sent_nsubs = False
        self._events = events
        self._subscribed: set[Queue | Notifier] = set()
        self.got: set[Queue] = set()

    def holds(self, entity: Queue | Notifier) -> bool:
        """Whether this session is the subscriber."""
        return entity.subscriber is self._events

    def subscribe(self, entity: Queue | Notifier) -> None:
        """Become the subscriber; another session that was it gets END."""
        if entity.subscriber is not None and not self.holds(entity):
            entity_id = entity.recipient_id if isinstance(entity, Queue) else entity.notifier_id
            entity.subscriber.push(entity_id, smp.End())
        entity.subscriber = self._events
        self._subscribed.add(entity)

    def unsubscribe(self, entity: Queue | Notifier) -> None:
        """Stop being the subscriber, if this session is it."""
        self._subscribed.discard(entity)
        if self.holds(entity):
            entity.subscriber = None

    def take_service(self, service: ServiceRecord) -> None:
        """Become the session of the service that is subscribed; another one that was it gets ENDS."""
        if service.subscriber is not None and service.subscriber is not self._events:
            held = service.held()
            for notifier in held:
                notifier.subscriber = None
            ended = smp.Ends(len(held), ids_hash(n.notifier_id for n in held))
            service.subscriber.push(service.service_id, ended)
        service.subscriber = self._events

    def unsubscribe_all(self) -> None:
        """The session ended."""
        if self.service is not None and self.service.subscriber is self._events:
            self.service.subscriber = None
        for entity in list(self._subscribed):
            self.unsubscribe(entity)


def parse(session: Session, t: Transmission) -> Message:
    """The command of a transmission with the right credentials, not yet authorized; or the error to answer."""
    try:
        command = smp.parse_command(t.command, session.version)
    except UnknownTagError:
        return ERR_UNKNOWN
    except ParseError:
        return ERR_SYNTAX
    if isinstance(command, smp.NSubs) and session.version < smp.SERVICES:
        return ERR_UNKNOWN
    return _credentials_error(command, t) or _service_error(session, command, t) or command


def _service_error(session: Session, command: Message, t: Transmission) -> Err | None:
    as_service = session.service is not None
    if as_service and not isinstance(command, (*_OF_NOTIFIERS, smp.Ping)):
        return ERR_PROHIBITED
    signed = t.service_signature is not None
    return ERR_SERVICE if signed != (as_service and isinstance(command, smp.NSub)) else None


def _credentials_error(command: Message, t: Transmission) -> Err | None:
    match command:
        case smp.New():
            if not t.authenticator:
                return ERR_NO_AUTH
            return ERR_HAS_AUTH if t.entity_id else None
        case smp.Send():
            return None if t.entity_id else _ERR_NO_ENTITY
        case smp.Ping():
            return ERR_HAS_AUTH if t.authenticator or t.entity_id else None
        case _:
            return None if t.authenticator and t.entity_id else ERR_NO_AUTH


def execute(queues: Queues, state: SessionState, t: Transmission, command: Message) -> Message:
    """Authorize and do what `parse` gave; the answer."""
    try:
        match command:
            case smp.Ping():
                return smp.Pong()
            case smp.New():
                return _new(queues, state, t, command)
            case smp.Send():
                return _send(queues, state.session, t, command)
            case smp.SKey():
                return _sender_key(queues, state.session, t, command)
            case smp.NSub():
                return _subscribe_notifier(queues, state, t)
            case smp.NSubs():
                return _subscribe_service(queues, state, t)
        queue = queues.recipient(t.entity_id)
        if not verify_transmission(state.session, t, queue.recipient_key if queue else None) or queue is None:
            return ERR_AUTH
        return _recipient_command(queues, state, queue, command)
    except crypto.CryptoError:
        return _ERR_CRYPTO


def _new(queues: Queues, state: SessionState, t: Transmission, new: smp.New) -> Message:
    if not verify_transmission(state.session, t, new.key):
        return ERR_AUTH
    queue, ids = queues.create(new)
    if new.mode == "S":
        state.subscribe(queue)
    return ids


def _send(queues: Queues, session: Session, t: Transmission, send: smp.Send) -> Message:
    queue = queues.sender(t.entity_id)
    if t.authenticator:
        if not verify_transmission(session, t, queue.sender_key if queue else None):
            return ERR_AUTH
    elif queue is None or queue.sender_key is not None:
        return ERR_AUTH
    if queue is None or queue.suspended:
        return ERR_AUTH
    if len(send.body) > max_message_size(session.version):
        return _ERR_LARGE_MSG
    return smp.Ok() if queues.send(queue, send.notify, send.body) else ERR_QUOTA


def _sender_key(queues: Queues, session: Session, t: Transmission, command: smp.SKey) -> Message:
    queue = queues.sender(t.entity_id)
    if not verify_transmission(session, t, command.key if queue else None) or queue is None or queue.kind != "M":
        return ERR_AUTH
    return _secure(queue, command.key)


def _secure(queue: Queue, key: crypto.AuthPublicKey) -> Message:
    if queue.sender_key is not None and queue.sender_key != key:
        return ERR_AUTH
    queue.sender_key = key
    return smp.Ok()


def _subscribe_notifier(queues: Queues, state: SessionState, t: Transmission) -> Message:
    notifier = queues.notifier(t.entity_id)
    if not verify_transmission(state.session, t, notifier.key if notifier else None) or notifier is None:
        by_service = t.service_signature is None or verify_service(state.session, t)
        return ERR_AUTH if by_service else ERR_SERVICE
    if notifier.blocked:
        return Err("BLOCKED", notifier.blocked)
    service = state.service
    if service is not None:
        state.take_service(service)
    if notifier.service is not service:
        notifier.associate(service)
    state.subscribe(notifier)
    queues.on_pending(notifier)
    return smp.SOk(service.service_id) if service is not None else _subscribed(state.session)


def _subscribe_service(queues: Queues, state: SessionState, t: Transmission) -> Message:
    agreed, service = state.session.service, state.service
    if agreed is None or service is None or t.entity_id != agreed.service_id:
        return ERR_SERVICE
    if not isinstance(agreed.key, Ed25519PublicKey) or not verify_transmission(state.session, t, agreed.key):
        return ERR_SERVICE
    if not service.known:
        return ERR_AUTH
    if not state.sent_nsubs:  # as in the reference, a session that lost them does not get them back by another
        state.sent_nsubs = True
        state.take_service(service)
        for notifier in service.notifiers:
            state.subscribe(notifier)
            queues.on_pending(notifier)
    held = [n.notifier_id for n in service.notifiers if state.holds(n)]
    return smp.SOks(len(held), ids_hash(held))


def _subscribed(session: Session) -> Message:
    return smp.SOk() if session.version >= smp.SERVICES else smp.Ok()


def _recipient_command(queues: Queues, state: SessionState, queue: Queue, command: Message) -> Message:
    match command:
        case smp.Sub():
            if queue in state.got:
                return ERR_PROHIBITED
            state.subscribe(queue)
            return queue.take_first() or _subscribed(state.session)
        case smp.Get():
            if state.holds(queue):
                return ERR_PROHIBITED
            state.got.add(queue)
            return queue.take_first() or smp.Ok()
        case smp.Ack():
            return _acknowledge(state, queue, command)
        case smp.Key():
            return _secure(queue, command.key)
        case smp.NKey():
            return smp.Nid(queues.set_notifier(queue, command.creds))
        case smp.NDel():
            queues.remove_notifier(queue)
        case smp.Off():
            queue.suspended = True
        case smp.Del():
            state.unsubscribe(queue)
            queues.delete(queue)
        case _:
            return ERR_PROHIBITED
    return smp.Ok()


def _acknowledge(state: SessionState, queue: Queue, ack: smp.Ack) -> Message:
    subscribed = state.holds(queue)
    if not (subscribed or queue in state.got) or not queue.acknowledge(ack.message_id):
        return _ERR_NO_MSG
    if subscribed:
        return queue.take_first() or smp.Ok()
    queue.deliver()
    return smp.Ok()
