"""What tokens there are, in the Redis store: each node counts those of its shards."""

from ntf_server.store.records import ACTIVE_SPANS, Census, Cursor
from ntf_server.store.redis.node import Node


async def census(node: Node, after: Cursor | None, limit: int, *, everywhere: bool) -> tuple[Census, Cursor | None]:
    """See `Store.census`. A cursor is (number of the shard, token id)."""
    number, last = after or (0, b"")
    counted = Census()
    shards = node.names.shards
    while number < len(shards) and limit > 0:
        found = 0
        if everywhere or shards[number] in node.fences:
            keys, spans = [shards[number]], [str(seconds) for seconds in ACTIVE_SPANS.values()]
            found, last, *words = await node.run("census", keys, node.ahead, last, limit, *spans)
            counted.active.update(dict(zip(ACTIVE_SPANS, words, strict=False)))
            kinds = words[len(ACTIVE_SPANS) :]
            for i in range(0, len(kinds), 4):
                provider, status, key = (word.decode() for word in kinds[i : i + 3])
                counted.count(provider, status, bytes.fromhex(key), kinds[i + 3])
        if found < limit:
            number, last = number + 1, b""
        limit -= found
    return counted, (number, last) if number < len(shards) else None
