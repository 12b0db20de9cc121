"""A backup restored: into a folder of its own first, which takes its place when all of it is there and opens."""

import asyncio
import contextlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, Final

import msgspec

from ntf_server.archive.contents import DATABASE, LARGEST, MANIFEST, READ, Manifest, digest_of, new_file
from ntf_server.archive.sealed import ArchiveError, Opening
from ntf_server.config.files import load_store
from ntf_server.config.mistakes import ConfigError
from ntf_server.config.source import load_settings
from ntf_server.permissions import give_as_folder
from ntf_server.store.migrate import migrate
from ntf_server.store.open import Shared, inspect_store
from ntf_server.store.redis.url import RedisUrl
from ntf_server.store.sealing import MasterKey

_DATABASE: Final = ".database"  # until its place is known
_NOTHING: Final = "nothing was restored"


@dataclass
class Restored:
    """`store`: where it is now; `elsewhere`: files that were outside the folder, where they are now, and were;
    `key_file`: where the configuration looks for the master key, if nothing is there.
    """

    manifest: Manifest
    store: Path | RedisUrl
    elsewhere: list[tuple[Path, str]] = field(default_factory=list)
    key_file: Path | None = None


@dataclass(frozen=True)
class Key:
    """The master key; `text`: what its file holds, empty if it came from elsewhere."""

    master: MasterKey
    text: bytes = field(default=b"", repr=False)


def restore(source: Path, directory: Path, key: Key, environ: Mapping[str, str]) -> Restored:
    """Into a folder that is not there yet, or empty.

    All of the backup is read and compared with its digests before anything is written. Raises ArchiveError,
    ConfigError, StoreError, StoreCorruptError, OSError.
    """
    directory = directory.absolute()
    _check_unused(directory)
    try:
        with source.open("rb") as file:
            manifest = _verify(file, key.master, str(source))
    except OSError as e:
        raise ArchiveError(f"{source}: {e.strerror}; give a file that `ntf-server backup` made") from e
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as e:
        raise ArchiveError(
            f"{directory.parent}: {e.strerror}; {_NOTHING}: run it as root, or choose another folder"
        ) from e
    try:
        with source.open("rb") as file:
            _extract(file, key.master, str(source), manifest, scratch)
        return _Restoring(directory, scratch, key, environ).end(manifest)
    except ConfigError as e:
        raise ConfigError(*(line.replace(str(scratch), str(directory)) for line in e.mistakes)) from None
    except OSError as e:
        raise OSError(e.errno, f"{e.strerror}; {_NOTHING}", str(directory)) from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_unused(directory: Path) -> None:
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise ArchiveError(f"{directory}: is no folder; give one that is new or empty")
    if directory.exists() and any(directory.iterdir()):
        raise ArchiveError(f"{directory}: is in use, and is kept; give a folder that is new or empty")
    if not directory.parent.is_dir():
        raise ArchiveError(f"{directory.parent}: no such folder; create it first")


