"""Transmissions: batching, authorization, errors (wire.md, section 5). No I/O."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from smp_bridge import crypto
from smp_bridge.address import Scheme
from smp_bridge.encoding import ParseError, Reader, large, maybe, short

BLOCK_SIZE: Final[dict[Scheme, int]] = {"smp": 16384, "ntf": 512}
CORR_ID_SIZE: Final = 24
MAX_BATCH: Final = 255
_BATCH_OVERHEAD: Final = 19  # padding length 2, count 1, Poly1305 tag 16

_ED25519_SIZE: Final = 64
_ED448_SIZE: Final = 114
_AUTHENTICATOR_SIZE: Final = 80  # SHA-512 and a Poly1305 tag


AuthKey = crypto.AuthPrivateKey | bytes  # bytes: see `crypto.quick_private`


class UnknownTagError(ParseError):
    """A command or an answer that this side does not know."""


class Message:
    """A command or an answer: its tag, then a space and parameters if it has any."""

    __slots__ = ()
    tag: ClassVar[bytes]
    bare: ClassVar[bool] = True

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @classmethod
    def is_bare(cls, version: int) -> bool:
        """Whether it has no parameters, in the agreed protocol version."""
        return cls.bare

    def params(self, version: int) -> bytes:
        """The bytes after the tag and the space, in the agreed protocol version."""
        return b""

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Inverse of `params`. Raises ParseError."""
        return cls()

    def encode(self, version: int) -> bytes:
        """The bytes that a transmission carries."""
        return self.tag if self.is_bare(version) else self.tag + b" " + self.params(version)


M = TypeVar("M", bound=Message)


def tags(*types: type[M]) -> Mapping[bytes, type[M]]:
    """The table that `parse_message` takes."""
    return {t.tag: t for t in types}


def parse_message(table: Mapping[bytes, type[M]], data: bytes, version: int) -> M:
    """Parse one command or answer. Raises UnknownTagError, or ParseError for bad parameters."""
    tag, space, params = data.partition(b" ")
    cls = table.get(tag)
    if cls is None:
        raise UnknownTagError("unknown tag")
    if cls.is_bare(version) == bool(space):
        raise ParseError("parameters are missing or not expected")
    r = Reader(params)
    out = cls.parse_params(r, version)
    r.end()
    return out


_PLAIN_ERRORS: Final = frozenset(
    [
        "BLOCK",
        "SESSION",
        "AUTH",
        "SERVICE",
        "CRYPTO",
        "QUOTA",
        "EXPIRED",
        "NO_MSG",
        "LARGE_MSG",
        "INTERNAL",
        "DUPLICATE_",
    ]
)
_CMD_ERRORS: Final = frozenset(["UNKNOWN", "SYNTAX", "PROHIBITED", "NO_AUTH", "HAS_AUTH", "NO_ENTITY"])


@dataclass(frozen=True, slots=True)
class Err(Message):
    """An error answer: `code` such as `AUTH` or `CMD`, and its `detail` (`SYNTAX`, a text), empty if it has none."""

    tag = b"ERR"
    bare = False
    code: str
    detail: str = ""

    def params(self, version: int) -> bytes:
        """`CODE` or `CODE detail`."""
        return str(self).encode()

    @classmethod
    def parse_params(cls, r: Reader, version: int) -> Self:
        """Raises ParseError for a code that the protocol does not have."""
        code, _, detail = r.rest().decode("utf-8", "replace").partition(" ")
        if code == "CMD":
            detail = "NO_ENTITY" if detail == "NO_QUEUE" else detail  # name before SMP 7
            known = detail in _CMD_ERRORS
        else:
            known = code in {"STORE", "BLOCKED", "PROXY"} or (code in _PLAIN_ERRORS and not detail)
        if not known:
            raise ParseError("unknown error code")
        return cls(code, detail)

    def __str__(self) -> str:
        return f"{self.code} {self.detail}" if self.detail else self.code


ERR_AUTH: Final = Err("AUTH")
ERR_BLOCK: Final = Err("BLOCK")
ERR_INTERNAL: Final = Err("INTERNAL")
ERR_QUOTA: Final = Err("QUOTA")
ERR_SERVICE: Final = Err("SERVICE")
ERR_SESSION: Final = Err("SESSION")
ERR_HAS_AUTH: Final = Err("CMD", "HAS_AUTH")
ERR_NO_AUTH: Final = Err("CMD", "NO_AUTH")
ERR_PROHIBITED: Final = Err("CMD", "PROHIBITED")
ERR_SYNTAX: Final = Err("CMD", "SYNTAX")
ERR_UNKNOWN: Final = Err("CMD", "UNKNOWN")


