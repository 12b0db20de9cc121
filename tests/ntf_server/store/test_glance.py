"""A look at a store that is a file, or a Redis."""

import asyncio
from pathlib import Path

import pytest
from redis_servers import Server
from redis_stores import Nodes
from store_world import MASTER

from ntf_server.store.contract import StoreError
from ntf_server.store.glance import glance
from ntf_server.store.redis.url import parse_redis_url
from ntf_server.store.sqlite.engine import SqliteStore


async def test_both_kinds(path: Path, tmp_path: Path) -> None:
    store = await SqliteStore.open(path, master_key=MASTER)
    await store.close()
    assert glance(path).registrations == {}
    with Server(tmp_path / "redis") as server:
        url = parse_redis_url(f"{server.url}?prefix=nodes")
        nodes = Nodes(server.url)
        await nodes.open()
        assert (await asyncio.to_thread(glance, url)).registrations == {"all": 0}
        await nodes.close()


def test_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        glance(tmp_path / "none")
