"""TLS for servers that ask for a client certificate and take any (wire.md, sections 3 and 4).

Python's ssl module either verifies a client's certificate or does not ask for one; a service's is pinned by its hash.
"""

import contextlib
import ssl
from collections.abc import Iterator
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

from smp_bridge.address import Scheme
from smp_bridge.identity import Credentials
from smp_bridge.tls import CIPHERS_TLS_1_2, TlsClosedError

_CIPHERS_TLS_1_3: Final = b"TLS_CHACHA20_POLY1305_SHA256"
_GROUPS: Final = b"X448:X25519"
_SIGNATURES: Final = b"ed448:ed25519"
_READ_SIZE: Final = 65536


def show_web_page(context: ssl.SSLContext, web: ssl.SSLContext) -> None:
    """Who names a host (SNI) is answered with another certificate, as by an smp-server with a web page on its port."""

    def choose(tls: ssl.SSLObject, host: str | None, _: ssl.SSLContext) -> None:
        if host is not None:
            tls.context = web

    context.sni_callback = choose


def service_context(scheme: Scheme, credentials: Credentials, web: Credentials | None = None) -> SSL.Context:
    """TLS for a server that takes services: what the reference offers, and nothing else (wire.md, section 3).

    `web`: shown to who names a host, as by `show_web_page`. Raises ssl.SSLError if OpenSSL refuses the credentials.
    pyOpenSSL cannot keep TLS 1.3 from sending tickets; without a cache they resume nothing.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    with _errors():
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_cipher_list(CIPHERS_TLS_1_2.encode())
        context.set_tls13_ciphersuites(_CIPHERS_TLS_1_3)
        _offer_only(context)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
        context.use_certificate(credentials.chain[0])
        for certificate in credentials.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(credentials.key)
        context.check_privatekey()
    protocol = f"{scheme}/1".encode()

    context.set_alpn_select_callback(
        lambda _, offered: protocol if protocol in offered else SSL.NO_OVERLAPPING_PROTOCOLS
    )
    if web is not None:
        page = service_context(scheme, web)
        context.set_tlsext_servername_callback(lambda c: c.set_context(page) if c.get_servername() else None)
    return context


def _offer_only(context: SSL.Context) -> None:
    """Groups and signatures, which pyOpenSSL has no methods for."""
    lib, raw = SSL._lib, context._context  # type: ignore[attr-defined]
    if not (lib.SSL_CTX_set1_curves_list(raw, _GROUPS) and lib.SSL_CTX_set1_sigalgs_list(raw, _SIGNATURES)):
        raise ssl.SSLError("OpenSSL does not know the groups or signatures of SMP")


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """pyOpenSSL's errors as those of the ssl module."""
    try:
        yield
    except SSL.ZeroReturnError as e:
        raise TlsClosedError from e
    except SSL.Error as e:
        error = ssl.SSLError(str(e))
        error.reason = _reason(e)
        raise error from e


def _reason(e: SSL.Error) -> str:
    match e.args:
        case ([(_, _, reason), *_],):
            return str(reason)
        case (_, str(text)):  # SysCallError
            return text
        case _:
            return type(e).__name__


class OpenSslTls:
    """`smp_bridge.tls.Tls` by pyOpenSSL, for servers."""

    def __init__(self, context: SSL.Context) -> None:
        self._tls = SSL.Connection(context, None)
        self._tls.set_accept_state()

    def feed(self, data: bytes | memoryview) -> None:
        """See `Tls`."""
        if data:
            with _errors():
                self._tls.bio_write(bytes(data))

    def handshake(self) -> bool:
        """See `Tls`."""
        with _errors():
            try:
                self._tls.do_handshake()
            except SSL.WantReadError:
                return False
        return True

    def read_into(self, buffer: memoryview) -> int:
        """See `Tls`."""
        with _errors():
            try:
                return self._tls.recv_into(buffer)
            except SSL.WantReadError:
                return 0

    def write(self, data: bytes) -> None:
        """See `Tls`."""
        with _errors():
            self._tls.sendall(data)

    def output(self) -> bytes:
        """See `Tls`."""
        out = b""
        with contextlib.suppress(SSL.WantReadError):
            while True:
                out += self._tls.bio_read(_READ_SIZE)
        return out

    def close(self) -> None:
        """See `Tls`."""
        with contextlib.suppress(SSL.Error):
            self._tls.shutdown()

    def finished(self) -> bytes:
        """See `Tls`. Without resumption it is what the client sent, in TLS 1.2 as in 1.3."""
        return self._tls.get_peer_finished() or b""

    def alpn(self) -> str | None:
        """See `Tls`."""
        return self._tls.get_alpn_proto_negotiated().decode() or None

    def was_asked(self) -> bool:
        """See `Tls`."""
        return False

    def peer_chain(self) -> tuple[bytes, ...]:
        """See `Tls`."""
        leaf = self._tls.get_peer_certificate(as_cryptography=True)
        if leaf is None:
            return ()
        above = self._tls.get_peer_cert_chain(as_cryptography=True) or []  # a server's is without the leaf
        return tuple(c.public_bytes(Encoding.DER) for c in (leaf, *above))
