"""Changes of servers, for who holds them: kept until they are asked for, one of a kind for each server."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ntf_server.store.records import Change, ChangeKind, Ref, ToAudit
from smp_bridge.address import ServerAddress


class Changes:
    """Bounded by the number of subscriptions: what is told of one twice, before anybody asks, is told once."""

    def __init__(self) -> None:
        self._pending: dict[tuple[ServerAddress, ChangeKind], dict[Any, None]] = {}
        self._some = asyncio.Event()

    def tell(self, changes: Sequence[Change]) -> None:
        """These happened."""
        for change in changes:
            told = self._pending.setdefault((change.server, change.kind), {})
            told.update(dict.fromkeys(change.removed or change.refs))
        if changes:
            self._some.set()

    async def __aiter__(self) -> AsyncIterator[Change]:
        while True:
            while self._pending:
                server, kind = key = next(iter(self._pending))
                told = tuple(self._pending.pop(key))
                is_removal = kind is ChangeKind.REMOVED
                yield Change(kind, server, removed=told) if is_removal else Change(kind, server, told)
            self._some.clear()
            await self._some.wait()


def audits(subscriptions: Sequence[ToAudit]) -> list[Change]:
    """That who holds their servers is to look at these: one of each server."""
    refs = defaultdict[ServerAddress, list[Ref]](list)
    for item in subscriptions:
        refs[item.server].append(item.ref)
    return [Change(ChangeKind.AUDIT, server, tuple(of_server)) for server, of_server in refs.items()]
