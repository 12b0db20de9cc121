"""A relay's folder to be backed up and restored, with a registration in its store."""

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store_world import register

from ntf_server.archive.make import Made, Source, make
from ntf_server.archive.restore import Key, Restored, restore
from ntf_server.cli.init import config_text
from ntf_server.config.files import load_master_key, load_store
from ntf_server.config.identity_files import create_identity, write_file
from ntf_server.config.source import CONFIG_FILE, load_settings
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.store.open import open_store
from ntf_server.store.records import Registered
from ntf_server.store.sealing import MasterKey, generate_key_text
from ntf_server.testing.store_suite.medium import as_found


def folder(directory: Path, port: int = 443, **changes: str) -> Path:
    """As `init` leaves one, but for the changes to its configuration."""
    directory.mkdir()
    create_identity(directory, "ED25519", "localhost")
    write_file(directory / "master.key", generate_key_text().encode())
    write_file(directory / "vapid.key", key_pem(generate_key()))
    text = config_text("localhost", port, web_push=False)
    for old, new in changes.items():
        text = text.replace(old, new)
    (directory / CONFIG_FILE).write_text(text)
    return directory


def master_key(directory: Path) -> MasterKey:
    return load_master_key(directory, load_settings(directory, {}))


async def one_token(directory: Path) -> Registered:
    """Registered while no server runs."""
    store = await open_store(load_store(directory, {}), directory=directory, master_key=master_key(directory))
    token = await register(store)
    await store.close()
    assert token is not None
    return token


async def has(directory: Path, token: Registered) -> bool:
    store = await open_store(load_store(directory, {}), directory=directory, master_key=master_key(directory))
    found = await store.find_token(token.token_id)
    await store.close()
    return found == as_found(token)


async def backed_up(directory: Path, target: Path, environ: dict[str, str] | None = None) -> Made:
    environ = environ or {}
    settings = load_settings(directory, environ)
    source = Source(directory, settings, load_store(directory, environ), environ)
    return await asyncio.to_thread(make, source, master_key(directory), target)


async def restored(source: Path, directory: Path, key_file: Path, environ: dict[str, str] | None = None) -> Restored:
    key = Key(MasterKey.from_file(key_file), key_file.read_bytes())
    return await asyncio.to_thread(restore, source, directory, key, environ or {})


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk without room for more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
