"""What the in-memory SMP server keeps: queues, their messages, their notifiers. No I/O."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from smp_bridge import crypto, smp
from smp_bridge.encoding import NONCE_SIZE
from smp_bridge.messages import MessageBody, MessageMeta
from smp_bridge.transmission import Message

ID_SIZE: Final = 24
_BODY_SIZE: Final = 16088 + 16 + 2  # padded plaintext of MSG: the same in all versions, it fits the blocks of all


class Subscriber(Protocol):
    """A session that events can be sent to."""

    def push(self, entity_id: bytes, event: Message) -> None:
        """Send an event, without waiting."""
        ...


@dataclass(slots=True, eq=False, repr=False)
class ServiceRecord:
    """A service: the queues associated with it, and the one session of it that may be subscribed to them.

    `known` is off when the server has lost it, which its sessions outlive.
    """

    service_id: bytes
    notifiers: "set[Notifier]" = field(default_factory=set)
    subscriber: Subscriber | None = None
    known: bool = True

    def held(self) -> "list[Notifier]":
        """The queues that its session is subscribed to."""
        return [n for n in self.notifiers if n.subscriber is not None and n.subscriber is self.subscriber]


@dataclass(slots=True, eq=False, repr=False)
class Notifier:
    """Notification credentials of a queue. `secret`: DH with the recipient; `pending`: what no subscriber was sent yet,
    oldest first; `blocked`: the words of ERR BLOCKED, empty if it is not.
    """

    notifier_id: bytes
    key: crypto.AuthPublicKey
    secret: bytes
    subscriber: Subscriber | None = None
    pending: list[smp.NMsg] = field(default_factory=list)
    blocked: str = ""
    service: ServiceRecord | None = None

    def deliver(self) -> None:
        """Send the subscriber, if there is one, all that it was not sent yet."""
        if self.subscriber is not None:
            pending, self.pending = self.pending, []
            for event in pending:
                self.subscriber.push(self.notifier_id, event)

    def associate(self, service: ServiceRecord | None) -> None:
        """Make it a service's, or nobody's."""
        if self.service is not None:
            self.service.notifiers.discard(self)
        self.service = service
        if service is not None:
            service.notifiers.add(self)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message until it is acknowledged; `timestamp` in Unix seconds."""

    message_id: bytes = field(repr=False)
    timestamp: int
    notify: bool
    body: bytes = field(repr=False)


@dataclass(slots=True, eq=False, repr=False)
class Queue:
    """A queue. `secret`: DH with the recipient; `delivered`: the first of `messages` was handed out."""

    recipient_id: bytes
    sender_id: bytes
    recipient_key: crypto.AuthPublicKey
    secret: bytes
    kind: smp.QueueKind | None
    sender_key: crypto.AuthPublicKey | None = None
    notifier: Notifier | None = None
    suspended: bool = False
    messages: deque[StoredMessage] = field(default_factory=deque)
    delivered: bool = False
    subscriber: Subscriber | None = None

    def take_first(self) -> smp.Msg | None:
        """The first message, sealed for the recipient; it stays until `acknowledge`."""
        if not self.messages:
            return None
        self.delivered = True
        m = self.messages[0]
        body = MessageBody(m.timestamp, m.notify, m.body).seal(self.secret, m.message_id, _BODY_SIZE)
        return smp.Msg(m.message_id, body)

    def deliver(self) -> None:
        """Hand the first message to the subscriber, unless it is there already."""
        if self.subscriber is not None and not self.delivered and (first := self.take_first()):
            self.subscriber.push(self.recipient_id, first)

    def acknowledge(self, message_id: bytes) -> bool:
        """Delete the message that was handed out; False if it is another."""
        if not self.delivered or self.messages[0].message_id != message_id:
            return False
        self.messages.popleft()
        self.delivered = False
        return True


def _agree(public: X25519PublicKey) -> tuple[bytes, X25519PublicKey]:
    """(DH secret, the server's public key) under a new key of the server. Raises CryptoError."""
    private = X25519PrivateKey.generate()
    return crypto.dh(private, public), private.public_key()


