"""How long notifications are on their way."""

import os
from collections.abc import Sequence

from scrape import sample

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Histogram
from ntf_server.push.journeys import _REMEMBERED, Journeys, NoJourneys
from ntf_server.store.records import Entry, Notification
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider

STORED, DELIVERED = Histogram.NOTIFICATION_STORED, Histogram.NOTIFICATION_DELIVERED
SMP = ServerAddress("smp", ("localhost",), "", bytes(32))


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.journeys = Journeys(self.metrics, lambda: self.now, lambda: 1_700_000_000 + self.now)

    def seen(self, name: Histogram) -> tuple[float, float]:
        """How many, and for how long all together."""
        return sample(self.metrics, f"{name}_count"), round(sample(self.metrics, f"{name}_sum"), 6)

    def delivered(self, held: Sequence[Entry]) -> None:
        self.journeys.ended(Provider.APNS, self.now, self.now, held)

    def notification(self, seq: int) -> Notification:
        return Notification(os.urandom(24), seq, int(1_700_000_000 + self.now), bytes(24), b"meta")

    def entry(self, n: Notification, *, sent: bool = False) -> Entry:
        return Entry(1, n.seq, sent, SMP, n.notifier_id, n.received_at, n.nonce, n.meta)


def test_from_the_socket_to_the_store_and_to_the_provider() -> None:
    world = World()
    world.journeys.arrived(7 << 32, 3)
    three = [world.notification((7 << 32) + i) for i in range(3)]
    world.now += 0.25
    world.journeys.stored(three[:2], but=[three[1]])
    assert world.seen(STORED) == (1, 0.25)
    world.now += 0.75
    world.journeys.stored([three[1]])
    assert world.seen(STORED) == (2, 1.25)
    world.now += 2
    world.delivered([world.entry(three[0]), world.entry(three[2], sent=True)])
    assert world.seen(DELIVERED) == (1, 3)
    assert sample(world.metrics, f"{DELIVERED}_bucket", le="2.5") == 0
    assert sample(world.metrics, f"{DELIVERED}_bucket", le="5.0") == 1


def test_what_came_to_another_node_is_known_to_the_second() -> None:
    world = World()
    n = world.notification(5)
    world.now += 10
    world.delivered([world.entry(n)])
    assert world.seen(DELIVERED) == (1, 9.5)
    world.now -= 11  # its clock is ahead
    world.delivered([world.entry(n)])
    assert world.seen(DELIVERED) == (2, 9.5)


def test_memory_is_bounded_and_the_last_ones_are_known_exactly() -> None:
    world = World()
    for i in range(10):
        world.journeys.arrived(i * 4000, 4000)
        world.now += 1
        assert len(world.journeys._late) + len(world.journeys._early) <= 2 * _REMEMBERED + 8000
    world.delivered([world.entry(world.notification(39_999))])
    assert world.seen(DELIVERED) == (1, 1)
    world.delivered([world.entry(world.notification(32_000))])
    assert world.seen(DELIVERED) == (2, 3)


def test_what_a_provider_takes_to_answer() -> None:
    world = World()
    world.journeys.ended(Provider.FCM, 1.0, 1.5, ())
    assert sample(world.metrics, "ntf_push_answered_seconds_sum", provider="FC") == 0.5
    assert sample(world.metrics, "ntf_push_answered_seconds_count", provider="AP") == 0


def test_where_nobody_reads_it_nothing_is_kept() -> None:
    """And it has all of the same shape."""
    none = NoJourneys()
    none.arrived(7, 3)
    none.stored([])
    none.ended(Provider.FCM, 1.0, 1.5, ())
    assert not vars(none)
    public = {name for name in vars(Journeys) if not name.startswith("_")}
    assert public == {name for name in vars(NoJourneys) if not name.startswith("_")}
