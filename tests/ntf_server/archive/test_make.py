"""Backups as they are made. That they can be restored: test_restore.py."""

import os
import stat
from pathlib import Path

import pytest
from archive_world import backed_up, files_of_at_most, folder, master_key, one_token
from command_line import contents

from ntf_server.archive.sealed import ArchiveError
from ntf_server.config.files import load_store
from ntf_server.config.identity_files import FILES, MASTER_KEY
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.open import open_store


async def test_what_is_in_it_and_that_it_is_sealed(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    token = await one_token(directory)
    before = contents(directory)
    made = await backed_up(directory, tmp_path / "relay.backup", {"NTF_SERVER__LOG__LEVEL": "info"})
    assert {m.name for m in made.manifest.files} == {"ntf-server.toml", "database", *FILES} - {MASTER_KEY}
    assert (made.manifest.store, made.manifest.variables) == ("sqlite", ("NTF_SERVER__LOG__LEVEL",))
    data = (tmp_path / "relay.backup").read_bytes()
    assert len(data) == made.size
    assert stat.S_IMODE((tmp_path / "relay.backup").stat().st_mode) == 0o600
    for plain in (b"SQLite format 3", b"BEGIN", b"[transport]", token.token_id, before["master.key"]):
        assert plain not in data
    assert contents(directory).items() >= {k: v for k, v in before.items() if not k.startswith("ntf-server.db")}.items()
    assert {path.name for path in tmp_path.iterdir()} == {"relay", "relay.backup"}


async def test_what_is_there_already_stays(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    await one_token(directory)
    (tmp_path / "precious").write_bytes(b"precious")
    with pytest.raises(ArchiveError, match="precious: is there already, and is kept"):
        await backed_up(directory, tmp_path / "precious")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    with pytest.raises(ArchiveError, match="absent: no such folder"):
        await backed_up(directory, tmp_path / "absent" / "backup")


async def test_without_room_nothing_is_left(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    await one_token(directory)
    database = (directory / "ntf-server.db").stat().st_size
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="no backup was made") as e, files_of_at_most(database + 100):
        await backed_up(directory, tmp_path / "out" / "backup")
    assert e.value.filename == str(tmp_path / "out" / "backup")
    assert [*(tmp_path / "out").iterdir()] == []


async def test_without_room_for_the_database(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    await one_token(directory)
    (tmp_path / "out").mkdir()
    store = await open_store(load_store(directory, {}), directory=directory, master_key=master_key(directory))
    try:
        with pytest.raises(StoreUnavailableError) as e, files_of_at_most(20_000):
            await backed_up(directory, tmp_path / "out" / "backup")
    finally:
        await store.close()
    assert str(e.value) == f"{tmp_path}/out: disk I/O error; make room there, or give another place"
    assert [*(tmp_path / "out").iterdir()] == []


async def test_a_file_that_is_named_and_cannot_be_read(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    await one_token(directory)
    (directory / "server.key").unlink()
    (directory / "server.key").symlink_to("absent")
    with pytest.raises(ArchiveError, match=r"server\.key: No such file or directory"):
        await backed_up(directory, tmp_path / "backup")
    (directory / "server.key").unlink()
    os.truncate(directory / "ca.crt", 17 << 20)
    with pytest.raises(ArchiveError, match=r"ca\.crt: is larger than 16 MiB"):
        await backed_up(directory, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["relay"]
