"""Whether hosts can be reached. What is said where they cannot: tests/test_wrong_pushes.py too."""

import asyncio
import ssl
from pathlib import Path

import pytest
from name_server import Dns
from proxies import Proxy
from redis_servers import free_port

from ntf_server.push.exchange import Endpoint
from ntf_server.push.names import Addresses, Resolver
from ntf_server.reach import UnreachableError, connect, connect_through, host_of, resolve, tls_context, usable
from ntf_server.testing import MockApns, MockFcm, throwaway_tls


def of(mock: MockApns | MockFcm, **options: object) -> Endpoint:
    return Endpoint(f"https://localhost:{mock.port}", str(mock.ca_file), **options)  # type: ignore[arg-type]


async def test_what_was_agreed_is_told(mock_apns: MockApns) -> None:
    endpoint = of(mock_apns)
    reached = await connect(["127.0.0.1"], mock_apns.port, tls_context(endpoint), "localhost")
    assert (reached.address, reached.tls, reached.alpn) == (f"127.0.0.1:{mock_apns.port}", "TLSv1.3", "h2")
    assert reached.not_after is not None
    assert f"127.0.0.1:{mock_apns.port}: TLSv1.3, HTTP/2, certificate good until 20" in str(reached)
    await mock_apns.idle.wait()
    assert mock_apns.counters.requests == 0


async def test_the_first_address_that_answers(mock_apns: MockApns) -> None:
    reached = await connect(["::1", "127.0.0.1"], mock_apns.port, tls_context(of(mock_apns)), "localhost")
    assert reached.address.startswith("127.0.0.1:")
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:\d+: Connection refused") as e:
        await connect(["::1", "127.0.0.1"], free_port(), tls_context(of(mock_apns)), "localhost")
    assert e.value.step == "connection" and "firewall" in e.value.cure
    with pytest.raises(UnreachableError, match="there is no address"):
        await connect([], 1, tls_context(of(mock_apns)), "")


async def test_another_host_s_certificate(mock_apns: MockApns) -> None:
    with pytest.raises(UnreachableError, match=r"not trusted: Hostname mismatch") as e:
        await connect(["127.0.0.1"], mock_apns.port, tls_context(of(mock_apns)), "other.example")
    assert e.value.step == "TLS"
    with throwaway_tls() as other:
        context = tls_context(Endpoint("https://localhost", str(other.ca_file)))
        with pytest.raises(UnreachableError, match="not trusted"):
            await connect(["127.0.0.1"], mock_apns.port, context, "localhost")


async def test_a_peer_that_closes_at_once() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        with pytest.raises(UnreachableError) as e:
            context = ssl.create_default_context()
            await connect(["127.0.0.1"], server.sockets[0].getsockname()[1], context, "localhost")
    assert e.value.step == "TLS"


async def test_names(dns: Dns) -> None:
    dns.names["push.example"] = ["192.0.2.1", "127.0.0.1"]
    dns.refused.add("absent.example")
    resolver = Resolver([f"127.0.0.1:{dns.port}"])
    try:
        found = await resolve("push.example", resolver)
        assert set(found.all) == {"192.0.2.1", "127.0.0.1"}
        with pytest.raises(UnreachableError, match=r"absent\.example: no address is known for it") as e:
            await resolve("absent.example", resolver)
        assert e.value.step == "name"
    finally:
        await resolver.close()


def test_strangers_lead_to_public_addresses_only() -> None:
    endpoint = Endpoint("https://push.example:8443", "", public_only=True)
    assert host_of(endpoint) == ("push.example", 8443)
    assert usable(endpoint, Addresses.of(["127.0.0.1", "9.9.9.9"])) == ("9.9.9.9",)
    with pytest.raises(UnreachableError, match=r"push\.example: leads to 127\.0\.0\.1, which is not"):
        usable(endpoint, Addresses.of(["127.0.0.1"]))
    assert usable(Endpoint("https://push.example", ""), Addresses.of(["127.0.0.1"])) == ("127.0.0.1",)


async def test_by_way_of_a_proxy(mock_apns: MockApns, tmp_path: Path) -> None:
    async with Proxy("http", ("relay", "s3cret")) as proxy:
        reached = await connect_through(of(mock_apns, proxy=f"http://relay:s3cret@127.0.0.1:{proxy.port}"))
        assert (reached.tls, proxy.targets) == ("TLSv1.3", [f"localhost:{mock_apns.port}"])
        with pytest.raises(UnreachableError, match="by way of the proxy") as e:
            await connect_through(of(mock_apns, proxy=f"http://relay:wr0ng@127.0.0.1:{proxy.port}"))
        assert "wr0ng" not in str(e.value) + e.value.cure
