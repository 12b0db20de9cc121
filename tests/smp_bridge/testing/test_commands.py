import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import smp
from smp_bridge.crypto import AuthPrivateKey
from smp_bridge.testing import commands
from smp_bridge.testing.queues import Queues
from smp_bridge.transmission import (
    ERR_AUTH,
    ERR_HAS_AUTH,
    ERR_NO_AUTH,
    ERR_PROHIBITED,
    ERR_SYNTAX,
    ERR_UNKNOWN,
    Err,
    Message,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
)

KEY = Ed25519PrivateKey.generate()
VERSION = 18


class Events:
    """It keeps what is pushed."""

    def __init__(self) -> None:
        self.pushed: list[tuple[bytes, Message]] = []

    def push(self, entity_id: bytes, event: Message) -> None:
        self.pushed.append((entity_id, event))


def session(version: int = VERSION) -> Session:
    return Session("smp", version, b"s" * 32)


def sent(command: Message | bytes, entity_id: bytes = b"", key: AuthPrivateKey | None = None) -> Transmission:
    """What the server has of a command."""
    encoded = command if isinstance(command, bytes) else command.encode(VERSION)
    [block] = encode_blocks(session(), [encode_transmission(session(), b"c" * 24, entity_id, encoded, key)])
    [t] = parse_block(session(), block)
    assert isinstance(t, Transmission)
    return t


def do(queues: Queues, state: commands.SessionState, t: Transmission) -> Message:
    command = commands.parse(state.session, t)
    return command if isinstance(command, Err) else commands.execute(queues, state, t, command)


def new() -> smp.New:
    return smp.New(KEY.public_key(), X25519PrivateKey.generate().public_key())


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (sent(b"WHAT"), ERR_UNKNOWN),
        (sent(b"NEW x"), ERR_SYNTAX),
        (sent(new()), ERR_NO_AUTH),
        (sent(new(), b"e" * 24, KEY), ERR_HAS_AUTH),
        (sent(smp.Ping(), b"e" * 24), ERR_HAS_AUTH),
        (sent(smp.Send(True, b"")), Err("CMD", "NO_ENTITY")),
        (sent(smp.NSub(), b"e" * 24), ERR_NO_AUTH),
        (sent(smp.NSub(), b"", KEY), ERR_NO_AUTH),
        (sent(smp.NSub(), b"e" * 24, KEY), ERR_AUTH),
        (sent(smp.Del(), b"e" * 24, KEY), ERR_AUTH),
        (sent(smp.Ping()), smp.Pong()),
    ],
)
def test_who_may_ask(t: Transmission, expected: Message) -> None:
    assert do(Queues(1), commands.SessionState(session(), Events()), t) == expected


def test_nsubs_is_unknown_before_services() -> None:
    t = sent(smp.NSubs(), b"e" * 24, KEY)
    assert commands.parse(session(smp.SERVICES - 1), t) == ERR_UNKNOWN


def test_the_newest_session_is_the_subscriber_and_get_is_not_for_it() -> None:
    queues, one, two = Queues(1), Events(), Events()
    first, second = (commands.SessionState(session(), e) for e in (one, two))
    ids = do(queues, first, sent(new(), key=KEY))
    assert isinstance(ids, smp.Ids)
    assert do(queues, first, sent(smp.Get(), ids.recipient_id, KEY)) == ERR_PROHIBITED
    assert do(queues, second, sent(smp.Sub(), ids.recipient_id, KEY)) == smp.SOk()
    assert (one.pushed, two.pushed) == ([(ids.recipient_id, smp.End())], [])
    second.unsubscribe_all()
    queue = queues.recipient(ids.recipient_id)
    assert queue is not None
    assert queue.subscriber is None


@pytest.mark.parametrize(("version", "size"), [(6, 16088), (8, 16064), (10, 16064), (11, 16048), (18, 16048)])
def test_the_largest_message(version: int, size: int) -> None:
    assert commands.max_message_size(version) == size
