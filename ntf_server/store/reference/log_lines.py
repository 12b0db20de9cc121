"""Lines of the reference's store log, and of its log of last notifications: one fact each, the last one counts.

Bytes are base64url there, keys DER, times Unix seconds. Parsing raises UnreadableError.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final, TypeVar

from ntf_server.store.records import Record
from ntf_server.store.reference.rows import UnreadableError
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import ParseError, un_b64url

T = TypeVar("T")

MAX_LINE: Final = 64 * 1024  # bytes
_UNREADABLE: Final = "cannot be read"
_SERVERS: Final = 1000  # whose texts are kept parsed


class CreateToken(Record, frozen=True):
    """Fields as in `ReferenceToken`."""

    token_id: bytes
    provider: str
    device_token: bytes
    status: str
    verify_key: bytes
    dh_private: bytes
    dh_secret: bytes
    code: bytes
    period: int
    active_at: int | None


class SetTokenStatus(Record, frozen=True):
    """ACTIVE: other registrations of its device are gone."""

    token_id: bytes
    status: str


class UpdateToken(Record, frozen=True):
    """Another device token and code: it is REGISTERED."""

    token_id: bytes
    provider: str
    device_token: bytes
    code: bytes


class SetPeriod(Record, frozen=True):
    """Minutes."""

    token_id: bytes
    period: int


class SetTime(Record, frozen=True):
    """The day of its last command."""

    token_id: bytes
    at: int


class DeleteToken(Record, frozen=True):
    """With its subscriptions."""

    token_id: bytes


class CreateQueue(Record, frozen=True):
    """Fields as in `ReferenceQueue`."""

    subscription_id: bytes
    server: ServerAddress
    notifier_id: bytes
    notifier_key: bytes
    token_id: bytes
    status: str


class SetQueueStatus(Record, frozen=True):
    """Of a subscription."""

    subscription_id: bytes
    status: str


class DeleteQueue(Record, frozen=True):
    """A subscription."""

    subscription_id: bytes


class SetService(Record, frozen=True):
    """It was another certificate's, of all servers: 7.0 began anew too."""


class LastNotification(Record, frozen=True):
    """Of a queue, by the token whose it is."""

    token_id: bytes
    server: ServerAddress
    notifier_id: bytes
    at: int
    nonce: bytes
    meta: bytes


Line = (
    CreateToken
    | SetTokenStatus
    | UpdateToken
    | SetPeriod
    | SetTime
    | DeleteToken
    | CreateQueue
    | SetQueueStatus
    | DeleteQueue
    | SetService
    | LastNotification
)


def parse_line(line: bytes) -> Line:
    """Without its line feed."""
    try:
        words = iter(line.decode("utf-8", "surrogateescape").split(" "))
        parse = _PARSERS.get(next(words))
        if parse is None:
            raise UnreadableError(_UNREADABLE)
        return parse(words)
    except (ParseError, StopIteration, ValueError) as e:
        raise UnreadableError(_UNREADABLE) from e


def _create_token(words: Iterator[str]) -> CreateToken:
    token_id = _bytes(_named(words, "tknId"))
    provider, device_token = _named(words, "token"), _device_token(next(words))
    status = _named(words, "tokenStatus")
    verify_key = _bytes(_named(words, "verifyKey"))
    _named(words, "dhKeys")  # the public half
    dh_private = _bytes(next(words))
    dh_secret, code = _bytes(_named(words, "dhSecret")), _bytes(_named(words, "regCode"))
    period, at = _number(_named(words, "cron")), None
    if (rest := next(words, None)) is not None:
        at = _number(_value(rest, "updatedAt"))
    _end(words)
    return CreateToken(token_id, provider, device_token, status, verify_key, dh_private, dh_secret, code, period, at)


def _create_queue(words: Iterator[str]) -> CreateQueue:
    subscription_id = _bytes(_named(words, "subId"))
    server, notifier_id = _queue(_named(words, "smpQueue"))
    key, token_id = _bytes(_named(words, "notifierKey")), _bytes(_named(words, "tknId"))
    return CreateQueue(
        subscription_id, server, notifier_id, key, token_id, _status(words, "subStatus=", "serviceAssoc=")
    )


def _queue_status(words: Iterator[str]) -> SetQueueStatus:
    return SetQueueStatus(_bytes(next(words)), _status(words, "", "service="))


def _service(words: Iterator[str]) -> SetService:
    _server(next(words))
    next(words)
    return _ended(words, SetService())


def _last(words: Iterator[str]) -> LastNotification:
    token_id = _bytes(next(words))
    server, notifier_id = _queue(next(words))
    at, nonce, meta = _number(next(words)), _bytes(next(words)), _bytes(next(words))
    return _ended(words, LastNotification(token_id, server, notifier_id, at, nonce, meta))


def _status(words: Iterator[str], name: str, flag: str) -> str:
    """Of a subscription: that of an error has words; a flag may stand behind."""
    rest = list(words)
    if not rest or not rest[0].startswith(name):
        raise UnreadableError(_UNREADABLE)
    rest[0] = rest[0].removeprefix(name)
    if len(rest) > 1 and rest[-1].startswith(flag):
        rest.pop()
    if len(rest) > 1 and rest[0] != "ERR":
        raise UnreadableError(_UNREADABLE)
    return " ".join(rest)


def _named(words: Iterator[str], name: str) -> str:
    return _value(next(words), name)


def _value(word: str, name: str) -> str:
    found, equals, value = word.partition("=")
    if found != name or not equals:
        raise UnreadableError(_UNREADABLE)
    return value


def _ended(words: Iterator[str], record: T) -> T:
    _end(words)
    return record


def _end(words: Iterator[str]) -> None:
    if next(words, None) is not None:
        raise UnreadableError(_UNREADABLE)


def _bytes(text: str) -> bytes:
    if not text:
        raise UnreadableError(_UNREADABLE)
    return un_b64url(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UnreadableError(_UNREADABLE)
    return int(text)


def _device_token(text: str) -> bytes:
    return text.encode("ascii")


def _queue(text: str) -> tuple[ServerAddress, bytes]:
    server, slash, notifier_id = text.rpartition("/")
    if not slash:
        raise UnreadableError(_UNREADABLE)
    return _server(server), _bytes(notifier_id)


@lru_cache(maxsize=_SERVERS)
def _server(text: str) -> ServerAddress:
    address = ServerAddress.from_text(text)
    if address.scheme != "smp":
        raise UnreadableError(_UNREADABLE)
    return address


def _plain(make: Callable[..., Line], *fields: Callable[[str], object]) -> Callable[[Iterator[str]], Line]:
    """Of a line that is one word for each field."""

    def parse(words: Iterator[str]) -> Line:
        return _ended(words, make(*[field(next(words)) for field in fields]))

    return parse


_PARSERS: Final[Mapping[str, Callable[[Iterator[str]], Line]]] = {
    "TCREATE": _create_token,
    "TSTATUS": _plain(SetTokenStatus, _bytes, str),
    "TUPDATE": _plain(UpdateToken, _bytes, str, _device_token, _bytes),
    "TCRON": _plain(SetPeriod, _bytes, _number),
    "TTIME": _plain(SetTime, _bytes, _number),
    "TDELETE": _plain(DeleteToken, _bytes),
    "SCREATE": _create_queue,
    "SSTATUS": _queue_status,
    "SDELETE": _plain(DeleteQueue, _bytes),
    "SERVICE": _service,
    "v1": _last,
}
