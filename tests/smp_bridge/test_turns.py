"""Turns to connect, of many servers, in virtual time."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from virtual_time import run as virtual

from smp_bridge.address import ServerAddress
from smp_bridge.network import HostNotAllowedError, Network, Route
from smp_bridge.places import Standing
from smp_bridge.turns import CrowdedError, ServerTurn, Turns, TurnsConfig

SERVER = ServerAddress("smp", ("smp.example.org",), "", bytes(32))
HERE, ELSEWHERE = "192.0.2.0/24", "198.51.100.0/24"
PROVEN = Standing((HERE,), 0.0, ("phone",))
NETWORK = Network(allow_private=True)


def no_wait(_server: ServerAddress, _destinations: Sequence[str], _proven: bool, /) -> float:
    return 0.0


def route(prefix: str = HERE) -> Route:
    return Route("smp.example.org", 5223, prefixes=(prefix,), destinations=(prefix.replace(".0/", ".7/"),))


async def test_what_is_proven_and_what_is_not_have_places_of_their_own() -> None:
    turns = Turns(TurnsConfig(places=8, new_places=8, quick=1, quick_time=1000.0), no_wait)
    entered: list[str] = []

    async def connect(name: str, standing: Standing, prefix: str) -> None:
        async with ServerTurn(turns, SERVER, standing).connecting(route(prefix)):
            entered.append(name)
            await asyncio.sleep(3600)

    tasks = [asyncio.create_task(connect(f"new {n}", Standing(claims=(n,)), f"{n}")) for n in range(5)]
    tasks.append(asyncio.create_task(connect("proven", PROVEN, HERE)))
    tasks.append(asyncio.create_task(connect("moved", PROVEN, ELSEWHERE)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert sorted(entered) == ["new 0", "proven"]
    assert (turns.waiting(proven=True), turns.waiting(proven=False)) == (1, 6)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (turns.waiting(proven=True), turns.waiting(proven=False)) == (0, 0)


def test_the_slow_let_others_begin_beside_them() -> None:
    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        turns = Turns(TurnsConfig(places=1024, quick=2, quick_time=0.5), no_wait)

        async def connect(number: int) -> float:
            async with ServerTurn(turns, SERVER, Standing((f"{number}",))).connecting(route(f"{number}")):
                began = loop.time()
                await asyncio.sleep(60)
                return began

        start = loop.time()
        return [at - start for at in await asyncio.gather(*(connect(n) for n in range(6)))]

    assert virtual(run()) == pytest.approx([0, 0, 0.5, 0.5, 1.0, 1.0])


def test_a_server_that_is_not_proven_has_one_time_limit_for_all_its_hosts() -> None:
    async def run() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        turns = Turns(TurnsConfig(new_time=30.0), no_wait)

        async def try_hosts(standing: Standing) -> float:
            turn, began = ServerTurn(turns, SERVER, standing), loop.time()
            for _ in range(3):
                with contextlib.suppress(TimeoutError):
                    async with turn.connecting(route()), asyncio.timeout(45):
                        await asyncio.sleep(3600)
            return loop.time() - began

        return await try_hosts(Standing()), await try_hosts(PROVEN)

    assert virtual(run()) == (30.0, 3 * 45.0)


def test_a_connect_waits_for_its_budget_without_a_place() -> None:
    async def run() -> tuple[list[Any], int, float]:
        loop = asyncio.get_running_loop()
        asked: list[Any] = []

        def admit(server: ServerAddress, destinations: Sequence[str], proven: bool, /) -> float:
            asked.append((server, tuple(destinations), proven))
            return 100.0

        turns = Turns(TurnsConfig(), admit)
        began = loop.time()

        async def connect() -> float:
            async with ServerTurn(turns, SERVER, Standing()).connecting(route()):
                return loop.time() - began

        task = asyncio.create_task(connect())
        await asyncio.sleep(99)
        return asked, turns.waiting(proven=False), await task

    asked, waiting, waited = virtual(run())
    assert asked == [(SERVER, ("192.0.2.7/24",), False)]
    assert waiting == 0
    assert waited == pytest.approx(100.0)


async def test_there_are_so_many_sessions_at_a_prefix() -> None:
    turns = Turns(TurnsConfig(sessions_at_prefix=2), no_wait)
    turn = ServerTurn(turns, SERVER, PROVEN)
    with turns.session(HERE), turns.session(ELSEWHERE):
        async with turn.connecting(route()):
            pass
        with turns.session(HERE):
            assert turns.sessions == 3
            with pytest.raises(CrowdedError):
                async with turn.connecting(route()):
                    raise AssertionError
    assert turns.sessions == 0
    async with turn.connecting(route()):
        pass


async def test_names_are_looked_up_in_turn_and_a_silent_one_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = Turns(TurnsConfig(new_places=8, new_time=0.2), no_wait)
    asked: list[str] = []

    async def look_up(host: str) -> list[str]:
        asked.append(host)
        if host == "alive.test":
            return ["192.0.2.7", "2001:db8::7"]
        await asyncio.sleep(3600)
        raise AssertionError

    monkeypatch.setattr(turns.names, "look_up", look_up)

    async def find(host: str, standing: Standing) -> Route:
        return await ServerTurn(turns, SERVER, standing).route(host, 5223, NETWORK)

    silent = [asyncio.create_task(find(f"silent{n}.test", Standing(claims=("stranger",)))) for n in range(5)]
    await asyncio.sleep(0)
    found = await find("alive.test", Standing(claims=("phone",)))  # the stranger has one turn of eight
    assert found.prefixes == (HERE, "2001:db8::/48")
    assert found.destinations == ("192.0.2.7/32", "2001:db8::/64")
    assert asked == ["silent0.test", "alive.test"]
    with pytest.raises(HostNotAllowedError):
        await ServerTurn(turns, SERVER, PROVEN).route("alive.test", 5223, Network())
    ended = await asyncio.gather(*silent, return_exceptions=True)
    assert {type(e) for e in ended} == {TimeoutError}
    turns.close()


@contextlib.asynccontextmanager
async def held(turns: Turns) -> AsyncIterator[None]:
    async with ServerTurn(turns, SERVER, PROVEN).connecting(route()):
        yield


async def test_a_failure_gives_the_place_back() -> None:
    turns = Turns(TurnsConfig(places=1), no_wait)
    for _ in range(3):
        with pytest.raises(OSError, match="refused"):
            async with held(turns):
                raise OSError("refused")
    async with held(turns):
        assert turns.waiting(proven=True) == 1
