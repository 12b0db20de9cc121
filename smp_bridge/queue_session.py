"""One session with one SMP server: the service's subscription, then NSUBs, block by block, with a window."""

import asyncio
import contextlib
import logging
import random
from array import array
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto, smp
from smp_bridge.address import ServerAddress
from smp_bridge.client import Batch, Client, Request, ServerError, UnexpectedAnswerError
from smp_bridge.encoding import ParseError
from smp_bridge.network import Network
from smp_bridge.subscriptions import Outcome, Result, Subscription, Subscriptions, outcome
from smp_bridge.transmission import Service
from smp_bridge.transport import ConnectionClosedError, Scratch

log = logging.getLogger(__name__)

PAGE: Final = 134  # NSUBs with an Ed25519 key that fill a block; of longer ones fewer do
_TURNS: Final = 2  # blocks being loaded or signed: one holds the loop, the other the store
_NSUBS_TRIES: Final = 3  # before the server is subscribed without a service
_MAX_AGAIN: Final = 4 * PAGE  # so many may wait for another try before the next pages wait with them


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Times in seconds, as the reference's.

    `window`: blocks of NSUBs without an answer on one server; `in_flight`: on all servers, as far as each may have
    one; `connecting`: simultaneous connects, where those that take longer than `slow_connect` count among `slow`;
    `without_service`: how long a server that refuses the service is not asked again; `ended_backoff`: before a
    service subscription that another session took over is taken back, longer each time.
    """

    min_backoff: float = 1.0
    max_backoff: float = 10.0
    request_timeout: float = 30.0
    ping_interval: float = 60.0
    window: int = 8
    in_flight: int = 256
    connecting: int = 4
    slow_connect: float = 0.02
    slow: int = 1024
    without_service: float = 3600.0
    ended_backoff: float = 60.0
    network: Network = field(default_factory=Network)


class Backoff:
    """Jittered exponential delays between two bounds."""

    def __init__(self, low: float, high: float, rng: Callable[[], float] = random.random) -> None:
        self._low, self._high, self._rng = low, high, rng
        self._next = low

    def reset(self) -> None:
        """Begin again at the lower bound."""
        self._next = self._low

    def delay(self) -> float:
        """Seconds to wait now: a bound that grows by half each time, and up to half of it more."""
        bound = self._next
        self._next = max(self._low, min(bound * 1.5, self._high / 1.5))
        return min(bound * (1 + 0.5 * self._rng()), self._high)


class Share:
    """What all servers share: turns to connect, turns to load and sign a block, how many are streaming."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._connecting = asyncio.Semaphore(config.connecting)
        self.turn = asyncio.Semaphore(_TURNS)
        self.scratch = Scratch()
        self._streaming = 0
        self._slow = 0

    def window(self) -> int:
        """Blocks that a server may have without an answer now."""
        return min(self._config.window, max(1, self._config.in_flight // max(1, self._streaming)))

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """While a server subscribes what its pages give."""
        self._streaming += 1
        try:
            yield
        finally:
            self._streaming -= 1

    @contextlib.asynccontextmanager
    async def connecting(self) -> AsyncIterator[None]:
        """A place among those that connect; who proves slow goes on among the slow. Raises TimeoutError: too many."""
        config, loop = self._config, asyncio.get_running_loop()
        await self._connecting.acquire()
        slow = False

        def be_slow() -> None:
            nonlocal slow
            slow = True
            self._slow += 1
            self._connecting.release()
            if self._slow > config.slow:
                limit.reschedule(loop.time())

        timer = loop.call_later(config.slow_connect, be_slow)
        try:
            async with asyncio.timeout(None) as limit:
                yield
        finally:
            timer.cancel()
            if slow:
                self._slow -= 1
            else:
                self._connecting.release()


class Stream:
    """Subscribes in one session. `run` it.

    After it, `refused`: the server takes no NSUBs of the service; `lost`: it knows the service of this session no more.
    """

    def __init__(
        self, owner: Subscriptions, config: AgentConfig, share: Share, address: ServerAddress, client: Client
    ) -> None:
        self._owner = owner
        self._config = config
        self._share = share
        self._address = address
        self._client = client
        self._backoff = Backoff(config.min_backoff, config.max_backoff)
        self._added: list[int] = []
        self._again: list[int] = []
        self._again_at = 0.0
        self._left: Sequence[Subscription] = []  # did not fit the block before
        self._reassociated = False  # after ERR SERVICE
        self._in_flight: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refused = False
        self.lost = False

    def add(self, refs: Sequence[int]) -> None:
        """Subscribe these too."""
        self._added.extend(refs)
        self._changed.set()

    def end(self) -> None:
        """Have `run` return."""
        if not self._over.done():
            self._over.set_result(None)

    async def run(self, *, associated: bool) -> None:
        """Until the connection is lost, or `end`. `associated`: the service has subscriptions on the server."""
        streaming = asyncio.create_task(self._stream(associated))
        try:
            await asyncio.wait([streaming, self._over, self._client.closed], return_when=asyncio.FIRST_COMPLETED)
            for task in (streaming, self._over):
                if task.done():
                    with contextlib.suppress(ConnectionClosedError):
                        task.result()
        finally:
            self._over.cancel()
            tasks = [streaming, *self._in_flight]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _stream(self, associated: bool) -> None:
        with self._share.streaming():
            if associated:
                await self._subscribe_service()
            sent = await self._send_pages()
            # What the pages gave is associated now: is it all that the server has?
            while self._client.session.service and (sent or not associated) and await self._subscribe_service():
                sent = await self._send_pages()
        while True:
            await self._send_next(pages=False)

    async def _send_pages(self) -> bool:
        """Send what the pages give, and wait for the answers; whether there was anything."""
        sent = False
        while await self._send_next(pages=True):
            sent = True
        while self._in_flight:
            await self._wait(None)
        return sent

    async def _send_next(self, *, pages: bool) -> bool:
        """Send one block of what is to be sent, once there is anything and room for it; False: the pages are done."""
        while not self._ready(pages):
            room = len(self._in_flight) < self._share.window()
            await self._wait(self._again_at if room and self._again else None)
        async with self._share.turn:
            subscriptions = await self._load(pages)
            if subscriptions:
                await self._send(subscriptions)
                await asyncio.sleep(0)  # let others have the loop before the next block is signed
        await self._client.drain()
        return not pages or subscriptions is not None

    def _ready(self, pages: bool) -> bool:
        if len(self._in_flight) >= self._share.window():
            return False
        return bool(self._left or self._added or self._again_is_due() or (pages and len(self._again) < _MAX_AGAIN))

    def _again_is_due(self) -> bool:
        return bool(self._again) and asyncio.get_running_loop().time() >= self._again_at

    async def _load(self, pages: bool) -> Sequence[Subscription] | None:
        """What is next, first of all what did not fit before; None: the pages are at their end."""
        left, self._left = self._left, []
        room = PAGE - len(left)
        if refs := self._take_refs(room):
            return [*left, *await self._owner.load(self._address, refs)]
        if not pages or not room or len(self._again) >= _MAX_AGAIN:
            return left
        return [*left, *await self._owner.page(self._address, room)] or None

    def _take_refs(self, room: int) -> list[int]:
        if not self._added and self._again_is_due():
            self._added, self._again = self._again, []  # what fails once more waits anew
        refs, self._added = self._added[:room], self._added[room:]
        return refs

    async def _wait(self, until: float | None) -> None:
        """Until an answer or an addition comes, or it is time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._changed.wait()
        self._changed.clear()

    async def _send(self, subscriptions: Sequence[Subscription]) -> None:
        """Send one block of them; the rest is next."""
        as_service = self._client.session.service is not None
        nsub = smp.NSub()
        requests = [Request(nsub, s.notifier_id, s.notifier_key, as_service) for s in subscriptions]
        try:
            batch = await self._client.send_block(requests)
        except (crypto.CryptoError, ParseError):
            self._left = await self._drop_unusable(subscriptions)
            if len(self._left) == len(subscriptions):
                raise  # it was not a key of theirs
            return
        count = len(batch.answers)
        refs = array("q", (s.ref for s in subscriptions[:count]))
        tags = bytes(s.tag for s in subscriptions[:count])
        self._left = subscriptions[count:]
        task = asyncio.create_task(self._answers(batch, refs, tags))
        self._in_flight.add(task)
        task.add_done_callback(self._answered)

    async def _drop_unusable(self, subscriptions: Sequence[Subscription]) -> list[Subscription]:
        """Those whose key can be used in this session; the others get their outcome."""
        usable, results = [], []
        for s in subscriptions:
            try:
                key = s.notifier_key
                key = crypto.parse_quick_private(key) if isinstance(key, bytes) else key
            except ParseError:
                results.append(Result(s.ref, s.tag, Outcome.ERROR, "the key is bad"))
                continue
            if isinstance(key, X25519PrivateKey) and self._client.session.server_key is None:
                results.append(Result(s.ref, s.tag, Outcome.ERROR, "the server is too old for this key"))
            else:
                usable.append(s)
        await self._owner.results(self._address, results)
        return usable

    async def _answers(self, batch: Batch, refs: Iterable[int], tags: Iterable[int]) -> None:
        """Wait for the answers to a block and hand them on."""
        try:
            await batch.wait(self._config.request_timeout)
        finally:
            self._client.forget(batch)
        service = self._client.session.service
        results: list[Result] = []
        again: list[int] = []
        for ref, tag, answer in zip(refs, tags, batch.answers, strict=True):
            what = outcome(answer, service.service_id if service else None)
            if what is None:
                again.append(ref)
            elif what[0] is Outcome.SERVICE and service:
                self.refused = True
            else:
                results.append(Result(ref, tag, *what))
        if results:
            await self._owner.results(self._address, results)
        if self.refused:
            self.end()
        if again:
            if not self._again:
                self._again_at = asyncio.get_running_loop().time() + self._backoff.delay()
            self._again += again
        else:
            self._backoff.reset()

    def _answered(self, task: "asyncio.Task[None]") -> None:
        self._in_flight.discard(task)
        self._changed.set()
        if not task.cancelled() and (e := task.exception()) and not self._over.done():
            self._over.set_exception(e)

    # --- the service

    async def _subscribe_service(self) -> bool:
        """NSUBS, until it is answered; whether the pages have more to give after that."""
        service = self._client.session.service
        assert service is not None
        for _ in range(_NSUBS_TRIES):
            try:
                count = await self._nsubs(service)
            except (ServerError, UnexpectedAnswerError) as e:
                raise self._give_up(str(e), lost=isinstance(e, ServerError) and e.error.code == "AUTH") from e
            except TimeoutError:
                await asyncio.sleep(self._backoff.delay())
            else:
                self._backoff.reset()
                return await self._owner.service_subscribed(self._address, count)
        raise self._give_up("no answer", lost=False)

    def _give_up(self, why: str, *, lost: bool) -> ConnectionClosedError:
        """What ends the session: NSUBs in it would get errors that look final."""
        log.warning("SMP server %s: NSUBS is refused: %s", self._address.hosts[0], why)
        self.lost, self.refused = lost, not lost
        return ConnectionClosedError("the service is given up")

    async def _nsubs(self, service: Service) -> int | None:
        """How many queues the service has; None: ERR SERVICE, the first one. Raises TimeoutError also for what is
        temporary.
        """
        assert isinstance(service.key, Ed25519PrivateKey)
        try:
            answer = await self._client.request(
                smp.NSubs(), service.service_id, service.key, timeout=self._config.request_timeout
            )
        except ServerError as e:
            if e.error.code == "SERVICE" and not self._reassociated:
                self._reassociated = True
                return None
            if outcome(e.error, None) is None:
                raise TimeoutError from e
            raise
        if not isinstance(answer, smp.SOks):
            raise UnexpectedAnswerError(f"unexpected answer {type(answer).__name__}")
        return answer.count
