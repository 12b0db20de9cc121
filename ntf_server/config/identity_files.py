"""The server's identity on disk: file names and formats of the reference, so that either can use the other's."""

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ntf_server.permissions import unreadable
from smp_bridge.encoding import b64url
from smp_bridge.identity import (
    Credentials,
    IdentityError,
    SignAlgorithm,
    generate_key,
    issue_leaf,
    load_certificates,
    load_private_key,
    private_key_pem,
)

T = TypeVar("T")

CA_CRT: Final = "ca.crt"
CA_KEY: Final = "ca.key"
SERVER_CRT: Final = "server.crt"
SERVER_KEY: Final = "server.key"
FINGERPRINT: Final = "fingerprint"
MASTER_KEY: Final = "master.key"
VAPID_KEY: Final = "vapid.key"
FILES: Final = (CA_CRT, CA_KEY, SERVER_CRT, SERVER_KEY, FINGERPRINT, MASTER_KEY, VAPID_KEY)
_IDENTITY: Final = "restore it from a copy: it is the server's identity, which cannot be made again"
MAX_NAME: Final = 64  # characters of a common name (RFC 5280, ub-common-name)


class IdentityFileError(Exception):
    """One line: which file, what is wrong, what to do."""


def write_file(path: Path, data: bytes, mode: int = 0o600, *, like: Path | None = None) -> None:
    """Create or replace a file at once, with this mode from its first byte on.

    By root it is given to the owner of the one that it replaces, or of the file `like`: the server's user reads it.
    """
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    owner = next((file.stat() for file in (like or path,) if os.geteuid() == 0 and file.exists()), None)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as f:
        if owner is not None:
            os.fchown(f.fileno(), owner.st_uid, owner.st_gid)
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    temporary.replace(path)


def create_identity(directory: Path, algorithm: SignAlgorithm, common_name: str) -> bytes:
    """Make a new identity and online certificate; gives the key hash."""
    credentials, ca_key = Credentials.generate(algorithm, common_name)
    leaf, ca = credentials.chain
    write_file(directory / CA_KEY, private_key_pem(ca_key))
    write_file(directory / CA_CRT, ca.public_bytes(Encoding.PEM), 0o644)
    write_file(directory / SERVER_KEY, private_key_pem(credentials.key))
    write_file(directory / SERVER_CRT, leaf.public_bytes(Encoding.PEM), 0o644)
    write_file(directory / FINGERPRINT, f"{b64url(credentials.key_hash)}\n".encode(), 0o644)
    return credentials.key_hash


def renew_certificate(directory: Path, ca_key_file: Path, algorithm: SignAlgorithm, common_name: str | None) -> None:
    """A new online key and certificate of the same identity. Raises IdentityFileError."""
    ca = _parsed(directory / CA_CRT, load_certificates, _IDENTITY)[0]
    ca_key = _parsed(ca_key_file, load_private_key, "give the identity's key, which you keep offline: --ca-key FILE")
    if ca_key.public_key() != ca.public_key():
        raise IdentityFileError(f"{ca_key_file}: is not the key of {directory / CA_CRT}; give the identity's key")
    if common_name is None:
        old = _parsed(directory / SERVER_CRT, load_certificates, "give the name that it has by --fqdn")[0]
        names = old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if not names:
            raise IdentityFileError(f"{directory / SERVER_CRT}: has no common name; give one by --fqdn")
        common_name = str(names[0].value)
    key = generate_key(algorithm)
    leaf = issue_leaf(key, common_name, ca, ca_key, datetime.datetime.now(datetime.UTC))
    write_file(directory / SERVER_KEY, private_key_pem(key))
    write_file(directory / SERVER_CRT, leaf.public_bytes(Encoding.PEM), 0o644)


def load_credentials(directory: Path) -> Credentials:
    """What `start` shows to clients; `ca.key` is not needed. Raises IdentityFileError."""
    crt, ca, key = (directory / name for name in (SERVER_CRT, CA_CRT, SERVER_KEY))
    if not any(map(os.path.lexists, (crt, ca, key))):
        names = ", ".join((SERVER_CRT, CA_CRT, SERVER_KEY))
        raise IdentityFileError(f"{directory}: has no {names}; restore them, or run `ntf-server init` in a new folder")
    identity, leaf, leaf_key = _read(ca, _IDENTITY), _read(crt, _renew(" --fqdn NAME")), _read(key, _renew())
    try:
        credentials = Credentials.load(leaf, identity, leaf_key)
    except IdentityError as e:
        _parsed(ca, load_certificates, _IDENTITY)
        raise IdentityFileError(f"{crt}, {ca}, {key}: {e}; {_renew()}, with the key of {CA_CRT}") from e
    fingerprint = directory / FINGERPRINT
    if not fingerprint.exists():
        return credentials
    if _read(fingerprint, "restore it").decode("latin-1").strip() != b64url(credentials.key_hash):
        raise IdentityFileError(f"{fingerprint}: is not of {ca}; restore the one that belongs to it, or delete it")
    return credentials


def _renew(options: str = "") -> str:
    return f"make a new online certificate of the same identity: `ntf-server cert --ca-key FILE{options}`"


def _read(path: Path, cure: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise IdentityFileError(unreadable(path, e, cure)) from e


def _parsed(path: Path, parse: Callable[[bytes], T], cure: str) -> T:
    try:
        return parse(_read(path, cure))
    except IdentityError as e:
        raise IdentityFileError(f"{path}: {e}; {cure}") from e
