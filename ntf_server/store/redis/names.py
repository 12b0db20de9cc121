"""Names of keys: what is in one slot of a cluster has one hash tag.

`P` is the prefix of the store's URL. Tokens are in shards, by a hash of their ids, with all that a push of them needs;
each SMP server is in a slot of its own, and its queues are in buckets, which have slots of their own too; what finds a
token by its device, or a subscription by its id, and turns of codes are spread over 256 slots each; budgets of all are
in one, and so is the rest, which is little.
"""

import hashlib
import zlib
from typing import Final

from smp_bridge.address import ServerAddress

SHARDS: Final = 64
BUCKETS: Final = 16  # in a cluster


class Names:
    """Of one store. `shards`, and `buckets` of a server's queues, never change in its life."""

    def __init__(self, prefix: str, shards: int = SHARDS, buckets: int = BUCKETS) -> None:
        self._prefix = prefix.encode()
        self.buckets: Final = buckets
        self.shards: Final = [b"%s:{t%d}" % (self._prefix, n) for n in range(shards)]
        self.number_of: Final = {shard: n for n, shard in enumerate(self.shards)}
        self.store: Final = b"%s:{g}:store" % self._prefix  # hash: id, schema, shards, buckets, the wrapped key
        self.clock: Final = b"%s:{g}:clock" % self._prefix
        self.nodes: Final = b"%s:{g}:nodes" % self._prefix  # zset: node by when it counts as gone, ms
        self.servers: Final = b"%s:{g}:servers" % self._prefix  # hash: id of an SMP server -> its address
        self.weights: Final = b"%s:{g}:weights" % self._prefix  # hash: id of a large SMP server -> about its queues
        self.changes: Final = b"%s:{g}:changes" % self._prefix  # stream
        self.statistics: Final = b"%s:{g}:statistics" % self._prefix  # hash: rows of counts, by day and node
        self.bell: Final = b"%s:{g}:bell" % self._prefix  # stream: in which shards something is due

    def number(self, token: bytes) -> int:
        """The shard of a token id."""
        return zlib.crc32(token) % len(self.shards)

    def shard(self, token: bytes) -> bytes:
        """Key of that shard's lease; all that is in the shard is named after it (`lua/prelude.lua`)."""
        return self.shards[self.number(token)]

    def token(self, token: bytes) -> bytes:
        """Hash of a registration, with its queues' newest notifications."""
        return b"%s:t:%s" % (self.shard(token), token)

    def queues_of(self, token: bytes) -> bytes:
        """Set of a token's queues."""
        return b"%s:q:%s" % (self.shard(token), token)

    def gone(self, shard: bytes) -> bytes:
        """Set of tokens that were deleted, but not yet all that was theirs."""
        return b"%s:gone" % shard

    def doubts(self, shard: bytes) -> bytes:
        """Sorted set of tokens and queues that a command began with: whether it ended is not known."""
        return b"%s:doubts" % shard

    def device(self, lookup: bytes) -> bytes:
        """Hash of verify keys, and whose each is (`rows.Lead`), of a device token."""
        return b"%s:{d%02x}:%s" % (self._prefix, lookup[0], lookup)

    def subscription(self, subscription_id: bytes) -> bytes:
        """Hash of subscription ids and queues."""
        return b"%s:{i%02x}" % (self._prefix, zlib.crc32(subscription_id) & 0xFF)

    def spent(self, kind: str) -> bytes:
        """Hash of what was spent of a kind of budget, by whom."""
        return b"%s:{b}:%s" % (self._prefix, kind.encode())

    def memo(self, mask: bytes) -> bytes:
        """Of a device token, or of a registration: turns of codes."""
        return b"%s:{b%02x}:%s" % (self._prefix, mask[0], mask)

    def server(self, server_id: bytes) -> bytes:
        """Hash of an SMP server; what is its, without its queues, is named after it."""
        return b"%s:{s%s}" % (self._prefix, server_id.hex().encode())

    def bucket_number(self, notifier_id: bytes) -> int:
        """The bucket of a queue, of those of its server."""
        return zlib.crc32(notifier_id) % self.buckets

    def bucket(self, server_id: bytes, number: int) -> bytes:
        """Hash of a bucket of an SMP server's queues; all that is in it is named after it."""
        return b"%s:{s%s.%02x}" % (self._prefix, server_id.hex().encode(), number)


def server_id(server: ServerAddress) -> bytes:
    """What stands for an SMP server, however it is spelled: 8 bytes."""
    return hashlib.sha256(server.identity).digest()[:8]
