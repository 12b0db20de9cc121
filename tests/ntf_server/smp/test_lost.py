"""Wake-ups that were lost on a dead way: a real store, the SMP agent, and a proxy that swallows what is sent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import node as node_module
import pytest
from msgspec.structs import replace
from node import Node
from proxies import Proxy

from ntf_server.smp import inbox, lost
from ntf_server.smp.lost import LostConfig, LostWays
from ntf_server.store.records import Change, ChangeKind, PushKind
from ntf_server.store.sqlite import sessions
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.network import Network
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.socks import SocksProxy
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue

pytestmark = pytest.mark.usefixtures("quiet")

S = SubscriptionStatus
NOBODY = ServerAddress("smp", ("nobody.example",), "", bytes(32))
SOON = LostConfig(delay=0.3, pause=0.01, slice=2)


class Way:
    """A node that reaches SMP servers through a proxy only."""

    def __init__(self, node: Node, proxy: Proxy, server: SmpServer) -> None:
        self.node, self.proxy, self.server = node, proxy, server

    async def lose(self, subscription_id: bytes) -> None:
        """The way is dead until `mend`; returns when that was noticed, and the server has noticed it too."""
        self.proxy.swallow = True
        await self.node.until(subscription_id, S.INACTIVE)
        await self.server.until(lambda: self.server.connections == 1)  # the recipient's

    async def mend(self, *subscription_ids: bytes) -> None:
        self.proxy.swallow = False
        await self.node.all_active(subscription_ids)

    def kinds(self) -> list[PushKind]:
        """Of the pushes since the last call."""
        claims = self.node.pushed.claims
        return [claims.get_nowait().kind for _ in range(claims.qsize())]


@asynccontextmanager
async def open_way(
    path: Path, server: SmpServer, failing: dict[str, int] | None = None, **options: Any
) -> AsyncIterator[Way]:
    async with Proxy("socks5") as proxy:
        socks = SocksProxy("127.0.0.1", proxy.port)
        network = Network(allow_private=True, socks_proxy=socks, socks_mode="always", connect_timeout=0.5)
        agent = {"network": network, "ping_interval": 0.2, "ping_timeout": 0.2}
        async with node_module.open_node(path / "ntf.db", failing, agent=agent, **{"lost": SOON, **options}) as node:
            yield Way(node, proxy, server)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "_STORE_BACKOFF", 0.02)


async def check_comes(way: Way) -> None:
    claim = await asyncio.wait_for(way.node.pushed.claims.get(), 10)
    assert (claim.kind, claim.token) == (PushKind.CHECK, way.node.token)


async def waiting(way: Way) -> LostWays:
    """Once it waits for the rest of an hour."""
    ways = way.node.subscriber._lost_ways
    assert ways is not None
    async with asyncio.timeout(10):
        while not ways._waiting:
            await asyncio.sleep(0.01)
    return ways


async def test_a_device_is_sent_one_check_once_the_server_is_back(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_way(tmp_path, smp_server) as way:
        ids = await way.node.add_active(smp_server, *queues)
        way.proxy.swallow = True
        smp_server.notify(queues[0].notifier_id)  # the server thinks that it is delivered
        await way.lose(ids[0])
        assert [await way.node.status(i) for i in ids] == [ntf.Sub(S.INACTIVE)] * len(ids)
        await way.mend(*ids)
        await check_comes(way)
        await way.lose(ids[0])
        await way.mend(*ids)
        await asyncio.sleep(0.8)
        assert way.kinds() == []  # within the hour


async def test_what_is_lost_again_is_told_when_the_hour_is_over(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in another session than the one that found it out."""
    monkeypatch.setattr(sessions, "_LOST_EVERY", 4.0)
    monkeypatch.setattr(lost, "_MORE", 0.1)
    async with open_way(tmp_path, smp_server) as way:
        ids = await way.node.add_active(smp_server, *queues)
        await way.lose(ids[0])
        await way.mend(*ids)
        await check_comes(way)
        await asyncio.sleep(1.1)  # the time of a push is kept in whole seconds
        await way.lose(ids[0])
        await way.mend(*ids)
        ways = await waiting(way)
        assert way.kinds() == []
        smp_server.drop_all()
        await way.node.until(ids[0], S.INACTIVE)
        await way.node.all_active(ids)
        await check_comes(way)
        async with asyncio.timeout(10):
            while ways._noticed:
                await asyncio.sleep(0.01)
        assert way.kinds() == []


