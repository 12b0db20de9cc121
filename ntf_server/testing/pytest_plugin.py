"""A pytest plugin for pytest-asyncio: `pytest_plugins = ["ntf_server.testing.pytest_plugin"]`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from ntf_server.testing.apns import MockApns


@pytest_asyncio.fixture
async def mock_apns() -> AsyncIterator[MockApns]:
    """A listening mock APNs that takes any well-formed provider token and any topic."""
    async with MockApns() as apns:
        yield apns
