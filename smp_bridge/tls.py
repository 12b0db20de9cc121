"""TLS without I/O: bytes in, bytes out (wire.md, section 3). `transport` puts it on a socket."""

import contextlib
import os
import ssl
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from smp_bridge.address import Scheme
from smp_bridge.identity import Credentials, private_key_pem

CIPHERS_TLS_1_2: Final = "ECDHE+CHACHA20"  # those of 1.3 all include ChaCha20-Poly1305


_CERTIFICATE_REQUEST: Final = 13  # RFC 8446, section 4
_ASKED: Final = "ntf_relay_was_asked"  # attribute of an SSLObject


class TlsClosedError(Exception):
    """The peer ended the TLS connection."""


class Tls(Protocol):
    """One end of a TLS connection. All methods may raise ssl.SSLError; `output` is to be sent after each of them."""

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes that came from the peer."""
        ...

    def handshake(self) -> bool:
        """Go on with the handshake as far as the bytes that came allow; whether it is done."""
        ...

    def read_into(self, buffer: memoryview) -> int:
        """Decrypt into a buffer: how many bytes, 0 if more has to come first. Raises TlsClosedError."""
        ...

    def write(self, data: bytes) -> None:
        """Encrypt."""
        ...

    def output(self) -> bytes:
        """Take what is to be sent to the peer, maybe nothing."""
        ...

    def close(self) -> None:
        """Say goodbye (close_notify). Never raises."""
        ...

    def finished(self) -> bytes:
        """The client's TLS Finished message (RFC 5929 tls-unique); empty if there is none."""
        ...

    def alpn(self) -> str | None:
        """The negotiated ALPN protocol."""
        ...

    def peer_chain(self) -> tuple[bytes, ...]:
        """DER of the peer's certificates as it sent them, leaf first; none if it showed none. Not verified."""
        ...

    def was_asked(self) -> bool:
        """Whether the server asked this client for a certificate; only for one that has one."""
        ...


TlsFactory = Callable[[], Tls]


def _context(protocol: int, scheme: Scheme) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_TLS_1_2)
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([f"{scheme}/1"])
    return context


def _load(context: ssl.SSLContext, credentials: Credentials) -> None:
    """The ssl module reads files only: it is given one that is in memory, and on no disk."""
    with os.fdopen(os.memfd_create("credentials"), "wb") as file:
        file.write(credentials.chain_pem + private_key_pem(credentials.key))
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")


def client_context(scheme: Scheme, credentials: Credentials | None = None) -> ssl.SSLContext:
    """TLS for a client. The server's chain is checked by pinning after the TLS handshake, see `connecting.connect`.

    `credentials`: a client certificate, shown if the server asks for one. Raises ssl.SSLError if OpenSSL refuses it.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, scheme)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if credentials:
        _load(context, credentials)
        context._msg_callback = _on_message  # type: ignore[attr-defined]  # see there
    return context


def _on_message(
    tls: object, direction: str, _version: object, _content: object, message: object, _data: object
) -> None:
    """Notes a CertificateRequest, whether or not it is answered.

    That OpenSSL tells of its messages is no public part of the ssl module, but all of 3.8 to 3.14 have it, and there is
    no other way to know: with pyOpenSSL's callbacks the process would need memory that is writable and executable.
    """
    if direction == "read" and message == _CERTIFICATE_REQUEST:
        setattr(tls, _ASKED, True)


def server_context(scheme: Scheme, credentials: Credentials) -> ssl.SSLContext:
    """TLS for a server. Raises ssl.SSLError if OpenSSL refuses the credentials."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, scheme)
    context.num_tickets = 0
    _load(context, credentials)
    return context


class SslTls:
    """`Tls` by Python's ssl module. A client names no host: an smp-server with a web page would answer as that."""

    def __init__(self, context: ssl.SSLContext, *, server_side: bool = False) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)

    def feed(self, data: bytes | memoryview) -> None:
        """See `Tls`."""
        self._incoming.write(data)

    def handshake(self) -> bool:
        """See `Tls`."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read_into(self, buffer: memoryview) -> int:
        """See `Tls`."""
        try:
            count = cast("int", self.tls.read(len(buffer), buffer))  # typeshed: bytes, which is so without a buffer
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLZeroReturnError as e:
            raise TlsClosedError from e
        if not count:
            raise TlsClosedError
        return count

    def write(self, data: bytes) -> None:
        """See `Tls`."""
        self.tls.write(data)

    def output(self) -> bytes:
        """See `Tls`."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def close(self) -> None:
        """See `Tls`."""
        with contextlib.suppress(ssl.SSLError, OSError, ValueError):  # it wants the peer's too, which nobody needs
            self.tls.unwrap()

    def finished(self) -> bytes:
        """See `Tls`."""
        return self.tls.get_channel_binding("tls-unique") or b""

    def alpn(self) -> str | None:
        """See `Tls`."""
        return self.tls.selected_alpn_protocol()

    def was_asked(self) -> bool:
        """See `Tls`. Where Python does not tell, it may have been."""
        return getattr(self.tls, _ASKED, not hasattr(ssl.SSLContext, "_msg_callback"))

    def peer_chain(self) -> tuple[bytes, ...]:
        """See `Tls`."""
        tls: Any = self.tls
        if hasattr(tls, "get_unverified_chain"):  # Python >= 3.13
            return tuple(tls.get_unverified_chain())
        chain = tls._sslobj.get_unverified_chain() or ()
        return tuple(ssl.PEM_cert_to_DER_cert(c.public_bytes()) for c in chain)
