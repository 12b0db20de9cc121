"""What a backup holds: the files that a relay needs besides its store, and the list of all that is in it."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, BinaryIO, Final

import msgspec

from ntf_server.config.files import REFERENCE_VAPID_KEY
from ntf_server.config.identity_files import FILES, MASTER_KEY
from ntf_server.config.settings import Settings
from ntf_server.config.source import CONFIG_FILE, PREFIX
from ntf_server.store.redis.url import RedisUrl

MANIFEST: Final = "manifest.json"
DATABASE: Final = "database"  # the member of that name
ELSEWHERE: Final = "elsewhere"  # the folder of files that were not in the configuration's
LARGEST: Final = 16 * 2**20  # bytes of a file that a setting names
READ: Final = 1 << 20  # bytes of a database at once


class Member(msgspec.Struct, frozen=True):
    """A file: `name` in the restored folder; `origin`: where it was, if that was outside the folder."""

    name: str
    size: int
    sha256: str
    mode: int
    origin: str = ""


class Manifest(msgspec.Struct, frozen=True):
    """The first member. `made_at`: Unix seconds; `store`: sqlite or redis; `variables`: names of those that settings
    came from, which are not in the backup.
    """

    version: str
    made_at: int
    store: str
    variables: tuple[str, ...]
    files: tuple[Member, ...]


def files(directory: Path, settings: Settings, store: Path | RedisUrl) -> Iterator[tuple[str, Path]]:
    """(name in the backup, path) of each that is there to be read or that a setting names. The master key is never
    among them: what it seals could be opened by whoever has the backup.
    """
    own = (CONFIG_FILE, *FILES, REFERENCE_VAPID_KEY)
    for name in own:
        if name != MASTER_KEY and os.path.lexists(directory / name):
            yield name, directory / name
    seen, root = set(own), os.path.normpath(directory)
    for name in _named(settings, store):
        path = Path(os.path.normpath(directory / name))
        kept = str(path.relative_to(root) if path.is_relative_to(root) else _elsewhere(path))
        if kept not in seen:
            seen.add(kept)
            yield kept, path


def _elsewhere(path: Path) -> Path:
    return Path(ELSEWHERE, *path.absolute().parts[1:])


def _named(settings: Settings, store: Path | RedisUrl) -> Iterator[str]:
    """What settings name, as they name it."""
    apns, fcm, web_push = settings.apns, settings.fcm, settings.web_push
    hosts = [host for host in (apns.production, apns.sandbox, apns.test) if host is not None]
    names = [apns.key_file, apns.certificate_file, apns.certificate_key_file, fcm.service_account_file, fcm.ca_file]
    names += [web_push.key_file, *web_push.old_key_files, web_push.ca_file, *(host.ca_file for host in hosts)]
    names.append(settings.admin.token_file)
    if isinstance(store, RedisUrl) and store.tls:
        names += [str(path) for path in (store.tls.ca_file, store.tls.cert_file, store.tls.key_file) if path]
    return (name for name in names if name)


def variables(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of variables that settings come from."""
    return tuple(sorted(name for name in environ if name.startswith(PREFIX)))


def digest_of(file: IO[bytes]) -> str:
    """SHA-256 of what is left to be read, as `Member` has it."""
    digest = hashlib.sha256()
    while piece := file.read(READ):
        digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def new_file(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Its owner's alone until all is written, and on the disk at the end."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        yield file
        os.fchmod(file.fileno(), mode & 0o777)
        file.flush()
        os.fsync(file.fileno())
