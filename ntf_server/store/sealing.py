"""Encryption at rest: a master key that lives outside the database wraps the database key, which seals values.

AES-256-GCM (NIST SP 800-38D) with random 96-bit nonces, good for 2**32 values a key (section 8.3); subkeys by
HKDF-SHA256 (RFC 5869). A sealed value is nonce, ciphertext, tag: 28 bytes longer than what is in it.
"""

import base64
import contextlib
import hmac
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ntf_server.permissions import user_name
from smp_bridge.ntf import Provider

# Where a sealed value belongs: what it is of which record, before the record's public id.
DEVICE_TOKEN: Final = b"tokens.device_token:"
CLIENT_DH: Final = b"tokens.client_dh:"
SERVER_DH: Final = b"tokens.server_dh:"
SECRET: Final = b"tokens.secret:"
CODE: Final = b"tokens.code:"
SERVER_PRIVATE: Final = b"tokens.server_private:"
NOTIFIER_KEY: Final = b"subscriptions.notifier_key:"
SERVICE_KEY: Final = b"servers.certificate_key:"

KEY_SIZE: Final = 32
ANOTHER_KEY: Final = "restore that one from your copy, or set [store] url to a new store"  # the cure
COMMAND_TIMEOUT: Final = 30.0
_NONCE: Final = 12
_TAG: Final = 16
_KEY_ID: Final = 8
_WRAPPED: Final = _KEY_ID + _NONCE + KEY_SIZE + _TAG
_FORMS: Final = "give 32 random bytes: raw, as 64 hex digits, or as base64"
_TRY: Final = "run it as user {} until it prints the key"
_URL_SAFE: Final = str.maketrans("-_", "+/")


class SealingError(Exception):
    """One line: what is wrong with a key or a sealed value, never showing it."""


class WrongMasterKeyError(SealingError):
    """The database key was wrapped by another master key."""


def generate_key_text() -> str:
    """A new master key, for a file or an environment variable: base64url, 43 characters."""
    return base64.urlsafe_b64encode(os.urandom(KEY_SIZE)).rstrip(b"=").decode()


