"""Which SMP servers a node speaks for: leases that are renewed in time, or let go before they end. In virtual time."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import virtual_time

from ntf_server.smp.shares import Shares
from ntf_server.store.contract import PartlyUnavailableError, StoreUnavailableError
from ntf_server.store.records import Session, Share
from smp_bridge.address import ServerAddress
from smp_bridge.subscriptions import NotWantedError

LEASE = 6.0
ONE, TWO, THREE = (ServerAddress("smp", (f"smp{n}.example.org",), "", b"h" * 32) for n in range(3))


class Leases:
    """The store's side: what a test says of renewals and shares, and when it was asked."""

    def __init__(self, lease: float = LEASE) -> None:
        self.lease = lease
        self.lost: list[Session] = []
        self.silent: set[ServerAddress] = set()  # what has these does not answer
        self.take: list[ServerAddress] = []
        self.give: list[ServerAddress] = []
        self.away = self.unsettled = False
        self.patience = 0.0  # seconds after which it fails when it is away, or answers
        self.renewed: list[tuple[float, list[Session]]] = []
        self.fences = 0
        self.anothers: set[ServerAddress] = set()

    async def _answer(self) -> None:
        await asyncio.sleep(self.patience)
        if self.away:
            raise StoreUnavailableError("away")

    async def renew(self, sessions: Sequence[Session]) -> list[Session]:
        began = asyncio.get_running_loop().time()
        await self._answer()
        self.renewed.append((began, list(sessions)))
        lost = [session for session in sessions if session in self.lost]
        if left := [session for session in sessions if session.server in self.silent]:
            raise PartlyUnavailableError("away", lost, left)
        return lost

    async def share(self, sessions: Sequence[Session]) -> Share:
        await self._answer()
        give = [session for session in sessions if session.server in self.give]
        return Share(list(self.take), give, self.unsettled)

    async def acquire(self, server: ServerAddress) -> Session | None:
        self.fences += 1
        return None if server in self.anothers else Session(server, self.fences)


