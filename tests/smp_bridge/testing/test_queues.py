from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto, smp
from smp_bridge.messages import MessageBody, MessageMeta
from smp_bridge.testing.queues import Notifier, Queue, Queues, ServiceRecord
from smp_bridge.transmission import Message

NOW = 1_700_000_000


class Session:
    """It keeps what is pushed."""

    def __init__(self) -> None:
        self.pushed: list[tuple[bytes, Message]] = []

    def push(self, entity_id: bytes, event: Message) -> None:
        self.pushed.append((entity_id, event))


def create(queues: Queues) -> tuple[Queue, Notifier, bytes]:
    """A queue, its notifier, and the recipient's secret for notifications."""
    dh, ntf_dh = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    creds = smp.NtfCreds(Ed25519PrivateKey.generate().public_key(), ntf_dh.public_key())
    key = Ed25519PrivateKey.generate().public_key()
    queue, ids = queues.create(smp.New(key, dh.public_key(), ntf_creds=creds))
    assert queue.notifier is not None
    assert ids.ntf_creds is not None
    return queue, queue.notifier, crypto.dh(ntf_dh, ids.ntf_creds.dh_key)


def test_a_queue_is_found_by_each_of_its_ids_until_it_is_deleted() -> None:
    queues = Queues(2)
    queue, notifier, _ = create(queues)
    subscriber, of_notifier = Session(), Session()
    queue.subscriber, notifier.subscriber = subscriber, of_notifier
    assert queues.recipient(queue.recipient_id) is queues.sender(queue.sender_id) is queue
    assert queues.notifier(notifier.notifier_id) is notifier
    queues.delete(queue)
    assert len(queues) == 0
    assert queues.recipient(queue.recipient_id) is queues.sender(queue.sender_id) is None
    assert list(queues.notifiers()) == []
    assert subscriber.pushed == [(queue.recipient_id, smp.Deld())]
    assert of_notifier.pushed == [(notifier.notifier_id, smp.Deld())]


def test_messages_wait_up_to_the_quota_and_come_one_at_a_time() -> None:
    queues = Queues(2, lambda: NOW)
    queue, _, _ = create(queues)
    assert [queues.send(queue, False, body) for body in (b"1", b"2", b"3")] == [True, True, False]
    first = queue.take_first()
    assert first is not None
    assert MessageBody.open(queue.secret, first.message_id, first.body) == MessageBody(NOW, False, b"1")
    assert not queue.acknowledge(bytes(24))
    assert queue.acknowledge(first.message_id)
    assert not queue.acknowledge(first.message_id)
    assert len(queue.messages) == 1


def test_all_notifications_wait_for_their_subscriber_in_their_order() -> None:
    queues = Queues(9, lambda: NOW)
    queue, notifier, secret = create(queues)
    for body in (b"1", b"2"):
        queues.send(queue, True, body)
    opened = [MessageMeta.open(secret, e.nonce, e.meta) for e in notifier.pending]
    assert opened == [MessageMeta(m.message_id, NOW) for m in queue.messages]
    waiting, subscriber = list(notifier.pending), Session()
    notifier.deliver()  # nobody is there yet
    notifier.subscriber = subscriber
    notifier.deliver()
    assert subscriber.pushed == [(notifier.notifier_id, event) for event in waiting]
    queues.notify(notifier, b"m" * 24)
    assert (len(subscriber.pushed), notifier.pending) == (3, [])


def test_who_delivers_is_told_of_what_there_is() -> None:
    told: list[Notifier] = []
    queues = Queues(9, on_pending=told.append)
    _, notifier, _ = create(queues)
    notifier.subscriber = subscriber = Session()
    queues.notify(notifier, b"m" * 24)
    assert (told, subscriber.pushed, len(notifier.pending)) == ([notifier], [], 1)


def test_a_service_holds_what_its_session_is_subscribed_to() -> None:
    queues = Queues(9)
    service, session = ServiceRecord(b"s" * 24), Session()
    (_, one, _), (_, two, _) = create(queues), create(queues)
    for notifier in (one, two):
        notifier.associate(service)
    service.subscriber = one.subscriber = session
    assert service.held() == [one]
    one.associate(None)
    assert service.notifiers == {two}
    assert service.held() == []
