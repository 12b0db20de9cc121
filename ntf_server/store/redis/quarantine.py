"""Records that cannot be read: nobody is pushed to, and nothing subscribed, for them."""

from collections.abc import Sequence

from ntf_server.observe.events import Event, EventLog
from ntf_server.store.redis.buckets import by_bucket, counted
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.rows import Queue

events = EventLog(__name__)


async def set_aside(node: Node, tokens: Sequence[bytes]) -> None:
    """These registrations. Each is told once."""
    s = node.state
    calls = [node.call("set_aside", [node.names.shard(token)], node.ahead, token) for token in tokens]
    _tell(node, "tokens", sum(await node.database.run_all(calls)))
    for token in tokens:
        s.forget(token)


async def set_queues_aside(node: Node, queues: Sequence[Queue]) -> None:
    """These subscriptions, all of one SMP server."""
    if queues:
        ids = by_bucket(node, queues[0].server, (q.notifier_id for q in queues))
        _tell(node, "subscriptions", sum(await node.run_on("damage", [], counted(ids))))


async def drop_notifications(node: Node, cut: Sequence[tuple[bytes, bytes]]) -> None:
    """Tokens, and a queue of each whose newest notification cannot be read: what else they have is due."""
    names, lanes = node.names, []
    for token, _ in cut:
        node.state.forget(token)
    calls = [
        node.call("drop_notification", [shard], node.ahead, token, queue, node.fence(shard), node.handed.calls)
        for shard, token, queue in ((names.shard(token), token, queue) for token, queue in cut)
    ]
    for lane in await node.database.run_all(calls):
        text = "a notification cannot be read: it is given up"
        events.tell(Event.RECORDS_DAMAGED, text, table="notifications", count=1)
        node.state.effects.quarantined["notifications"] += 1
        lanes += [lane] if lane else []
    node.owe(lanes)


def _tell(node: Node, table: str, count: int) -> None:
    if count:
        text = "%d records of %s cannot be read: they are set aside; register or subscribe anew"
        events.tell(Event.RECORDS_DAMAGED, text, count, table, table=table, count=count)
        node.state.effects.quarantined[table] += count
