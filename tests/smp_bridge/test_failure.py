"""The table: each row as it is meant, and which row is whose."""

import logging
import socket
import ssl

import pytest

from smp_bridge import smp
from smp_bridge.client import UnexpectedAnswerError
from smp_bridge.failure import (
    TABLE,
    ConnectFailure,
    Happened,
    NsubAnswer,
    Remedy,
    Ruling,
    Wait,
    connecting,
    nsub,
    nsubs,
    words,
)
from smp_bridge.handshake import HandshakeError, IdentityMismatchError, ServiceRefusedError, ServiceUnreadyError
from smp_bridge.network import HostNotAllowedError, NoHostError, ProxyError, ResolveError
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL, ERR_PROHIBITED, ERR_QUOTA, ERR_SERVICE, Err
from smp_bridge.transport import BadBlockError, ConnectionClosedError
from smp_bridge.turns import CrowdedError

ID = b"i" * 24
QUIET, INFO, WARNING, ERROR = logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR

ROWS: dict[Happened, tuple[Remedy, Wait, int, ConnectFailure | NsubAnswer | None]] = {
    Happened.NO_SUCH_HOST: (Remedy.AGAIN, Wait.SERVER, INFO, ConnectFailure.RESOLVE),
    Happened.HOST_NOT_ALLOWED: (Remedy.AGAIN, Wait.SERVER, INFO, ConnectFailure.NOT_ALLOWED),
    Happened.PREFIX_CROWDED: (Remedy.AGAIN, Wait.SERVER, INFO, ConnectFailure.CROWDED),
    Happened.PROXY_FAILED: (Remedy.AGAIN, Wait.SERVER, INFO, ConnectFailure.PROXY),
    Happened.TCP_FAILED: (Remedy.AGAIN, Wait.SERVER, INFO, ConnectFailure.TCP),
    Happened.TOOK_TOO_LONG: (Remedy.AGAIN, Wait.SERVER, INFO, ConnectFailure.TIMEOUT),
    Happened.TLS_FAILED: (Remedy.AGAIN, Wait.SERVER, INFO, ConnectFailure.TLS),
    Happened.IMPOSTOR: (Remedy.AGAIN, Wait.IDENTITY, INFO, ConnectFailure.IDENTITY),
    Happened.SERVICE_UNREADY: (Remedy.AGAIN, Wait.SERVER, INFO, ConnectFailure.HANDSHAKE),
    Happened.HANDSHAKE_FAILED: (Remedy.AGAIN, Wait.SERVER, INFO, ConnectFailure.HANDSHAKE),
    Happened.SERVICE_NOT_TAKEN: (Remedy.WITHOUT_SERVICE, Wait.SERVICE, WARNING, None),
    Happened.NSUB_OK: (Remedy.NOTHING, Wait.NONE, QUIET, NsubAnswer.SUBSCRIBED),
    Happened.NSUB_ASSOCIATED: (Remedy.NOTHING, Wait.NONE, QUIET, NsubAnswer.ASSOCIATED),
    Happened.NSUB_TEMPORARY: (Remedy.AGAIN, Wait.SESSION, QUIET, None),
    Happened.NSUB_SILENCE: (Remedy.AGAIN, Wait.SESSION, QUIET, None),
    Happened.NSUB_AUTH: (Remedy.FINAL, Wait.NONE, QUIET, NsubAnswer.AUTH),
    Happened.NSUB_SERVICE: (Remedy.FINAL, Wait.NONE, QUIET, NsubAnswer.SERVICE),
    Happened.NSUB_SERVICE_LOST: (Remedy.WITHOUT_SERVICE, Wait.SERVICE, WARNING, None),
    Happened.NSUB_REFUSED: (Remedy.FINAL, Wait.NONE, QUIET, NsubAnswer.ERROR),
    Happened.NSUB_NONSENSE: (Remedy.FINAL, Wait.NONE, QUIET, NsubAnswer.ERROR),
    Happened.NSUB_KEY_UNUSABLE: (Remedy.FINAL, Wait.NONE, QUIET, NsubAnswer.ERROR),
    Happened.NSUBS_OK: (Remedy.NOTHING, Wait.NONE, QUIET, None),
    Happened.NSUBS_TEMPORARY: (Remedy.AGAIN, Wait.SESSION, QUIET, None),
    Happened.NSUBS_SILENCE: (Remedy.AGAIN, Wait.SERVER, WARNING, None),
    Happened.NSUBS_SERVICE: (Remedy.REASSOCIATE, Wait.NONE, QUIET, None),
    Happened.NSUBS_SERVICE_AGAIN: (Remedy.WITHOUT_SERVICE, Wait.SERVICE, WARNING, None),
    Happened.NSUBS_AUTH: (Remedy.RECONNECT, Wait.SERVER, WARNING, None),
    Happened.NSUBS_AUTH_AGAIN: (Remedy.WITHOUT_SERVICE, Wait.SERVICE, WARNING, None),
    Happened.NSUBS_REFUSED: (Remedy.WITHOUT_SERVICE, Wait.SERVICE, WARNING, None),
    Happened.NSUBS_NONSENSE: (Remedy.WITHOUT_SERVICE, Wait.SERVICE, WARNING, None),
    Happened.TAKEN_OVER: (Remedy.RECONNECT, Wait.TAKEN_OVER, WARNING, None),
    Happened.CONNECTION_LOST: (Remedy.RECONNECT, Wait.SERVER, INFO, None),
    Happened.OWNER_FAILED: (Remedy.RECONNECT, Wait.SERVER, ERROR, None),
}


