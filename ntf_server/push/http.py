"""One HTTP engine for all push providers: requests from an asyncio loop, sent by libcurl in a thread of its own.

Requests are multiplexed over few HTTP/2 connections (RFC 9113) with prior knowledge; every request has a deadline.
Names are resolved in the loop (`names`), connections and what becomes of them are the thread's (`worker`).
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlsplit

import pycurl

from ntf_server.push.exchange import Done, Endpoint, HttpFailure, HttpRequest
from ntf_server.push.names import Addresses, Resolver
from ntf_server.push.worker import Batch, Results, Worker
from smp_bridge.network import contains

log = logging.getLogger(__name__)


class HttpEngine:
    """Sends requests from a running asyncio loop; `close` ends the thread.

    `streams`: requests that may be under way over one connection; `failed`: is done, with the error, if the thread
    ended by itself: nothing is sent any more.
    """

    def __init__(self, *, streams: int = 1000, resolver: Resolver | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._names = resolver or Resolver()
        self._worker = Worker(self._deliver, streams)
        self._closing = False
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)
        self._thread.start()

    def send(self, requests: Sequence[tuple[HttpRequest, Done]]) -> None:
        """Start requests; each `done` is called once, in the loop, with an HttpResponse or an HttpFailure.

        After `close` nothing is started, and `done` is not called.
        """
        if self._closing or self.failed.done() or not requests:  # the descriptor may be another's by now
            return
        ready: list[Batch] = []
        begin, endpoint = 0, requests[0][0].endpoint
        for i, (request, _) in enumerate(requests):
            if request.endpoint is not endpoint:
                self._sort(ready, endpoint, requests[begin:i])
                begin, endpoint = i, request.endpoint
        self._sort(ready, endpoint, requests[begin:] if begin else requests)
        if ready:
            self._worker.put(ready)

    def _sort(self, ready: list[Batch], endpoint: Endpoint, requests: Sequence[tuple[HttpRequest, Done]]) -> None:
        """Those whose addresses are known, or no concern of ours, are ready; the others are once they are known."""
        if endpoint.proxy:
            ready.append(Batch(endpoint, (), requests))
            return
        host = urlsplit(endpoint.url).hostname or ""
        addresses = self._names.known(host)
        if addresses is None:
            self._names.resolve(host, partial(self._resolved, endpoint, requests), strangers=endpoint.public_only)
        else:
            self._aim(ready, endpoint, requests, addresses)

    def _resolved(self, endpoint: Endpoint, requests: Sequence[tuple[HttpRequest, Done]], addresses: Addresses) -> None:
        ready: list[Batch] = []
        if not self._closing and not self.failed.done():
            self._aim(ready, endpoint, requests, addresses)
            self._worker.put(ready)

    def _aim(
        self,
        ready: list[Batch],
        endpoint: Endpoint,
        requests: Sequence[tuple[HttpRequest, Done]],
        addresses: Addresses,
    ) -> None:
        usable = _usable(endpoint, addresses)
        if usable:
            ready.append(Batch(endpoint, usable, requests))
            return
        code = pycurl.E_COULDNT_CONNECT if addresses.all else pycurl.E_COULDNT_RESOLVE_HOST
        _report([(done, HttpFailure(code, timeout=False)) for _, done in requests])

    async def close(self) -> None:
        """Give up what is in flight (its `done` is not called) and close all connections."""
        if self._closing:
            await asyncio.to_thread(self._thread.join)
            return
        self._closing = True
        self._worker.stop()
        await self._names.close()
        await asyncio.to_thread(self._thread.join)
        self._worker.discard()
        if self.failed.done() and not self.failed.cancelled():
            self.failed.exception()  # it was told, or nobody asked
        else:
            self.failed.cancel()

    # --- in the thread

    def _run(self) -> None:
        try:
            self._worker.run()
        except BaseException as e:
            log.exception("the push engine ended")
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._fail, e)

    def _deliver(self, results: Results) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_report, results)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)


def _usable(endpoint: Endpoint, addresses: Addresses) -> tuple[str, ...]:
    if not endpoint.public_only:
        return addresses.all
    if not endpoint.allowed:
        return addresses.public
    return tuple(a for a in addresses.all if a in addresses.public or contains(endpoint.allowed, a))


def _report(results: Results) -> None:
    for done, result in results:
        try:
            done(result)
        except Exception:
            log.exception("the result of a push was not taken")
