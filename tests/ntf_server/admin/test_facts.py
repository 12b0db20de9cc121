"""What `/live`, `/ready` and `/health` of a real relay say while what it depends on fails, and when that is over."""

import asyncio
import contextlib
import http.client
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harness import Phone
from redis_servers import Cluster, Server, free_port

from ntf_server import periodic
from ntf_server.admin.facts import gather
from ntf_server.admin.socket import ask
from ntf_server.app import Relay
from ntf_server.config.files import Config
from ntf_server.observe import condition
from ntf_server.observe.condition import Facts, Phase
from ntf_server.store import pulse
from ntf_server.store.redis.names import Names
from ntf_server.testing import Answer, MockApns
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, ServerError
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

REFUSED = Answer(403, "InvalidProviderToken")


class Watched:
    """A relay, and who asks it how it is."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.relay = Relay(config)

    async def get(self, path: str) -> tuple[int, str]:
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.config.settings.metrics.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    async def health(self) -> tuple[int, Any]:
        status, text = await self.get("/health")
        return status, json.loads(text)

    async def way(self, name: str = "AT") -> Any:
        _, found = await self.health()
        return next(way for way in found["providers"] if way["name"] == name)

    async def until(self, holds: Callable[[int, Any], bool], seconds: float = 20.0) -> tuple[int, Any]:
        """`/health`, as soon as that is so."""
        end = time.monotonic() + seconds
        while True:
            status, found = await self.health()
            if holds(status, found):
                return status, found
            assert time.monotonic() < end, found
            await asyncio.sleep(0.05)

    async def until_ready(self, answer: tuple[int, str] = (200, "ready\n"), seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while (found := await self.get("/ready")) != answer:
            assert time.monotonic() < end, found
            await asyncio.sleep(0.05)

    async def client(self) -> Client:
        key_hash = self.config.credentials.key_hash
        return await Client.connect(ServerAddress("ntf", ("127.0.0.1",), str(self.relay.port), key_hash))


Make = Callable[..., contextlib.AbstractAsyncContextManager[Watched]]


@pytest.fixture
def watched(make_config: Callable[..., Config]) -> Make:
    """Starts relays."""

    @asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[Watched]:
        made = Watched(make_config(metrics__port=free_port(), **settings))
        async with made.relay:
            yield made

    return start


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes minutes takes a moment."""
    monkeypatch.setattr(condition, "STALLED", 1.0)
    monkeypatch.setattr(condition, "LASTING", 0.5)
    monkeypatch.setattr(periodic, "StoreGauges", partial(periodic.StoreGauges, interval=0.1))
    monkeypatch.setattr(pulse, "QUIET", 0.5)


def way_of(found: Any, name: str = "AT") -> Any:
    return next(way for way in found["providers"] if way["name"] == name)


async def test_one_that_is_well(
    watched: Make, smp_server: SmpServer, phone: Callable[[], Phone], recipient: Recipient
) -> None:
    device = phone()
    async with watched() as relay, await relay.client() as client:
        await device.register(client)
        await device.verify(client)
        await device.subscribe(client, smp_server.address, await recipient.queue())
        _, found = await relay.until(lambda _, found: found["smp_servers"]["connected"] == 1)
        way = await relay.way()
        assert (found["well"], found["troubles"], found["phase"], found["clients"]) == (True, [], "running", 1)
        assert (found["store"]["state"], found["leases"], found["smp_servers"]["wanted"]) == ("well", None, 1)
        assert found["started"] <= way["accepted_at"] <= time.time() + 1
        assert (way["state"], way["since"], way["reason"], way["due"]) == ("well", None, "", 0)
        assert await relay.get("/live") == (200, "live\n")
        assert await relay.get("/ready") == (200, "ready\n")


# --- providers


