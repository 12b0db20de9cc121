"""The engine as a whole: what was stored for an active token is pushed, whatever happens, and nothing twice at once."""

import random
import sqlite3
from dataclasses import dataclass, field

import pytest
from scrape import sample
from store_world import (
    CODE,
    MASTER,
    NO_PLACES,
    FakeClock,
    Room,
    acquire,
    again,
    anywhere,
    arrived,
    delivered,
    look,
    new_subscription,
    new_token,
    untried,
)

from ntf_server.observe.names import Histogram
from ntf_server.store.records import Added, Claim, Ended, Outcome, Ref, Session, Token
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.ntf import DeviceToken, Provider, TokenStatus

PROVIDERS = (Provider.APNS, Provider.WEB_PUSH)


@dataclass
class World:
    """A model of what has to be pushed, beside the engine, which is opened anew now and then."""

    random: random.Random
    connection: sqlite3.Connection
    clock: FakeClock = field(default_factory=FakeClock)
    tokens: list[Token] = field(default_factory=list)
    devices: dict[Ref, DeviceToken] = field(default_factory=dict)
    queues: dict[bytes, Token] = field(default_factory=dict)
    unsent: dict[bytes, bytes] = field(default_factory=dict)  # queue to the metadata that is to reach the device
    flying: dict[object, Claim] = field(default_factory=dict)
    pushes: int = 0
    store: SqliteStore = field(init=False)
    session: Session = field(init=False)

    async def open(self) -> None:
        self.flying.clear()
        self.store = await SqliteStore.open(
            self.connection, master_key=MASTER, clock=self.clock.clock, random=self.random.randbytes
        )
        self.session = await acquire(self.store)

    def device(self, number: int) -> tuple[DeviceToken, str]:
        if number % 3:
            return DeviceToken(Provider.APNS, b"%02x" % number), ""
        return DeviceToken(Provider.WEB_PUSH, b"%d" % number), f"https://origin{number % 2}.example"

    async def step(self) -> None:
        choice = self.random.choices(
            [
                self.add,
                self.message,
                self.take,
                self.end,
                self.wait,
                self.anew,
                self.remove,
                self.crash,
                self.set_clock,
            ],
            [2, 10, 8, 10, 6, 1, 0.5, 0.3, 0.3],
        )[0]
        await choice()

    async def add(self) -> None:
        if len(self.tokens) < 8:
            device, origin = self.device(self.random.randrange(100))
            token = await self.store.register(new_token(device, self.random.randbytes(8), origin=origin))
            assert token is not None
            if self.random.random() < 0.8:
                assert await self.store.verify(token.ref, CODE)
                for other in [t for t in self.tokens if self.devices[t.ref] == device]:
                    self.forget(other)
            self.devices[token.ref] = device
            self.tokens.append(token)
        token = self.random.choice(self.tokens)
        queue = self.random.randbytes(4)
        assert isinstance(await self.store.subscribe(token.ref, new_subscription(queue)), Added)
        self.queues[queue] = token

    def forget(self, token: Token) -> None:
        self.tokens.remove(token)
        self.flying.pop(token.ref, None)
        for queue in [q for q, t in self.queues.items() if t.ref == token.ref]:
            del self.queues[queue]
            self.unsent.pop(queue, None)

    async def message(self) -> None:
        if not self.queues:
            return
        block = [(self.random.choice(list(self.queues)), self.random.randbytes(3)) for _ in range(3)]
        places = self.random.choice([NO_PLACES, anywhere(2), anywhere()])
        notified = await self.store.notify(self.session, arrived(self.store, self.session, block), places)
        assert notified.unknown == 0
        self.unsent.update(block)
        self.fly(notified.claims)

    def fly(self, claims: list[Claim]) -> None:
        for claim in claims:
            assert claim.token not in self.flying, "two claims of a token"
            self.flying[claim.token] = claim
            for entry in claim.entries:
                if not entry.sent:
                    assert entry.notifier_id in self.unsent

    async def take(self) -> None:
        for provider in PROVIDERS:
            room = Room(self.random.choice([1, 3, 100]), {self.random.choice([b"", b"x"]): 0})
            taken = await self.store.take(provider, room)
            assert len(taken.claims) <= room.total
            self.fly(taken.claims)

    async def end(self) -> None:
        if not self.flying:
            return
        claim = self.flying.pop(self.random.choice(list(self.flying)))
        outcome = self.random.choice([delivered(claim), delivered(claim), again(claim, 3), untried(claim)])
        if self.random.random() < 0.1:
            outcome = Outcome(claim, Ended.EXPIRED)
        assert await self.store.record([outcome, outcome]) == 1
        self.landed(outcome)

    def landed(self, outcome: Outcome) -> None:
        if outcome.ended is Ended.DELIVERED:
            self.pushes += 1
            for entry in outcome.held:
                if self.unsent.get(entry.notifier_id) == entry.meta:
                    del self.unsent[entry.notifier_id]

    async def wait(self) -> None:
        self.clock.pass_(self.random.choice([0.005, 0.03, 5.0]))
        if self.random.random() < 0.2:
            await self.store.tend()

    async def anew(self) -> None:
        """TNEW again: what is in flight is worth nothing."""
        if self.tokens:
            token = self.random.choice(self.tokens)
            device = self.devices[token.ref]
            _, origin = self.device(int(device.token, 16 if device.provider is Provider.APNS else 10))
            assert await self.store.register(new_token(device, token.verify_key, origin=origin))
            if (claim := self.flying.pop(token.ref, None)) is not None:
                assert await self.store.record([self.random.choice([delivered(claim), again(claim)])]) == 1

    async def remove(self) -> None:
        if self.tokens:
            token = self.random.choice(self.tokens)
            await self.store.delete_token(token.ref)
            self.forget(token)

    async def crash(self) -> None:
        await self.open()

    async def set_clock(self) -> None:
        self.clock.set_by(self.random.choice([-400 * 86400.0, 100 * 86400.0, 3600.0]))

    async def drain(self) -> None:
        """Everything that is due, until nothing is."""
        for claim in self.flying.values():
            outcome = delivered(claim)
            assert await self.store.record([outcome]) == 0
            self.landed(outcome)
        self.flying.clear()
        for _ in range(500):
            waits = []
            for provider in PROVIDERS:
                taken = await self.store.take(provider, Room(self.random.choice([1, 2, 100])))
                outcomes = [delivered(claim) for claim in taken.claims]
                assert await self.store.record(outcomes) == 0
                for outcome in outcomes:
                    self.landed(outcome)
                if outcomes:
                    waits.append(0.03)
                if taken.next_in is not None:
                    waits.append(taken.next_in)
            if not waits:
                return
            self.clock.pass_(min(waits) + 0.001)
        raise AssertionError("something is due without end")


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_is_stored_for_an_active_token_reaches_it(seed: int) -> None:
    with sqlite3.connect(":memory:", isolation_level=None) as connection:
        world = World(random.Random(seed), connection)
        await world.open()
        for _ in range(250):
            await world.step()
        await world.drain()
        active = {t.ref for t in world.tokens if (await look(world.store, t)).status is TokenStatus.ACTIVE}
        left = [queue for queue, token in world.queues.items() if queue in world.unsent and token.ref in active]
        assert not left
        for provider in PROVIDERS:
            assert (await world.store.backlog(provider)).tokens == 0
        assert world.pushes
        await world.store.close()
    connection.close()


async def test_what_commits_take_is_measured(store: SqliteStore) -> None:
    before = sample(store._metrics, f"{Histogram.STORE_COMMIT}_count")
    await store.backlog(Provider.APNS)
    assert sample(store._metrics, f"{Histogram.STORE_COMMIT}_count") == before
    await store.tend()
    assert sample(store._metrics, f"{Histogram.STORE_COMMIT}_count") == before + 1
    assert 0 < sample(store._metrics, f"{Histogram.STORE_COMMIT}_sum") < 10


async def test_the_space_that_it_takes(store: SqliteStore) -> None:
    space = await store.space()
    assert space.log is not None and space.room is not None
    assert space.used >= space.log > 0
