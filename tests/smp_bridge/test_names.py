"""c-ares against a DNS server of the tests."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from name_server import Dns

from smp_bridge.names import Names


@pytest.fixture
async def names(dns: Dns) -> AsyncIterator[Names]:
    made = Names([f"127.0.0.1:{dns.port}"], timeout=1.0)
    yield made
    made.close()


async def test_addresses_of_both_families(dns: Dns, names: Names) -> None:
    dns.names["both.test"] = ["192.0.2.1", "2001:db8::1"]
    assert sorted(await names.look_up("both.test")) == ["192.0.2.1", "2001:db8::1"]


async def test_numbers_are_asked_nobody_for(dns: Dns, names: Names) -> None:
    assert await names.look_up("192.0.2.7") == ["192.0.2.7"]
    assert await names.look_up("2001:db8::7") == ["2001:db8::7"]
    assert not dns.asked


async def test_the_system_knows_localhost() -> None:
    names = Names()
    assert set(await names.look_up("localhost")) <= {"127.0.0.1", "::1"}
    names.close()


async def test_no_such_name(dns: Dns, names: Names) -> None:
    dns.refused.add("no.test")
    with pytest.raises(OSError, match=r"\w"):
        await names.look_up("no.test")


@pytest.mark.parametrize("host", ["", "a..b", "x" * 64 + ".org", "\udc00"])
async def test_what_is_no_name(names: Names, host: str) -> None:
    with pytest.raises((OSError, ValueError)):
        await names.look_up(host)


async def test_a_silent_name_holds_up_no_other_and_is_given_up(dns: Dns, names: Names) -> None:
    dns.names["alive.test"] = ["192.0.2.1"]
    silent = [asyncio.create_task(names.look_up(f"silent{n}.test")) for n in range(300)]
    await asyncio.sleep(0)
    began = time.monotonic()
    assert await names.look_up("alive.test") == ["192.0.2.1"]
    assert time.monotonic() - began < 0.9
    silent[0].cancel()
    ended = await asyncio.gather(*silent, return_exceptions=True)
    assert isinstance(ended[0], asyncio.CancelledError)
    assert all(isinstance(e, OSError) for e in ended[1:])
