import asyncio
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from wire_relay import CONFIG_FILE, OPTIONAL, RelayError, Running, Side, environment, new_folder, processes, running

from smp_bridge.address import ServerAddress
from smp_bridge.connecting import connect

SIDE = Side("this one", Path(sys.executable).parent)
BASE = '[transport]\nhost = "localhost"\nport = 0\nbind = "127.0.0.1"\n'
KNOWN = '[log]\nlevel = "warning"\n'
UNKNOWN = "[no_such_section]\nenabled = false\n"


def runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_only_optional_sections_that_the_revision_knows_are_written(tmp_path: Path) -> None:
    folder = await new_folder(SIDE, tmp_path / "relay", [BASE], [UNKNOWN, KNOWN])
    written = tomllib.loads((folder.path / CONFIG_FILE).read_text())
    assert written == tomllib.loads(BASE + KNOWN)


async def test_what_a_revision_must_take_and_does_not_is_told(tmp_path: Path) -> None:
    with pytest.raises(RelayError, match=r"(?s)this one does not take the configuration.*no_such_section"):
        await new_folder(SIDE, tmp_path / "relay", [BASE, UNKNOWN])


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RelayError, match="ntf-server init of this one failed"):
        await new_folder(SIDE, tmp_path / "file", [BASE])


async def test_a_relay_is_reached_by_its_wire_and_measured_from_outside(tmp_path: Path) -> None:
    folder = await new_folder(SIDE, tmp_path / "relay", [BASE], OPTIONAL)
    async with running(SIDE, folder) as relay:
        connection, session = await connect(relay.address)
        assert session.version
        await connection.close()
        memory, cpu = relay.memory(), relay.cpu()
        assert 2**20 < memory.anon < memory.rss
        assert 0 < cpu < 60
    assert not runs(relay.pid)


async def test_a_relay_that_does_not_start_is_told_with_its_words(tmp_path: Path) -> None:
    folder = await new_folder(SIDE, tmp_path / "relay", [BASE])
    (folder.path / CONFIG_FILE).write_text(BASE + UNKNOWN)
    with pytest.raises(RelayError, match=r"(?s)this one did not start.*no_such_section"):
        async with running(SIDE, folder):
            pass


async def test_a_relay_that_ends_in_the_middle_is_told(tmp_path: Path) -> None:
    folder = await new_folder(SIDE, tmp_path / "relay", [BASE])
    with pytest.raises(RelayError, match="ended in the middle"):
        async with running(SIDE, folder) as relay:
            os.kill(relay.pid, 15)
            while runs(relay.pid):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # until asyncio has heard of it too


def test_figures_are_of_descendants_too() -> None:
    busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint(flush=True)\n"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy + 'time.sleep(60)'!r}])"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as parent:
        try:
            assert parent.stdout is not None
            parent.stdout.readline()
            found = list(processes(parent.pid))
            assert len(found) == 2
            relay = Running(parent.pid, ServerAddress("ntf", ("localhost",), "1", bytes(32)), time.monotonic())
            assert relay.cpu() >= 0.25
        finally:
            os.killpg(parent.pid, 9)


def test_settings_and_code_of_this_environment_are_kept_from_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NTF_SERVER__LOG__LEVEL", "NTF_SERVER_CFG_PATH", "PYTHONPATH", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "x")
    assert not {"NTF_SERVER__LOG__LEVEL", "NTF_SERVER_CFG_PATH", "PYTHONPATH", "VIRTUAL_ENV"} & set(environment())
    assert "PATH" in environment()