@dataclass(frozen=True, slots=True)
class Service:
    """A service session of SMP >= 16: its id on the server and its Ed25519 session key (a client has it private)."""

    service_id: bytes = field(repr=False)
    certificate_hash: bytes = field(repr=False)
    key: Ed25519PrivateKey | Ed25519PublicKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Session:
    """What both handshakes agreed on.

    `server_key`: the server's X25519 session key, private on the server's side, None below SMP 7;
    `send_chain`, `receive_chain`: first chain keys of block encryption (SMP >= 11).
    """

    scheme: Scheme
    version: int
    session_id: bytes = field(repr=False)
    server_key: X25519PublicKey | X25519PrivateKey | None = field(default=None, repr=False)
    send_chain: bytes | None = field(default=None, repr=False)
    receive_chain: bytes | None = field(default=None, repr=False)
    service: Service | None = None

    @property
    def implied_session_id(self) -> bool:
        """Transmissions do not carry the session id."""
        return self.version >= (7 if self.scheme == "smp" else 2)

    @property
    def batch(self) -> bool:
        """A block is a batch of transmissions."""
        return self.scheme == "smp" or self.version >= 2

    @property
    def service_auth(self) -> bool:
        """Authorized transmissions have room for a service signature."""
        return self.scheme == "smp" and self.version >= 16

    @property
    def block_size(self) -> int:
        """Bytes of a block on the wire."""
        return BLOCK_SIZE[self.scheme]


@dataclass(frozen=True, slots=True)
class Transmission:
    """One parsed transmission; `authorized` is what its authenticator covers."""

    authenticator: bytes = field(repr=False)
    service_signature: bytes | None = field(repr=False)
    corr_id: bytes
    entity_id: bytes = field(repr=False)
    command: bytes = field(repr=False)
    authorized: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Invalid:
    """A transmission that can only be answered with an error, and with no entity id (wire.md, section 5).

    `corr_id` is empty where it was not read.
    """

    error: Err
    corr_id: bytes = b""


def encode_transmission(
    session: Session,
    corr_id: bytes,
    entity_id: bytes,
    command: bytes,
    key: AuthKey | None = None,
    *,
    as_service: bool = False,
) -> bytes:
    """One transmission, authorized by `key` if given, and also by the session's service if `as_service`.

    Raises CryptoError if an X25519 key is used in a session that has no server key (SMP 6), ParseError for a bad key.
    """
    body = short(corr_id) + short(entity_id) + command
    sent = body if session.implied_session_id else short(session.session_id) + body
    if key is None:
        return b"\0" + sent
    authorized = short(session.session_id) + body
    signature = None
    covered = authorized
    if as_service and session.service is not None and isinstance(session.service.key, Ed25519PrivateKey):
        signature = session.service.key.sign(authorized)
        covered = session.service.certificate_hash + authorized
    authenticator = short(_authenticate(session, key, corr_id, covered))
    if session.service_auth:
        authenticator += maybe(short(signature) if signature is not None else None)
    return authenticator + sent


def _authenticate(session: Session, key: AuthKey, corr_id: bytes, authorized: bytes) -> bytes:
    if isinstance(key, bytes):
        if seed := crypto.raw_ed25519(key):
            return crypto.sign_ed25519(seed, authorized)
        if (private := crypto.raw_x25519(key)) and isinstance(session.server_key, X25519PublicKey):
            return crypto.dh_box(private, session.server_key, *_to_box(corr_id, authorized))
        key = crypto.parse_quick_private(key)
    if not isinstance(key, X25519PrivateKey):
        return key.sign(authorized)
    if not isinstance(session.server_key, X25519PublicKey):
        raise crypto.CryptoError("this session has no server key to authenticate with")
    return _authenticator(crypto.dh(key, session.server_key), corr_id, authorized)


def _authenticator(secret: bytes, corr_id: bytes, authorized: bytes) -> bytes:
    return crypto.box(secret, *_to_box(corr_id, authorized))


def _to_box(corr_id: bytes, authorized: bytes) -> tuple[bytes, bytes]:
    """(nonce, plaintext) of an authenticator."""
    return corr_id[:24].ljust(24, b"\0"), hashlib.sha512(authorized).digest()


_DUMMY_OF_SIZE: Final[Mapping[int, crypto.AuthPublicKey]] = {
    _ED25519_SIZE: Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key(),
    _ED448_SIZE: Ed448PrivateKey.from_private_bytes(bytes(57)).public_key(),
    _AUTHENTICATOR_SIZE: X25519PrivateKey.from_private_bytes(bytes(32)).public_key(),
}


_NOBODYS: Final = {size: crypto.encode_public(key) for size, key in _DUMMY_OF_SIZE.items()}


