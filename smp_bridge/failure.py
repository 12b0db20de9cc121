"""What can happen on an SMP server, and what follows: THE table. No I/O.

Whatever goes wrong while connecting, and whatever a server answers to NSUB and NSUBS, is a `Happened`; `TABLE` says of
each what is done, after which delay, how loud, and what the owner of the subscriptions is told.
"""

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import ClassVar, Final

from smp_bridge import smp
from smp_bridge.handshake import HandshakeError, IdentityMismatchError, ServiceRefusedError, ServiceUnreadyError
from smp_bridge.transmission import Err

# --- what the owner is told


class ConnectFailure(StrEnum):
    """Why a server cannot be connected to."""

    RESOLVE = "resolve"
    NOT_ALLOWED = "not_allowed"
    PROXY = "proxy"
    TCP = "tcp"
    TIMEOUT = "timeout"
    TLS = "tls"
    IDENTITY = "identity"  # someone may be impersonating it, or its address is wrong
    HANDSHAKE = "handshake"
    CROWDED = "crowded"  # there are as many sessions at its address prefix as may be


class NsubAnswer(StrEnum):
    """What an NSUB came to. Only these are final: what is temporary is tried again, and nobody is told."""

    SUBSCRIBED = "subscribed"
    ASSOCIATED = "associated"  # subscribed, and the session's service has it from now on
    AUTH = "auth"
    SERVICE = "service"
    ERROR = "error"


# --- what is done


class Remedy(Enum):
    """What is done about it."""

    NOTHING = auto()  # it is as it should be
    AGAIN = auto()  # temporary: the same once more
    FINAL = auto()  # it will not be tried again
    REASSOCIATE = auto()  # the service's queues are subscribed one by one, in this session
    RECONNECT = auto()  # another session should do
    WITHOUT_SERVICE = auto()  # the service is given up on this server for a while


class Wait(Enum):
    """Which delay comes before it."""

    NONE = auto()
    SERVER = auto()  # backoff between connects to one server
    IDENTITY = auto()  # the same, and longer: what is wrong there is seldom mended soon
    SESSION = auto()  # backoff between tries in one session
    SERVICE = auto()  # `AgentConfig.without_service`, in which the server is used as by anybody
    TAKEN_OVER = auto()  # `AgentConfig.ended_backoff`, twice as long each time in a row


@dataclass(frozen=True, slots=True)
class Ruling:
    """A row of the table. `level`: how loud, of `logging`; `failure`, `answer`: what the owner is told."""

    remedy: Remedy
    wait: Wait = Wait.NONE
    level: int = logging.DEBUG
    failure: ConnectFailure | None = None
    answer: NsubAnswer | None = None


class Happened(Enum):
    """What can happen."""

    # Connecting.
    NO_SUCH_HOST = auto()
    HOST_NOT_ALLOWED = auto()
    PREFIX_CROWDED = auto()
    PROXY_FAILED = auto()
    TCP_FAILED = auto()
    TOOK_TOO_LONG = auto()
    TLS_FAILED = auto()
    IMPOSTOR = auto()
    HANDSHAKE_FAILED = auto()
    SERVICE_NOT_TAKEN = auto()
    SERVICE_UNREADY = auto()
    # NSUB.
    NSUB_OK = auto()
    NSUB_ASSOCIATED = auto()
    NSUB_TEMPORARY = auto()
    NSUB_SILENCE = auto()
    NSUB_AUTH = auto()
    NSUB_SERVICE = auto()  # in a session without a service
    NSUB_SERVICE_LOST = auto()  # ERR SERVICE in a session of a service
    NSUB_REFUSED = auto()
    NSUB_NONSENSE = auto()
    NSUB_KEY_UNUSABLE = auto()
    # NSUBS.
    NSUBS_OK = auto()
    NSUBS_TEMPORARY = auto()
    NSUBS_SILENCE = auto()
    NSUBS_SERVICE = auto()
    NSUBS_SERVICE_AGAIN = auto()  # in the same session
    NSUBS_AUTH = auto()
    NSUBS_AUTH_AGAIN = auto()  # in two sessions in a row
    NSUBS_REFUSED = auto()
    NSUBS_NONSENSE = auto()
    # A session.
    TAKEN_OVER = auto()  # ENDS: another session of the service has its subscriptions
    CONNECTION_LOST = auto()
    OWNER_FAILED = auto()


def _connect(failure: ConnectFailure) -> Ruling:
    return Ruling(Remedy.AGAIN, Wait.SERVER, logging.INFO, failure=failure)


def _final(answer: NsubAnswer) -> Ruling:
    return Ruling(Remedy.FINAL, answer=answer)


_TRY_AGAIN: Final = Ruling(Remedy.AGAIN, Wait.SESSION)
_WITHOUT_SERVICE: Final = Ruling(Remedy.WITHOUT_SERVICE, Wait.SERVICE, logging.WARNING)

