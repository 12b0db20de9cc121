import asyncio
from collections.abc import AsyncIterator

import pytest
from name_server import Dns

from ntf_server.push import names
from ntf_server.push.names import NOWHERE, Addresses, Resolver


@pytest.fixture
async def resolver(dns: Dns) -> AsyncIterator[Resolver]:
    made = Resolver([f"127.0.0.1:{dns.port}"], timeout=1.0)
    yield made
    await made.close()


async def ask(resolver: Resolver, host: str, *, strangers: bool = False) -> Addresses:
    answer: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
    resolver.resolve(host, answer.set_result, strangers=strangers)
    return await asyncio.wait_for(answer, 10)


async def test_a_name_and_its_addresses(dns: Dns, resolver: Resolver) -> None:
    dns.names["push.test"] = ["192.0.2.1", "2001:4860::8"]
    assert resolver.known("push.test") is None
    found = await ask(resolver, "push.test")
    assert set(found.all) == {"192.0.2.1", "2001:4860::8"}
    assert found.public == ("2001:4860::8",)  # the other is of the documentation
    assert resolver.known("push.test") == found


async def test_localhost_and_addresses_need_no_server(dns: Dns, resolver: Resolver) -> None:
    assert "127.0.0.1" in (await ask(resolver, "localhost")).all
    assert resolver.known("127.0.0.1") == Addresses(("127.0.0.1",), ())
    assert resolver.known("2606:4700::1111") == Addresses(("2606:4700::1111",), ("2606:4700::1111",))
    assert dns.asked == []


async def test_who_asks_at_once_shares_one_lookup(dns: Dns, resolver: Resolver) -> None:
    dns.names["push.test"] = ["192.0.2.1"]
    answers = await asyncio.gather(*(ask(resolver, "push.test") for _ in range(50)))
    assert {a.all for a in answers} == {("192.0.2.1",)}
    assert len(dns.asked) == 2  # A and AAAA


@pytest.mark.parametrize("host", ["dead.test", "none.test", "a" * 64 + ".test", "", "a..b", "\xfc.test"])
async def test_a_name_that_leads_nowhere(dns: Dns, resolver: Resolver, host: str) -> None:
    dns.refused.add("none.test")
    assert await ask(resolver, host) == NOWHERE
    assert resolver.known(host) is None


async def test_an_old_answer_serves_while_a_new_one_is_got(
    dns: Dns, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_FRESH", -1.0)
    dns.names["push.test"] = ["192.0.2.1"]
    await ask(resolver, "push.test")
    monkeypatch.setattr(names, "_FRESH", 60.0)
    resolver._names._channel, dns.names["push.test"] = None, ["192.0.2.2"]  # c-ares keeps answers too
    assert resolver.known("push.test") == Addresses(("192.0.2.1",))
    async with asyncio.timeout(5):
        while resolver.known("push.test") != Addresses(("192.0.2.2",)):
            await asyncio.sleep(0.01)


async def test_better_an_old_answer_than_none(dns: Dns, resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_FRESH", -1.0)
    dns.names["push.test"] = ["192.0.2.1"]
    await ask(resolver, "push.test")
    resolver._names._channel = None
    dns.names.clear()
    assert resolver.known("push.test") == Addresses(("192.0.2.1",))
    assert await ask(resolver, "push.test") == Addresses(("192.0.2.1",))


async def test_names_of_strangers_keep_no_others_waiting(
    dns: Dns, resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(resolver._turns, True, asyncio.Semaphore(2))
    dns.names["push.test"] = ["192.0.2.1"]
    dead = [asyncio.create_task(ask(resolver, f"dead{i}.test", strangers=True)) for i in range(6)]
    await asyncio.sleep(0.05)
    assert (await asyncio.wait_for(ask(resolver, "push.test"), 0.5)).all == ("192.0.2.1",)
    assert len({n for n in dns.asked if n.startswith("dead")}) == 2
    assert await asyncio.gather(*dead) == [NOWHERE] * 6


async def test_what_is_kept_is_bounded(resolver: Resolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_MAX_NAMES", 10)
    for i in range(50):
        resolver.known(f"192.0.2.{i}")
    assert len(resolver._known) == 10
    assert len(Addresses.of([f"192.0.2.{i}" for i in range(99)]).all) == 16


# --- our own addresses


async def test_an_address_of_this_machine_is_not_public(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "is_public_ip", lambda _: True)
    assert Addresses.of(["127.0.0.1", "2606:4700::1111"]).public == ("2606:4700::1111",)


@pytest.fixture
async def of_relay(dns: Dns) -> AsyncIterator[Resolver]:
    """It is reached by an address that this machine does not have, behind a router say."""
    dns.names["relay.test"] = ["2001:4860::8"]
    made = Resolver([f"127.0.0.1:{dns.port}"], timeout=1.0, own="Relay.test.")
    yield made
    await made.close()


@pytest.mark.parametrize("host", ["push.test", "relay.test"])
async def test_where_our_own_host_leads_is_not_public(dns: Dns, of_relay: Resolver, host: str) -> None:
    dns.names["push.test"] = ["2001:4860::8", "2001:4860::9"]
    found = await ask(of_relay, host, strangers=True)
    assert set(found.all) == set(dns.names[host])
    assert found.public == (() if host == "relay.test" else ("2001:4860::9",))


async def test_our_own_address_written_as_such(of_relay: Resolver) -> None:
    assert of_relay.known("2001:4860::8") is None  # our host has to be known first
    answers = await asyncio.gather(*(ask(of_relay, f"2001:4860::{n}") for n in (7, 8)))
    assert [a.public for a in answers] == [("2001:4860::7",), ()]
    assert of_relay.known("2001:4860::8") == Addresses(("2001:4860::8",))


async def test_our_own_host_that_leads_nowhere_holds_others_up_once(dns: Dns) -> None:
    dns.names["push.test"] = ["2001:4860::8"]
    resolver = Resolver([f"127.0.0.1:{dns.port}"], timeout=0.5, own="dead.test")
    loop = asyncio.get_running_loop()
    began = loop.time()
    answers = await asyncio.gather(*(ask(resolver, "push.test", strangers=True) for _ in range(5)))
    assert {a.public for a in answers} == {("2001:4860::8",)}
    assert loop.time() - began < 2.0
    resolver._known.pop("push.test")
    began = loop.time()
    assert (await ask(resolver, "push.test")).public == ("2001:4860::8",)
    assert loop.time() - began < 0.4
    await resolver.close()


async def test_close_waits_for_nobody(dns: Dns) -> None:
    resolver = Resolver([f"127.0.0.1:{dns.port}"], timeout=60.0)
    called: list[Addresses] = []
    for i in range(20):
        resolver.resolve(f"dead{i}.test", called.append, strangers=True)
    await asyncio.sleep(0.05)
    await asyncio.wait_for(resolver.close(), 1)
    assert called == []
