"""A relay takes leave: nothing new is taken, answers and pushes under way are finished, and other nodes get the rest.

What a stop does too, but with as much time as the operator gives it, and told while it goes on.
"""

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any, Final

from ntf_server.admin.socket import AdminError
from ntf_server.listener import Listener
from ntf_server.observe.events import Event, EventLog
from ntf_server.push.dispatcher import Dispatcher
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.contract import Store, StoreError

log = logging.getLogger(__name__)
events = EventLog(__name__)

DRAIN: Final = "drain"  # the admin socket's command
LONGEST: Final = 3600.0  # seconds that it may take
_TELLING: Final = 1.0  # seconds: a stop does not wait for a store that is away
_LOOK: Final = 0.05  # seconds between two looks at what the store still has
_LAST: Final = 0.2  # seconds in which who asks is told that it is over, before the relay stops
_ANSWER: Final = 0.5  # seconds after which who asked is told how far it is
_WORDS: Final = {
    "clients": "client sessions",
    "servers": "SMP servers",
    "shards": "shards of tokens",
    "pushes": "pushes under way",
}


class Drain:
    """Made in a running loop; `run` it once. `begun`; `finished`: what is left now is given back; `over`, a moment
    later: the relay is to stop.
    """

    def __init__(self, store: Store, listener: Listener, subscriber: Subscriber, dispatcher: Dispatcher) -> None:
        self._store = store
        self._listener = listener
        self._subscriber = subscriber
        self._dispatcher = dispatcher
        self._shards = 0
        self.begun = False
        self.finished = asyncio.Event()
        self.over = asyncio.Event()

    def held(self) -> dict[str, int]:
        """What is neither finished nor handed over."""
        return {
            "clients": self._listener.sessions,
            "servers": self._subscriber.sessions,
            "shards": self._shards,
            "pushes": self._dispatcher.under_way,
        }

    async def leave(self) -> None:
        """Other nodes are told. What the store cannot do now it does when it is closed."""
        try:
            async with asyncio.timeout(_TELLING):
                self._shards = await self._store.leave()
        except (StoreError, TimeoutError) as e:
            log.debug("other nodes cannot be told: %s", e)  # the store itself says why

    async def run(self, seconds: float) -> None:
        """In about so many seconds at most. Asked again, nothing more happens; cancelled, a stop does what is left."""
        if self.begun:
            return
        self.begun = True
        try:
            await self._hand_over(seconds)
        except Exception:  # a fault of ours: a stop does what is left
            log.exception("draining failed")
        events.tell(Event.RELAY_DRAINED, "drained; left: %s", told(self.held()))
        self.finished.set()
        await asyncio.sleep(_LAST)
        self.over.set()

    async def _hand_over(self, seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        await self.leave()
        events.tell(Event.RELAY_DRAINING, "draining: %s", told(self.held()))
        await self._listener.close(seconds)
        await self._subscriber.close(max(0.0, until - clock()))
        await self._dispatcher.close(max(0.0, until - clock()))
        await self.leave()
        while self._shards and clock() < until:
            await asyncio.sleep(_LOOK)
            await self.leave()

    async def on_drain(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        """How far it is, now and then: `over`, `pid`, and what is held, by the names of `held`."""
        try:
            async with asyncio.timeout(_ANSWER):
                await self.finished.wait()
        except TimeoutError:
            pass
        return {"over": self.finished.is_set(), "pid": os.getpid(), **self.held()}


def seconds_of(request: Mapping[str, Any]) -> float:
    """`{"command": "drain", "seconds": …}`. Raises AdminError."""
    seconds = request.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST:
        raise AdminError(f"seconds: is not a number of seconds from 0 to {LONGEST:g}")
    return float(seconds)


def told(held: Mapping[str, Any]) -> str:
    """What is held, in words."""
    return ", ".join(f"{held[name]} {words}" for name, words in _WORDS.items() if held[name]) or "nothing"
