"""What is due of this node's shards, whoever made it so.

Whoever makes something due of another's shard rings: a stream that all read says which shards. So nobody has to look
all the time. Now and then each node looks of itself, as nobody rings twice.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from ntf_server.store.contract import StoreCorruptError, StoreError
from ntf_server.store.redis.node import Node
from smp_bridge.ntf import Provider

log = logging.getLogger(__name__)

_LOOK: Final = 0.5  # seconds without a ring, after which a node looks
_PAUSE: Final = 0.02  # seconds between two rings, and between two looks
_KEPT: Final = 100  # rings; who is further behind looks of himself


class Due:
    """`run` as long as the store is open. `on_due`: seconds after which the first of a provider is due."""

    def __init__(self, node: Node, spawn: Callable[[Coroutine[Any, Any, None], str], None]) -> None:
        self.on_due: Callable[[Provider, float], None] = lambda _provider, _seconds: None
        self._node = node
        self._spawn = spawn
        self._known: dict[Provider, float] = {}  # when the first of a provider is, as it was told (steady seconds)
        self._to_tell: set[int] = set()  # shards, whose holders are to hear
        self._rings = False

    def ring(self, tokens: Iterable[bytes]) -> None:
        """Something of these tokens is due now."""
        node = self._node
        numbers = {node.names.number(token) for token in tokens}
        self.hear(numbers)
        self._to_tell |= numbers - node.held.keys()
        if self._to_tell and not self._rings:
            self._rings = True
            self._spawn(self._ring(), "bell")

    async def _ring(self) -> None:
        try:
            while self._to_tell:
                numbers, self._to_tell = self._to_tell, set()
                if not self._node.is_alone:
                    words = b" ".join(b"%d" % number for number in numbers)
                    await self._node.run("publish", [self._node.names.bell], _KEPT, b"s", words)
                await asyncio.sleep(_PAUSE)
        except (StoreError, StoreCorruptError) as e:
            log.debug("nobody hears what is due: %s", e)  # but by a look
        finally:
            self._rings = False

    def hear(self, numbers: Iterable[int]) -> None:
        """Something of these shards is due."""
        if any(number in self._node.held for number in numbers):
            self._node.has_due.set()

    async def run(self) -> None:
        """Until cancelled, or until the store is gone."""
        node = self._node
        head = [p.encode() for p in Provider]
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await node.has_due.wait()
            node.has_due.clear()
            try:
                await node.begin()
                answers = await node.ask_some("heads", [node.ahead, *head], {shard: [] for shard in node.fences})
            except StoreError as e:
                log.debug("what is due cannot be read: %s", e)
            except StoreCorruptError:
                return
            else:
                self._tell(answers)
                node.done()
            await asyncio.sleep(_PAUSE)

    def _tell(self, answers: Sequence[Sequence[bytes]]) -> None:
        """What was not told yet."""
        now = self._node.clock.steady()
        for provider, *waits in zip(Provider, *answers, strict=True):
            known = [int(wait) / 1000 for wait in waits if wait]
            if not known:
                self._known.pop(provider, None)
                continue
            at = now + min(known)
            if abs(self._known.get(provider, float("-inf")) - at) > _PAUSE:
                self._known[provider] = at
                self.on_due(provider, min(known))
