"""Both sides of the handshake, as state machines: what the peer says, message by message."""

import dataclasses
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fuzz import samples
from fuzz.target import Target, add
from smp_bridge.encoding import ParseError, Reader, large
from smp_bridge.handshake import (
    VERSIONS,
    ClientHandshake,
    ClientHello,
    HandshakeError,
    ServerHandshake,
    ServerHello,
    ServiceCredentials,
    ServiceHello,
    ServiceUnreadyError,
)
from smp_bridge.transmission import Session

SESSION_ID = bytes(range(48))
SERVER = samples.credentials()
SERVICE = ServiceCredentials(samples.chain(1), samples.credentials(1).key, samples.ED25519)
_SERVER_KEY = samples.X25519
_CLIENT_KEY = X25519PrivateKey.from_private_bytes(b"7" * 32)
_MESSAGES = 4

# The first byte of an input: bits for the scheme, for a service, and what is behind it.
_NTF, _SERVICE, _OLD, _UNREADY = 1, 2, 4, 8


def _ids(flags: int) -> Any:
    def service_id(_: ServiceHello) -> bytes:
        if flags & _UNREADY:
            raise ServiceUnreadyError("not now")
        return samples.ID

    return service_id


def _client(flags: int) -> ClientHandshake:
    scheme, oldest = ("ntf", 1) if flags & _NTF else ("smp", 6)
    versions = (oldest, oldest) if flags & _OLD else None
    service = SERVICE if flags & _SERVICE else None
    return ClientHandshake(
        scheme, SESSION_ID, samples.chain(), SERVER.key_hash, _CLIENT_KEY, versions=versions, service=service
    )


def _server(flags: int) -> ServerHandshake:
    return ServerHandshake(
        "ntf" if flags & _NTF else "smp",
        SESSION_ID,
        samples.chain(),
        SERVER.key,
        _SERVER_KEY,
        alpn=not flags & _OLD,
        now=samples.NOW,
        peer_chain=samples.chain(1) if flags & _SERVICE else (),
        services=_ids(flags) if flags & _SERVICE else None,
    )


def _messages(data: bytes) -> tuple[int, list[bytes]]:
    r = Reader(data)
    flags, out = r.byte(), []
    while r.pos < len(data) and len(out) < _MESSAGES:
        out.append(r.large())
    return flags, out


def _check_session(session: Session) -> None:
    low, high = VERSIONS[session.scheme]
    assert low <= session.version <= high
    assert session.session_id == SESSION_ID
    encrypted = session.scheme == "smp" and session.version >= 11
    assert (session.send_chain is not None) == (session.receive_chain is not None) == encrypted
    assert (session.server_key is not None) == (session.version >= (7 if session.scheme == "smp" else 2))


def _shake_client(data: bytes) -> ClientHandshake:
    """As `connecting` does it: until there is a session."""
    flags, messages = _messages(data)
    handshake = _client(flags)
    for message in messages:
        answer = handshake.receive(message)
        if answer is not None:
            ClientHello.parse(answer, "ntf" if flags & _NTF else "smp")
        if handshake.session is not None:
            break
    return handshake


def _check_client(handshake: ClientHandshake) -> None:
    if handshake.session is not None:
        _check_session(handshake.session)


def _shake_server(data: bytes) -> Session | None:
    flags, messages = _messages(data)
    handshake = _server(flags)
    ServerHello.parse(handshake.hello, "ntf" if flags & _NTF else "smp")
    return handshake.receive(messages[0]) if messages else None


def _check_server(session: Session | None) -> None:
    if session is not None:
        _check_session(session)


def _seeds_of_client() -> list[bytes]:
    out = []
    for flags in range(8):
        hello = _server(flags).hello
        answers = [large(b"R" + b"\x18" + samples.ID), large(b"EHANDSHAKE BAD_SERVICE"), large(b"EHANDSHAKE BAD_AUTH")]
        for answer in answers if flags & _SERVICE else [b""]:
            out.append(bytes([flags]) + large(hello) + answer)
        scheme = "ntf" if flags & _NTF else "smp"
        parsed = ServerHello.parse(hello, scheme)
        low = VERSIONS[scheme][0]
        for top in range(low, VERSIONS[scheme][1] + 1):
            other = dataclasses.replace(parsed, versions=(low, top))
            if parsed.key:
                out.append(bytes([flags]) + large(other.encode(scheme)))
    return out


def _seeds_of_server() -> list[bytes]:
    out = []
    for flags in range(16):
        scheme = "ntf" if flags & _NTF else "smp"
        client = _client(flags & ~_OLD)
        hello = ClientHello.parse(client.receive(_server(flags & ~_OLD).hello) or b"", scheme)
        for version in range(VERSIONS[scheme][0], VERSIONS[scheme][1] + 1):
            service = hello.service if version >= 16 else None
            other = dataclasses.replace(hello, version=version, service=service)
            out.append(bytes([flags]) + large(other.encode(scheme)))
    return out


add(
    Target(
        "handshake client",
        _shake_client,
        _seeds_of_client,
        ["smp_bridge.handshake.ServerHello.parse", "smp_bridge.handshake.ClientHandshake.receive"],
        (HandshakeError, ParseError),
        _check_client,
        max_size=1400,
        share=0.5,
    )
)
add(
    Target(
        "handshake server",
        _shake_server,
        _seeds_of_server,
        ["smp_bridge.handshake.ClientHello.parse", "smp_bridge.handshake.ServerHandshake.receive"],
        (HandshakeError, ParseError),
        _check_server,
        max_size=1400,
        share=0.3,
    )
)


def _hello(data: bytes) -> tuple[Any, Any]:
    """Either hello, as it stands alone."""
    flags = data[0] if data else 0
    scheme = "ntf" if flags & _NTF else "smp"
    kind = ClientHello if flags & _SERVICE else ServerHello
    return kind.parse(data[1:], scheme), scheme  # type: ignore[attr-defined]


def _check_hello(parsed: tuple[Any, Any]) -> None:
    hello, scheme = parsed
    assert type(hello).parse(hello.encode(scheme), scheme) == hello


add(
    Target(
        "hello",
        _hello,
        lambda: (
            [bytes([s[0] & _NTF]) + s[3:] for s in _seeds_of_client()]
            + [bytes([s[0] & _NTF | _SERVICE]) + s[3:] for s in _seeds_of_server()]
        ),
        [
            "smp_bridge.handshake.ServerHello.parse",
            "smp_bridge.handshake.ClientHello.parse",
            "smp_bridge.handshake.ServiceHello.parse",
        ],
        (ParseError,),
        _check_hello,
        max_size=1400,
        share=0.5,
    )
)