async def test_a_provider_that_refuses_us_is_told_at_once_and_so_is_its_end(
    watched: Make, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """No node is taken out of a balancer for it."""
    device = phone()
    mock_apns.script(*[REFUSED] * 2)
    async with watched() as relay, await relay.client() as client:
        await device.register(client)
        status, found = await relay.until(lambda _, found: bool(found["troubles"]))
        way = way_of(found)
        assert (status, found["well"], way["state"]) == (200, False, "ours-to-mend")
        assert way["reason"] == "403 InvalidProviderToken"
        assert way["accepted_at"] is None and way["since"] <= found["now"]
        [text] = found["troubles"]
        assert text.startswith("APNs test (AT) refuses pushes for what is this server's to mend, for ")
        assert "403 InvalidProviderToken" in text
        assert (await relay.get("/ready"), (await relay.get("/live"))[0]) == ((200, "ready\n"), 200)
        await device.verify(client)
        _, found = await relay.until(lambda _, found: bool(found["well"]))
        way = way_of(found)
        assert (way["state"], way["since"]) == ("well", None)
        assert way["reason"] == "403 InvalidProviderToken"  # the last one that there was
        assert way["accepted_at"] is not None


@pytest.mark.usefixtures("soon")
async def test_a_provider_that_is_dead_and_comes_back(
    watched: Make, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """`/health` is 503 once nothing was delivered for long although something is due; `/ready` never."""
    device = phone()
    async with watched() as relay, await relay.client() as client:
        assert (await relay.health())[0] == 200
        await mock_apns.stop()
        await device.register(client)
        _, found = await relay.until(lambda _, found: way_of(found)["state"] in {"paused", "probing"})
        assert "connection refused" in way_of(found)["reason"] and not found["well"]
        _, found = await relay.until(lambda status, _: status == 503)
        assert way_of(found)["stalled"] and not found["delivers"]
        assert any("nothing was delivered for" in text for text in found["troubles"])
        assert await relay.get("/ready") == (200, "ready\n")
        await mock_apns.start()
        status, found = await relay.until(lambda _, found: bool(found["well"]))
        assert (status, way_of(found)["state"]) == (200, "well")
        await device.verify(client)


# --- the store


@pytest.mark.usefixtures("soon")
async def test_a_database_that_another_process_locks(watched: Make) -> None:
    async with watched() as relay:
        await relay.until_ready()
        database = relay.config.directory / "ntf-server.db"
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            status, found = await relay.until(lambda status, _: status == 503)
            assert (found["store"]["state"], found["store"]["kind"]) == ("failing", "unavailable")
            assert found["store"]["since"] <= found["now"] and not found["well"]
            status, text = await relay.get("/ready")
            assert status == 503 and text.startswith("the store fails, for ")
            assert (await relay.get("/live"))[0] == 200
            other.execute("ROLLBACK")
        await relay.until_ready()
        _, found = await relay.until(lambda _, found: bool(found["well"]))
        assert (found["store"]["state"], found["store"]["since"]) == ("well", None)


@pytest.mark.usefixtures("soon")
async def test_a_disk_that_is_full(watched: Make, phone: Callable[[], Phone]) -> None:
    """By max_page_count: what needs no room is still done, and does not hide it."""
    async with watched() as relay, await relay.client() as client:
        assert relay.relay._parts is not None
        store: Any = relay.relay._parts.store
        await store._database.run(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())
        with pytest.raises(ServerError, match="STORE"):
            while True:
                await phone().register(client)
        _, found = await relay.until(lambda status, _: status == 503)
        assert (found["store"]["kind"], found["store"]["partly"]) == ("full", False)
        assert (await relay.get("/ready"))[1].endswith(": full: there is no room\n")
        await store._database.run(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone())
        await relay.until_ready()
        await relay.until(lambda _, found: bool(found["well"]))


async def test_a_redis_that_is_gone_and_comes_back(watched: Make, tmp_path: Path) -> None:
    with Server(tmp_path / "redis", {"appendonly": "yes"}) as redis:
        async with watched(store__url=redis.url) as relay:
            await relay.until_ready()
            _, found = await relay.health()
            assert found["leases"] == {"servers": 0, "shards": 64, "all_shards": 64, "silent_shards": 0, "nodes": 1}
            redis.freeze()
            _, found = await relay.until(lambda status, _: status == 503)
            assert found["store"]["state"] == "failing"
            assert found["store"]["kind"] in {"unavailable", "silent"}
            assert (await relay.get("/ready"))[0] == 503
            assert (await relay.get("/live"))[0] == 200
            redis.thaw()
            await relay.until_ready()


async def test_a_primary_of_a_cluster_that_is_gone_and_comes_back(watched: Make, tmp_path: Path) -> None:
    """What the others have goes on, so clients are not sent elsewhere: it is away for all nodes."""
    with Cluster(tmp_path / "redis", replicas=0, options=Cluster.PARTIAL) as cluster:
        async with watched(store__url=cluster.url) as relay:
            await relay.until_ready()
            dies = next(p for p in cluster.primaries if p is not cluster.owner_of(Names("ntf").store))
            dies.freeze()
            status, found = await relay.until(lambda _, found: found["leases"]["silent_shards"] > 0)
            assert (status, found["well"], found["store"]["state"], found["store"]["partly"]) == (
                200,
                False,
                "failing",
                True,
            )
            assert any("shards of tokens wait for a server that is away" in text for text in found["troubles"])
            for _ in range(20):
                assert await relay.get("/ready") == (200, "ready\n")
                await asyncio.sleep(0.1)
            dies.thaw()
            await relay.until(lambda _, found: found["leases"]["silent_shards"] == 0)


# --- the life of the process


async def test_who_starts_says_so(make_config: Callable[..., Config]) -> None:
    """Here it waits for a database that another process has for a while."""
    config = make_config(metrics__port=free_port())
    async with Relay(config):
        pass
    relay = Watched(config)
    with contextlib.closing(sqlite3.connect(config.directory / "ntf-server.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        starting = asyncio.create_task(relay.relay.__aenter__())
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    answer = await relay.get("/ready")
                    break
                await asyncio.sleep(0.01)
        assert answer == (503, "starting\n")
        assert await relay.get("/live") == (200, "live\n")
        status, found = await relay.health()
        assert (status, found["phase"], found["providers"]) == (200, "starting", [])
        assert (await relay.get("/metrics"))[0] == 200
    await asyncio.wait_for(starting, 20)
    await relay.until_ready()
    await relay.relay.__aexit__(None, None, None)


async def test_who_is_drained_says_so(watched: Make, mock_apns: MockApns, phone: Callable[[], Phone]) -> None:
    mock_apns.latency = 1.5
    async with watched() as relay, await relay.client() as client:
        await phone().register(client)
        draining = asyncio.create_task(asyncio.to_thread(ask, relay.config.admin_socket, "drain", seconds=10))
        await relay.until_ready((503, "draining\n"))
        _, found = await relay.health()
        assert (found["phase"], found["well"]) == ("draining", True)
        assert await relay.get("/live") == (200, "live\n")
        await draining


async def test_who_stops_says_so(make_config: Callable[..., Config], mock_apns: MockApns, phone: Any) -> None:
    """As long as pushes are under way."""
    mock_apns.latency = 1.5
    relay = Watched(make_config(metrics__port=free_port()))
    await relay.relay.__aenter__()
    async with await relay.client() as client:
        await phone().register(client)
        stopping = asyncio.create_task(relay.relay.__aexit__(None, None, None))
        await relay.until_ready((503, "stopping\n"))
        assert await relay.get("/live") == (200, "live\n")
        await stopping
    with pytest.raises(ConnectionRefusedError):
        await relay.get("/live")


# --- SMP servers


@pytest.mark.usefixtures("soon")
async def test_an_own_smp_server_that_is_gone(watched: Make, phone: Callable[[], Phone]) -> None:
    device = phone()
    async with contextlib.AsyncExitStack() as stack:
        smp = await stack.enter_async_context(SmpServer(sni="web"))
        host = smp.address.hosts[0]
        relay = await stack.enter_async_context(watched(subscriber__own_server_domains=host))
        client = await stack.enter_async_context(await relay.client())
        async with await Recipient.connect(smp.address) as recipient:
            await device.register(client)
            await device.verify(client)
            await device.subscribe(client, smp.address, await recipient.queue())
            await relay.until(lambda _, found: found["smp_servers"]["connected"] == 1)
            assert (await relay.health())[1]["well"]
        await smp.stop()
        status, found = await relay.until(lambda _, found: found["smp_servers"]["state"] == "failing")
        servers = found["smp_servers"]
        assert (status, servers["own_away"], servers["wanted"], servers["connected"]) == (200, [host], 1, 0)
        assert found["troubles"][0].startswith("own SMP servers are not connected, for up to ")
        assert await relay.get("/ready") == (200, "ready\n")


def test_nothing_is_known_of_one_that_starts() -> None:
    assert gather(Phase.STARTING, 3.0, None, {"online": 5.0}) == Facts(
        Phase.STARTING, 3.0, certificates={"online": 5.0}
    )
