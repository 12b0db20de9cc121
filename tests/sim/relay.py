"""The parts of the relay, put together as `ntf_server.app` does, for one life in the simulated world."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ntf_server import periodic
from ntf_server.observe.metrics import Metrics
from ntf_server.push.apns.open import OpenApns
from ntf_server.push.apns.settings import CONNECTION_ENDS, ApnsSettings, SigningKey
from ntf_server.push.dispatcher import Dispatcher, DispatcherConfig
from ntf_server.push.exchange import Endpoint
from ntf_server.push.fcm.open import OpenFcm
from ntf_server.push.fcm.settings import FcmSettings, ServiceAccount
from ntf_server.push.schedule import ScheduleConfig
from ntf_server.push.verdict import OnVerdict, PushProvider
from ntf_server.push.webpush.open import OpenWebPush
from ntf_server.push.webpush.settings import WebPushSettings
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.records import Claim, PushKind
from ntf_server.supervisor import Run, Stage, Supervisor
from sim.clock import WallClock
from sim.http import Internet, SimEngine
from sim.loop import Life
from sim.parts import Breakable
from sim.store import Engine
from sim.trace import Trace
from smp_bridge.ntf import Provider
from smp_bridge.queue_session import AgentConfig
from smp_bridge.turns import TurnsConfig

APNS_HOST: Final = "https://apns.example"
FCM_HOST: Final = "https://fcm.example"
GRACE: Final = 10.0  # seconds that pushes in flight get of a stop
STOP: Final = 25.0

# Made once: they say nothing about what is tried here, and an RSA key takes a while.
_P8: Final = ec.generate_private_key(ec.SECP256R1())
_VAPID: Final = ec.generate_private_key(ec.SECP256R1())
_RSA: Final = rsa.generate_private_key(65537, 2048)
_TURNS: Final = TurnsConfig(places=16, new_places=8)  # few, so that it matters whose turn it is


@dataclass
class Setup:
    """What differs from run to run. `places`: by provider; times in seconds.

    `raises`: chance that a provider's `send` raises, for a fault of ours; `services`: the relay is one on SMP servers.
    """

    places: Mapping[Provider, int]
    message_ttl: int = 24 * 3600
    verification_ttl: int = 600
    raises: float = 0.0
    services: bool = False


class _Raising:
    """A provider with a fault of ours: it raises now and then, before or after it has sent."""

    def __init__(self, provider: PushProvider, setup: Setup, rng: Random, trace: Trace) -> None:
        self._provider, self._setup, self._rng, self._trace = provider, setup, rng, trace
        self.at_once = provider.at_once

    def send(self, claims: Sequence[Claim], on_verdict: OnVerdict) -> None:
        """See `PushProvider`, but for the raising."""
        if self._setup.raises and self._rng.random() < self._setup.raises:
            self._trace.fault("relay:provider_raises")
            raise ZeroDivisionError("a fault of ours")
        self._provider.send(claims, on_verdict)


class SimRelay:
    """One life of the relay. `run` it in its life; `stop` has it end in order."""

    def __init__(  # noqa: PLR0917
        self,
        life: Life,
        setup: Setup,
        internet: Internet,
        clock: WallClock,
        rng: Random,
        trace: Trace,
        engine: Engine,
        connect: Any,
    ) -> None:
        self.life = life
        self.number = 0  # of the node
        self.ready = False
        self.ready_at = 0.0
        self.stopping = False
        self.ended = False
        self.error: BaseException | None = None
        self.metrics = Metrics()
        self.parts: dict[str, Breakable] = {}
        self.read: dict[Any, tuple[int, float]] = {}  # by queue: the newest one read from a socket, and when
        self._setup = setup
        self._internet = internet
        self._clock = clock
        self._rng = rng
        self._trace = trace
        self._engine = engine
        self._connect = connect

    async def run(self) -> None:
        """From the start to the end."""
        self._stopped = asyncio.Event()
        self.supervisor = supervisor = Supervisor(self._on_failure, rng=self._rng.random)
        try:
            await self._start(supervisor)
            self.ready, self.ready_at = True, asyncio.get_running_loop().time()
            stopped = asyncio.ensure_future(self._stopped.wait())
            await asyncio.wait([stopped, supervisor.failed], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            if supervisor.failed.done():
                self.error = supervisor.failed.exception()
        except Exception as e:
            self.error = e
        finally:
            self.ready, self.stopping = False, True
            await supervisor.stop(STOP)
            self.ended = True

    def stop(self) -> None:
        """SIGTERM."""
        if self.ready and not self.stopping:
            self.stopping = True
            self._stopped.set()

    def spawn(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        """A command of a client's."""
        self.supervisor.spawn(coro, name)

    async def status(self, subscription_id: bytes) -> str:
        """SCHK, in a word. Raises StoreError."""
        found = await self.store.find_subscription(subscription_id)
        return "none" if found is None else self.subscriber.status(found[1]).status.value

    def reload(self) -> None:
        """SIGHUP: the operator may have mended what was wrong."""
        if self.ready:
            self.dispatcher.mended()

    def _on_failure(self, part: str) -> None:
        self._trace.note("part fails:", part)

    async def _start(self, supervisor: Supervisor) -> None:
        self.store = store = await self._engine.open(self.metrics, supervisor.fail)
        supervisor.on_stop(Stage.CLOSE, "store", lambda _: store.close())
        engine = SimEngine(self._internet)
        supervisor.on_stop(Stage.PUSH, "push engine", lambda _: engine.close())
        self.dispatcher = dispatcher = Dispatcher(
            store,
            self._providers(engine),
            DispatcherConfig(schedules=self._schedules()),
            metrics=self.metrics,
            rng=self._rng.random,
            clock=self._clock.wall,
        )
        supervisor.on_stop(Stage.PUSH, "dispatcher", lambda left: dispatcher.close(min(left, GRACE)))
        for name, part in dispatcher.parts():
            self._part(name, part, stage=Stage.CLOSE)
        self.subscriber = subscriber = Subscriber(
            store,
            dispatcher,
            lambda coro, name: supervisor.spawn(coro, name, stage=Stage.PUSH),
            AgentConfig(turns=_TURNS, rng=self._rng.random, clock=self._clock.wall),
            metrics=self.metrics,
            clock=self._clock.wall,
            by=self._connect,
            services=self._setup.services,
        )
        supervisor.on_stop(Stage.DRAIN, "subscriber", lambda left: subscriber.close(min(left, GRACE)))
        for name, part in subscriber.parts():
            self._part(name, part)
        await subscriber.start()
        self._part("checks", periodic.Checks(store).run)
        self._part("upkeep", lambda: periodic.tend(store))

    def _part(self, name: str, run: Run, *, stage: Stage = Stage.ACCEPT) -> None:
        self.parts[name] = part = Breakable(run)
        self.supervisor.part(name, part, stage=stage)

    def _schedules(self) -> dict[Provider, ScheduleConfig]:
        return {
            provider: ScheduleConfig(places=places, by_origin=provider is Provider.WEB_PUSH)
            for provider, places in self._setup.places.items()
        }

    def _providers(self, engine: Any) -> dict[Provider, PushProvider]:
        ttl = {PushKind.VERIFICATION: self._setup.verification_ttl, PushKind.MESSAGES: 28 * 86400, PushKind.CHECK: 3600}
        clock, steady = self._clock.wall, self._clock.steady
        apns_at = Endpoint(APNS_HOST, "", ends=CONNECTION_ENDS)
        fcm_at = Endpoint(FCM_HOST, "", http2_only=False)
        apns = ApnsSettings({Provider.APNS: apns_at}, "chat.example", SigningKey(_P8, "KEY", "TEAM"), ttl)
        account = ServiceAccount("project", "ntf@example.org", "key", f"{FCM_HOST}/token", _RSA)
        fcm = FcmSettings(account, fcm_at, replace(fcm_at, url=f"{FCM_HOST}/token"), ttl)
        web = WebPushSettings((_VAPID,), "mailto:ntf@example.org", Endpoint("", "", http2_only=False), ttl)
        opened = [OpenApns(apns, engine, clock, steady), OpenFcm(fcm, engine, clock), OpenWebPush(web, engine, clock)]
        self.fronts = {name: each.front for each in opened for name in each.providers}
        providers = {name: provider for each in opened for name, provider in each.providers.items()}
        return {n: _Raising(p, self._setup, self._rng, self._trace) for n, p in providers.items()}
