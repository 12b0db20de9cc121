"""What SMP servers have proved, in the Redis store."""

from typing import Final

from ntf_server.store.records import Session
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.rows import NUMBERS, row
from ntf_server.store.redis.sessions import key, speaking
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.places import ANYWHERE, Standing

_MAX_PREFIXES: Final = 4  # of a server: it may be reached by IPv4 and by IPv6, and move
_CLAIMS: Final = 4  # tokens that want a server: of the first ones, and of the last


async def standing(node: Node, server: ServerAddress) -> Standing | None:
    """See `Store.standing`."""
    answer = await node.run("standing", [key(node, server)], node.ahead, _CLAIMS)
    if answer is None:
        return None
    prefixes, tried_for, records = answer
    claims = tuple(dict.fromkeys(row(record).token for record in records))
    return Standing(tuple(prefixes.decode().split()), float(tried_for), claims) if claims else None


async def prove(node: Node, session: Session, prefix: str) -> None:
    """See `Store.prove`."""
    keys, who = speaking(node, session)
    await node.run("prove", keys, *who, prefix, ANYWHERE, _MAX_PREFIXES)


async def disprove(node: Node, server: ServerAddress) -> None:
    """See `Store.disprove`."""
    await node.run("disprove", [key(node, server)], node.ahead)


async def give_up(node: Node, session: Session, error: str, limit: int) -> int:
    """See `Store.give_up`. Nothing is associated with a service there that nobody reaches."""
    keys, who = speaking(node, session)
    return int(await node.run("give_up", keys, *who, NUMBERS[SubscriptionStatus.ERR], error, limit))
