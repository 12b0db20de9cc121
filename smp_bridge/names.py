"""Names to IP addresses by c-ares, in the loop: a name that nobody answers for holds up nobody else.

The C library's resolver would take a thread for each name that is being looked up, for as long as a stranger's DNS
server likes. c-ares knows `/etc/hosts`, `localhost` and `/etc/resolv.conf`, but no other source of the C library's.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pycares

TIMEOUT: Final = 5.0  # seconds of a lookup


class Names:
    """Used in one running loop. `servers`: `IP:PORT` of DNS servers, none for the system's; `timeout`: seconds."""

    def __init__(self, servers: Sequence[str] = (), *, timeout: float = TIMEOUT) -> None:
        self._servers = list(servers) or None
        self._timeout = timeout
        self._channel: pycares.Channel | None = None

    async def look_up(self, host: str) -> list[str]:
        """IP addresses of a host, in the order to try them in. May be cancelled.

        Raises OSError (there is no such name, no answer, no address), TimeoutError, ValueError (it is no name).
        """
        import pycares  # noqa: PLC0415  half a MiB: not before there is a name

        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def give(result: Any, error: int | None) -> None:
            if answer.done():  # nobody waits any more
                return
            if error:
                answer.set_exception(OSError(pycares.errno.strerror(error)))
            else:
                answer.set_result([node.addr[0].decode() for node in result.nodes])

        def answered(result: Any, error: int | None) -> None:  # in a thread of c-ares
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(give, result, error)

        if self._channel is None:
            self._channel = pycares.Channel(timeout=self._timeout / 3, tries=2, servers=self._servers)
        try:
            self._channel.getaddrinfo(host, None, type=1, callback=answered)
        except (pycares.AresError, UnicodeError) as e:
            raise ValueError("not a host name") from e
        async with asyncio.timeout(self._timeout):
            found = await answer
        if not found:
            raise OSError("the host has no address")
        return found

    def close(self) -> None:
        """Look up nothing more."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
