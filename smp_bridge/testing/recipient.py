"""The other side of a notification: a recipient with its queues, and the sender of their messages."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto, smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, Event, UnexpectedAnswerError
from smp_bridge.connecting import Connect, connect
from smp_bridge.handshake import Versions
from smp_bridge.messages import MessageBody, MessageMeta
from smp_bridge.transmission import Message

A = TypeVar("A", bound=Message)


class Received(NamedTuple):
    """A message: its id, its time in Unix seconds, its body."""

    message_id: bytes
    timestamp: int
    body: bytes


def _expect(kind: type[A], answer: Message) -> A:
    if not isinstance(answer, kind):
        raise UnexpectedAnswerError(f"unexpected answer {type(answer).__name__}")
    return answer


class Recipient:
    """A connection that owns queues: `async with await Recipient.connect(address) as recipient`.

    All methods raise what `Client.request` raises.
    """

    client: Client

    def __init__(self) -> None:
        self._messages: defaultdict[bytes, asyncio.Queue[smp.Msg]] = defaultdict(asyncio.Queue)
        self.other_events: asyncio.Queue[Event] = asyncio.Queue()  # END, DELD, NMSG

    @classmethod
    async def connect(cls, address: ServerAddress, *, versions: Versions | None = None, by: Connect = connect) -> Self:
        """Connect. Raises what `connecting.connect` raises."""
        self = cls()
        self.client = await Client.connect(address, self._on_events, versions=versions, by=by)
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the queues stay on the server."""
        await self.client.close()

    async def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event.message, smp.Msg):
                self.deliver(event.entity_id, event.message)
            else:
                self.other_events.put_nowait(event)

    def deliver(self, recipient_id: bytes, message: smp.Msg) -> None:
        """Put a message where `next_message` finds it."""
        self._messages[recipient_id].put_nowait(message)

    async def next_message(self, recipient_id: bytes) -> smp.Msg:
        """The next message of a queue, as it came."""
        return await self._messages[recipient_id].get()

    async def queue(
        self,
        *,
        credentials: Literal["NKEY", "NEW"] = "NKEY",
        secure: Literal["KEY", "SKEY"] | None = "KEY",
        recipient_key: crypto.AuthPrivateKey | None = None,
        notifier_key: crypto.AuthPrivateKey | None = None,
    ) -> "Queue":
        """Create a queue and subscribe to its messages.

        `credentials`: the command that makes the notification credentials (NEW needs SMP 17); `secure`: the command
        that sets the sender's key, if any; keys are new Ed25519 ones unless given (X25519 needs SMP 7).
        """
        key = recipient_key or Ed25519PrivateKey.generate()
        dh_key, ntf_dh_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        ntf_key = notifier_key or Ed25519PrivateKey.generate()
        creds = smp.NtfCreds(ntf_key.public_key(), ntf_dh_key.public_key())
        new = smp.New(key.public_key(), dh_key.public_key(), ntf_creds=creds if credentials == "NEW" else None)
        ids = _expect(smp.Ids, await self.client.request(new, key=key))
        answered = ids.ntf_creds
        if credentials == "NKEY":
            nkey = smp.NKey(creds)
            answered = _expect(smp.Nid, await self.client.request(nkey, ids.recipient_id, key)).creds
        if answered is None:
            raise UnexpectedAnswerError("no notification credentials in the answer to NEW")
        queue = Queue(
            self,
            ids.recipient_id,
            ids.sender_id,
            key,
            crypto.dh(dh_key, ids.dh_key),
            answered.notifier_id,
            ntf_key,
            crypto.dh(ntf_dh_key, answered.dh_key),
        )
        if secure:
            await queue.secure(secure)
        return queue


@dataclass(slots=True, eq=False)
class Queue:
    """A queue of a `Recipient`. `notifier_id` and `notifier_key` are what a notification server is given.

    `secret` opens messages, `notifier_secret` the metadata of notifications: both are DH outputs of 32 bytes.
    """

    recipient: Recipient = field(repr=False)
    recipient_id: bytes = field(repr=False)
    sender_id: bytes = field(repr=False)
    recipient_key: crypto.AuthPrivateKey = field(repr=False)
    secret: bytes = field(repr=False)
    notifier_id: bytes = field(repr=False)
    notifier_key: crypto.AuthPrivateKey = field(repr=False)
    notifier_secret: bytes = field(repr=False)
    sender_key: crypto.SignPrivateKey | None = field(default=None, repr=False)

    async def command(self, command: Message) -> Message:
        """Send a command as the recipient; its answer."""
        return await self.recipient.client.request(command, self.recipient_id, self.recipient_key)

    async def secure(self, how: Literal["KEY", "SKEY"] = "KEY") -> None:
        """Set a sender's key, as the recipient (KEY) or as the sender (SKEY, SMP 9)."""
        key = Ed25519PrivateKey.generate()
        if how == "KEY":
            answer = await self.command(smp.Key(key.public_key()))
        else:
            answer = await self.recipient.client.request(smp.SKey(key.public_key()), self.sender_id, key)
        _expect(smp.Ok, answer)
        self.sender_key = key

    async def send(self, text: str | bytes, notify: bool = True, *, client: Client | None = None) -> None:
        """Send a message as the sender, on another connection if one is given."""
        body = text.encode() if isinstance(text, str) else text
        client = client or self.recipient.client
        _expect(smp.Ok, await client.request(smp.Send(notify, body), self.sender_id, self.sender_key))

    async def receive(self, timeout: float = 10.0) -> Received:
        """The next message, acknowledged. Raises TimeoutError after so many seconds without one."""
        async with asyncio.timeout(timeout):
            message = await self.recipient.next_message(self.recipient_id)
            answer = await self.command(smp.Ack(message.message_id))
        if isinstance(answer, smp.Msg):  # the next one comes as the answer
            self.recipient.deliver(self.recipient_id, answer)
        else:
            _expect(smp.Ok, answer)
        opened = MessageBody.open(self.secret, message.message_id, message.body)
        return Received(message.message_id, opened.timestamp, opened.body)

    def open_notification(self, nonce: bytes, meta: bytes) -> MessageMeta:
        """What a notification says. Raises CryptoError if it is another queue's, ParseError."""
        return MessageMeta.open(self.notifier_secret, nonce, meta)

    async def resubscribe(self) -> None:
        """Subscribe again (SUB), after the connection or the subscription was lost."""
        answer = await self.command(smp.Sub())
        if isinstance(answer, smp.Msg):
            self.recipient.deliver(self.recipient_id, answer)

    async def delete(self) -> None:
        """Delete the queue: its notifier gets DELD."""
        _expect(smp.Ok, await self.command(smp.Del()))