class Queues:
    """All queues, found by each of their three ids.

    `on_pending` is called with a notifier that may have something for its subscriber: it is to `deliver` that.
    """

    def __init__(
        self,
        quota: int,
        clock: Callable[[], float] = time.time,
        on_pending: Callable[[Notifier], None] = Notifier.deliver,
    ) -> None:
        self._quota = quota
        self._clock = clock
        self.on_pending = on_pending
        self._by_recipient: dict[bytes, Queue] = {}
        self._by_sender: dict[bytes, Queue] = {}
        self._notifiers: dict[bytes, Notifier] = {}

    def __len__(self) -> int:
        return len(self._by_recipient)

    def recipient(self, recipient_id: bytes) -> Queue | None:
        """The queue with this recipient id."""
        return self._by_recipient.get(recipient_id)

    def sender(self, sender_id: bytes) -> Queue | None:
        """The queue with this sender id."""
        return self._by_sender.get(sender_id)

    def notifier(self, notifier_id: bytes) -> Notifier | None:
        """The notifier with this id."""
        return self._notifiers.get(notifier_id)

    def notifiers(self) -> Iterable[Notifier]:
        """All notifiers."""
        return self._notifiers.values()

    def create(self, new: smp.New) -> tuple[Queue, smp.Ids]:
        """A new queue, not subscribed, and the answer to NEW. Raises CryptoError for a bad DH key."""
        secret, dh_key = _agree(new.dh_key)
        queue = Queue(os.urandom(ID_SIZE), os.urandom(ID_SIZE), new.key, secret, new.kind)
        creds = self.set_notifier(queue, new.ntf_creds) if new.ntf_creds else None
        self._by_recipient[queue.recipient_id] = queue
        self._by_sender[queue.sender_id] = queue
        return queue, smp.Ids(queue.recipient_id, queue.sender_id, dh_key, new.kind, ntf_creds=creds)

    def delete(self, queue: Queue) -> None:
        """Forget a queue; subscribers are told (the recipient's too: unsubscribe the deleting one first)."""
        self.remove_notifier(queue)
        del self._by_recipient[queue.recipient_id]
        del self._by_sender[queue.sender_id]
        if queue.subscriber is not None:
            queue.subscriber.push(queue.recipient_id, smp.Deld())
            queue.subscriber = None

    def set_notifier(self, queue: Queue, creds: smp.NtfCreds) -> smp.ServerNtfCreds:
        """Give a queue a new notifier in place of the one it had. Raises CryptoError for a bad DH key."""
        secret, dh_key = _agree(creds.dh_key)
        self.remove_notifier(queue)
        queue.notifier = Notifier(os.urandom(ID_SIZE), creds.key, secret)
        self._notifiers[queue.notifier.notifier_id] = queue.notifier
        return smp.ServerNtfCreds(queue.notifier.notifier_id, dh_key)

    def remove_notifier(self, queue: Queue) -> None:
        """Forget a queue's notifier, if it has one; its subscriber is told."""
        notifier, queue.notifier = queue.notifier, None
        if notifier is None:
            return
        del self._notifiers[notifier.notifier_id]
        notifier.associate(None)
        if notifier.subscriber is not None:
            notifier.subscriber.push(notifier.notifier_id, smp.Deld())
            notifier.subscriber = None

    def send(self, queue: Queue, notify: bool, body: bytes) -> bool:
        """Store a message, deliver it and notify; False if the queue is full."""
        if len(queue.messages) >= self._quota:
            return False
        message = StoredMessage(os.urandom(ID_SIZE), int(self._clock()), notify, body)
        queue.messages.append(message)
        queue.deliver()
        if notify and queue.notifier is not None:
            self.notify(queue.notifier, message.message_id)
        return True

    def notify(self, notifier: Notifier, message_id: bytes) -> None:
        """Keep an NMSG until the notifier's subscriber is sent it."""
        nonce = os.urandom(NONCE_SIZE)
        meta = MessageMeta(message_id, int(self._clock())).seal(notifier.secret, nonce)
        notifier.pending.append(smp.NMsg(nonce, meta))
        self.on_pending(notifier)
