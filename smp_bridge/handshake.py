"""Both handshakes as state machines (wire.md, section 4). No I/O: keys and certificates are handed in.

The server speaks first. Every message is the content of one padded, unencrypted block.
"""

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from smp_bridge import crypto, ntf, smp
from smp_bridge.address import Scheme
from smp_bridge.encoding import ParseError, Reader, boolean, large, listing, maybe, short, word16
from smp_bridge.identity import IdentityError, verify_chain
from smp_bridge.transmission import Service, Session

Versions = tuple[int, int]

VERSIONS: Final[dict[Scheme, Versions]] = {"smp": smp.VERSIONS, "ntf": ntf.VERSIONS}
LEGACY_VERSIONS: Final[dict[Scheme, Versions]] = {"smp": smp.LEGACY_VERSIONS, "ntf": ntf.LEGACY_VERSIONS}
_SESSION_KEY: Final[dict[Scheme, int]] = {"smp": smp.AUTH_KEY, "ntf": ntf.AUTH_BATCH}


class HandshakeError(ValueError):
    """The peer is not whom it should be, or no version is common: the connection must be closed."""


class IdentityMismatchError(HandshakeError):
    """The server is not the one that the address names: someone may be impersonating it."""


class ServiceRefusedError(HandshakeError):
    """The server does not take the client as a service."""


class ServiceUnreadyError(HandshakeError):
    """The server cannot read or write what it keeps of the service, for now (`HANDSHAKE BAD_SERVICE`)."""


@dataclass(frozen=True, slots=True)
class ServerHello:
    """Step 1. `chain` is sent in SMP only; `key` from SMP 7 and NTF 2."""

    versions: Versions
    session_id: bytes = field(repr=False)
    chain: tuple[bytes, ...] = field(default=(), repr=False)
    key: crypto.SignedKey | None = None

    def encode(self, scheme: Scheme) -> bytes:
        """Version range, `short` session id, what the highest version adds."""
        out = word16(self.versions[0]) + word16(self.versions[1]) + short(self.session_id)
        if self.versions[1] < _SESSION_KEY[scheme] or self.key is None:
            return out
        if scheme == "smp":
            out += listing(large(c) for c in self.chain)
        return out + self.key.encode()

    @classmethod
    def parse(cls, content: bytes, scheme: Scheme) -> Self:
        """Trailing bytes are ignored. Raises ParseError."""
        r = Reader(content)
        versions = r.word16(), r.word16()
        if versions[0] > versions[1]:
            raise ParseError("bad version range")
        session_id = r.short()
        if versions[1] < _SESSION_KEY[scheme]:
            return cls(versions, session_id)
        chain = tuple(r.listing(r.large)) if scheme == "smp" else ()
        return cls(versions, session_id, chain, crypto.SignedKey.parse(r.large()))


@dataclass(frozen=True, slots=True)
class ServiceHello:
    """A service in a client's hello (SMP >= 16): its role, certificate chain and signed Ed25519 session key."""

    chain: tuple[bytes, ...] = field(repr=False)
    key: crypto.SignedKey = field(repr=False)
    role: bytes = b"N"

    def encode(self) -> bytes:
        """Role, list of `large` certificates, signed key."""
        return self.role + listing(large(c) for c in self.chain) + self.key.encode()

    @classmethod
    def parse(cls, r: Reader) -> Self:
        """Raises ParseError."""
        role = r.take(1)
        chain = tuple(r.listing(r.large))
        return cls(chain, crypto.SignedKey.parse(r.large()), role)


@dataclass(frozen=True, slots=True)
class ClientHello:
    """Step 2. `key`: the client's X25519 session key (SMP >= 7)."""

    version: int
    key_hash: bytes
    key: X25519PublicKey | None = field(default=None, repr=False)
    service: ServiceHello | None = None

    def encode(self, scheme: Scheme) -> bytes:
        """word16 version, `short` key hash, what the version adds."""
        out = word16(self.version) + short(self.key_hash)
        if scheme == "ntf" or self.version < smp.AUTH_KEY or self.key is None:
            return out
        out += short(crypto.encode_public(self.key))
        if self.version >= smp.PROXY_FLAG:
            out += boolean(False)
        if self.version >= smp.SERVICES:
            out += maybe(self.service.encode() if self.service else None)
        return out

    @classmethod
    def parse(cls, content: bytes, scheme: Scheme) -> Self:
        """Trailing bytes are ignored. Raises ParseError."""
        r = Reader(content)
        version, key_hash = r.word16(), r.short()
        if scheme == "ntf" or version < smp.AUTH_KEY:
            return cls(version, key_hash)
        key = crypto.parse_x25519(r.short())
        if version >= smp.PROXY_FLAG:
            r.boolean()
        service = r.maybe(lambda: ServiceHello.parse(r)) if version >= smp.SERVICES else None
        return cls(version, key_hash, key, service)


