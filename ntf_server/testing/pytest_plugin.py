"""A pytest plugin for pytest-asyncio: `pytest_plugins = ["ntf_server.testing.pytest_plugin"]`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import rsa

from ntf_server.testing.apns import MockApns
from ntf_server.testing.device import Device, registered_device
from ntf_server.testing.fcm import MockFcm
from ntf_server.testing.webpush import MockWebPush
from smp_bridge.testing import SmpServer

if TYPE_CHECKING:
    from ntf_server.testing.relay import RunningRelay


@pytest_asyncio.fixture
async def smp_server() -> AsyncIterator[SmpServer]:
    """An in-memory SMP server, without queues yet: see `smp_bridge.testing.Recipient`."""
    async with SmpServer() as server:
        yield server


@pytest_asyncio.fixture
async def mock_apns() -> AsyncIterator[MockApns]:
    """A listening mock APNs that takes any well-formed provider token and any topic."""
    async with MockApns() as apns:
        yield apns


@pytest.fixture(scope="session")
def mock_fcm_key() -> rsa.RSAPrivateKey:
    """The service account's key of all mock FCMs: making one takes a while."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest_asyncio.fixture
async def mock_fcm(mock_fcm_key: rsa.RSAPrivateKey) -> AsyncIterator[MockFcm]:
    """A listening mock FCM with a service account of its own."""
    async with MockFcm(private_key=mock_fcm_key) as fcm:
        yield fcm


@pytest_asyncio.fixture
async def mock_web_push() -> AsyncIterator[MockWebPush]:
    """A listening mock web push service that wants VAPID by any key."""
    async with MockWebPush() as web_push:
        yield web_push


@pytest_asyncio.fixture
async def relay(
    tmp_path_factory: pytest.TempPathFactory, mock_apns: MockApns, mock_fcm: MockFcm, mock_web_push: MockWebPush
) -> AsyncIterator[RunningRelay]:
    """A relay at `relay.address` that pushes through these mocks; it runs in the test's event loop."""
    from ntf_server.testing.relay import running_relay  # noqa: PLC0415  the mocks alone need no pycurl

    directory: Path = tmp_path_factory.mktemp("relay")
    async with running_relay(directory, mock_apns, mock_fcm, mock_web_push) as running:
        yield running


@pytest_asyncio.fixture
async def device(relay: RunningRelay, mock_apns: MockApns) -> AsyncIterator[Device]:
    """A device of that relay, registered and verified, with the mock APNs as its provider."""
    async with registered_device(relay.address, mock_apns) as registered:
        yield registered
