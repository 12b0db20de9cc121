"""SIGTERM, SIGINT and SIGHUP, from the first moment of `ntf-server start` to its last."""

import signal
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio  # which takes a while: the handlers are to be there first

_ENDS: Final = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Handlers. Before `attach`, what ends the process ends it at once with 0, and SIGHUP is kept for later."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_end: Callable[[], None] | None = None
        self._on_reload: Callable[[], None] | None = None
        self._before: dict[int, Any] = {}
        self._end_asked = self._reload_asked = self._over = False

    def install(self) -> None:
        """Take the signals. In the main thread only."""
        for number in (*_ENDS, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._handle)

    def attach(
        self, loop: "asyncio.AbstractEventLoop", on_end: Callable[[], None], on_reload: Callable[[], None]
    ) -> None:
        """From now on call these in the loop; also for what came before."""
        self._loop, self._on_end, self._on_reload = loop, on_end, on_reload
        if self._end_asked:
            loop.call_soon(on_end)
        if self._reload_asked:
            loop.call_soon(on_reload)

    def detach(self) -> None:
        """The end has begun: all of them are ignored."""
        self._over = True

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._over:
            return
        if number in _ENDS:
            self._end_asked = True
        else:
            self._reload_asked = True
        if self._loop is not None:
            then = self._on_end if number in _ENDS else self._on_reload
            assert then is not None
            self._loop.call_soon_threadsafe(then)
        elif number in _ENDS:
            raise SystemExit(0)