def _chains(scheme: Scheme, version: int, session_id: bytes, secret: bytes | None) -> tuple[bytes | None, bytes | None]:
    """(server to client, client to server) chain keys, where blocks are encrypted."""
    if scheme == "ntf" or version < smp.BLOCK_ENCRYPTION or secret is None:
        return None, None
    return crypto.sb_chain_init(session_id, secret)


def service_hash(chain: Sequence[bytes]) -> bytes:
    """What a service is known by: SHA-256 of its identity certificate; one alone is its own identity."""
    return crypto.key_hash(chain[min(1, len(chain) - 1)])


ServiceIds = Callable[[ServiceHello], bytes]

_BAD_AUTH: Final = b"EHANDSHAKE BAD_AUTH"
_BAD_SERVICE: Final = b"EHANDSHAKE BAD_SERVICE"


class ServerHandshake:
    """The server's side. `hello` is the first message to send; `receive` takes the client's answer.

    `peer_chain`: the TLS client's certificates (DER, leaf first); `services` gives the id of a service whose
    certificates were checked, or raises HandshakeError to refuse it; None refuses all.
    `answer` is there after `receive`, even if that raises, where the client showed a service: step 3, to be sent
    before blocks are encrypted.
    """

    def __init__(
        self,
        scheme: Scheme,
        session_id: bytes,
        chain: Sequence[bytes],
        signer: crypto.SignPrivateKey,
        key: X25519PrivateKey,
        *,
        alpn: bool,
        now: datetime.datetime,
        versions: Versions | None = None,
        peer_chain: Sequence[bytes] = (),
        services: ServiceIds | None = None,
    ) -> None:
        self._scheme = scheme
        self._session_id = session_id
        self._key_hash = crypto.key_hash(chain[1])
        self._key = key
        self._peer_chain = tuple(peer_chain)
        self._services = services
        self._now = now
        self.answer: bytes | None = None
        self._versions = (versions or VERSIONS[scheme]) if alpn else LEGACY_VERSIONS[scheme]
        signed = crypto.SignedKey.sign(signer, key.public_key())
        self.hello = ServerHello(self._versions, session_id, tuple(chain), signed).encode(scheme)

    def receive(self, content: bytes) -> Session:
        """The client's hello. Raises HandshakeError: wrong key hash, version out of range, bad bytes, bad service."""
        try:
            hello = ClientHello.parse(content, self._scheme)
        except ParseError as e:
            raise HandshakeError("the client's hello does not parse") from e
        if hello.key_hash != self._key_hash:
            raise HandshakeError("the client wants another identity")
        if not self._versions[0] <= hello.version <= self._versions[1]:
            raise HandshakeError("the client's version is out of range")
        try:
            secret = crypto.dh(self._key, hello.key) if hello.key else None
        except crypto.CryptoError as e:
            raise HandshakeError("the client's session key is bad") from e
        send, receive = _chains(self._scheme, hello.version, self._session_id, secret)
        key = self._key if hello.version >= _SESSION_KEY[self._scheme] else None
        service = self._take_service(hello.service) if hello.service else None
        return Session(self._scheme, hello.version, self._session_id, key, send, receive, service)

    def _take_service(self, hello: ServiceHello) -> Service:
        self.answer = _BAD_AUTH
        if not self._peer_chain or hello.chain != self._peer_chain:
            raise HandshakeError("the service's chain differs from TLS's")
        key_hash = service_hash(hello.chain)
        chain = hello.chain if len(hello.chain) > 1 else hello.chain * 2
        try:
            leaf = verify_chain(chain, key_hash, self._now)
        except IdentityError as e:
            raise HandshakeError(f"the service's certificates are bad: {e}") from e
        if not isinstance(hello.key.key, Ed25519PublicKey) or not hello.key.verify(leaf):
            raise HandshakeError("the service's session key is not Ed25519, or not signed by its certificate")
        if hello.role != b"N" or self._services is None:
            raise HandshakeError("this server takes no such services")
        try:
            service_id = self._services(hello)
        except ServiceUnreadyError:
            self.answer = _BAD_SERVICE
            raise
        self.answer = b"R" + short(service_id)
        return Service(service_id, key_hash, hello.key.key)


