"""Parts of the relay that can be made to fail, and then are to be started again."""

from collections.abc import Awaitable, Generator
from typing import Any

from ntf_server.supervisor import Run


class Breakable:
    """A part that fails, when it is to, as soon as it goes on, wherever it waits just then."""

    def __init__(self, run: Run) -> None:
        self.is_to_fail = False
        self._run = run

    async def __call__(self) -> None:
        """Run it."""
        await _Driven(self, self._run())


class _Driven:
    def __init__(self, part: Breakable, work: Awaitable[None]) -> None:
        self._part, self._work = part, work

    def __await__(self) -> Generator[Any, None, None]:
        error: BaseException | None = None
        steps = self._work.__await__()
        while True:
            try:
                waits = next(steps) if error is None else steps.throw(error)
            except StopIteration:
                return
            error = None
            try:
                yield waits
            except BaseException as e:
                error = e
            else:
                if self._part.is_to_fail:
                    self._part.is_to_fail = False
                    error = ZeroDivisionError("a fault of ours")
