"""What a store can tell while this node does not run."""

import asyncio
from pathlib import Path

from ntf_server.store.records import Glance
from ntf_server.store.redis.url import RedisUrl
from ntf_server.store.sqlite.glance import glance as glance_at_file


def glance(place: Path | RedisUrl) -> Glance:
    """Blocks. Raises StoreError, StoreCorruptError."""
    if isinstance(place, Path):
        return glance_at_file(place)
    from ntf_server.store.redis.glance import glance as glance_at_redis  # noqa: PLC0415  not loaded where it is not used

    return asyncio.run(glance_at_redis(place))