@dataclass(frozen=True, slots=True)
class ServiceCredentials:
    """A service's certificate chain (DER, leaf first), the leaf's key, and an Ed25519 key for this session."""

    chain: tuple[bytes, ...] = field(repr=False)
    signer: crypto.SignPrivateKey = field(repr=False)
    session_key: Ed25519PrivateKey = field(repr=False)

    def hello(self) -> ServiceHello:
        """What the client's hello carries."""
        return ServiceHello(self.chain, crypto.SignedKey.sign(self.signer, self.session_key.public_key()))


class ClientHandshake:
    """The client's side. `receive` takes the server's messages; `session` is there when it is over.

    `chain` is the server's TLS chain, already checked (`identity.verify_chain`); `session_id` is TLS's.
    """

    def __init__(
        self,
        scheme: Scheme,
        session_id: bytes,
        chain: Sequence[bytes],
        key_hash: bytes,
        key: X25519PrivateKey,
        *,
        versions: Versions | None = None,
        service: ServiceCredentials | None = None,
    ) -> None:
        self._scheme = scheme
        self._session_id = session_id
        self._chain = tuple(chain)
        self._key_hash = key_hash
        self._key = key
        self._versions = versions or VERSIONS[scheme]
        self._service = service
        self._pending: Session | None = None
        self.session: Session | None = None

    def receive(self, content: bytes) -> bytes | None:
        """Take a message, give the answer to send, if any. Raises HandshakeError."""
        try:
            if self._pending is not None:
                self.session = self._take_service_answer(self._pending, Reader(content))
                return None
            return self._take_hello(ServerHello.parse(content, self._scheme))
        except (ParseError, crypto.CryptoError) as e:
            raise HandshakeError(f"the server's handshake is bad: {e}") from e

    def _take_hello(self, hello: ServerHello) -> bytes:
        if hello.session_id != self._session_id:
            raise HandshakeError("the server's session id is not TLS's")
        version = min(hello.versions[1], self._versions[1])
        if version < max(hello.versions[0], self._versions[0]):
            raise HandshakeError("no common version")
        server_key = self._check_key(hello)
        if version < _SESSION_KEY[self._scheme]:
            server_key = None
        key = self._key.public_key() if version >= smp.AUTH_KEY and self._scheme == "smp" else None
        secret = crypto.dh(self._key, server_key) if key and server_key else None
        receive, send = _chains(self._scheme, version, self._session_id, secret)
        session = Session(self._scheme, version, self._session_id, server_key, send, receive)
        service = self._service if version >= smp.SERVICES and self._scheme == "smp" else None
        if service:
            self._pending = session
        else:
            self.session = session
        return ClientHello(version, self._key_hash, key, service.hello() if service else None).encode(self._scheme)

    def _check_key(self, hello: ServerHello) -> X25519PublicKey | None:
        if hello.key is None:
            return None
        if self._scheme == "smp" and hello.chain != self._chain:
            raise IdentityMismatchError("the server's chain differs from TLS's")
        leaf = x509.load_der_x509_certificate(self._chain[0]).public_key()
        if not hello.key.verify(leaf):
            raise IdentityMismatchError("the server's session key is not signed by its certificate")
        if not isinstance(hello.key.key, X25519PublicKey):
            raise HandshakeError("the server's session key is not X25519")
        return hello.key.key

    def _take_service_answer(self, session: Session, r: Reader) -> Session:
        if not r.choice({b"R": True, b"E": False}):
            if r.rest() == _BAD_SERVICE[1:]:
                raise ServiceUnreadyError("the server cannot take the service now")
            raise ServiceRefusedError("the server refused the service")
        assert self._service is not None
        service = Service(r.short(), service_hash(self._service.chain), self._service.session_key)
        return replace(session, service=service)
