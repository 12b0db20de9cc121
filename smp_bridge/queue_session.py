"""One session with one SMP server: the service's subscription, then NSUBs, block by block, with a window."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import crypto, failure, smp
from smp_bridge.address import ServerAddress
from smp_bridge.backoff import Backoff, PatienceConfig, Rng
from smp_bridge.client import Batch, Client, Request, ServerError, UnexpectedAnswerError
from smp_bridge.encoding import ParseError
from smp_bridge.failure import TABLE, Happened, NsubAnswer, Remedy, Ruling, Wait
from smp_bridge.network import Network
from smp_bridge.service import Todo
from smp_bridge.subscriptions import NsubRequest, NsubResult, Ref, S, Subscriptions
from smp_bridge.transmission import Message, Service
from smp_bridge.transport import ConnectionClosedError
from smp_bridge.turns import TurnsConfig

log = logging.getLogger(__name__)

PAGE: Final = 134  # NSUBs with an Ed25519 key that fill a block; of longer ones fewer do
_TURNS: Final = 2  # blocks being loaded or signed: one holds the loop, the other the store
_MAX_AGAIN: Final = 4 * PAGE  # so many may wait for another try before the next pages wait with them


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """Times in seconds.

    `min_backoff`, `max_backoff`: between tries in one session; `patience`: between connects; `turns`: how many at once;
    `window`: blocks of NSUBs without an answer on one server; `in_flight`: on all servers, as far as each may have one;
    `service_timeout`: for NSUBS, which a server that counts very many queues answers after minutes; `without_service`:
    how long a server that refuses the service is not asked again; `ended_backoff`: before a
    service subscription that another session took over is taken back, longer each time. `rng` jitters the delays;
    `clock`: Unix seconds, by which certificates are valid. All else is timed by the event loop.
    """

    min_backoff: float = 1.0
    max_backoff: float = 10.0
    patience: PatienceConfig = field(default_factory=PatienceConfig)
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    request_timeout: float = 30.0
    service_timeout: float = 600.0
    ping_interval: float = 30.0
    ping_timeout: float = 15.0
    window: int = 8
    in_flight: int = 256
    without_service: float = 3600.0
    ended_backoff: float = 60.0
    network: Network = field(default_factory=Network)
    name_servers: tuple[str, ...] = ()
    rng: Rng = random.random
    clock: Callable[[], float] = time.time


class Share:
    """What the sessions of all servers share: turns to load and sign a block, how many are streaming."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.turn = asyncio.Semaphore(_TURNS)
        self._streaming = 0

    def window(self) -> int:
        """Blocks that a server may have without an answer now."""
        return min(self.config.window, max(1, self.config.in_flight // max(1, self._streaming)))

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """While a server subscribes what its pages give."""
        self._streaming += 1
        try:
            yield
        finally:
            self._streaming -= 1


class QueueSession(Generic[S]):
    """Subscribes in one session, the owner's `handle`. `run` it; what was received is left to `Client.finish`.

    After it, `remedy`: what the session's service calls for (NOTHING, AGAIN, RECONNECT, WITHOUT_SERVICE).
    """

    def __init__(self, owner: Subscriptions[S], share: Share, server: ServerAddress, handle: S, client: Client) -> None:
        config = share.config
        self._owner = owner
        self._config = config
        self._share = share
        self._server = server
        self._handle = handle
        self._client = client
        self._backoff = Backoff(config.min_backoff, config.max_backoff, config.rng)
        self._added: list[Ref] = []
        self._again: list[Ref] = []
        self._again_at = 0.0
        self._left: Sequence[NsubRequest] = []  # did not fit the block before
        self._reassociated = False  # after ERR SERVICE
        self._in_flight: set[asyncio.Task[None]] = set()
        self._loading = False
        self._audit: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.remedy = Remedy.NOTHING

    def add(self, refs: Sequence[Ref]) -> None:
        """Subscribe these too."""
        self._added.extend(refs)
        self._changed.set()

    def end(self) -> None:
        """Send no more: have `run` return."""
        if not self._over.done():
            self._over.set_result(None)

    async def run(self) -> None:
        """Until the connection is lost, or `end`. Raises what the owner raises."""
        streaming = asyncio.create_task(self._stream(self._handle.associated))
        try:
            await asyncio.wait([streaming, self._over, self._client.closed], return_when=asyncio.FIRST_COMPLETED)
            for task in (streaming, self._over):
                if task.done():
                    with contextlib.suppress(ConnectionClosedError):
                        task.result()
        finally:
            self._over.cancel()
            tasks = [streaming, *self._in_flight, *([self._audit] if self._audit else [])]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _stream(self, associated: bool) -> None:
        with self._share.streaming():
            todo = await self._subscribe_service() if associated else Todo.PAGES
            sent = await self._send_pages()
            # What the pages gave is associated now: is it all that the server has?
            while self._client.session.service and (sent or not associated):
                todo = await self._subscribe_service()
                if todo is not Todo.PAGES:
                    break
                sent = await self._send_pages()
        if todo is Todo.AUDIT:
            self._audit = asyncio.create_task(self._audit_service())
            self._audit.add_done_callback(self._answered)
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
            self._loading = True
            wanted = await self._load(pages)
            if wanted:
                await self._send(wanted)
                await asyncio.sleep(0)  # let others have the loop before the next block is signed
            self._loading = False
            self._changed.set()
        await self._client.drain()
        return not pages or wanted is not None

    def _ready(self, pages: bool) -> bool:
        if len(self._in_flight) >= self._share.window():
            return False
        return bool(self._left or self._added or self._again_is_due() or (pages and len(self._again) < _MAX_AGAIN))

    def _again_is_due(self) -> bool:
        return bool(self._again) and asyncio.get_running_loop().time() >= self._again_at

    async def _load(self, pages: bool) -> Sequence[NsubRequest] | None:
        """What is next, first of all what did not fit before; None: the pages are at their end."""
        left, self._left = self._left, []
        room = PAGE - len(left)
        if refs := self._take_refs(room):
            return [*left, *await self._owner.load(self._handle, refs)]
        if not pages or not room or len(self._again) >= _MAX_AGAIN:
            return left
        return [*left, *await self._owner.page(self._handle, room)] or None

    def _take_refs(self, room: int) -> list[Ref]:
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

    async def _send(self, wanted: Sequence[NsubRequest]) -> None:
        """Send one block of them; the rest is next."""
        as_service = self._client.session.service is not None
        nsub = smp.NSub()
        requests = [Request(nsub, w.notifier_id, w.notifier_key, as_service) for w in wanted]
        try:
            batch = await self._client.send_block(requests)
        except (crypto.CryptoError, ParseError):
            self._left = await self._drop_unusable(wanted)
            if len(self._left) == len(wanted):
                raise  # it was not a key of theirs
            return
        count = len(batch.answers)
        refs = [w.ref for w in wanted[:count]]
        tags = bytes(w.tag for w in wanted[:count])
        self._left = wanted[count:]
        task = asyncio.create_task(self._answers(batch, refs, tags))
        self._in_flight.add(task)
        task.add_done_callback(self._answered)

    async def _drop_unusable(self, wanted: Sequence[NsubRequest]) -> list[NsubRequest]:
        """Those whose key can be used in this session; the others get their result."""
        answer = TABLE[Happened.NSUB_KEY_UNUSABLE].answer
        assert answer is not None
        usable, results = [], []
        for w in wanted:
            try:
                key = w.notifier_key
                key = crypto.parse_quick_private(key) if isinstance(key, bytes) else key
            except ParseError:
                results.append(NsubResult(w.ref, w.tag, answer, "the key is bad"))
                continue
            if isinstance(key, X25519PrivateKey) and self._client.session.server_key is None:
                results.append(NsubResult(w.ref, w.tag, answer, "the server is too old for this key"))
            else:
                usable.append(w)
        await self._owner.results(self._handle, results)
        return usable

    async def _answers(self, batch: Batch, refs: Iterable[Ref], tags: Iterable[int]) -> None:
        """Wait for the answers to a block and hand them on."""
        try:
            await batch.wait(self._config.request_timeout)
        finally:
            self._client.forget(batch)
        service = self._client.session.service
        service_id = service.service_id if service else None
        results: list[NsubResult] = []
        again: list[Ref] = []
        for ref, tag, answer in zip(refs, tags, batch.answers, strict=True):
            ruling = TABLE[failure.nsub(answer, service_id)]
            if ruling.answer is not None:
                error = failure.words(answer) if ruling.answer is NsubAnswer.ERROR else ""
                results.append(NsubResult(ref, tag, ruling.answer, error))
            elif ruling.remedy is Remedy.AGAIN:
                again.append(ref)
            else:
                self.remedy = ruling.remedy
        if results:
            await self._owner.results(self._handle, results)
        if self.remedy is Remedy.WITHOUT_SERVICE:
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

    async def _audit_service(self) -> None:
        """Subscribe all that is associated again, little by little, and ask once more."""
        while refs := await self._owner.audit_page(self._handle, PAGE):
            self.add(refs)
        while self._loading or self._added or self._left or self._again or self._in_flight:
            await self._wait(None)
        await self._subscribe_service()

    async def _subscribe_service(self) -> Todo:
        """NSUBS, until it is answered; what is to be done after that."""
        service = self._client.session.service
        assert service is not None
        while True:
            answer = await self._nsubs(service)
            happened = failure.nsubs(answer, reassociated=self._reassociated)
            ruling = TABLE[happened]
            if ruling.remedy is Remedy.AGAIN and ruling.wait is Wait.SESSION:
                await asyncio.sleep(self._backoff.delay())
            elif ruling.remedy in {Remedy.NOTHING, Remedy.REASSOCIATE}:
                said = answer if isinstance(answer, smp.SOks) else None
                self._reassociated = self._reassociated or said is None
                self._backoff.reset()
                return await self._owner.service_subscribed(self._handle, said)
            else:
                raise self._give_up(ruling, "no answer" if answer is None else failure.words(answer))

    def _give_up(self, ruling: Ruling, why: str) -> ConnectionClosedError:
        """What ends the session: NSUBs in it would get errors that look final."""
        log.log(ruling.level, "SMP server %s: the service is not subscribed: %s", self._server.hosts[0], why)
        self.remedy = ruling.remedy
        return ConnectionClosedError("the service is not subscribed")

    async def _nsubs(self, service: Service) -> Message | UnexpectedAnswerError | None:
        """The answer to NSUBS, whatever it is; None while there is none."""
        assert isinstance(service.key, Ed25519PrivateKey)
        ours = await self._owner.associations(self._handle)
        nsubs, timeout = smp.NSubs(ours.count, ours.ids_hash), self._config.service_timeout
        try:
            return await self._client.request(nsubs, service.service_id, service.key, timeout=timeout)
        except ServerError as e:
            return e.error
        except UnexpectedAnswerError as e:
            return e
        except TimeoutError:
            return None
