"""What metrics show of how well a relay is."""

import asyncio
from collections.abc import Callable

import pytest
from harness import Phone
from scrape import sample, samples

from ntf_server.admin.gauges import failing, trouble
from ntf_server.app import Relay
from ntf_server.config.files import Config
from ntf_server.observe.condition import LASTING, STALLED, State, StoreFacts, WayFacts
from ntf_server.observe.names import TROUBLES, Gauge, KindGauge, PairGauge
from ntf_server.store import pulse
from ntf_server.testing import Answer, MockApns
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client

UP = 10_000.0


def test_states_of_trouble_are_those_of_health() -> None:
    assert set(TROUBLES) - {"stalled"} == set(State) - {State.WELL, State.ENDING}
    assert set(KindGauge.STORE_FAILING.kinds) == {*pulse._KINDS, "silent"}


def test_how_the_store_fails() -> None:
    assert set(failing(StoreFacts()).values()) == {0.0}
    shown = failing(StoreFacts(failing_for=4.0, kind="full"))
    assert shown == {"unavailable": 0.0, "full": 4.0, "corrupt": 0.0, "silent": 0.0}


@pytest.mark.parametrize(
    ("way", "shown"),
    [
        (WayFacts("AP"), {}),
        (WayFacts("AP", troubled_for=3.0), {}),  # one push that failed
        (WayFacts("AP", troubled_for=3.0, is_ours=True), {"ours-to-mend": 3.0}),
        (WayFacts("AP", troubled_for=3.0, paused_for=1.0), {"paused": 3.0}),
        (WayFacts("AP", troubled_for=3.0, is_probed=True), {"probing": 3.0}),
        (WayFacts("AP", troubled_for=LASTING, due=1), {"failing": LASTING}),
        (WayFacts("AP", due=1, oldest_due=2 * STALLED), {"failing": 2 * STALLED, "stalled": 2 * STALLED}),
        (WayFacts("AP", due=1, oldest_due=2 * STALLED, accepted_ago=1.0), {}),
        (WayFacts("WP", due=1, oldest_due=2 * STALLED, troubled_for=2 * STALLED), {}),  # strangers'
    ],
)
def test_how_long_a_provider_has_been_in_trouble(way: WayFacts, shown: dict[str, float]) -> None:
    assert trouble([way], UP) == {(way.name, state): shown.get(state, 0.0) for state in TROUBLES}


async def test_a_relay_shows_them(
    make_config: Callable[..., Config], mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    config, device = make_config(), phone()
    mock_apns.script(Answer(403, "InvalidProviderToken"))
    async with Relay(config) as relay:
        metrics = relay._metrics
        assert sample(metrics, KindGauge.STORE_FAILING, kind="full") == 0
        assert abs(sample(metrics, Gauge.TIME) - relay._clock()) < 60
        assert not [s for s in samples(metrics) if s.name == Gauge.STORE_SHARDS_ALL]  # nobody shares the store
        address = ServerAddress("ntf", ("127.0.0.1",), str(relay.port), config.credentials.key_hash)
        async with await Client.connect(address) as client:
            await device.register(client)
            async with asyncio.timeout(10):
                while not sample(metrics, PairGauge.PROVIDER_TROUBLE, provider="AT", state="ours-to-mend"):
                    await asyncio.sleep(0.02)
            await device.verify(client)
        assert sample(metrics, PairGauge.PROVIDER_TROUBLE, provider="AT", state="ours-to-mend") == 0
