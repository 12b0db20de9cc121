"""A store moved into another one: `ntf-server migrate`, `ntf-server import`. Both are there for nobody else meanwhile.

The target is marked from the first record until all was read back. What was written is repeated after a kill from where
the mark says; the source is only read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from ntf_server.permissions import give_as_folder
from ntf_server.store.contract import StoreConflictError
from ntf_server.store.open import Shared
from ntf_server.store.portable import Digest, Mark, Portable, Source
from ntf_server.store.redis.url import RedisUrl
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.portable import PortableDatabase

_ALONE: Final = Shared()
_AT_ONCE: Final = 200  # registrations in memory, with their subscriptions

Place = Path | RedisUrl
# What is done (`copied`, `compared`, `read`), how many registrations of how many.
Tell = Callable[[str, int, int], None]


class DifferentError(Exception):
    """What was read back is not what was moved. One line, which says what to do."""


@dataclass(frozen=True)
class Migrated:
    """How many records of each kind the target has, and of the source's how many were left out."""

    counts: Mapping[str, int]
    left_out: Mapping[str, int]


async def migrate(
    source: Place,
    target: Place,
    *,
    master_key: MasterKey,
    tell: Tell = lambda _what, _done, _total: None,
    shards: int | None = None,
    buckets: int | None = None,
    shared: Shared = _ALONE,
) -> Migrated:
    """Move all that matters; both are sealed by keys of their own, which `master_key` wraps.

    `shards`, `buckets`: of a Redis that is made; `shared`: how durable what is written there has to be. Run once more
    after anything that ended it, it goes on. Raises StoreError (in use, not empty, being filled by another process,
    another schema, another master key), SealingError, StoreCorruptError, DifferentError.
    """
    if source == target:
        raise StoreConflictError("FROM and TO are the same store")
    if not isinstance(target, RedisUrl) and (shards, buckets) != (None, None):
        raise StoreConflictError("only a Redis has shards and buckets")
    first = await _open(source, master_key, shared)
    try:
        return await fill(
            first, target, master_key=master_key, tell=tell, shards=shards, buckets=buckets, shared=shared
        )
    finally:
        await first.close()


async def fill(
    source: Source,
    target: Place,
    *,
    master_key: MasterKey,
    tell: Tell,
    shards: int | None = None,
    buckets: int | None = None,
    shared: Shared = _ALONE,
) -> Migrated:
    """As `migrate`, also from what is no store of ours. Its caller closes it."""
    await source.check_idle()  # before anything is made
    made = await _open(target, master_key, shared, shards=shards, buckets=buckets, make=True)
    try:
        return await _migrate(source, made, tell)
    finally:
        await made.close()
        _give(target)


async def survey(source: Source, tell: Tell) -> Migrated:
    """What `fill` would move, and leave out: nothing is written."""
    digest, _ = Digest.pair()
    await _sum_up(source, digest, tell, "read")
    return Migrated(digest.counts, +digest.left_out)


def _give(target: Place) -> None:
    """What root made is the server's."""
    if isinstance(target, Path):
        give_as_folder(*(target.with_name(target.name + end) for end in ("", "-wal", "-shm", ".lock")))


async def _open(
    place: Place,
    master_key: MasterKey,
    shared: Shared,
    *,
    shards: int | None = None,
    buckets: int | None = None,
    make: bool = False,
) -> Portable:
    if not isinstance(place, RedisUrl):
        return PortableDatabase.open(place, master_key, make=make)
    from ntf_server.store.redis.database import Database  # noqa: PLC0415  not loaded where it is not used
    from ntf_server.store.redis.durability import Durability  # noqa: PLC0415
    from ntf_server.store.redis.portable import PortableRedis  # noqa: PLC0415

    database = await Database.open(place, durability=Durability(shared.wait_replicas, shared.wait_aof))
    try:
        return await PortableRedis.open(database, master_key, shards=shards, buckets=buckets, make=make)
    except BaseException:
        await database.close()
        raise


async def _migrate(source: Source, target: Portable, tell: Tell) -> Migrated:
    mark = await _begin(source, target)
    await _copy(source, target, mark, tell)
    before, after = Digest.pair()
    await _sum_up(source, before, tell)
    await _sum_up(target, after, tell)
    await source.check_idle()
    if differences := before.differences(after):
        await target.write([], replace(mark, cursor=b""))  # all is written once more, the next time
        raise DifferentError(
            f"{target.name}: the {', '.join(differences)} are not those of {source.name}: run this again; if that does"
            f" not help, a relay ran on one of them meanwhile: empty {target.name}, and begin anew"
        )
    await target.end(after.newest)
    return Migrated(after.counts, +before.left_out)


async def _begin(source: Source, target: Portable) -> Mark:
    if source.identity == target.identity:
        raise StoreConflictError("FROM and TO are the same store")
    mark = await target.mark()
    if mark is None:
        mark = Mark(source.identity, (source.ahead, target.ahead))
        await target.begin(mark)
        return mark
    if mark.source != source.identity:
        raise StoreConflictError(
            f"{target.name}: is being filled from another store than {source.name}, or with other --skip-tokens: give"
            " that one, or another target"
        )
    await target.check_idle()
    await target.take_over()
    source.ahead, target.ahead = mark.aheads
    return mark


async def _copy(source: Source, target: Portable, mark: Mark, tell: Tell) -> None:
    async for servers in source.servers():
        await target.write_servers(servers.moved)
    await target.write_statistics(await source.statistics())
    total, done = await source.tokens(), await target.tokens()
    cursor = mark.cursor
    while cursor is not None:
        tell("copied", min(done, total), total)
        some = await source.read(cursor, _AT_ONCE)
        cursor = some.cursor
        await target.write(some.moved, replace(mark, cursor=cursor))
        done += len(some.moved)
    tell("copied", total, total)


async def _sum_up(store: Source, digest: Digest, tell: Tell, what: str = "compared") -> None:
    async for servers in store.servers():
        digest.add_servers(servers)
    total, cursor = await store.tokens(), b""
    while True:
        some = await store.read(cursor, _AT_ONCE)
        digest.add(some)
        tell(what, digest.counts["registrations"], total)
        if some.cursor is None:
            return
        cursor = some.cursor
