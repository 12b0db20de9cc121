"""The one place where the parts are put together and shut down."""

import asyncio
import contextlib
import logging
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any, Final, Self

from ntf_server import periodic
from ntf_server.admin.health import Admin
from ntf_server.commands import Commands
from ntf_server.config.files import CONFIG_FILE, Config, ConfigError, server_list, smp_network
from ntf_server.listener import Listener, ListenerConfig, ListenError
from ntf_server.memory import settle
from ntf_server.observe.metrics import Gauge, Metrics
from ntf_server.providers import Providers
from ntf_server.push.dispatcher import Dispatcher, DispatcherConfig
from ntf_server.smp import audit
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.records import Limits, StoreCorruptError
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.queue_session import AgentConfig

log = logging.getLogger(__name__)

_SWITCH_INTERVAL: Final = 0.0005  # seconds: with Python's 5 ms the store's thread waits ten times as long for the GIL
_RESOLVERS: Final = 64  # names looked up at once: strangers choose them, and a dead one takes its thread for seconds
GRACE: Final = 10.0  # seconds that what is in flight gets at a stop


class Relay:
    """A running relay: `async with Relay(config) as relay`.

    Raises ListenError, StoreError, StoreCorruptError, ConfigError (the metrics' port cannot be listened on).
    """

    def __init__(self, config: Config, *, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._stack = AsyncExitStack()
        self._listener: Listener | None = None
        self._providers: Providers | None = None
        self._dispatcher: Dispatcher | None = None
        self._stop_at = 0.0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._listener is not None
        return self._listener.port

    async def __aenter__(self) -> Self:
        try:
            async with AsyncExitStack() as stack:
                await self._start(stack)
                self._stack = stack.pop_all()
        except BaseException:
            self._forget_failure()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stop_at = asyncio.get_running_loop().time() + GRACE
        try:
            await self._stack.aclose()
        finally:
            self._forget_failure()

    def _forget_failure(self) -> None:
        if not self.failed.cancel() and not self.failed.cancelled():
            self.failed.exception()  # or asyncio complains that nobody looked

    async def _start(self, stack: AsyncExitStack) -> None:
        """From the store outwards; what is pushed first on the stack is closed last."""
        settings = self._config.settings
        metrics = Metrics(settings.subscriber.own_server_domains)
        started = self._clock()
        metrics.gauge(Gauge.START_TIME, lambda: started)
        delivery = settings.delivery
        store = await SqliteStore.open(
            self._config.database,
            master_key=self._config.master_key,
            message_ttl=delivery.message_ttl,
            verification_ttl=delivery.verification_ttl,
            on_corrupt=self._on_corrupt,
        )
        stack.push_async_callback(store.close)
        self._providers = providers = Providers(self._config, self._clock)
        stack.push_async_callback(providers.close)
        self._dispatcher = dispatcher = Dispatcher(
            store,
            providers.table,
            DispatcherConfig(
                in_flight=delivery.in_flight,
                in_flight_of=providers.in_flight,
                min_backoff=delivery.min_backoff,
                max_backoff=delivery.max_backoff,
            ),
            metrics=metrics,
            clock=self._clock,
        )
        stack.push_async_callback(self._gracefully, dispatcher.close)
        await dispatcher.start()
        servers = server_list(self._config.directory, settings)
        network = smp_network(self._config.directory, settings)
        subscriber = Subscriber(
            store,
            dispatcher.mark,
            AgentConfig(network=network, slow=settings.subscriber.connecting),
            servers=servers,
            services=settings.subscriber.use_service_credentials,
            metrics=metrics,
            clock=self._clock,
        )
        stack.push_async_callback(subscriber.close)
        commands = Commands(
            store,
            dispatcher,
            subscriber,
            allow_private_hosts=settings.subscriber.allow_private_hosts,
            servers=servers,
            limits=Limits(
                settings.subscriber.max_subscriptions_per_token, settings.subscriber.max_subscriptions_per_server
            ),
            metrics=metrics,
            clock=self._clock,
        )
        self._listener = Listener(
            ListenerConfig(
                settings.transport.bind or None,
                settings.transport.port,
                inactive_ttl=settings.inactive_clients.ttl,
            ),
            self._config.credentials,
            commands,
        )
        stack.push_async_callback(self._gracefully, self._listener.close)
        await self._listener.start()
        await subscriber.start()
        checks = asyncio.create_task(periodic.run(store, dispatcher, clock=self._clock), name="periodic")
        stack.push_async_callback(_cancel, checks)
        if hours := settings.subscriber.audit_period:
            rounds = audit.run(store, subscriber, audit.AuditConfig(period=hours * 3600), clock=self._clock)
            stack.push_async_callback(_cancel, asyncio.create_task(rounds, name="audit"))
        if settings.metrics.port:  # last: healthy is who has started, and not begun to stop
            stack.push_async_callback(await self._start_admin(metrics))

    async def _start_admin(self, metrics: Metrics) -> Callable[[], Awaitable[None]]:
        """Start the endpoint; gives what closes it."""
        settings = self._config.settings.metrics
        admin = Admin(settings.bind or None, settings.port, metrics.render)
        try:
            await admin.start()
        except ListenError as e:
            where = f"{self._config.directory / CONFIG_FILE}: [metrics] bind, port"
            raise ConfigError(f"{where}: {e}; choose another one, or stop what uses it") from e
        return admin.close

    async def _gracefully(self, close: Callable[[float], Awaitable[None]]) -> None:
        """Close a part within what is left of the grace that all share."""
        await close(max(0.0, self._stop_at - asyncio.get_running_loop().time()))

    def reload(self) -> None:
        """Read key files again, and push what waits for that."""
        if self._providers is not None:
            self._providers.reload()
        if self._dispatcher is not None:
            self._dispatcher.mended()

    def _on_corrupt(self, error: StoreCorruptError) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


def _allow_many_files() -> None:
    """Each client and each SMP server takes a file descriptor; the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(config: Config, on_ready: Callable[[Relay], None]) -> None:
    """Run until SIGTERM or SIGINT, or until the store turns out corrupt (StoreCorruptError)."""
    sys.setswitchinterval(_SWITCH_INTERVAL)
    _allow_many_files()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_RESOLVERS, "resolver"))
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with Relay(config) as relay:
        loop.add_signal_handler(signal.SIGHUP, relay.reload)
        settle()
        on_ready(relay)
        waiting = asyncio.create_task(stopped.wait())
        ends: list[asyncio.Future[Any]] = [waiting, relay.failed]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        log.info("stopping")
        if relay.failed.done():
            relay.failed.result()
