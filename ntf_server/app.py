"""The one place where the parts are put together and shut down."""

import asyncio
import contextlib
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, Self

import msgspec
import pycurl

from ntf_server import periodic, systemd
from ntf_server.admin.drain import DRAIN, Drain, seconds_of
from ntf_server.admin.facts import Parts, gather, tell_started
from ntf_server.admin.gauges import show as show_gauges
from ntf_server.admin.health import Admin
from ntf_server.admin.inquiries import inquiries
from ntf_server.admin.live import Live
from ntf_server.admin.socket import AdminSocket, Handler, RefusedError
from ntf_server.admin.stats import STATS, on_stats
from ntf_server.admin.tokens import INVALIDATE, on_invalidate
from ntf_server.admin.trace import TRACE, on_trace
from ntf_server.admin.vapid import VAPID, told
from ntf_server.admission.gate import Admission
from ntf_server.admission.log_lines import LogLines
from ntf_server.commands import Commands
from ntf_server.config.files import Config, socket_path_error
from ntf_server.config.reload import Reloader, Report
from ntf_server.config.source import CONFIG_FILE
from ntf_server.days import Days
from ntf_server.listener import Listener, ListenerConfig, of_settings
from ntf_server.memory import settle
from ntf_server.observe.condition import Condition, Phase, assess
from ntf_server.observe.events import Event, EventLog
from ntf_server.observe.expiry import Expiry
from ntf_server.observe.logs import set_up_logging
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Info, KindGauge
from ntf_server.providers import Providers
from ntf_server.push.dispatcher import Dispatcher, DispatcherConfig
from ntf_server.push.journeys import NoJourneys
from ntf_server.push.schedule import ScheduleConfig
from ntf_server.push.trail import Trail
from ntf_server.push.webpush.usage import KeyUsage
from ntf_server.signals import Signals
from ntf_server.smp import audit
from ntf_server.smp.lost import LostConfig
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.clock import Clock, boot_id, since_boot
from ntf_server.store.contract import Store, StoreCorruptError
from ntf_server.store.memory import Times
from ntf_server.store.open import Shared, open_store, opens
from ntf_server.store.redis.tls import Tls
from ntf_server.store.redis.url import RedisUrl
from ntf_server.supervisor import STOP_DEADLINE, Stage, Supervisor
from ntf_server.swaps import Takers, swaps
from ntf_server.version import VERSION
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider
from smp_bridge.queue_session import AgentConfig
from smp_bridge.turns import TurnsConfig

log = logging.getLogger(__name__)
events = EventLog(__name__)

_SWITCH_INTERVAL: Final = 0.0005  # seconds: with Python's 5 ms the store's thread waits ten times as long for the GIL
GRACE: Final = 10.0  # seconds that pushes in flight, and commands in progress, get of the time for a stop


def set_up_log(config: Config) -> None:
    """Where log lines go, how they look, and how many there may be."""
    settings, budgets = config.settings.log, config.budgets
    set_up_logging(settings.level, settings.format, LogLines(budgets.log_lines) if budgets else None)


