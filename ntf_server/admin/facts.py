"""What is known of a running relay, for `observe.condition` to assess."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from ntf_server.config.files import Config
from ntf_server.listener import Listener
from ntf_server.observe.condition import Facts, Phase, StoreFacts, WayFacts
from ntf_server.observe.events import Event, EventLog
from ntf_server.periodic import StoreGauges
from ntf_server.push.dispatcher import Dispatcher
from ntf_server.push.webpush.usage import KeyUsage
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.contract import Store
from ntf_server.version import VERSION
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider

events = EventLog(__name__)


@dataclass(frozen=True)
class Parts:
    """Of a relay that has started."""

    store: Store
    dispatcher: Dispatcher
    subscriber: Subscriber
    listener: Listener
    gauges: StoreGauges
    vapid: KeyUsage
    failing: Callable[[], frozenset[str]]  # what waits to be started again


def tell_started(config: Config, address: ServerAddress, providers: Collection[Provider]) -> None:
    """That clients are served now: by what, and without what."""
    settings = config.settings
    switched_off = {
        "checks": settings.delivery.checks == "off",
        "limits": config.budgets is None,
        "metrics": not settings.metrics.port,
        "page": config.page is None,
        "audit": not settings.subscriber.audit_period,
        **{provider.value: provider not in providers for provider in Provider},
    }
    events.tell(
        Event.RELAY_STARTED,
        "serving clients",
        version=VERSION,
        address=str(address),
        store=str(config.store),
        providers=",".join(sorted(provider.value for provider in providers)),
        off=",".join(name for name, off in switched_off.items() if off),
    )


def gather(phase: Phase, up_for: float, parts: Parts | None, certificates: Mapping[str, float]) -> Facts:
    """As it is now. `parts`: None while it starts; `certificates`: see `Facts`."""
    if parts is None:
        return Facts(phase, up_for, certificates=certificates)
    return Facts(
        phase,
        up_for,
        store_facts(parts.store),
        tuple(way_facts(parts)),
        parts.subscriber.facts(),
        parts.listener.sessions,
        tuple(sorted(parts.failing())),
        certificates,
        parts.vapid.facts(),
    )


def store_facts(store: Store) -> StoreFacts:
    """Of a store that is open."""
    facts, failing, holding = StoreFacts(), store.pulse.failing, store.pulse.holding()
    if failing is not None:
        facts = replace(facts, failing_for=failing.seconds, kind=failing.kind, partly=failing.partly)
    if holding is not None:
        shards, of = holding.shards, holding.all_shards
        facts = replace(facts, shards=shards, all_shards=of, silent_shards=holding.silent, nodes=holding.nodes)
    return facts


def way_facts(parts: Parts) -> Iterator[WayFacts]:
    """Of each provider."""
    return (_with_due(way, parts.gauges) for way in parts.dispatcher.ways())


def _with_due(way: WayFacts, gauges: StoreGauges) -> WayFacts:
    due, oldest = gauges.due(Provider(way.name))
    return replace(way, due=due, oldest_due=oldest)