async def test_nothing_waits_for_the_hours_end_when_the_relay_stops(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_way(tmp_path, smp_server) as way:
        ids = await way.node.add_active(smp_server, *queues)
        await way.lose(ids[0])
        await way.mend(*ids)
        await check_comes(way)
        await way.lose(ids[0])
        await way.mend(*ids)
        ways = await waiting(way)
        [timer] = ways._waiting.values()
    assert timer.cancelled() and not ways._waiting


async def test_messages_that_follow_are_as_good_as_a_check(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_way(tmp_path, smp_server) as way:
        ids = await way.node.add_active(smp_server, *queues)
        await way.lose(ids[0])
        smp_server.notify(queues[0].notifier_id)
        await way.mend(*ids)
        await asyncio.sleep(0.8)
        assert way.kinds() == [PushKind.MESSAGES]


async def test_a_connection_that_was_closed_lost_nothing(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_way(tmp_path, smp_server) as way:
        ids = await way.node.add_active(smp_server, *queues)
        smp_server.drop_all()
        await way.node.until(ids[0], S.INACTIVE)
        await way.mend(*ids)
        await asyncio.sleep(0.8)
        assert way.kinds() == []


async def test_what_the_store_may_have_lost_is_subscribed_again_and_checked(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_way(tmp_path, smp_server) as way:
        ids = await way.node.add_active(smp_server, *queues)
        accepted, nsubs = smp_server.accepted, smp_server.nsubs()
        store: Any = way.node.store.store
        store._changes.tell([Change(ChangeKind.LOST, server) for server in (*way.node.subscriber._sessions, NOBODY)])
        await smp_server.until(lambda: smp_server.accepted == accepted + 1)
        await way.node.all_active(ids)
        assert smp_server.nsubs() == nsubs + len(queues)
        await check_comes(way)


@pytest.mark.parametrize(("taken", "kinds"), [(60.0, [PushKind.CHECK]), (0.0, [])])
async def test_a_server_that_this_node_takes_soon_after_the_store_may_have_lost_something_of_it_is_checked(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue], taken: float, kinds: list[PushKind]
) -> None:
    """Its node has let it go meanwhile, or this one had, which could not renew its leases."""
    async with open_way(tmp_path, smp_server, lost=replace(SOON, taken=taken)) as way:
        way.node.store.store._changes.tell([Change(ChangeKind.LOST, s) for s in (smp_server.address, NOBODY)])
        await asyncio.sleep(0.1)
        await way.node.add_active(smp_server, *queues)
        await asyncio.sleep(0.8)
        assert way.kinds() == kinds
        assert way.node.subscriber._lost_ways is not None
        way.node.subscriber._lost_ways.doubt(smp_server.address, held=False)
        assert (NOBODY in way.node.subscriber._lost_ways._noticed) is bool(taken)


async def test_a_push_that_was_under_way_when_the_store_may_have_lost_what_came_next_is_no_check(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue]
) -> None:
    """It went out before that was stored, and is recorded after it was lost."""
    async with open_way(tmp_path, smp_server, lost=replace(SOON, delay=1.5)) as way:
        await way.node.add_active(smp_server, *queues)
        store: Any = way.node.store.store
        store._changes.tell([Change(ChangeKind.LOST, smp_server.address)])
        smp_server.notify(queues[0].notifier_id)
        async with asyncio.timeout(10):
            while (kinds := way.kinds()) != [PushKind.CHECK]:
                assert kinds in ([], [PushKind.MESSAGES])
                await asyncio.sleep(0.01)


async def test_a_way_that_is_lost_again_before_the_check(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_way(tmp_path, smp_server, lost=LostConfig(delay=1.0)) as way:
        ids = await way.node.add_active(smp_server, *queues)
        for _ in range(2):
            await way.lose(ids[0])
            await way.mend(*ids)
        await check_comes(way)


async def test_a_store_that_fails_is_asked_again(tmp_path: Path, smp_server: SmpServer, queues: list[Queue]) -> None:
    async with open_way(tmp_path, smp_server, {"mark_lost": 3}) as way:
        ids = await way.node.add_active(smp_server, *queues)
        await way.lose(ids[0])
        await way.mend(*ids)
        await check_comes(way)
        assert way.node.store.calls["mark_lost"] >= 4


async def test_checks_can_be_switched_off(tmp_path: Path, smp_server: SmpServer, queues: list[Queue]) -> None:
    async with open_way(tmp_path, smp_server, lost=None) as way:
        ids = await way.node.add_active(smp_server, *queues)
        await way.lose(ids[0])
        await way.mend(*ids)
        await asyncio.sleep(0.8)
        assert way.kinds() == []
        assert way.node.store.calls["mark_lost"] == 0


async def test_a_server_that_nothing_is_wanted_of_any_more_is_forgotten(
    tmp_path: Path, smp_server: SmpServer, queues: list[Queue]
) -> None:
    async with open_way(tmp_path, smp_server, release_after=0.1) as way:
        ids = await way.node.add_active(smp_server, *queues)
        await way.lose(ids[0])
        assert way.node.subscriber._lost_ways is not None
        assert smp_server.address in way.node.subscriber._lost_ways._noticed
        for i in ids:
            await way.node.delete(i)
        await way.mend()
        way.node.subscriber._perhaps_unwanted(smp_server.address)
        async with asyncio.timeout(10):
            while way.node.subscriber._lost_ways._noticed:
                await asyncio.sleep(0.01)
