"""Backups restored: all of it or nothing."""

import asyncio
import os
import shutil
import stat
from pathlib import Path

import pytest
from archive_world import backed_up, files_of_at_most, folder, has, one_token, restored
from redis_servers import Server

from ntf_server.archive.restore import Key, restore
from ntf_server.archive.sealed import ArchiveError
from ntf_server.config.files import load, load_store
from ntf_server.config.mistakes import ConfigError
from ntf_server.store.contract import StoreError
from ntf_server.store.sealing import MasterKey


def modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir() if "db" not in path.name}


async def there_and_back(tmp_path: Path, directory: Path, target: Path, **environ: str) -> None:
    await backed_up(directory, tmp_path / "backup")
    await restored(tmp_path / "backup", target, directory / "master.key", environ)


async def test_all_of_it_as_it_was(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    token = await one_token(directory)
    await there_and_back(tmp_path, directory, tmp_path / "new")
    for path in directory.iterdir():
        if "db" not in path.name:
            assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()
    assert modes(tmp_path / "new") == modes(directory)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "new" / "ntf-server.db").stat().st_mode) == 0o600
    load(tmp_path / "new", {})
    assert await has(tmp_path / "new", token)
    assert {path.name for path in tmp_path.iterdir()} == {"relay", "new", "backup"}


async def test_an_empty_folder_keeps_its_owner_and_mode(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    await one_token(directory)
    new = tmp_path / "new"
    new.mkdir(mode=0o750)
    owner = (65534, 65534) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(new, *owner)
    await there_and_back(tmp_path, directory, new)
    assert stat.S_IMODE(new.stat().st_mode) == 0o750
    assert {(p.stat().st_uid, p.stat().st_gid) for p in (new, *new.iterdir())} == {owner}


async def test_where_the_configuration_has_the_store(tmp_path: Path) -> None:
    """In a folder below, or in another one altogether; never in the place of another database."""
    directory = folder(tmp_path / "relay", **{"sqlite:///ntf-server.db": "sqlite:///state/relay.db"})
    (directory / "state").mkdir()
    token = await one_token(directory)
    await there_and_back(tmp_path, directory, tmp_path / "new")
    assert load_store(tmp_path / "new", {}) == tmp_path / "new" / "state" / "relay.db"
    assert await has(tmp_path / "new", token)
    state = tmp_path / "state"
    state.mkdir()
    url = {"NTF_SERVER__STORE__URL": f"sqlite:///{state}/relay.db"}
    done = await restored(tmp_path / "backup", tmp_path / "other", directory / "master.key", url)
    assert done.store == state / "relay.db"
    assert [path.name for path in state.iterdir()] == ["relay.db"]
    with pytest.raises(ArchiveError, match=r"relay\.db: is there already, and is kept"):
        await restored(tmp_path / "backup", tmp_path / "third", directory / "master.key", url)
    with pytest.raises(ConfigError, match=f"{tmp_path}/third/ntf-server.toml: .*no such folder"):
        absent = {"NTF_SERVER__STORE__URL": f"sqlite:///{tmp_path}/absent/relay.db"}
        await restored(tmp_path / "backup", tmp_path / "third", directory / "master.key", absent)
    assert not (tmp_path / "third").exists()


async def test_files_that_were_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "account.json").write_bytes(b"{}")
    setting = 'service_account_file = "{}"'
    changed = {f"# {setting.format('service-account.json')}": setting.format(tmp_path / "keys" / "account.json")}
    directory = folder(tmp_path / "relay", **changed)
    await one_token(directory)
    await backed_up(directory, tmp_path / "backup")
    done = await restored(tmp_path / "backup", tmp_path / "new", directory / "master.key")
    [(now, before)] = done.elsewhere
    assert (before, now.read_bytes()) == (f"{tmp_path}/keys/account.json", b"{}")
    assert now.is_relative_to(tmp_path / "new" / "elsewhere")


async def test_a_key_that_comes_from_elsewhere_is_not_written(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    await one_token(directory)
    await backed_up(directory, tmp_path / "backup")
    key = Key(MasterKey.from_file(directory / "master.key"))
    done = await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "new", key, {})
    assert done.key_file == tmp_path / "new" / "master.key" and not done.key_file.exists()
    variable = {"NTF_SERVER__STORE__MASTER_KEY": (directory / "master.key").read_text()}
    done = await asyncio.to_thread(restore, tmp_path / "backup", tmp_path / "other", key, variable)
    assert done.key_file is None


async def test_nothing_is_restored_where_something_is(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    await one_token(directory)
    await backed_up(directory, tmp_path / "backup")
    key = directory / "master.key"
    with pytest.raises(ArchiveError, match="relay: is in use, and is kept; give a folder that is new or empty"):
        await restored(tmp_path / "backup", directory, key)
    with pytest.raises(ArchiveError, match="backup: is no folder"):
        await restored(tmp_path / "backup", tmp_path / "backup", key)
    with pytest.raises(ArchiveError, match="absent: no such folder; create it first"):
        await restored(tmp_path / "backup", tmp_path / "absent" / "new", key)
    with pytest.raises(ArchiveError, match="none: No such file or directory; give a file that"):
        await restored(tmp_path / "none", tmp_path / "new", key)


async def test_a_damaged_backup_is_told_before_anything_is_written(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    await one_token(directory)
    size = (await backed_up(directory, tmp_path / "backup")).size
    os.truncate(tmp_path / "backup", size - 1)
    (tmp_path / "closed").mkdir(mode=0o700)
    with pytest.raises(ArchiveError, match="is damaged, or not all of it is there"):
        await restored(tmp_path / "backup", tmp_path / "closed" / "new", directory / "master.key")
    assert [*(tmp_path / "closed").iterdir()] == []


async def test_without_room_nothing_is_left(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    await one_token(directory)
    await backed_up(directory, tmp_path / "backup")
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="nothing was restored"), files_of_at_most(20_000):
        await restored(tmp_path / "backup", tmp_path / "out" / "new", directory / "master.key")
    assert [*(tmp_path / "out").iterdir()] == []


async def test_a_redis_by_way_of_a_database(tmp_path: Path) -> None:
    with Server(tmp_path / "valkey") as server:
        old, new = (f"{server.url}?prefix={name}" for name in ("old", "new"))
        directory = folder(tmp_path / "relay", **{"sqlite:///ntf-server.db": old})
        token = await one_token(directory)
        made = await backed_up(directory, tmp_path / "backup")
        assert made.manifest.store == "redis"
        shutil.move(directory / "master.key", tmp_path / "master.key")
        environ = {"NTF_SERVER__STORE__URL": new}
        await restored(tmp_path / "backup", tmp_path / "new", tmp_path / "master.key", environ)
        assert not [*(tmp_path / "new").glob("*.db*"), *(tmp_path / "new").glob(".database*")]
        config = tmp_path / "new" / "ntf-server.toml"
        config.write_text(config.read_text().replace(old, new))
        assert await has(tmp_path / "new", token)
        with pytest.raises(StoreError):  # there is something already
            await restored(tmp_path / "backup", tmp_path / "again", tmp_path / "master.key", environ)
        assert not (tmp_path / "again").exists()
