"""All budgets together: what is delayed, what is counted, what is told."""

import logging
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from redis_stores import How, Nodes, fault
from scrape import sample

from ntf_server.admission.budgets import MAX_DELAY
from ntf_server.admission.code_turns import MAX_OF_NETWORK
from ntf_server.admission.gate import Admission
from ntf_server.admission.sessions import HANDSHAKE, MANY, Closed, Peer
from ntf_server.admission.verifications import Asked
from ntf_server.config.limits import parse_limits
from ntf_server.config.settings import Limits
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, KindCounter
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import Ref, Token
from ntf_server.store.redis.engine import RedisStore
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.transmission import ERR_SYNTAX, Message

KEY, DH = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
DEVICE = ntf.DeviceToken(ntf.Provider.APNS, b"00" * 32)
TNEW = ntf.TNew(DEVICE, KEY.public_key(), DH.public_key())
SNEW = ntf.SNew(bytes(24), ServerAddress("smp", ("a.org",), "", bytes(32)), bytes(24), KEY)
ONE = "192.0.2.1"

T = TypeVar("T")


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What it gives. In one process nothing is waited for."""
    with pytest.raises(StopIteration) as ended:
        work.send(None)
    result: T = ended.value.value
    return result


class World:
    """Budgets in virtual time: the defaults, but for `changes`."""

    def __init__(self, **changes: Any) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.closed = 0
        limits = msgspec.structs.replace(Limits(), **changes)
        self.admission = Admission(parse_limits(limits), metrics=self.metrics, clock=lambda: self.now)

    def session(self, host: str = ONE) -> Peer:
        peer = self.admission.open(host, self._close)
        assert peer is not None
        self.admission.established(peer)
        return peer

    def handshake(self, host: str = ONE) -> float:
        """How long it has to wait."""
        peer = self.admission.open(host, self._close)
        assert peer is not None
        return self.admission.handshake_wait(peer)

    def _close(self) -> None:
        self.closed += 1

    def turn(self, peer: Peer, device: ntf.DeviceToken, known: Token | None) -> Asked | None:
        return at_once(self.admission.turn_of_registration(peer, device, known))

    def replaced(self, peer: Peer, device: ntf.DeviceToken, known: Token) -> Asked | None:
        return at_once(self.admission.turn_of_replacement(peer, device, known))

    def made(self, asked: Asked, token: Ref) -> dict[Ref, float | None]:
        """What the store is told of others."""
        told: dict[Ref, float | None] = {}

        async def put_off(waits: Mapping[Ref, float | None]) -> None:
            told.update(waits)

        at_once(self.admission.made(asked, token, put_off))
        return told

    def delays(self, what: str) -> int:
        return self.metrics.value(KindCounter.LIMITS_DELAYED, what)


def test_commands_of_a_session_wait_for_their_turn() -> None:
    world = World(commands_per_session="3 + 2/s")
    flood, other = world.session(), world.session()
    assert [world.admission.delay(flood, [ntf.Ping()]) for _ in range(5)] == pytest.approx([0, 0, 0, 0.5, 1.0])
    assert world.admission.delay(other, [ntf.Ping()]) == 0.0
    assert MAX_DELAY / 2 <= world.admission.delay(flood, [ntf.Ping()] * 1000) <= MAX_DELAY
    world.now += MAX_DELAY
    assert world.admission.delay(flood, [ERR_SYNTAX]) == pytest.approx(0.5)
    assert world.delays("commands_per_session") == 4


def test_commands_of_an_address_wait_whatever_their_sessions() -> None:
    world = World(commands_per_address="3 + 2/s")
    for _ in range(3):
        assert world.admission.delay(world.session(), [ntf.Ping()]) == 0.0
    assert world.admission.delay(world.session(), [ntf.Ping()]) == pytest.approx(0.5)
    assert world.admission.delay(world.session("192.0.2.2"), [ntf.Ping()]) == 0.0
    assert world.delays("commands_per_address") == 1


@pytest.mark.parametrize(
    ("command", "what"), [(TNEW, "registrations"), (ntf.TRpl(DEVICE), "replacements")], ids=["TNEW", "TRPL"]
)
def test_registrations_and_replacements_have_budgets_of_their_own(command: Message, what: str) -> None:
    world = World(**{f"{what}_per_address": "2 + 1/s", what: "2 + 1/s"})
    flood = world.session()
    assert [world.admission.delay(flood, [command]) for _ in range(3)] == pytest.approx([0, 0, 1.0])
    assert world.admission.delay(flood, [ntf.Ping(), ntf.TChk(), SNEW]) == 0.0
    assert [world.admission.delay(world.session("192.0.2.2"), [command]) for _ in range(2)] == [0.0, 0.0]
    assert world.admission.delay(world.session("192.0.2.3"), [command]) == pytest.approx(
        1.0
    )  # of all who ask for little
    assert (world.delays(f"{what}_per_address"), world.delays(what)) == (1, 1)


def test_shared_addresses_have_budgets_by_session_and_in_all() -> None:
    world = World(
        shared=("192.0.2.0/24",),
        sessions_per_address=1,
        half_open_per_address=1,
        registrations_per_address="1 + 1/s",
        commands_per_address="1 + 1/s",
        handshakes_per_address="1 + 1/s",
        sessions=3,
        registrations="2 + 1/s",
        commands_per_session="2 + 1/s",
    )
    sessions = [world.session() for _ in range(3)]
    assert [world.admission.delay(s, [TNEW]) for s in sessions] == pytest.approx([0, 0, 1.0])
    assert world.admission.delay(sessions[0], [ntf.Ping()] * 2) == pytest.approx(1.0)
    world.session()
    assert world.closed == 1


def test_switched_off_nobody_waits() -> None:
    world = World(enabled=False, sessions=1, commands_per_session="1 + 1/s", registrations="1 + 1/s")
    peers = [world.session() for _ in range(3)]
    assert world.closed == 0
    assert [world.admission.delay(p, [TNEW] * 1000) for p in peers] == [0.0] * 3


def test_new_budgets_count_at_once() -> None:
    world = World(commands_per_session="1 + 1/s")
    peer = world.session()
    assert world.admission.delay(peer, [ntf.Ping()] * 3) == pytest.approx(2.0)
    world.admission.use(None)
    assert world.admission.delay(peer, [ntf.Ping()] * 3) == 0.0
    world.admission.use(parse_limits(msgspec.structs.replace(Limits(), sessions=1)))
    world.session()
    assert world.closed == 1


def test_handshakes_of_an_address_wait() -> None:
    world = World(handshakes_per_address="3 + 2/s")
    assert [world.handshake() for _ in range(5)] == pytest.approx([0, 0, 0, 0.5, 1.0])
    assert world.handshake("192.0.2.2") == 0.0
    assert world.delays("handshakes_per_address") == 2
    assert [World(enabled=False).handshake() for _ in range(99)] == [0.0] * 99


def test_who_waits_for_his_handshake_does_not_take_long_for_it() -> None:
    """He makes no room for others until it could have been done."""
    world = World(handshakes_per_address="1 + 0.1/s", half_open_per_address=2)
    assert [world.handshake(), world.handshake()] == [0.0, 10.0]
    world.now += HANDSHAKE
    world.handshake()  # in place of the first, and not of the second
    world.now += HANDSHAKE
    assert world.admission.open(ONE, lambda: None) is None
    assert world.closed == 1


def test_handshakes_of_all_addresses_wait_together() -> None:
    world = World(handshakes="3 + 2/s")
    assert [world.handshake(f"192.0.2.{n}") for n in range(5)] == pytest.approx([0, 0, 0, 0.5, 1.0])
    assert world.delays("handshakes") == 2


def test_commands_of_all_addresses_wait_together() -> None:
    world = World(commands="3 + 2/s")
    peers = [world.session(f"192.0.2.{n}") for n in range(5)]
    assert [world.admission.delay(peer, [ntf.Ping()]) for peer in peers] == pytest.approx([0, 0, 0, 0.5, 1.0])
    assert world.delays("commands") == 2


def test_of_a_crowd_that_waits_longest_not_all_have_their_turn_together() -> None:
    world = World(registrations="1 + 1/s")
    waits = [world.admission.delay(world.session(f"10.0.{n // 250}.{n % 250}"), [TNEW]) for n in range(1000)]
    assert waits[:20] == pytest.approx(range(20))
    assert all(MAX_DELAY / 2 <= wait <= MAX_DELAY for wait in waits[21:])
    turns = Counter(int(wait) for wait in waits)
    assert max(turns.values()) < 200


def test_few_who_ask_for_much_delay_none_who_asks_for_little() -> None:
    """What is there for all is enough for four such addresses, or for one network of IPv6; and there are eight."""
    world = World()
    floods = [world.session(host) for n in range(8) for host in (f"198.51.100.{n}", f"2001:db8:{n}::1")]
    for _ in range(300):
        world.now += 0.1
        waits = [world.admission.delay(flood, [TNEW, *[ntf.Ping()] * 40]) for flood in floods]
        phone = world.session(f"10.0.{int(world.now)}.1")
        assert [world.admission.delay(phone, [c]) for c in (TNEW, ntf.TChk(), SNEW)] == [0.0] * 3
        assert world.handshake(f"10.1.{int(world.now)}.1") == 0.0
        for host in ("198.51.100.1", "2001:db8::1"):
            world.handshake(host)
    assert MAX_DELAY / 2 < max(waits) <= MAX_DELAY
    assert world.delays("registrations") > 0
    assert world.delays("commands") > 0


def test_shared_addresses_wait_with_none_but_each_other() -> None:
    world = World(shared=("127.0.0.1",), commands="3 + 2/s")
    onion = world.session("127.0.0.1")
    assert world.admission.delay(onion, [ntf.Ping()] * 4) == pytest.approx(0.5)
    assert world.admission.delay(world.session(), [ntf.Ping()]) == 0.0


# --- SMP servers


def server(number: int) -> ServerAddress:
    return ServerAddress("smp", (f"smp{number}.example.org",), "", bytes(32))


def test_new_servers_of_a_token_and_of_an_address_wait_to_be_connected_to() -> None:
    world = World(new_servers_per_token="2 + 0.1/s", new_servers_per_address="4 + 1/s")
    peer = world.session()
    for number in range(6):
        world.admission.new_server(peer, number // 3, server(number))
    waits = [world.admission.connect_wait(server(n), (), True) for n in range(6)]
    assert waits == pytest.approx([0, 0, 10.0, 0, 1.0, 10.0])  # the third of each token, the fifth of all
    assert world.delays("new_servers_per_token") == 2
    assert world.delays("new_servers_per_address") == 2
    assert world.admission.connect_wait(server(2), (), True) == 0.0  # that is for the first connect only


def test_connects_to_a_machine_wait_and_what_is_not_proven_costs_no_proven_one() -> None:
    world = World(connects_per_destination="2 + 0.5/s", connects="1000 + 1/s")
    victim, other = ("192.0.2.7/32",), ("192.0.2.8/32", "2001:db8::/64")
    waits = [world.admission.connect_wait(server(n), victim, False) for n in range(300)]
    assert waits[:4] == pytest.approx([0, 0, 2.0, 4.0])
    assert waits[-1] == pytest.approx(298 * 2.0)  # one each two seconds, whoever asks
    assert world.admission.connect_wait(server(1), victim, True) == 0.0
    assert world.admission.connect_wait(server(1), other, False) == 0.0
    assert world.admission.connect_wait(server(1), (*other, *victim), False) == pytest.approx(299 * 2.0)
    assert world.delays("connects_per_destination") == 299


def test_connects_to_what_nobody_knows_wait_in_all() -> None:
    world = World(connects="3 + 0.5/s")
    waits = [world.admission.connect_wait(server(n), (f"192.0.2.{n}/32",), False) for n in range(5)]
    assert waits == pytest.approx([0, 0, 0, 2.0, 4.0])
    assert world.admission.connect_wait(server(9), ("192.0.2.9/32",), True) == 0.0
    assert world.delays("connects") == 2


def test_switched_off_no_connect_waits() -> None:
    world = World(enabled=False)
    for number in range(5000):
        world.admission.new_server(world.session(), 1, server(number))
    assert [world.admission.connect_wait(server(1), ("192.0.2.7/32",), False) for _ in range(99)] == [0.0] * 99


def test_a_restored_phone_waits_for_none_of_its_servers() -> None:
    """100 servers that nobody knew, on as many machines; and ten such servers on one machine, three times."""
    world = World()
    phone = world.session()
    for number in range(100):
        world.admission.new_server(phone, 1, server(number))
        assert world.admission.connect_wait(server(number), (f"192.0.2.{number}/32",), False) == 0.0
    waits = [world.admission.connect_wait(server(n), ("198.51.100.7/32",), True) for n in range(10) for _ in range(3)]
    assert max(waits) == 0.0


def test_restored_phones_behind_one_address_wait_for_none_of_their_servers() -> None:
    """One in 20 of 5,000, with two servers of its own each; and no connect of five phones with 100 each."""
    world = World()
    for number in range(500):
        peer = world.session()
        world.admission.new_server(peer, number // 2, server(number))
        assert world.admission.connect_wait(server(number), (f"10.0.{number // 256}.{number % 256}/32",), False) == 0.0


def test_every_kind_is_counted() -> None:
    assert set(KindCounter.LIMITS_CLOSED.kinds) == set(Closed)
    world = World(half_open_per_address=1)
    assert world.admission.open(ONE, lambda: None) is not None
    assert world.admission.open(ONE, lambda: None) is None
    assert world.metrics.value(KindCounter.LIMITS_CLOSED, "half_open_per_address") == 1


def test_gauges() -> None:
    world = World()
    peer = world.session()
    world.admission.open(ONE, lambda: None)
    assert sample(world.metrics, Gauge.CLIENT_SESSIONS) == sample(world.metrics, Gauge.CLIENT_HANDSHAKES) == 1
    world.admission.closed(peer)
    assert sample(world.metrics, Gauge.CLIENT_SESSIONS) == 0


def test_an_address_that_holds_most_sessions_is_named_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    with caplog.at_level(logging.WARNING):
        for _ in range(MANY + 50):
            world.session()
        assert [r.getMessage() for r in caplog.records] == [
            f"{ONE} holds {MANY} of {MANY} client sessions; if it stands for many clients, as a proxy does, put it"
            " into [limits] shared"
        ]
        world.now += 59
        world.session()
        assert len(caplog.records) == 1
        world.now += 1
        world.session()
    assert len(caplog.records) == 2


# --- codes


def token(ref: int, status: ntf.TokenStatus = ntf.TokenStatus.REGISTERED, *, proven: bool = False) -> Token:
    return Token(ref, bytes(24), b"key", status, None, 0, 0, proven)


def wait(asked: Asked | None) -> float:
    assert asked is not None
    return asked.wait


def test_codes_for_one_device_wait_for_their_turn_whatever_its_spelling() -> None:
    world = World()
    strangers = [world.session(f"192.0.2.{n}") for n in range(3)]
    upper = ntf.DeviceToken(ntf.Provider.APNS, b"AB" * 32)
    lower = ntf.DeviceToken(ntf.Provider.APNS, b"ab" * 32)
    asked = [world.turn(p, d, None) for p, d in zip(strangers, (upper, lower, upper), strict=True)]
    assert [wait(a) for a in asked] == [0.0, 60.0, 120.0]
    assert world.delays("verifications") == 2
    for text in (b"AB", b"ab"):
        case = ntf.DeviceToken(ntf.Provider.FCM, text)
        assert wait(world.turn(strangers[0], case, None)) == 0.0


def test_registrations_of_one_site_are_one_source() -> None:
    world = World()
    first, second = world.session("2001:db8:0:1::1"), world.session("2001:db8:0:2::1")
    owner = world.session("192.0.2.1")
    for ref, peer in enumerate((first, second)):
        asked = world.turn(peer, DEVICE, None)
        assert asked is not None
        world.made(asked, ref)
    assert wait(asked) == 60.0
    mine = world.turn(owner, DEVICE, None)
    assert mine is not None
    assert mine.wait == 60.0
    assert world.made(mine, 2) == {1: 120.0}


def test_an_active_registration_waits_for_nobody_but_itself() -> None:
    world = World()
    owner, active = world.session(), token(7, ntf.TokenStatus.ACTIVE, proven=True)
    for n in range(5):
        world.turn(world.session(f"198.51.100.{n}"), DEVICE, None)
    assert [wait(world.turn(owner, DEVICE, active)) for _ in range(3)] == [0.0, 60.0, 60.0]
    world.now += 60
    assert wait(world.turn(owner, DEVICE, active)) == 0.0


def test_a_token_that_was_active_is_a_source_of_its_own() -> None:
    world = World()
    shared = world.session()
    for _ in range(2):  # by somebody behind the same address
        world.turn(shared, DEVICE, None)
    moved = world.replaced(shared, DEVICE, token(7, ntf.TokenStatus.ACTIVE, proven=True))
    assert wait(moved) == 60.0


def test_a_token_that_is_not_verified_is_replaced_twice() -> None:
    world = World()
    peer, fresh = world.session(), token(7)
    devices = [ntf.DeviceToken(ntf.Provider.APNS, b"%064x" % n) for n in range(6)]
    asked = [world.replaced(peer, d, fresh) is not None for d in devices[:4]]
    assert asked == [True, True, False, False]
    assert world.metrics.value(KindCounter.LIMITS_REFUSED, "replacements_unverified") == 2
    at_once(world.admission.verified(fresh.ref))
    assert world.replaced(peer, devices[4], fresh) is not None
    active = token(8, ntf.TokenStatus.ACTIVE, proven=True)
    assert all(world.replaced(peer, d, active) is not None for d in devices)


def test_too_many_sources_at_one_device_are_refused() -> None:
    world = World()
    peers = [world.session(f"192.0.2.{n}") for n in range(MAX_OF_NETWORK + 2)]
    asked = [world.turn(p, DEVICE, None) is not None for p in peers]
    assert asked == [True] * (MAX_OF_NETWORK + 1) + [False]
    assert wait(world.turn(world.session("198.51.100.1"), DEVICE, None)) == 60.0
    assert world.metrics.value(KindCounter.LIMITS_REFUSED, "registrations_per_device") == 1


def test_switched_off_codes_wait_for_nothing() -> None:
    world = World(enabled=False)
    peer = world.session()
    for known in [None, token(7), token(8, ntf.TokenStatus.ACTIVE, proven=True)] * 20:
        asked = world.turn(peer, DEVICE, known)
        assert wait(asked) == 0.0
        assert asked is not None
        assert world.made(asked, 7) == {}
    assert all(world.replaced(peer, DEVICE, token(7)) for _ in range(20))


# --- over all nodes


class Shared:
    """A node each, with budgets of its own but for what is counted in Redis."""

    def __init__(self, store: RedisStore, **changes: Any) -> None:
        self.world = World(**changes)
        self.world.admission.share(store.ledger)

    async def delay(self, peer: Peer, command: Message = TNEW) -> float:
        admission = self.world.admission
        return max(admission.delay(peer, [command]), await admission.shared_delay(peer, [command]))


def shared(two: tuple[RedisStore, RedisStore], **changes: Any) -> list[Shared]:
    return [Shared(store, **changes) for store in two]


@pytest.mark.parametrize(
    ("command", "what"), [(TNEW, "registrations"), (ntf.TRpl(DEVICE), "replacements")], ids=["TNEW", "TRPL"]
)
async def test_a_flood_over_two_nodes_is_delayed_as_one(
    two: tuple[RedisStore, RedisStore], command: Message, what: str
) -> None:
    """An honest phone is not."""
    nodes = shared(two, **{f"{what}_per_address": "3 + 1/s"})
    flood = [node.world.session() for node in nodes]
    delays = [await nodes[n % 2].delay(flood[n % 2], command) for n in range(6)]
    assert delays == pytest.approx([0, 0, 0, 1, 2, 3], abs=0.01)
    for node in nodes:
        assert await node.delay(node.world.session("192.0.2.2"), command) == 0.0
    assert [node.world.delays(f"{what}_per_address") for node in nodes] == [1, 2]


async def test_all_addresses_together_are_delayed_over_two_nodes(two: tuple[RedisStore, RedisStore]) -> None:
    nodes = shared(two, registrations="4 + 1/s")
    delays = [await nodes[n % 2].delay(nodes[n % 2].world.session(f"192.0.2.{n}")) for n in range(6)]
    assert delays == pytest.approx([0, 0, 0, 0, 1, 2], abs=0.01)
    assert [node.world.delays("registrations") for node in nodes] == [1, 1]
    nobody = nodes[0].world.session("no address")
    assert await nodes[0].delay(nobody) == 0.0  # a group of its own


async def test_few_who_ask_for_much_over_two_nodes_delay_none_who_asks_for_little(
    nodes: Nodes, two: tuple[RedisStore, RedisStore]
) -> None:
    both = shared(two)
    floods = [(node, node.world.session(f"198.51.100.{n}")) for n in range(6) for node in both]
    for n in range(40):
        nodes.clock.pass_(0.2)
        for node, flood in floods:
            await node.world.admission.shared_delay(flood, [TNEW] * 3)
        phone = both[n % 2].world.session(f"10.0.{n}.1")
        assert await both[n % 2].delay(phone) == 0.0
    assert sum(node.world.delays("registrations") + node.world.delays("registrations_per_address") for node in both)


async def test_only_what_is_counted_together_asks_the_store(two: tuple[RedisStore, RedisStore]) -> None:
    [node, _] = shared(two)
    peer = node.world.session()
    others = [ntf.Ping(), ntf.TChk(), SNEW, ntf.TVfy(bytes(32)), ERR_SYNTAX]
    with fault(two[0], How.UNDONE, "spend"):
        assert node.world.admission.delay(peer, others) == 0.0
        assert at_once(node.world.admission.shared_delay(peer, others)) == 0.0
        with pytest.raises(StoreUnavailableError):
            await node.world.admission.shared_delay(peer, [*others, TNEW])
        node.world.admission.use(None)
        assert at_once(node.world.admission.shared_delay(peer, [TNEW])) == 0.0


async def test_codes_for_a_device_wait_over_two_nodes(two: tuple[RedisStore, RedisStore]) -> None:
    both = shared(two)
    told: dict[Ref, float | None] = {}

    async def put_off(waits: Mapping[Ref, float | None]) -> None:
        told.update(waits)

    for n, host in enumerate(["192.0.2.1", "192.0.2.2", "192.0.2.1", "no address", "198.51.100.1"]):
        admission = both[n % 2].world.admission
        asked = await admission.turn_of_registration(both[n % 2].world.session(host), DEVICE, None)
        assert asked is not None
        await admission.made(asked, b"%d" % n, put_off)
    # The first has its turn; of its network there is one more, and the source that comes again is behind it.
    assert {ref: round(at or 0.0) for ref, at in told.items()} == {b"1": 3600, b"2": 3660}
    assert asked.wait == 120.0
    active = msgspec.structs.replace(token(9, ntf.TokenStatus.ACTIVE, proven=True), ref=bytes(24))
    waits = [await node.world.admission.turn_of_registration(node.world.session(), DEVICE, active) for node in both]
    assert [wait(asked) for asked in waits] == pytest.approx([0.0, 60.0])
    await both[0].world.admission.verified(b"1")
    fresh = msgspec.structs.replace(token(7), ref=b"7" * 24)
    replaced = [
        await node.world.admission.turn_of_replacement(node.world.session(), DEVICE, fresh) for node in both * 2
    ]
    assert [one is not None for one in replaced] == [True, True, False, False]


# --- what the defaults were derived from (docs/reference/limits.md)


def test_a_restored_phone_notices_no_budget() -> None:
    """TNEW, TVFY, TCRN, TCHK, then 1,000 queues in batches of 150, and SCHK of each: a moment for each batch."""
    world = World()
    phone = world.session()
    batches: list[list[Message]] = [[TNEW], [ntf.TVfy(bytes(32))], [ntf.TCrn(20)], [ntf.TChk()]]
    batches += [[SNEW] * min(150, 1000 - n) for n in range(0, 1000, 150)]
    batches += [[ntf.SChk()] * 150 for _ in range(6)]
    waits = []
    for batch in batches:
        waits.append(0.0)
        for n in range(0, len(batch), 2):  # so many are in a block
            wait = world.admission.delay(phone, batch[n : n + 2])
            world.now += wait
            waits[-1] += wait
    assert sum(map(len, batches)) == 1904
    assert max(waits) < 0.25
    assert sum(waits) < 3.0


def test_5000_phones_behind_one_address_after_a_restart_wait_for_no_budget() -> None:
    """Within 30 s: TCHK and three more commands of each, and 5 in 100 register again."""
    world = World()
    waits = []
    for n in range(5000):
        world.now += 30.0 / 5000
        phone = world.admission.open(ONE, lambda: None)
        assert phone is not None
        waits.append(world.admission.handshake_wait(phone))
        world.admission.established(phone)
        waits += [world.admission.delay(phone, [c]) for c in (ntf.TChk(), ntf.SChk(), ntf.SChk(), ntf.SChk())]
        if n % 20 == 0:
            waits += [world.admission.delay(phone, [TNEW]), world.admission.delay(phone, [ntf.TRpl(DEVICE)])]
    assert max(waits) == 0.0


def test_one_behind_the_address_of_a_stranger_is_served_within_30_seconds() -> None:
    """Who floods from a hundred sessions delays those who share his address by MAX_DELAY a step at most."""
    world = World()
    floods = [world.session() for _ in range(100)]
    for _ in range(60):
        world.now += 0.5
        for flood in floods:
            world.admission.delay(flood, [TNEW] * 20)
    assert world.admission.delay(world.session(), [TNEW]) <= MAX_DELAY
    assert world.admission.delay(world.session("192.0.2.2"), [ntf.TChk()]) == 0.0
    assert world.admission.delay(world.session("192.0.2.3"), [TNEW]) == 0.0  # what he asks for costs nobody else
