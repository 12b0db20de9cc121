"""What SMP servers have proved, in the Redis store."""

from typing import Final

from ntf_server.store.records import Session
from ntf_server.store.redis.buckets import at_once, empty_parts, listed, numbers, who
from ntf_server.store.redis.names import server_id
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.rows import HEAD, NUMBERS, row
from ntf_server.store.redis.sessions import key, speaking
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.places import ANYWHERE, Standing

_MAX_PREFIXES: Final = 4  # of a server: it may be reached by IPv4 and by IPv6, and move
_CLAIMS: Final = 4  # tokens that want a server: of the first ones, and of the last


async def standing(node: Node, server: ServerAddress) -> Standing | None:
    """See `Store.standing`."""
    answer = await node.run("standing", [key(node, server)], node.ahead)
    if answer is None:
        return None
    prefixes, tried_for, buckets = answer
    parts = empty_parts(node, server_id(server), numbers(buckets))
    ends = {record for answer in await node.run_on("ends", [_CLAIMS], parts) for record in answer}
    records = sorted(ends, key=lambda record: HEAD.unpack_from(record.ljust(HEAD.size, b"\0"))[3])
    first, last = records[:_CLAIMS], records[-_CLAIMS:]
    claims = tuple(dict.fromkeys(row(record).token for record in (*first, *last)))
    return Standing(tuple(prefixes.decode().split()), float(tried_for), claims) if claims else None


async def prove(node: Node, session: Session, prefix: str) -> None:
    """See `Store.prove`."""
    keys, args = speaking(node, session)
    await node.run("prove", keys, *args, prefix, ANYWHERE, _MAX_PREFIXES)


async def disprove(node: Node, server: ServerAddress) -> None:
    """See `Store.disprove`."""
    await node.run("disprove", [key(node, server)], node.ahead)


async def give_up(node: Node, session: Session, error: str, limit: int) -> int:
    """See `Store.give_up`. Nothing is associated with a service there that nobody reaches."""
    done, server = 0, server_id(session.server)
    for some in at_once(node, await listed(node, server)):
        if done < limit:
            args = (*who(node, session), NUMBERS[SubscriptionStatus.ERR], error, limit - done)
            done += await node.run("give_up", [node.names.bucket(server, n) for n in some], *args)
    return done