class World:
    """A node whose agent lets go at once, as the subscriber does it: it asks again what it should speak for."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.started: list[ServerAddress] = []
        self.released: list[tuple[float, ServerAddress]] = []
        self.let_go: list[Session] = []
        self.end_takes = 0.0
        self.shares = Shares(store, self.started.append, self.release, self.end)

    def release(self, server: ServerAddress) -> None:
        self.released.append((asyncio.get_running_loop().time(), server))

    async def speaks(self, server: ServerAddress) -> bool:
        return await self.shares.speaks_for(server, lambda: self.store.acquire(server))

    async def end(self, session: Session) -> None:
        await asyncio.sleep(self.end_takes)
        self.let_go.append(session)


def run(test: Callable[[World], Awaitable[None]], store: Leases | None = None) -> World:
    """The test, while the node keeps its shares."""
    world = World(store or Leases())

    async def main() -> None:
        task = asyncio.create_task(world.shares.run())
        try:
            await test(world)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    virtual_time.run(main())
    return world


def test_a_store_of_ones_own_has_no_leases() -> None:
    async def main() -> None:
        world = World(Leases(math.inf))
        assert not world.shares.is_shared
        assert await world.speaks(ONE)
        assert not world.shares.held and not world.store.fences

    virtual_time.run(main())


def test_leases_are_renewed_three_times_as_often_as_they_end() -> None:
    async def test(world: World) -> None:
        assert await world.speaks(ONE)
        await asyncio.sleep(20.5)
        assert [at for at, _ in world.store.renewed] == [2.0 * n for n in range(1, 11)]
        assert all(sessions == [Session(ONE, 1)] for _, sessions in world.store.renewed)

    assert run(test).released == []


def test_a_server_is_acquired_once_and_kept() -> None:
    async def test(world: World) -> None:
        world.store.anothers = {TWO}
        assert await world.speaks(ONE) and await world.speaks(ONE)
        assert not await world.speaks(TWO)
        assert world.shares.held == {ONE: Session(ONE, 1)}

    run(test)


def test_what_is_this_nodes_is_started_until_somebody_speaks_for_it() -> None:
    async def test(world: World) -> None:
        world.store.take = [ONE, TWO]
        await asyncio.sleep(2.5)
        assert world.started == [ONE, TWO]

    run(test)


def test_what_is_lost_is_released_at_once() -> None:
    async def test(world: World) -> None:
        assert await world.speaks(ONE) and await world.speaks(TWO)
        world.store.lost = [world.shares.held[ONE]]
        await asyncio.sleep(2.5)
        assert [server for _, server in world.released] == [ONE]
        assert list(world.shares.held) == [TWO]
        world.store.anothers = {ONE}
        assert not await world.speaks(ONE)

    run(test)


def test_a_newer_session_is_not_lost_with_the_old_one() -> None:
    async def test(world: World) -> None:
        assert await world.speaks(ONE)
        world.store.lost = [world.shares.held[ONE]]
        world.store.patience = 0.5
        await asyncio.sleep(2.2)  # it is being renewed
        world.shares.held[ONE] = Session(ONE, 99)
        await asyncio.sleep(1)
        assert world.shares.held == {ONE: Session(ONE, 99)}

    assert run(test).released == []


def test_what_is_given_is_not_taken_again_before_its_session_ended() -> None:
    async def test(world: World) -> None:
        assert await world.speaks(ONE)
        world.store.give = [ONE]
        await asyncio.sleep(2.5)
        assert [server for _, server in world.released] == [ONE]
        assert not await world.speaks(ONE)
        assert ONE in world.shares.held  # till it is released
        await asyncio.sleep(2)
        assert world.store.renewed[-1][1] == [Session(ONE, 1)]  # nobody else takes it meanwhile
        await world.shares.give(ONE)
        world.store.give = []
        assert await world.speaks(ONE)
        assert world.shares.held[ONE].fence == 2

    run(test)


def test_while_servers_lose_their_node_is_looked_more_often() -> None:
    async def test(world: World) -> None:
        world.store.unsettled = True
        await asyncio.sleep(2.1)
        world.store.take = [ONE]
        await asyncio.sleep(0.5)
        assert world.started == [ONE]
        world.store.unsettled = False
        await asyncio.sleep(0.5)
        count = len(world.started)
        await asyncio.sleep(1.8)
        assert len(world.started) == count

    run(test)


def test_who_stops_takes_nothing_and_gives_what_it_has() -> None:
    """Each when its session has ended; at last those without one."""

    async def test(world: World) -> None:
        for server in (ONE, TWO, THREE):
            assert await world.speaks(server)
        world.shares.is_over = True
        assert not await world.speaks(ONE)
        await world.shares.give(TWO)
        assert [session.server for session in world.let_go] == [TWO]
        await world.shares.give_all()
        assert [session.server for session in world.let_go] == [TWO, ONE, THREE]
        await world.shares.give_all()
        assert len(world.let_go) == 3 and not world.shares.held

    run(test)


def test_what_cannot_be_given_is_left_to_the_store() -> None:
    """As when that is away: a stop does not wait for it."""

    async def test(world: World) -> None:
        assert await world.speaks(ONE)
        world.end_takes = 100.0
        began = asyncio.get_running_loop().time()
        await world.shares.give_all()
        assert asyncio.get_running_loop().time() - began < 1

    run(test)


def test_what_was_read_before_a_node_stood_still_is_not_subscribed() -> None:
    """Nor what was read when its lease was about to end: another node may have the server before that gets there."""

    async def main() -> None:
        shares = World(Leases()).shares
        shares.check(Session(ONE, 1))  # its leases are not renewed yet
        shares._renewed_at = asyncio.get_running_loop().time()
        shares._late = {Session(TWO, 2): shares._renewed_at - 2}
        await asyncio.sleep(LEASE - 2)
        shares.check(Session(ONE, 1))
        with pytest.raises(NotWantedError):
            shares.check(Session(TWO, 2))
        await asyncio.sleep(2)
        with pytest.raises(NotWantedError):
            shares.check(Session(ONE, 1))

    virtual_time.run(main())


def test_a_short_outage_ends_no_session() -> None:
    async def test(world: World) -> None:
        assert await world.speaks(ONE)
        await asyncio.sleep(1)
        world.store.away = True
        await asyncio.sleep(1.5)  # one renewal fails
        world.store.away = False
        await asyncio.sleep(10)

    assert run(test).released == []


def test_leases_that_cannot_be_renewed_are_let_go_before_they_end() -> None:
    """However long a try takes: the store itself gives up after many seconds only."""
    for patience in (0.0, 0.5, 2.5, 5.0, 100.0):

        async def test(world: World, patience: float = patience) -> None:
            assert await world.speaks(ONE) and await world.speaks(TWO)
            await asyncio.sleep(10.5)
            [renewed_at] = [at for at, _ in world.store.renewed][-1:]
            world.store.away, world.store.patience = True, patience
            await asyncio.sleep(LEASE)
            assert [server for _, server in world.released] == [ONE, TWO]
            assert all(at < renewed_at + LEASE for at, _ in world.released), patience
            assert world.shares.held == {}

        run(test)


def test_of_several_those_are_let_go_that_cannot_be_renewed_and_the_others_stay() -> None:
    """What has a server may be away, and what has the others not; a lease that is lost meanwhile is no less so."""

    async def test(world: World) -> None:
        for server in (ONE, TWO, THREE):
            assert await world.speaks(server)
        await asyncio.sleep(10.5)
        [renewed_at] = [at for at, _ in world.store.renewed][-1:]
        world.store.silent = {ONE}
        world.store.lost = [world.shares.held[THREE]]
        await asyncio.sleep(2)
        assert [server for _, server in world.released] == [THREE]
        await asyncio.sleep(LEASE - 2)
        (_, _), (at, server) = world.released
        assert server == ONE and at < renewed_at + LEASE - 1
        await asyncio.sleep(2 * LEASE)
        assert world.shares.held.keys() == {TWO}
        world.store.silent.clear()
        assert await world.speaks(ONE)  # once it is back it is as any other
        await asyncio.sleep(2 * LEASE)
        assert world.shares.held.keys() == {ONE, TWO}

    run(test)


def test_a_server_that_was_away_for_a_moment_stays() -> None:
    async def test(world: World) -> None:
        assert await world.speaks(ONE)
        for _ in range(5):
            await asyncio.sleep(2)
            world.store.silent = {ONE}
            await asyncio.sleep(2)
            world.store.silent = set()
            await asyncio.sleep(2)

    assert run(test).released == []


def test_an_answer_that_takes_long_counts_from_when_it_was_asked_for() -> None:
    async def test(world: World) -> None:
        assert await world.speaks(ONE)
        world.store.patience = 1.5
        await asyncio.sleep(30)
        assert len(world.store.renewed) >= 5

    assert run(test).released == []


def test_it_goes_on_after_an_outage() -> None:
    async def test(world: World) -> None:
        assert await world.speaks(ONE)
        world.store.away = True
        await asyncio.sleep(20)
        assert [server for _, server in world.released] == [ONE]
        world.store.away, world.store.take = False, [ONE, THREE]
        await asyncio.sleep(2.5)
        assert world.started[-2:] == [ONE, THREE]
        assert await world.speaks(ONE)
        await asyncio.sleep(10)
        assert len(world.released) == 1

    run(test)


def test_who_slept_for_longer_than_a_lease_asks_before_it_lets_go() -> None:
    """As after SIGSTOP: what nobody took meanwhile is kept."""

    async def test(world: World) -> None:
        assert await world.speaks(ONE) and await world.speaks(TWO)
        await asyncio.sleep(2.5)
        world.shares._renewed_at -= 100  # it slept
        world.store.lost = [world.shares.held[TWO]]
        await asyncio.sleep(2.5)
        assert [server for _, server in world.released] == [TWO]

    run(test)
