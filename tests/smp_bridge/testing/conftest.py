"""An in-memory SMP server, and who makes queues on it."""

from collections.abc import AsyncIterator

import pytest

from smp_bridge.testing import Recipient, SmpServer


@pytest.fixture
async def server() -> AsyncIterator[SmpServer]:
    async with SmpServer() as server:
        yield server


@pytest.fixture
async def recipient(server: SmpServer) -> AsyncIterator[Recipient]:
    async with await Recipient.connect(server.address) as recipient:
        yield recipient
