"""What a device has to remember, and the file that it is kept in."""

import contextlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto
from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.encoding import ParseError, Reader, b64url, un_b64url
from smp_bridge.ntf import DeviceToken, Provider

FORMAT: Final = "ntf-client device"
VERSION: Final = 1
SECRET_SIZE: Final = 32
MAX_ID_SIZE: Final = 255  # a `short`


class StateError(Exception):
    """The state file is missing, broken, not ours, too new, or cannot be written. One line, with the file's name."""


class StateNotFoundError(StateError):
    """There is no state file."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscribed queue. `secret`: DH secret of its notification keys (32 bytes), None if only an app knows it."""

    subscription_id: bytes = field(repr=False)
    server: ServerAddress
    notifier_id: bytes = field(repr=False)
    secret: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device: its keys, and what the server gave. `token_id` and `secret` are None until it is registered."""

    server: ServerAddress
    token: DeviceToken
    verify_key: Ed25519PrivateKey = field(repr=False)
    dh_key: X25519PrivateKey = field(repr=False)
    token_id: bytes | None = field(default=None, repr=False)
    secret: bytes | None = field(default=None, repr=False)
    subscriptions: tuple[Subscription, ...] = ()

    @classmethod
    def new(cls, server: ServerAddress, token: DeviceToken) -> Self:
        """A device that is not registered yet, with new keys."""
        return cls(server, token, Ed25519PrivateKey.generate(), X25519PrivateKey.generate())


# The file: JSON, bytes as base64url, keys as DER.


class _Head(msgspec.Struct):
    format: str = ""
    version: int = 0


class _Subscription(msgspec.Struct, omit_defaults=True):
    id: str
    server: str
    notifier_id: str
    secret: str | None = None


class _File(msgspec.Struct, omit_defaults=True):
    server: str
    provider: str
    device_token: str
    verify_key: str
    dh_key: str
    format: str = ""
    version: int = 0
    token_id: str | None = None
    secret: str | None = None
    subscriptions: list[_Subscription] = []


def load(path: Path) -> DeviceState:
    """Read a device's state. Raises StateError, StateNotFoundError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise StateNotFoundError(f"{path}: there is no such state file; register a device first") from None
    except (OSError, ValueError) as e:
        raise StateError(f"{path}: cannot be read: {_reason(e)}") from e
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.format != FORMAT:
            raise StateError(f"{path}: is not a state file of ntf-client")
        if head.version > VERSION:
            raise StateError(f"{path}: was written by a newer ntf-client (format {head.version}, here {VERSION})")
        if head.version < 1:
            raise ParseError("no version")
        return _parse(msgspec.json.decode(data, type=_File))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ParseError) as e:
        raise StateError(f"{path}: is broken: {e}") from e


def save(path: Path, state: DeviceState) -> None:
    """Create or replace the file at once, with mode 0600. Raises StateError; then the old one is still there."""
    data = encode(state)
    temporary: str | None = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        with os.fdopen(descriptor, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        Path(temporary).replace(path)
        _sync_directory(path.parent)
    except (OSError, ValueError) as e:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink(missing_ok=True)
        raise StateError(f"{path}: cannot be written: {_reason(e)}") from e


def encode(state: DeviceState) -> bytes:
    """The file's content."""
    return msgspec.json.format(msgspec.json.encode(_file(state)), indent=2) + b"\n"


def remove(path: Path) -> None:
    """Delete the file, if there is one. Raises StateError."""
    try:
        path.unlink(missing_ok=True)
    except (OSError, ValueError) as e:
        raise StateError(f"{path}: cannot be deleted: {_reason(e)}") from e


def _sync_directory(directory: Path) -> None:
    """A rename survives a power cut only when its directory is on disk; not every file system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(e: Exception) -> str:
    return (e.strerror if isinstance(e, OSError) else None) or str(e)


def _file(state: DeviceState) -> _File:
    subscriptions = [
        _Subscription(b64url(s.subscription_id), str(s.server), b64url(s.notifier_id), _text(s.secret))
        for s in state.subscriptions
    ]
    return _File(
        str(state.server),
        state.token.provider.value,
        b64url(state.token.token),
        b64url(crypto.encode_private(state.verify_key)),
        b64url(crypto.encode_private(state.dh_key)),
        FORMAT,
        VERSION,
        _text(state.token_id),
        _text(state.secret),
        subscriptions,
    )


def _text(b: bytes | None) -> str | None:
    return None if b is None else b64url(b)


def _parse(f: _File) -> DeviceState:
    """Raises ParseError."""
    verify_key, dh_key = (crypto.parse_private(un_b64url(key)) for key in (f.verify_key, f.dh_key))
    if not isinstance(verify_key, Ed25519PrivateKey) or not isinstance(dh_key, X25519PrivateKey):
        raise ParseError("a key is of the wrong type")
    if (f.token_id is None) != (f.secret is None):
        raise ParseError("token_id and secret go together")
    try:
        provider = Provider(f.provider)
    except ValueError as e:
        raise ParseError("unknown push provider") from e
    return DeviceState(
        _address(f.server, "ntf"),
        _device_token(provider, un_b64url(f.device_token)),
        verify_key,
        dh_key,
        None if f.token_id is None else parse_id(f.token_id),
        None if f.secret is None else parse_secret(f.secret),
        tuple(_parse_subscription(s) for s in f.subscriptions),
    )


def _device_token(provider: Provider, token: bytes) -> DeviceToken:
    """One that can be registered. Raises ParseError."""
    try:
        r = Reader(DeviceToken(provider, token).encode())
    except ValueError as e:
        raise ParseError("a device token has 255 bytes at most") from e
    out = DeviceToken.parse(r)
    r.end()
    return out


def _parse_subscription(s: _Subscription) -> Subscription:
    secret = None if s.secret is None else parse_secret(s.secret)
    return Subscription(parse_id(s.id), _address(s.server, "smp"), parse_id(s.notifier_id), secret)


def _address(text: str, scheme: Scheme) -> ServerAddress:
    address = ServerAddress.from_text(text)
    if address.scheme != scheme:
        raise ParseError(f"not an {scheme}:// address")
    return address


def parse_id(text: str) -> bytes:
    """An entity's id from base64url. Raises ParseError."""
    out = un_b64url(text)
    if not 0 < len(out) <= MAX_ID_SIZE:
        raise ParseError("an id has 1 to 255 bytes")
    return out


def parse_secret(text: str) -> bytes:
    """A DH secret from base64url. Raises ParseError."""
    out = un_b64url(text)
    if len(out) != SECRET_SIZE:
        raise ParseError("a secret has 32 bytes")
    return out