def test_whatever_can_happen_has_its_row() -> None:
    assert set(TABLE) == set(Happened) == set(ROWS)


@pytest.mark.parametrize("happened", Happened)
def test_row(happened: Happened) -> None:
    remedy, wait, level, told = ROWS[happened]
    failure = told if isinstance(told, ConnectFailure) else None
    answer = told if isinstance(told, NsubAnswer) else None
    assert TABLE[happened] == Ruling(remedy, wait, level, failure, answer)


@pytest.mark.parametrize(
    ("e", "expected"),
    [
        (ServiceRefusedError("no"), Happened.SERVICE_NOT_TAKEN),
        (ServiceUnreadyError("not now"), Happened.SERVICE_UNREADY),
        (IdentityMismatchError("no"), Happened.IMPOSTOR),
        (HandshakeError("no"), Happened.HANDSHAKE_FAILED),
        (ConnectionClosedError("no"), Happened.HANDSHAKE_FAILED),
        (BadBlockError("no"), Happened.HANDSHAKE_FAILED),
        (HostNotAllowedError("no"), Happened.HOST_NOT_ALLOWED),
        (NoHostError("no"), Happened.HOST_NOT_ALLOWED),
        (ResolveError(socket.EAI_NONAME, "no"), Happened.NO_SUCH_HOST),
        (ProxyError("no"), Happened.PROXY_FAILED),
        (CrowdedError("no"), Happened.PREFIX_CROWDED),
        (ssl.SSLError("no"), Happened.TLS_FAILED),
        (TimeoutError(), Happened.TOOK_TOO_LONG),
        (ConnectionRefusedError(), Happened.TCP_FAILED),
        (OSError("no"), Happened.TCP_FAILED),
    ],
)
def test_connecting(e: OSError | HandshakeError, expected: Happened) -> None:
    assert connecting(e) is expected


@pytest.mark.parametrize("service_id", [None, ID])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (smp.Ok(), Happened.NSUB_OK),
        (smp.SOk(), Happened.NSUB_OK),
        (smp.SOk(b"o" * 24), Happened.NSUB_OK),
        (ERR_AUTH, Happened.NSUB_AUTH),
        (ERR_PROHIBITED, Happened.NSUB_REFUSED),
        (Err("BLOCKED", "reason=spam"), Happened.NSUB_REFUSED),
        (UnexpectedAnswerError("it does not parse"), Happened.NSUB_NONSENSE),
        (smp.Pong(), Happened.NSUB_NONSENSE),
        (smp.SOks(1), Happened.NSUB_NONSENSE),
        (None, Happened.NSUB_SILENCE),
        (ERR_INTERNAL, Happened.NSUB_TEMPORARY),
        (ERR_QUOTA, Happened.NSUB_TEMPORARY),
        (Err("STORE", "the disk is full"), Happened.NSUB_TEMPORARY),
        (Err("EXPIRED"), Happened.NSUB_TEMPORARY),
    ],
)
def test_nsub(answer: object, service_id: bytes | None, expected: Happened) -> None:
    assert nsub(answer, service_id) is expected


def test_nsub_and_the_session_s_own_service() -> None:
    assert nsub(smp.SOk(ID), ID) is Happened.NSUB_ASSOCIATED
    assert nsub(smp.SOk(ID), None) is Happened.NSUB_OK
    assert nsub(smp.SOk(None), None) is Happened.NSUB_OK  # no service is not the own one
    assert nsub(ERR_SERVICE, ID) is Happened.NSUB_SERVICE_LOST
    assert nsub(ERR_SERVICE, None) is Happened.NSUB_SERVICE


@pytest.mark.parametrize("reassociated", [False, True])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (smp.SOks(0), Happened.NSUBS_OK),
        (None, Happened.NSUBS_SILENCE),
        (ERR_AUTH, Happened.NSUBS_AUTH),
        (ERR_INTERNAL, Happened.NSUBS_TEMPORARY),
        (Err("EXPIRED"), Happened.NSUBS_TEMPORARY),
        (ERR_PROHIBITED, Happened.NSUBS_REFUSED),
        (Err("BLOCKED", "reason=spam"), Happened.NSUBS_REFUSED),
        (smp.Ok(), Happened.NSUBS_NONSENSE),
        (UnexpectedAnswerError("it does not parse"), Happened.NSUBS_NONSENSE),
    ],
)
def test_nsubs(answer: object, reassociated: bool, expected: Happened) -> None:
    assert nsubs(answer, reassociated=reassociated) is expected


def test_nsubs_once_and_again() -> None:
    assert nsubs(ERR_SERVICE, reassociated=False) is Happened.NSUBS_SERVICE
    assert nsubs(ERR_SERVICE, reassociated=True) is Happened.NSUBS_SERVICE_AGAIN


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Err("BLOCKED", "reason=spam"), "BLOCKED reason=spam"),
        (UnexpectedAnswerError("it does not parse"), "it does not parse"),
        (smp.SOks(1), "unexpected answer SOks"),
    ],
)
def test_words(answer: object, expected: str) -> None:
    assert words(answer) == expected