class _Restoring:
    """What was read stands in `scratch`, and is to be `directory`."""

    def __init__(self, directory: Path, scratch: Path, key: Key, environ: Mapping[str, str]) -> None:
        self._directory, self._scratch, self._key, self._environ = directory, scratch, key, environ
        self._database = scratch / _DATABASE
        self._settings = load_settings(scratch, environ)

    def end(self, manifest: Manifest) -> Restored:
        """Put all in its place, the folder last: without it no relay starts."""
        asyncio.run(inspect_store(self._database, master_key=self._key.master))
        place = self._store()
        done = Restored(manifest, place, [(self._directory / m.name, m.origin) for m in manifest.files if m.origin])
        done.key_file = self._put_key()
        with contextlib.ExitStack() as undo:
            if isinstance(place, RedisUrl):
                self._fill(place)
            elif place.is_relative_to(self._scratch):
                self._database.replace(place)
                done.store = self._directory / place.relative_to(self._scratch)
            else:
                self._put_outside(place, undo)
            self._own()
            self._scratch.replace(self._directory)
            undo.pop_all()
        return done

    def _store(self) -> Path | RedisUrl:
        """Where the configuration has it. Raises ConfigError."""
        path = self._settings.store.url.removeprefix("sqlite:///")
        if path != self._settings.store.url and not Path(path).is_absolute():
            (self._scratch / path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return load_store(self._scratch, self._environ)

    def _fill(self, url: RedisUrl) -> None:
        store = self._settings.store
        shared = Shared("", store.wait_replicas, store.wait_aof)
        asyncio.run(migrate(self._database, url, master_key=self._key.master, shared=shared))
        for path in self._scratch.glob(f"{_DATABASE}*"):
            path.unlink()

    def _put_outside(self, place: Path, undo: contextlib.ExitStack) -> None:
        """Not in the configuration's folder. Before that: without a database a relay would begin a new one."""
        for taken in (place, place.with_name(f"{place.name}-wal")):
            if os.path.lexists(taken):
                cure = "move it away, or give another place by the variable NTF_SERVER__STORE__URL"
                raise ArchiveError(f"{taken}: is there already, and is kept; {cure}")
        part = place.with_name(f".{place.name}.restored")
        part.unlink(missing_ok=True)
        undo.callback(part.unlink, missing_ok=True)
        with self._database.open("rb") as source, new_file(part) as copy:
            shutil.copyfileobj(source, copy, READ)
        give_as_folder(part)
        undo.callback(place.unlink, missing_ok=True)
        part.replace(place)
        self._database.unlink()

    def _put_key(self) -> Path | None:
        """Where the configuration looks for it. What is left to the operator: where it has to be."""
        store = self._settings.store
        if store.master_key or store.master_key_command:
            return None
        path = Path(os.path.normpath(self._scratch / store.master_key_file))
        if not path.is_relative_to(self._scratch):
            return None if path.exists() else path
        if not self._key.text:
            return self._directory / path.relative_to(self._scratch)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with new_file(path) as file:
            file.write(self._key.text)
        return None

    def _own(self) -> None:
        """As the folder was, if it was there; all in it is its owner's."""
        if not self._directory.exists():
            return
        before = self._directory.stat()
        self._scratch.chmod(before.st_mode & 0o7777)
        if os.geteuid() == 0:
            for path in (self._scratch, *self._scratch.rglob("*")):
                os.chown(path, before.st_uid, before.st_gid, follow_symlinks=False)


# --- what is in the file


def _verify(file: BinaryIO, master_key: MasterKey, name: str) -> Manifest:
    """All of it is there, and as it was. Raises ArchiveError."""
    manifest: Manifest | None = None
    found: dict[str, str] = {}
    with _members(file, master_key, name) as members:
        for member, content in members:
            if manifest is None:
                manifest = _manifest(member, content, name)
                continue
            found[member] = digest_of(content)
    if manifest is None or found != {m.name: m.sha256 for m in manifest.files}:
        raise ArchiveError(f"{name}: is not what its list says; give another backup")
    return manifest


def _manifest(member: str, content: IO[bytes], name: str) -> Manifest:
    try:
        manifest = msgspec.json.decode(content.read(LARGEST) if member == MANIFEST else b"", type=Manifest)
    except ValueError:
        raise ArchiveError(f"{name}: has no list of what is in it; give another backup") from None
    for each in manifest.files:
        path = Path(each.name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ArchiveError(f"{name}: would be restored outside the folder; give another backup")
    return manifest


@contextlib.contextmanager
def _members(file: BinaryIO, master_key: MasterKey, name: str) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    opening = Opening(file, master_key, name)
    try:
        with tarfile.open(fileobj=opening, mode="r|") as tar:
            yield ((info.name, content) for info in tar if (content := tar.extractfile(info)) is not None)
        opening.drain()
    except tarfile.TarError:
        raise ArchiveError(f"{name}: is damaged; give another backup") from None


def _extract(file: BinaryIO, master_key: MasterKey, name: str, manifest: Manifest, scratch: Path) -> None:
    modes = {m.name: m.mode for m in manifest.files}
    with _members(file, master_key, name) as members:
        for member, content in members:
            if member == MANIFEST:
                continue
            path = scratch / (_DATABASE if member == DATABASE else member)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with new_file(path, modes[member]) as out:
                shutil.copyfileobj(content, out, READ)
