"""A backup made, while the relay runs or not."""

import asyncio
import hashlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ntf_server.archive.contents import (
    DATABASE,
    LARGEST,
    MANIFEST,
    Manifest,
    Member,
    digest_of,
    files,
    new_file,
    variables,
)
from ntf_server.archive.sealed import ArchiveError, Sealing
from ntf_server.config.settings import Settings
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.migrate import migrate
from ntf_server.store.open import Shared
from ntf_server.store.redis.url import RedisUrl
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.backup import backup
from ntf_server.version import VERSION


@dataclass(frozen=True)
class Made:
    """`size`: of the backup, in bytes."""

    size: int
    manifest: Manifest


@dataclass(frozen=True)
class Source:
    """What is backed up. `environ`: variables that settings may come from."""

    directory: Path
    settings: Settings
    store: Path | RedisUrl
    environ: Mapping[str, str] = field(repr=False)


def make(source: Source, master_key: MasterKey, target: Path) -> Made:
    """Write it to a file that is not there yet (mode 0600). Nothing is left of one that could not be ended.

    A database is copied as it is at one moment. A Redis is read by `portable`, while no relay runs on it. Raises
    ArchiveError, StoreError, StoreCorruptError, OSError.
    """
    taken = ArchiveError(f"{target}: is there already, and is kept; give the name of a new file")
    if os.path.lexists(target):
        raise taken
    if not target.parent.is_dir():
        raise ArchiveError(f"{target.parent}: no such folder; give the name of a file in one that is there")
    if isinstance(source.store, Path) and not source.store.exists():
        raise ArchiveError(f"{source.store}: there is no database yet; start the server once, which makes it")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            database, part = Path(scratch, DATABASE), Path(scratch, "backup")
            contents = _read_all(source)
            _copy_store(source, master_key, database)
            kind = "redis" if isinstance(source.store, RedisUrl) else "sqlite"
            of_all = (*(member for member, _ in contents), _database(database))
            manifest = Manifest(VERSION, int(time.time()), kind, variables(source.environ), of_all)
            _write(part, master_key, manifest, contents, database)
            size = part.stat().st_size
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            part.replace(target)
    except FileExistsError:
        raise taken from None
    except OSError as e:
        raise OSError(e.errno, f"{e.strerror}; no backup was made", str(target)) from e
    return Made(size, manifest)


def _copy_store(source: Source, master_key: MasterKey, target: Path) -> None:
    if not isinstance(source.store, RedisUrl):
        try:
            backup(source.store, target)
        except StoreUnavailableError as e:  # the operator knows nothing of the copy
            raise StoreUnavailableError(str(e).replace(str(target), str(target.parent.parent))) from e
        return
    store = source.settings.store
    shared = Shared("", store.wait_replicas, store.wait_aof)
    asyncio.run(migrate(source.store, target, master_key=master_key, shared=shared))


def _read_all(source: Source) -> list[tuple[Member, bytes]]:
    """Each file, and what is in it. Raises ArchiveError."""
    found = []
    for name, path in files(source.directory, source.settings, source.store):
        try:
            with path.open("rb") as file:
                data = file.read(LARGEST + 1)
                mode = os.fstat(file.fileno()).st_mode & 0o777
        except OSError as e:
            cure = "run it as the user that the server runs as, and see that `ntf-server check` is content"
            raise ArchiveError(f"{path}: {e.strerror}; {cure}") from e
        if len(data) > LARGEST:
            raise ArchiveError(
                f"{path}: is larger than {LARGEST >> 20} MiB, so it is none of a relay's; mend the setting"
            )
        found.append((_member(name, data, mode, path, source.directory), data))
    return found


def _member(name: str, data: bytes, mode: int, path: Path, directory: Path) -> Member:
    inside = Path(os.path.normpath(path)).is_relative_to(os.path.normpath(directory))
    return Member(name, len(data), hashlib.sha256(data).hexdigest(), mode, "" if inside else str(path.absolute()))


def _database(path: Path) -> Member:
    with path.open("rb") as file:
        return Member(DATABASE, path.stat().st_size, digest_of(file), 0o600)


def _write(
    part: Path, master_key: MasterKey, manifest: Manifest, contents: list[tuple[Member, bytes]], database: Path
) -> None:
    with new_file(part) as file:
        sealing = Sealing(file, master_key)
        with tarfile.open(fileobj=sealing, mode="w|") as tar:
            _add(tar, MANIFEST, msgspec.json.encode(manifest))
            for member, data in contents:
                _add(tar, member.name, data)
            info = tarfile.TarInfo(DATABASE)
            info.size = database.stat().st_size
            with database.open("rb") as copy:
                tar.addfile(info, copy)
        sealing.finish()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
