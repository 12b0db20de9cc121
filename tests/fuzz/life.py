"""An event loop in virtual time for inputs that need one, and ears for what must not be said meanwhile."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from virtual_time import VirtualLoop


class _Ears(logging.Handler):
    """Keeps what is said of a fault of ours: errors, and whatever comes with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self.heard.append(self.format(record))


_LOOPS: Final[list[VirtualLoop]] = []
_OLD: Final = 2.0**20  # seconds: from 2**24 on a float's steps are longer than what asyncio takes for the same moment


def _loop() -> VirtualLoop:
    """One for many inputs, until it is old."""
    if _LOOPS and _LOOPS[0].time() > _OLD and not _LOOPS[0].is_running():
        _LOOPS.pop().close()
    if not _LOOPS:
        _LOOPS.append(VirtualLoop())
    return _LOOPS[0]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """In virtual time, to its end and to that of all that it started. Raises what it raises; AssertionError for what
    was logged, what asyncio complains of, and tasks that are left.
    """
    loop, ears = _loop(), _Ears()
    loop.set_exception_handler(lambda _, context: ears.heard.append(f"asyncio: {context}"))
    root = logging.getLogger()
    root.addHandler(ears)
    try:
        try:
            result = loop.run_until_complete(main)
        finally:
            left = _end(loop)
    except Exception as e:
        assert not ears.heard, ears.heard[0]
        raise AssertionError(f"{type(e).__name__}: {e}") from e
    finally:
        root.removeHandler(ears)
    assert not ears.heard, ears.heard[0]
    assert not left, left
    return result


def _end(loop: VirtualLoop) -> list[str]:
    """Names of the tasks that had not ended."""
    loop.run_until_complete(asyncio.sleep(0))
    left = [task for task in asyncio.all_tasks(loop) if not task.done()]
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left))
    return [task.get_name() for task in left]


def loop_time() -> float:
    """Virtual seconds."""
    return _loop().time()