TABLE: Final[Mapping[Happened, Ruling]] = {
    Happened.NO_SUCH_HOST: _connect(ConnectFailure.RESOLVE),
    Happened.HOST_NOT_ALLOWED: _connect(ConnectFailure.NOT_ALLOWED),
    Happened.PREFIX_CROWDED: _connect(ConnectFailure.CROWDED),
    Happened.PROXY_FAILED: _connect(ConnectFailure.PROXY),
    Happened.TCP_FAILED: _connect(ConnectFailure.TCP),
    Happened.TOOK_TOO_LONG: _connect(ConnectFailure.TIMEOUT),
    Happened.TLS_FAILED: _connect(ConnectFailure.TLS),
    # The owner knows whether it is an impostor, or an address is wrong.
    Happened.IMPOSTOR: Ruling(Remedy.AGAIN, Wait.IDENTITY, logging.INFO, failure=ConnectFailure.IDENTITY),
    Happened.HANDSHAKE_FAILED: _connect(ConnectFailure.HANDSHAKE),
    Happened.SERVICE_NOT_TAKEN: _WITHOUT_SERVICE,
    Happened.SERVICE_UNREADY: _connect(ConnectFailure.HANDSHAKE),
    Happened.NSUB_OK: Ruling(Remedy.NOTHING, answer=NsubAnswer.SUBSCRIBED),
    Happened.NSUB_ASSOCIATED: Ruling(Remedy.NOTHING, answer=NsubAnswer.ASSOCIATED),
    Happened.NSUB_TEMPORARY: _TRY_AGAIN,
    Happened.NSUB_SILENCE: _TRY_AGAIN,
    Happened.NSUB_AUTH: _final(NsubAnswer.AUTH),
    Happened.NSUB_SERVICE: _final(NsubAnswer.SERVICE),
    Happened.NSUB_SERVICE_LOST: _WITHOUT_SERVICE,
    Happened.NSUB_REFUSED: _final(NsubAnswer.ERROR),
    Happened.NSUB_NONSENSE: _final(NsubAnswer.ERROR),
    Happened.NSUB_KEY_UNUSABLE: _final(NsubAnswer.ERROR),
    Happened.NSUBS_OK: Ruling(Remedy.NOTHING),
    Happened.NSUBS_TEMPORARY: _TRY_AGAIN,
    Happened.NSUBS_SILENCE: Ruling(Remedy.AGAIN, Wait.SERVER, logging.WARNING),
    Happened.NSUBS_SERVICE: Ruling(Remedy.REASSOCIATE),
    Happened.NSUBS_SERVICE_AGAIN: _WITHOUT_SERVICE,
    Happened.NSUBS_AUTH: Ruling(Remedy.RECONNECT, Wait.SERVER, logging.WARNING),
    Happened.NSUBS_AUTH_AGAIN: _WITHOUT_SERVICE,
    Happened.NSUBS_REFUSED: _WITHOUT_SERVICE,
    Happened.NSUBS_NONSENSE: _WITHOUT_SERVICE,
    Happened.TAKEN_OVER: Ruling(Remedy.RECONNECT, Wait.TAKEN_OVER, logging.WARNING),
    Happened.CONNECTION_LOST: Ruling(Remedy.RECONNECT, Wait.SERVER, logging.INFO),
    Happened.OWNER_FAILED: Ruling(Remedy.RECONNECT, Wait.SERVER, logging.ERROR),
}


# --- what happened


class ConnectError(OSError):
    """A failure to connect that says itself what happened."""

    happened: ClassVar[Happened] = Happened.TCP_FAILED


_EXCEPTIONS: Final[tuple[tuple[type[Exception], Happened], ...]] = (  # the first that fits
    (ServiceRefusedError, Happened.SERVICE_NOT_TAKEN),
    (ServiceUnreadyError, Happened.SERVICE_UNREADY),
    (IdentityMismatchError, Happened.IMPOSTOR),
    (HandshakeError, Happened.HANDSHAKE_FAILED),
    (ssl.SSLError, Happened.TLS_FAILED),
    (TimeoutError, Happened.TOOK_TOO_LONG),
    (OSError, Happened.TCP_FAILED),
)
_TEMPORARY: Final = frozenset(["INTERNAL", "STORE", "QUOTA", "EXPIRED"])


def connecting(e: OSError | HandshakeError) -> Happened:
    """What the exception of a connect means."""
    if isinstance(e, ConnectError):
        return e.happened
    return next(happened for cls, happened in _EXCEPTIONS if isinstance(e, cls))


def nsub(answer: object, service_id: bytes | None) -> Happened:
    """What the answer to an NSUB means: a `Message`, an exception if it was nonsense, None while there is none.

    `service_id`: of the session's service, None if it has none.
    """
    match answer:
        case None:
            return Happened.NSUB_SILENCE
        case smp.Ok():
            return Happened.NSUB_OK
        case smp.SOk(service_id=associated):
            own = associated is not None and associated == service_id
            return Happened.NSUB_ASSOCIATED if own else Happened.NSUB_OK
        case Err(code="AUTH"):
            return Happened.NSUB_AUTH
        case Err(code="SERVICE"):
            return Happened.NSUB_SERVICE if service_id is None else Happened.NSUB_SERVICE_LOST
        case Err(code=code):
            return Happened.NSUB_TEMPORARY if code in _TEMPORARY else Happened.NSUB_REFUSED
        case _:
            return Happened.NSUB_NONSENSE


def nsubs(answer: object, *, reassociated: bool) -> Happened:
    """What the answer to NSUBS means, as in `nsub`. `reassociated`: ERR SERVICE came in this session before."""
    match answer:
        case None:
            return Happened.NSUBS_SILENCE
        case smp.SOks():
            return Happened.NSUBS_OK
        case Err(code="AUTH"):
            return Happened.NSUBS_AUTH
        case Err(code="SERVICE"):
            return Happened.NSUBS_SERVICE_AGAIN if reassociated else Happened.NSUBS_SERVICE
        case Err(code=code):
            return Happened.NSUBS_TEMPORARY if code in _TEMPORARY else Happened.NSUBS_REFUSED
        case _:
            return Happened.NSUBS_NONSENSE


def words(answer: object) -> str:
    """An answer that is none of those that were expected, in the server's words; these are a stranger's."""
    if isinstance(answer, Err | Exception):
        return str(answer)
    return f"unexpected answer {type(answer).__name__}"