class MasterKey:
    """The key of keys, 32 bytes; `key_id` (8 bytes) names it and tells nothing about it."""

    __slots__ = ("_aead", "key_id")

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_SIZE:
            raise SealingError(f"the master key has {len(key)} bytes; {_FORMS}")
        self._aead = AESGCM(_derive(key, b"ntf-relay master key: wrap", KEY_SIZE))
        self.key_id: Final = _derive(key, b"ntf-relay master key: id", _KEY_ID)

    def __repr__(self) -> str:
        return f"MasterKey({self.key_id.hex()})"

    @classmethod
    def from_bytes(cls, data: bytes, source: str = "the master key") -> Self:
        """What a file or a command holds: raw, hex or base64; a newline may end it. Raises SealingError."""
        # 32 printable characters are a shorter key's hex or a password, never random bytes (1 in 10**13).
        for raw in (data, data.removesuffix(b"\n")):
            if len(raw) == KEY_SIZE and not (raw.isascii() and raw.decode().strip().isprintable()):
                return cls(raw)
        if not data.isascii():
            raise SealingError(f"{source}: {len(data)} bytes are no master key; {_FORMS}")
        return cls.from_text(data.decode(), source)

    @classmethod
    def from_text(cls, text: str, source: str = "the master key") -> Self:
        """Hex or base64 (either alphabet), white space around it allowed. Raises SealingError."""
        text = text.strip()
        if not text:
            raise SealingError(f"{source}: is empty; {_FORMS}")
        if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
            return cls(bytes.fromhex(text))
        if re.fullmatch(r"[0-9A-Za-z_+/-]{43}=?", text):  # `openssl rand -base64 32` too
            return cls(base64.b64decode(text[:43].translate(_URL_SAFE) + "="))
        raise SealingError(f"{source}: {len(text)} characters that are no master key; {_FORMS}")

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Raises SealingError."""
        try:
            with path.open("rb") as file:
                data = file.read(4096)
        except OSError as e:
            raise SealingError(f"{path}: {e.strerror}") from e
        return cls.from_bytes(data, str(path))

    @classmethod
    def from_command(cls, command: str | Sequence[str], timeout: float = COMMAND_TIMEOUT) -> Self:
        """Standard output of a program (a KMS client), run without a shell for at most `timeout` seconds.

        Blocks. Its standard error is ours. Raises SealingError, which names the program but not its arguments.
        """
        argv = _split(command)
        output = _run(argv, timeout)
        return cls.from_bytes(output, f"the output of {argv[0]}")

    def wrap(self, database_key: bytes) -> bytes:
        """The database key for storage, 68 bytes."""
        nonce = os.urandom(_NONCE)
        return self.key_id + nonce + self._aead.encrypt(nonce, database_key, b"keys.wrapped")

    def unwrap(self, wrapped: bytes) -> bytes:
        """The database key. Raises WrongMasterKeyError, SealingError (damaged)."""
        if len(wrapped) != _WRAPPED:
            raise SealingError(f"the wrapped database key has {len(wrapped)} bytes instead of {_WRAPPED}")
        key_id, nonce, data = wrapped[:_KEY_ID], wrapped[_KEY_ID : _KEY_ID + _NONCE], wrapped[_KEY_ID + _NONCE :]
        try:
            return self._aead.decrypt(nonce, data, b"keys.wrapped")
        except InvalidTag:
            pass
        if key_id != self.key_id:
            raise WrongMasterKeyError(f"it is {self.key_id.hex()}, and should be {key_id.hex()}")
        raise SealingError("the wrapped database key is damaged")


class Sealer:
    """Seals values with subkeys of a database key (32 bytes)."""

    __slots__ = ("_aead", "_lookup_key")

    def __init__(self, database_key: bytes) -> None:
        self._aead = AESGCM(_derive(database_key, b"ntf-relay database key: seal", KEY_SIZE))
        self._lookup_key = _derive(database_key, b"ntf-relay database key: lookup", KEY_SIZE)

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """`context`: where the value belongs, as `b"table.column:" + public id of the row`; needed to open it."""
        nonce = os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, plain, context)

    def open(self, sealed: bytes, context: bytes) -> bytes:
        """Raises SealingError if it was changed, was sealed with another key or belongs elsewhere."""
        try:
            return self._aead.decrypt(sealed[:_NONCE], sealed[_NONCE:], context)
        except (InvalidTag, ValueError):  # ValueError: too short
            where = context.partition(b":")[0].decode("latin-1")
            raise SealingError(f"a sealed value of {where} cannot be opened: it was changed or moved") from None

    def lookup(self, provider: str, device_token: bytes) -> bytes:
        """What a device token is found by: HMAC-SHA256, 32 bytes; without the key it tells nothing.

        That of APNs is hex: upper or lower case, it is the same.
        """
        name = provider.encode()
        if provider in _HEX and _HEX_DIGITS.fullmatch(device_token):
            device_token = device_token.lower()
        return hmac.digest(self._lookup_key, bytes([len(name)]) + name + device_token, "sha256")

    def fingerprint(self, provider: str, device_token: bytes) -> str:
        """What operators see in place of a device token: 12 hex digits; the beginning of `lookup`."""
        return fingerprint(self.lookup(provider, device_token))

    def origin(self, origin: str) -> bytes:
        """What stands for a push service's origin: HMAC-SHA256, 16 bytes; empty for none."""
        return hmac.digest(self._lookup_key, b"\x06origin" + origin.encode(), "sha256")[:16] if origin else b""

    def mask(self, text: bytes) -> bytes:
        """What stands for an address or the like: HMAC-SHA256, 16 bytes."""
        return hmac.digest(self._lookup_key, b"\x06budget" + text, "sha256")[:16]


_FINGERPRINT: Final = 6  # bytes
_HEX: Final = frozenset([Provider.APNS, Provider.APNS_SANDBOX, Provider.APNS_TEST])
_HEX_DIGITS: Final = re.compile(rb"[0-9A-Fa-f]+")


def fingerprint(lookup: bytes) -> str:
    """Of what a device token is found by."""
    return lookup[:_FINGERPRINT].hex()


def _derive(key: bytes, purpose: bytes, size: int) -> bytes:
    return HKDF(SHA256(), size, None, purpose).derive(key)


def _split(command: str | Sequence[str]) -> list[str]:
    try:
        argv = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as e:
        raise SealingError(f"the master key's command: {str(e).lower()}; mend it") from None
    if not argv or not argv[0]:
        raise SealingError("the master key's command is empty; give a program and its arguments")
    return argv


def _run(argv: Sequence[str], timeout: float) -> bytes:
    name = f"the master key's command {argv[0]}"
    try:
        # A group of its own: what it started must end with it.
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0)  # noqa: S603
    except OSError as e:
        raise SealingError(f"{name}: {e.strerror}; give the path of a program that user {user_name()} may run") from e
    except ValueError:  # a NUL in it
        raise SealingError(f"{name}: cannot be run; mend it") from None
    with process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException as e:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(e, subprocess.TimeoutExpired):
                raise SealingError(
                    f"{name}: gave nothing within {timeout:g} seconds; {_TRY.format(user_name())}"
                ) from None
            raise
    if process.returncode:
        how = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise SealingError(f"{name}: ended with {how}; {_TRY.format(user_name())}")
    return output
