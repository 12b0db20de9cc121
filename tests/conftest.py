"""Fixtures for tests of the whole: servers, the relay as a process of its own, devices."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import Phone, RelayProcess, environment
from hypothesis import settings
from name_server import Dns
from relay_nodes import Nodes, running

from ntf_server.testing import MockApns
from smp_bridge.testing import SmpServer

pytest.register_assert_rewrite("ntf_server.testing.store_suite")
# A shell has what it starts in the background ignore SIGINT, and so does what that starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("relay", deadline=None)
settings.load_profile("relay")


@pytest.fixture
async def smp_server() -> AsyncIterator[SmpServer]:
    """An in-memory SMP server, with a web page on its port: who names a host in TLS reaches that."""
    async with SmpServer(sni="web") as server:
        yield server


@pytest.fixture
async def dns() -> AsyncIterator[Dns]:
    """A DNS server that answers for no name yet."""
    async with Dns() as server:
        yield server


@pytest.fixture
async def mock_apns() -> AsyncIterator[MockApns]:
    """A mock APNs."""
    async with MockApns() as apns:
        yield apns


@pytest.fixture
async def relay_process(tmp_path: Path, mock_apns: MockApns) -> AsyncIterator[RelayProcess]:
    """A relay process, started, with the mock APNs as its provider AT."""
    relay = RelayProcess(tmp_path / "relay", environment(mock_apns))
    await relay.init()
    await relay.start()
    try:
        yield relay
    finally:
        await relay.stop(signal.SIGKILL)


@pytest.fixture
async def nodes(tmp_path: Path, store: Any, mock_apns: MockApns) -> AsyncIterator[Nodes]:
    """Two relays on the Redis that a module's own `store` has, started."""
    async with running(tmp_path, store.url, mock_apns) as nodes:
        yield nodes


@pytest.fixture
def phone(mock_apns: MockApns) -> Callable[[], Phone]:
    """Makes devices."""
    return lambda: Phone(mock_apns)


@pytest.fixture
def until() -> Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]:
    """Polls a condition until it holds, 20 s at most."""

    async def poll(condition: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(20):
            while not await condition():
                await asyncio.sleep(0.02)

    return poll
