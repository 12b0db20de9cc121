"""A start without serving: what it finds, and that nobody notices. All of it, by the commands: test_wrong_setups.py."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ntf_server.app import Relay
from ntf_server.config.files import Config, load
from ntf_server.config.identity_files import create_identity, write_file
from ntf_server.config.source import CONFIG_FILE
from ntf_server.listener import ListenError
from ntf_server.preflight import preflight, running_relay
from ntf_server.store.sealing import generate_key_text


@pytest.fixture
def config(tmp_path: Path) -> Config:
    create_identity(tmp_path, "ED25519", "ntf.example.org")
    (tmp_path / "ca.key").unlink()
    write_file(tmp_path / "master.key", generate_key_text().encode())
    (tmp_path / CONFIG_FILE).write_text("[transport]\nhost = 'ntf.example.org'\nbind = '127.0.0.1'\nport = 0\n")
    return load(tmp_path, {})


def again(config: Config, **environ: str) -> Config:
    return load(config.directory, {f"NTF_SERVER__{key}": value for key, value in environ.items()})


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield str(other.getsockname()[1])


async def test_nothing_is_wrong_and_nothing_is_left(config: Config) -> None:
    before = sorted(config.directory.iterdir())
    found = await preflight(config)
    assert (found.troubles, found.warnings, found.running) == ([], [], None)
    assert found.store == "will be created"
    assert sorted(config.directory.iterdir()) == before


async def test_everything_that_is_in_the_way(config: Config, taken: str) -> None:
    (config.directory / "ntf-server.db").write_bytes(b"not a database" * 1000)
    found = await preflight(again(config, TRANSPORT__PORT=taken, METRICS__PORT=taken, ADMIN__PORT=taken))
    kinds = [type(trouble).__name__ for trouble in found.troubles]
    assert kinds == ["ListenError", "ListenError", "ListenError", "StoreCorruptError"]
    assert f"[admin] bind, port: 127.0.0.1:{taken}: is in use" in str(found.troubles[2])


async def test_ports_that_were_tried_before_are_left_alone(config: Config, taken: str) -> None:
    assert (await preflight(again(config, TRANSPORT__PORT=taken), ports=False)).troubles == []


async def test_what_runs_is_in_nobody_s_way(config: Config, unused_tcp_port: int, taken: str) -> None:
    environ = {"METRICS__PORT": str(unused_tcp_port)}
    async with Relay(again(config, **environ)) as relay:
        same = again(config, **environ, TRANSPORT__PORT=str(relay.port))
        found = await preflight(same)
        assert found.troubles == []
        assert found.running is not None and found.running["port"] == relay.port
        assert found.store == "exists, and opens with the key"
        [trouble] = (await preflight(again(config, TRANSPORT__PORT=taken))).troubles
        assert isinstance(trouble, ListenError)
        [trouble] = (await preflight(again(config, METRICS__PORT=taken))).troubles
        assert isinstance(trouble, ListenError)
    assert await running_relay(config.admin_socket) is None


@pytest.mark.parametrize("token", ["", "page.token"])
async def test_the_live_page_of_what_runs_is_in_nobody_s_way(config: Config, unused_tcp_port: int, token: str) -> None:
    write_file(config.directory / "page.token", b"x" * 20)
    page = again(config, ADMIN__TOKEN_FILE=token, ADMIN__PORT=str(unused_tcp_port))
    async with Relay(page):
        assert (await preflight(page)).troubles == []


async def test_the_socket_of_the_live_page(config: Config) -> None:
    page = again(config, ADMIN__PAGE_SOCKET="page.sock")
    assert (await preflight(page)).troubles == []
    (config.directory / "page.sock").touch()
    [trouble] = (await preflight(page)).troubles
    assert str(trouble).endswith(
        f"[admin] page_socket: {config.directory}/page.sock: is in the way, and no socket; move it away"
    )
    (config.directory / "page.sock").unlink()
    async with Relay(page):
        assert (await preflight(page)).troubles == []


async def test_a_socket_that_answers_nothing_is_somebody_s(config: Config) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(config.admin_socket))
        assert await running_relay(config.admin_socket) is None  # a stale one: nobody listens
    config.admin_socket.unlink()
    config.admin_socket.write_text("")
    assert await running_relay(config.admin_socket) is None
    [trouble] = (await preflight(config)).troubles
    assert "is in the way, and no socket; move it away" in str(trouble)


async def test_what_it_warns_of(config: Config) -> None:
    for name in ("server.key", "master.key"):
        (config.directory / name).chmod(0o644)
    (config.directory / "ca.key").touch()
    found = await preflight(again(config, TRANSPORT__HOST="localhost", SUBSCRIBER__SOCKS_PROXY="127.0.0.1:1"))
    assert found.troubles == []
    words = [
        "the address says localhost",
        "server.key: everybody",
        "master.key: everybody",
        "offline",
        "is Tor running?",
    ]
    assert [word for word, line in zip(words, found.warnings, strict=True) if word not in line] == []


async def test_a_path_that_is_too_long_for_the_socket_beside_the_database(config: Config) -> None:
    folder = config.directory / ("d" * 120)
    folder.mkdir()
    found = await preflight(again(config, STORE__URL=f"sqlite:///{folder}/ntf-server.db"))
    assert found.troubles == []
    assert "there will be no admin socket: " in found.warnings[0]