class Relay:
    """A running relay: `async with Relay(config) as relay`.

    Raises ListenError, StoreError, StoreCorruptError. `failed`: what ended it, if something did. `clock` and `steady`
    are those of `store.clock.Clock`.
    """

    def __init__(
        self, config: Config, *, clock: Callable[[], float] = time.time, steady: Callable[[], float] = since_boot
    ) -> None:
        self._config = config
        self._clock = clock
        self._steady = steady
        self._began = steady()
        self._metrics = Metrics(config.settings.subscriber.own_server_domains)
        self._metrics.info(
            Info.BUILD, {"version": VERSION, "store": _engine_of(config), "libcurl": pycurl.version_info()[1]}
        )
        self._metrics.kind_gauge(KindGauge.CERTIFICATE_ENDS, self._certificates_end)
        self._admission = Admission(config.budgets, metrics=self._metrics, clock=steady)
        self._expiry = Expiry(self._certificates_end, clock)
        self._is_shown = bool(config.settings.metrics.port or config.page)  # what is counted is read by somebody
        self._supervisor = Supervisor(self._metrics.count_part)
        self._listener: Listener | None = None
        self._providers: Providers | None = None
        self._dispatcher: Dispatcher | None = None
        self._trail: Trail | None = None
        self._reloader: Reloader | None = None
        self._drain: Drain | None = None
        self._store_tls: Tls | None = None
        self._parts: Parts | None = None  # once it has started
        self._live = Live(config)
        self._stopping = False

    @property
    def drained(self) -> asyncio.Event:
        """Is set when an operator had it drained: it is to be stopped then."""
        assert self._drain is not None
        return self._drain.over

    @property
    def failed(self) -> "asyncio.Future[None]":
        """Gets the error of what cannot go on without."""
        return self._supervisor.failed

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._listener is not None
        return self._listener.port

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._supervisor.stop(0.0)
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._stopping = True
        await self._supervisor.stop(STOP_DEADLINE)

    async def _start(self) -> None:
        """From the store outwards; before it, who asks is told that it starts."""
        config, settings, supervisor = self._config, self._config.settings, self._supervisor
        await self._start_health()
        store = await self._open_store()
        supervisor.on_stop(Stage.CLOSE, "store", lambda _: store.close())
        if store.ledger is not None:
            self._admission.share(store.ledger)
        self._providers = providers = self._open_providers(store)
        self._dispatcher = dispatcher = self._make_dispatcher(store, providers)
        supervisor.on_stop(Stage.PUSH, "dispatcher", lambda left: dispatcher.close(self._grace(left)))
        await dispatcher.warn_of_unserved()
        for name, run in dispatcher.parts():
            supervisor.part(name, run, stage=Stage.CLOSE)
        subscriber = self._make_subscriber(store, dispatcher)
        supervisor.on_stop(Stage.DRAIN, "subscriber", lambda left: subscriber.close(self._grace(left)))
        for name, run in subscriber.parts():
            supervisor.part(name, run)
        commands = Commands(
            store,
            subscriber,
            providers.fronts,
            allow_private_hosts=settings.subscriber.allow_private_hosts,
            servers=config.servers,
            limits=config.limits,
            metrics=self._metrics,
            admission=self._admission,
        )
        self._listener = listener = self._make_listener(commands)
        supervisor.on_stop(Stage.ACCEPT, "listener", lambda left: listener.close(self._grace(left)))
        with of_settings(f"{config.directory / CONFIG_FILE}: [transport] bind, port"):
            await listener.start()
        await subscriber.start()
        checks = periodic.Checks(store, settings.delivery.checks)
        supervisor.part("periodic checks", checks.run)
        supervisor.part("upkeep of the store", lambda: periodic.tend(store))
        look = periodic.LIVE_LOOK if config.page else periodic.LOOK
        gauges = periodic.StoreGauges(store, providers.table, self._metrics, interval=look)
        if hours := settings.subscriber.audit_period:
            rounds = audit.AuditConfig(period=hours * 3600)
            supervisor.part("audit", lambda: audit.run(store, rounds))
        days = self._watch(store, gauges, providers)
        owned = self._admission, self._store_tls, self._live, partial(opens, config.store, config.master_key)
        takers = Takers(providers, listener, commands, subscriber, checks, *owned, set_up_log)
        self._reloader = Reloader(config, swaps(takers))
        self._drain = drain = Drain(store, listener, subscriber, dispatcher)
        await self._start_admin(store, drain, days, subscriber)
        supervisor.on_stop(Stage.ACCEPT, "other nodes", lambda _: drain.leave())
        self._parts = parts = Parts(
            store, dispatcher, subscriber, listener, gauges, self._vapid, lambda: supervisor.waiting
        )
        show_gauges(self._metrics, parts, lambda: self._steady() - self._began, self._clock)
        node = settings.store.node
        about = {"version": VERSION, "address": str(self._address), "store": str(config.store), "node": node}
        await self._live.start(supervisor, parts, self.condition, about=about, metrics=self._metrics, clock=self._clock)
        tell_started(config, self._address, providers.table)

    def _watch(self, store: Store, gauges: periodic.StoreGauges, providers: Providers) -> Days:
        """What is looked at now and then."""
        days = Days(store, self._metrics, self._clock)
        self._supervisor.part("statistics", days.run)
        self._supervisor.on_stop(Stage.CLOSE, "statistics", lambda _: days.close())
        self._supervisor.part("tokens due", gauges.run)
        self._supervisor.part("certificates", self._expiry.run)
        if seconds := systemd.watchdog():
            self._supervisor.part("watchdog", lambda: systemd.watch(seconds), stage=Stage.CLOSE)
        self._census = census = periodic.CensusGauges(
            store,
            self._metrics,
            wanted=lambda: self._is_shown or len(providers.vapid_keys) > 1,  # else nobody reads that
            on_counted=lambda counted: self._vapid.take(counted.vapid_keys),
        )
        self._supervisor.part("census", census.run)
        if self._is_shown:
            self._supervisor.part("loop lag", lambda: periodic.watch_loop(self._metrics))
        return days

    @property
    def _address(self) -> ServerAddress:
        """As apps are given it."""
        host = self._config.settings.transport.host or "localhost"
        return ServerAddress.ntf(host, self.port, self._config.credentials.key_hash)

    async def _open_store(self) -> Store:
        """A stop meanwhile waits for it: a thread cannot be cancelled, and what it opened is to be closed."""
        delivery, store, place = self._config.settings.delivery, self._config.settings.store, self._config.store
        self._store_tls = Tls.of(place) if isinstance(place, RedisUrl) else None
        opening = asyncio.create_task(
            open_store(
                place,
                directory=self._config.directory,
                master_key=self._config.master_key,
                times=Times(delivery.message_ttl, delivery.verification_ttl, silent_ttl=store.token_ttl),
                metrics=self._metrics,
                on_corrupt=self._supervisor.fail,
                clock=Clock(self._clock, self._steady, boot_id()),
                shared=Shared(store.node, store.wait_replicas, store.wait_aof, self._store_tls),
            ),
            name="open store",
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if opening.exception() is None:
                await opening.result().close()
            raise

    def _open_providers(self, store: Store) -> Providers:
        supervisor = self._supervisor

        def write(learnt: Coroutine[Any, Any, None]) -> None:
            supervisor.spawn(learnt, "vapid key", stage=Stage.PUSH)

        self._vapid = KeyUsage(lambda: providers.vapid_keys, self._steady, store, write)
        self._metrics.kind_gauge(KindGauge.VAPID_TOKENS, self._vapid.gauge)
        providers = Providers(self._config, self._clock, self._steady, on_vapid_key=self._vapid.learnt)
        supervisor.on_stop(Stage.PUSH, "providers", lambda _: providers.close())
        for engine in providers.failed:
            engine.add_done_callback(self._on_engine_failed)
        return providers

    def _on_engine_failed(self, engine: "asyncio.Future[None]") -> None:
        if not engine.cancelled() and (error := engine.exception()) is not None:
            self._supervisor.fail(error)

    def _make_dispatcher(self, store: Store, providers: Providers) -> Dispatcher:
        delivery = self._config.settings.delivery
        schedules = {
            provider: ScheduleConfig(
                places=places,
                by_origin=provider is Provider.WEB_PUSH,
                min_backoff=delivery.min_backoff,
                max_backoff=delivery.max_backoff,
            )
            for provider, places in providers.in_flight.items()
        }
        config = DispatcherConfig(schedules=schedules)
        self._trail = trail = Trail(store.fingerprint, providers.origin, self._clock)
        return Dispatcher(
            store,
            providers.table,
            config,
            service=providers.service,
            on_ended=trail.add,
            metrics=self._metrics,
            journeys=None if self._is_shown else NoJourneys(),
            clock=self._clock,
        )

    def _make_subscriber(self, store: Store, dispatcher: Dispatcher) -> Subscriber:
        config, settings = self._config, self._config.settings
        return Subscriber(
            store,
            dispatcher,
            lambda coro, name: self._supervisor.spawn(coro, name, stage=Stage.PUSH),
            AgentConfig(
                network=config.network,
                turns=TurnsConfig(places=settings.subscriber.connecting),
                name_servers=settings.transport.name_servers,
            ),
            servers=config.servers,
            services=settings.subscriber.use_service_credentials,
            lost=None if settings.delivery.checks == "off" else LostConfig(),
            admit=self._admission.connect_wait,
            metrics=self._metrics,
            clock=self._clock,
        )

    def _make_listener(self, commands: Commands) -> Listener:
        transport = self._config.settings.transport
        inactive_ttl = self._config.settings.inactive_clients.ttl
        return Listener(
            ListenerConfig(
                transport.bind or None, transport.port, inactive_ttl=inactive_ttl, proxies=self._config.proxies
            ),
            self._config.credentials,
            commands,
            self._admission,
        )

    @property
    def _in_force(self) -> Config:
        return self._config if self._reloader is None else self._reloader.config

    def _certificates_end(self) -> Mapping[str, float]:
        return self._in_force.certificates_end()

    def _grace(self, left: float) -> float:
        """Seconds of a stop that what is under way gets: none if it had its time before, or cannot be stored."""
        had_its_time = self._drain is not None and self._drain.finished.is_set()
        return 0.0 if had_its_time or self._supervisor.failed_with(StoreCorruptError) else min(left, GRACE)

    async def _start_admin(self, store: Store, drain: Drain, days: Days, subscriber: Subscriber) -> None:
        """Last: it is for who has started, and not begun to stop."""
        assert self._trail is not None
        if error := socket_path_error(self._config.admin_socket):
            log.warning("no admin socket: %s", error)
        else:
            commands: dict[str, Handler] = {
                "status": self._on_status,
                "reload": self._on_reload,
                DRAIN: partial(self._on_drain, drain),
                INVALIDATE: partial(on_invalidate, store),
                TRACE: partial(on_trace, store, self._trail.of),
                VAPID: self._on_vapid,
                STATS: partial(on_stats, store, days),
                **inquiries(store, subscriber),
            }
            operators = AdminSocket(self._config.admin_socket, commands)
            self._supervisor.on_stop(Stage.ACCEPT, "admin", lambda _: operators.close())
            await operators.start()

    async def _start_health(self) -> None:
        """First, and it ends last: also who starts, or stops, says how it is."""
        settings = self._config.settings.metrics
        if not settings.port:
            return
        from ntf_server.observe.exposition import Exposition  # noqa: PLC0415  not loaded where nobody reads it

        page = Exposition(self._metrics).page
        endpoint = Admin(settings.bind or None, settings.port, page, self.condition)
        self._supervisor.on_stop(Stage.CLOSE, "admin", lambda _: endpoint.close())
        with of_settings(f"{self._config.directory / CONFIG_FILE}: [metrics] bind, port"):
            await endpoint.start()

    def condition(self) -> Condition:
        """How it is."""
        phase = Phase.RUNNING
        if self._stopping:
            phase = Phase.STOPPING
        elif self._parts is None:
            phase = Phase.STARTING
        elif self._drain is not None and self._drain.begun:
            phase = Phase.DRAINING
        now = self._clock()
        left = {name: ends - now for name, ends in self._certificates_end().items()}
        return assess(gather(phase, self._steady() - self._began, self._parts, left), now)

    async def reload(self) -> Report:
        """Load the configuration anew and swap what can be; what waits for that is pushed. Never raises."""
        assert self._reloader is not None
        assert self._dispatcher is not None
        systemd.reloading()
        try:
            return await self._reloader.reload()
        finally:
            self._dispatcher.mended()
            self._expiry.look()
            self._census.again()
            systemd.ready()

    def ask_for_reload(self) -> None:
        """What SIGHUP does."""
        self._supervisor.spawn(self.reload(), "reload")

    async def _on_reload(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        report = await self.reload()
        if report.error:
            raise RefusedError(str(report))
        return {"swapped": report.swapped, "needs_restart": report.needs_restart}

    async def _on_vapid(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        return told(self._in_force.vapid_key, self._in_force.old_vapid_keys)

    async def _on_drain(self, drain: Drain, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self._supervisor.spawn(drain.run(seconds_of(request)), "drain")
        return await drain.on_drain(request)

    async def _on_status(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "port": self.port,
            "address": str(self._address),
            "url": str(self._config.store),
            **msgspec.to_builtins(self.condition()),
        }


def _engine_of(config: Config) -> str:
    return "redis" if isinstance(config.store, RedisUrl) else "sqlite"


def _allow_many_files() -> None:
    """Each client and each SMP server takes a file descriptor; the usual soft limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(config: Config, on_ready: Callable[[Relay], None], signals: Signals | None = None) -> None:
    """Run until SIGTERM or SIGINT, until an operator has drained it, or until something fails that the relay cannot go
    on without (which is raised).

    `signals`: that are installed already; else they are from now to the end.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
    _allow_many_files()
    own = signals is None
    signals = signals or Signals()
    if own:
        signals.install()
    try:
        await _run(config, on_ready, signals)
    finally:
        if own:
            signals.restore()


async def _run(config: Config, on_ready: Callable[[Relay], None], signals: Signals) -> None:
    stopped = asyncio.get_running_loop().create_future()
    ready = asyncio.Event()
    asked: list[None] = []
    relay = Relay(config)

    def on_reload() -> None:
        if ready.is_set():
            relay.ask_for_reload()
        else:
            asked.append(None)

    def on_end() -> None:
        if not stopped.done():
            stopped.set_result(None)

    signals.attach(asyncio.get_running_loop(), on_end, on_reload)
    starting = asyncio.create_task(relay.__aenter__(), name="start")
    await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting])
    if starting.cancelled():
        return
    starting.result()
    try:
        if not stopped.done():
            settle()
            on_ready(relay)
            systemd.ready()
            ready.set()
            if asked:
                relay.ask_for_reload()
        drained = asyncio.create_task(relay.drained.wait(), name="drained")
        await asyncio.wait([stopped, relay.failed, drained], return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        signals.detach()
        systemd.stopping()
        events.tell(Event.RELAY_STOPPING, "stopping")
        error = relay.failed.exception() if relay.failed.done() else None
    finally:
        began = asyncio.get_running_loop().time()
        await relay.__aexit__(None, None, None)
        seconds = round(asyncio.get_running_loop().time() - began, 1)
        events.tell(Event.RELAY_STOPPED, "stopped", seconds=seconds)
    if error is not None:
        raise error