def nobodys_key(t: Transmission) -> bytes:
    """DER of a key, of the type of the authenticator, that authorizes nothing: where there is no entity, so that to
    parse and to try it takes as long as another's.
    """
    return _NOBODYS.get(len(t.authenticator), _NOBODYS[_ED25519_SIZE])


def verify_transmission(session: Session, t: Transmission, key: crypto.AuthPublicKey | None) -> bool:
    """Whether `key` authorized `t`, and the session's service did where `t` says so, on the server's side.

    Takes the same time when there is no key or one of another type: a dummy key of the authenticator's type stands in.
    """
    expected = _DUMMY_OF_SIZE.get(len(t.authenticator))
    if expected is None:
        return False
    matches = type(key) is type(expected)
    used = key if key is not None and matches else expected
    covered = t.authorized
    if t.service_signature is not None and session.service is not None:
        covered = session.service.certificate_hash + covered
    by_service = t.service_signature is None or verify_service(session, t)
    return _verify(session, t, used, covered) and by_service and matches


def verify_service(session: Session, t: Transmission) -> bool:
    """Whether `t` carries a good signature by the session's service, on the server's side."""
    if t.service_signature is None or session.service is None:
        return False
    key = session.service.key
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return crypto.verify(public, t.service_signature, t.authorized)


def _verify(session: Session, t: Transmission, key: crypto.AuthPublicKey, authorized: bytes) -> bool:
    if not isinstance(key, X25519PublicKey):
        return crypto.verify(key, t.authenticator, authorized)
    if not isinstance(session.server_key, X25519PrivateKey):
        return False
    try:
        secret = crypto.dh(session.server_key, key)
    except crypto.CryptoError:
        return False
    return hmac.compare_digest(_authenticator(secret, t.corr_id, authorized), t.authenticator)


def encode_blocks(session: Session, transmissions: Iterable[bytes]) -> list[bytes]:
    """Contents of as few blocks as hold the transmissions, in order. Raises ValueError if one is too large."""
    if not session.batch:
        return [_fitting(t, session.block_size - 2) for t in transmissions]
    blocks: list[Block] = []
    for t in transmissions:
        if not blocks or not blocks[-1].add(t):
            blocks.append(Block(session))
            blocks[-1].add(t)
    return [block.content for block in blocks]


class Block:
    """A block that is being filled, for sessions that batch."""

    def __init__(self, session: Session) -> None:
        self._room = session.block_size - _BATCH_OVERHEAD
        self._items: list[bytes] = []

    def __len__(self) -> int:
        return len(self._items)

    def add(self, transmission: bytes) -> bool:
        """Whether it still fits. Raises ValueError if it would fit no block."""
        item = large(transmission)
        if len(item) > self._room or len(self) == MAX_BATCH:
            if not self:
                raise ValueError("transmission too large for a block")
            return False
        self._room -= len(item)
        self._items.append(item)
        return True

    @property
    def content(self) -> bytes:
        """What `parse_block` takes."""
        return len(self).to_bytes(1, "big") + b"".join(self._items)


def _fitting(b: bytes, room: int) -> bytes:
    if len(b) > room:
        raise ValueError("transmission too large for a block")
    return b


def parse_block(session: Session, content: bytes) -> list[Transmission | Invalid]:
    """The transmissions of a block, in order; what does not parse comes as Invalid. Never raises."""
    if not session.batch:
        return [_parse_transmission(session, content)]
    r = Reader(content)
    try:
        raw = r.listing(r.large, non_empty=True)
        r.end()
    except ParseError:
        return [Invalid(ERR_BLOCK)]
    return [_parse_transmission(session, t) for t in raw]


def _parse_transmission(session: Session, raw: bytes) -> Transmission | Invalid:
    r = Reader(raw)
    signature: bytes | None = None
    try:
        authenticator = r.short()
        if authenticator and session.service_auth:
            signature = r.maybe(r.short)
        start = r.pos
        session_id = session.session_id if session.implied_session_id else r.short()
        corr_id, entity_id = r.short(), r.short()
    except ParseError:
        return Invalid(ERR_BLOCK)
    if session_id != session.session_id:
        return Invalid(ERR_SESSION, corr_id)
    if (authenticator and len(authenticator) not in _DUMMY_OF_SIZE) or (
        signature is not None and len(signature) != _ED25519_SIZE
    ):
        return Invalid(ERR_BLOCK, corr_id)
    authorized = raw[start:]
    if session.implied_session_id:
        authorized = short(session_id) + authorized
    return Transmission(authenticator, signature, corr_id, entity_id, r.rest(), authorized)
