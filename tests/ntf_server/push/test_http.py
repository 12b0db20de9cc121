import asyncio
import contextlib
import fcntl
import os
import resource
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pycurl
import pytest
from certificates import client_certificate
from msgspec import structs
from name_server import Dns
from proxies import Proxy

from ntf_server.push import links, names, worker
from ntf_server.push.exchange import Endpoint, HttpFailure, HttpRequest, HttpResponse, HttpResult
from ntf_server.push.http import HttpEngine
from ntf_server.push.names import Addresses, Resolver
from ntf_server.testing import (
    Answer,
    CutTls,
    Delay,
    Fault,
    GoAway,
    Http2Server,
    Request,
    RstStream,
    Script,
    Silence,
    throwaway_tls,
)
from ntf_server.testing.connection import Connection
from ntf_server.testing.http1 import Http1Connection

STREAM_RESET = 92  # CURLE_HTTP2_STREAM
BODY = b"b" * 4096  # of a push


class Server(Http2Server):
    """Gives back what it got; faults are scripted for a path or for any."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.script = Script()
        self.requests: list[Request] = []

    def draw(self, request: Request) -> Fault | None:
        return self.script.take(request.path)

    def respond(self, request: Request, scripted: Answer | None) -> Answer:
        self.requests.append(request)
        return scripted or Answer(200, body=request.body)


class Client:
    """Requests to one endpoint; every `done` must be called once, in the loop."""

    def __init__(self, engine: HttpEngine, endpoint: Endpoint) -> None:
        self.engine = engine
        self.endpoint = endpoint

    def start(self, path: str = "/", body: bytes = BODY, headers: tuple[str, ...] = ()) -> asyncio.Future[HttpResult]:
        result: asyncio.Future[HttpResult] = asyncio.get_running_loop().create_future()
        self.engine.send([(HttpRequest(self.endpoint, path, headers, body), result.set_result)])
        return result

    async def post(self, path: str = "/", body: bytes = BODY, headers: tuple[str, ...] = ()) -> HttpResult:
        return await asyncio.wait_for(self.start(path, body, headers), 10)

    async def many(self, count: int, path: str = "/") -> list[HttpResult]:
        results = [self.start(f"{path}{i}") for i in range(count)]
        return await asyncio.wait_for(asyncio.gather(*results), 10)

    def within(self, seconds: float) -> "Client":
        return Client(self.engine, replace(self.endpoint, timeout=seconds))


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[Server, Client]]:
    async with Server(**options) as server, running(server) as client:
        yield server, client


@contextlib.asynccontextmanager
async def running(server: Server, **options: Any) -> AsyncIterator[Client]:
    engine = HttpEngine(**options)
    try:
        yield Client(engine, endpoint_of(server))
    finally:
        await engine.close()


def endpoint_of(server: Server) -> Endpoint:
    return Endpoint(server.url, str(server.ca_file), connect_timeout=2.0, timeout=8.0)


def statuses(results: list[HttpResult]) -> Counter[int]:
    return Counter(r.status if isinstance(r, HttpResponse) else -r.code for r in results)


async def until_requests(server: Server, count: int) -> None:
    async with asyncio.timeout(10):
        while server.counters.requests < count:
            await asyncio.sleep(0.005)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


# --- what goes there and what comes back


@pytest.mark.parametrize("alpn", [True, False], ids=["ALPN", "prior knowledge"])
async def test_a_request_and_its_answer(alpn: bool) -> None:
    async with serving(alpn=alpn) as (server, client):
        server.script.add(Answer(429, body=b'{"reason":"x"}', headers=(("retry-after", "7"), ("apns-id", "1"))))
        answer = await client.post("/3/device/ab", BODY, ("x-a: 1", "content-type: application/json"))
        assert isinstance(answer, HttpResponse)
        assert answer == HttpResponse(429, b'{"reason":"x"}', 7.0)
        [request] = server.requests
        assert (request.method, request.path, request.body) == ("POST", "/3/device/ab", BODY)
        headers = dict(request.headers)
        assert (headers["x-a"], headers["content-type"], headers["content-length"]) == ("1", "application/json", "4096")
        assert len(headers) == len(request.headers)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 7 ", 7),
        ("%a, %d %b %Y %H:%M:%S GMT", 100),
        ("%A, %d-%b-%y %H:%M:%S GMT", 100),
        ("%a %b %d %H:%M:%S %Y", 100),
    ],
)
async def test_a_retry_after_of_any_form(value: str, seconds: int) -> None:
    async with serving() as (server, client):
        date = datetime.now(UTC) + timedelta(seconds=100)
        server.script.add(Answer(503, headers=(("retry-after", date.strftime(value)),)))
        answer = await client.post()
        assert isinstance(answer, HttpResponse)
        assert seconds - 5 <= (answer.retry_after or 0) <= seconds
        assert await client.post(body=b"") == HttpResponse(200)


@pytest.mark.parametrize("value", ["", "0", "soon", "-1", "\xb2", "nan", "Sun, 06 Nov 1994 08:49:37 GMT", None])
async def test_a_retry_after_that_says_nothing(value: str | None) -> None:
    async with serving() as (server, client):
        server.script.add(Answer(503, headers=() if value is None else (("retry-after", value),)))
        assert await client.post() == HttpResponse(503)


@pytest.mark.parametrize("value", ["9" * 8, "9" * 400, "1.5", "0, 0", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_no_retry_after_is_an_error_or_negative(value: str) -> None:
    async with serving() as (server, client):
        server.script.add(Answer(503, headers=(("retry-after", value),)))
        answer = await client.post()
        assert isinstance(answer, HttpResponse)
        assert answer.retry_after is None or answer.retry_after > 0


async def test_more_requests_than_are_begun_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_STARTS", 2)
    async with serving() as (server, client):
        bad = HttpRequest(client.endpoint, "/\0", (), BODY)
        failed: asyncio.Future[HttpResult] = asyncio.get_running_loop().create_future()
        requests = [client.start(f"/{i}") for i in range(7)]
        client.engine.send(
            [(bad, failed.set_result), *((HttpRequest(client.endpoint, "/n", (), BODY), lambda _: None),) * 4]
        )
        assert statuses(await asyncio.wait_for(asyncio.gather(*requests), 10)) == {200: 7}
        assert isinstance(await failed, HttpFailure)
        await until_requests(server, 11)


async def test_nothing_of_a_request_is_left_in_the_next() -> None:
    async with serving() as (server, client):
        server.script.add(Answer(500, body=b"first", headers=(("x-first", "1"),)))
        await client.post("/first", b"a long first body", ("x-secret: 1",))
        answer = await client.post("/second", b"")
        assert answer == HttpResponse(200)
        assert server.requests[1].body == b""
        assert "x-secret" not in dict(server.requests[1].headers)


async def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving() as (_, client):
        assert statuses([await client.post()]) == {200: 1}


@pytest.mark.parametrize("status", [200, 301, 400, 403, 410, 500, 503])
async def test_an_answer_without_a_body(status: int) -> None:
    async with serving() as (server, client):
        server.script.add(Answer(status, headers=(("location", "/elsewhere"),), body=b""))
        answer = await client.post()
        assert (answer.status, answer.body) == (status, b"") if isinstance(answer, HttpResponse) else False
        assert server.counters.requests == 1


async def test_many_requests_share_few_connections() -> None:
    async with serving(latency=0.05, connection_window=2**20) as (server, client):
        results = await client.many(600)
        assert statuses(results) == {200: 600}
        assert all(r.body == BODY for r in results if isinstance(r, HttpResponse))
        assert sorted(r.path for r in server.requests) == sorted(f"/{i}" for i in range(600))
        assert server.counters.opened <= 2
        assert server.counters.max_streams > 100
        assert statuses(await client.many(100)) == {200: 100}
        assert server.counters.opened <= 2


async def test_two_endpoints_at_once() -> None:
    async with serving() as (one, client), Server() as two:
        other = Client(client.engine, endpoint_of(two))
        results = await asyncio.gather(client.many(50, "/one/"), other.many(50, "/two/"))
        assert [statuses(r) for r in results] == [{200: 50}, {200: 50}]
        assert {r.path[:5] for r in one.requests} == {"/one/"}
        assert {r.path[:5] for r in two.requests} == {"/two/"}


async def test_bodies_larger_than_the_window() -> None:
    async with serving(window=1000) as (server, client):
        await client.post()  # the peer's window is known from here on
        assert statuses(await client.many(40)) == {200: 40}
        assert all(r.body == BODY for r in server.requests)


@pytest.mark.parametrize("later", [1, 1000])
async def test_a_limit_of_one_stream_when_the_connection_begins(later: int) -> None:
    async with serving(first_streams=1, streams=later, latency=0.01) as (server, client):
        wanted = {f"/{i}" for i in range(60)}
        async with asyncio.timeout(10):
            while wanted:  # refused streams may fail, and can be sent again: they had no effect
                results = await asyncio.gather(*(client.start(path) for path in sorted(wanted)))
                done = {path for path, r in zip(sorted(wanted), results, strict=True) if isinstance(r, HttpResponse)}
                assert done
                wanted -= done
        assert Counter(r.path for r in server.requests) == {f"/{i}": 1 for i in range(60)}
        assert statuses([await client.post()]) == {200: 1}


# --- streams that go wrong


@pytest.mark.parametrize("processed", [False, True])
async def test_a_reset_stream_fails_alone(processed: bool) -> None:
    async with serving(latency=0.02) as (server, client):
        server.script.add(RstStream(processed=processed), key="/7")
        results = await client.many(20)
        assert results[7] == HttpFailure(STREAM_RESET, timeout=False)
        assert str(results[7]) == "HTTP/2 stream reset"
        assert statuses(results) == {200: 19, -STREAM_RESET: 1}
        assert server.counters.opened == 1
        assert statuses([await client.post()]) == {200: 1}


async def test_silence_ends_at_the_deadline_and_what_comes_later_has_another_connection() -> None:
    async with serving() as (server, client):
        await client.post()
        server.script.add(Silence(), key="/silent")
        waiting = client.start("/slow")
        server.script.add(Delay(0.8), key="/slow")
        silent = await client.within(0.3).post("/silent")
        assert silent == HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True)
        assert not silent.unreachable
        assert statuses(await client.many(10)) == {200: 10}
        assert server.counters.opened == 2
        assert statuses([await asyncio.wait_for(waiting, 10)]) == {200: 1}  # it was slow, not dead


async def test_a_dead_connection_is_left_for_a_new_one() -> None:
    async with serving() as (server, client):
        for round_number in range(1, 6):
            assert statuses(await client.many(3)) == {200: 3}
            assert server.counters.opened == round_number
            for connection in server.connections:
                connection.hold(True)
            dead = await client.within(0.2).many(5)
            assert statuses(dead) == {-pycurl.E_OPERATION_TIMEDOUT: 5}


async def test_a_blackhole_that_ends() -> None:
    async with serving() as (server, client):
        await client.post()
        server.blackhole()
        for _ in range(3):
            assert statuses(await client.within(0.2).many(5)) == {-pycurl.E_OPERATION_TIMEDOUT: 5}
        server.blackhole(False)
        assert statuses(await client.many(20)) == {200: 20}


async def test_a_peer_that_takes_connections_but_never_shakes_hands_is_out_of_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        engine = HttpEngine()
        try:
            with throwaway_tls() as files:
                port = listening.getsockname()[1]
                endpoint = Endpoint(f"https://127.0.0.1:{port}", str(files.ca_file), connect_timeout=5.0, timeout=0.3)
                failure = await Client(engine, endpoint).post()
        finally:
            await engine.close()
    assert failure == HttpFailure(pycurl.E_OPERATION_TIMEDOUT, timeout=True, connected=False)
    assert failure.unreachable


async def test_goaway_with_streams_in_flight() -> None:
    async with serving(latency=0.1) as (server, client):
        await client.post("/first")
        results = asyncio.gather(*(client.start(f"/{i}") for i in range(50)))
        await until_requests(server, 51)
        server.goaway_all()
        assert statuses(await asyncio.wait_for(results, 10)) == {200: 50}
        assert Counter(r.path for r in server.requests).most_common(1)[0][1] == 1  # none was sent twice
        assert statuses([await client.post()]) == {200: 1}
        assert server.counters.opened == 2


async def test_goaway_that_leaves_streams_unprocessed() -> None:
    async with serving(latency=0.02) as (server, client):
        server.script.add(GoAway(processed=False), key="/3")
        assert statuses(await client.many(10)) == {200: 10}  # RFC 9113, section 6.8: they may be sent again
        assert Counter(r.path for r in server.requests) == {f"/{i}": 1 for i in range(10)}


async def test_connections_that_end_after_a_few_requests() -> None:
    async with serving(goaway_after=10, linger=0.1) as (server, client):
        for _ in range(5):
            assert statuses(await client.many(25)) == {200: 25}
        assert server.counters.opened > 5


@pytest.mark.parametrize("end", [Server.cut_all, Server.goaway_all])
async def test_a_connection_that_ends_when_libcurl_keeps_no_other_name_any_more(
    end: Callable[[Server], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    aim = links.Transfer._aim

    def aim_forgetful(self: links.Transfer, endpoint: Endpoint) -> None:
        aim(self, endpoint)
        self.curl.setopt(pycurl.DNS_CACHE_TIMEOUT, 1)  # second; libcurl's own is a minute

    monkeypatch.setattr(links.Transfer, "_aim", aim_forgetful)
    async with serving() as (server, client):
        await client.post()
        await asyncio.sleep(2.1)
        end(server)
        await asyncio.sleep(0.1)
        assert statuses([await client.post(), await client.post()]) == {200: 2}
        assert server.counters.opened == 2


# --- connections that are left


async def warm(*clients: Client) -> None:
    for client in clients:
        assert statuses(await client.many(3)) == {200: 3}


async def test_silence_of_one_origin_costs_the_others_nothing() -> None:
    async with Server() as silent, Server() as one, Server() as two, running(silent) as client:
        others = [Client(client.engine, endpoint_of(server)) for server in (one, two)]
        await warm(client, *others)
        silent.blackhole()
        for _ in range(3):
            assert statuses(await client.within(0.2).many(5)) == {-pycurl.E_OPERATION_TIMEDOUT: 5}
            await warm(*others)
        assert [one.counters.opened, two.counters.opened] == [1, 1]
        silent.blackhole(False)
        await warm(client)


async def test_behind_a_proxy_too_silence_of_one_origin_costs_the_others_nothing() -> None:
    async with Proxy() as proxy, Server() as silent, Server() as one, running(silent) as client:
        client.endpoint = replace(client.endpoint, proxy=proxy.url())
        other = Client(client.engine, replace(endpoint_of(one), proxy=proxy.url()))
        await warm(client, other)
        silent.script.add(Silence(), key="/silent")
        before = silent.counters.opened
        assert statuses([await client.within(0.3).post("/silent")]) == {-pycurl.E_OPERATION_TIMEDOUT: 1}
        await warm(client, other)
        assert silent.counters.opened == before + 1
        assert one.counters.opened == 1


class Ailing(Server):
    """Answers 500 to everything on its first connection."""

    def draw(self, request: Request) -> Fault | None:
        return Answer(500) if request.connection == 1 else None


async def test_a_connection_that_only_answers_errors_is_left() -> None:
    async with Ailing() as server, running(server) as client:
        answers = [await client.post(f"/{i}") for i in range(8)]
        assert [r.status for r in answers if isinstance(r, HttpResponse)] == [500] * 3 + [200] * 5
        assert server.counters.opened == 2


async def test_errors_of_the_peer_itself_make_no_new_connections_all_the_time() -> None:
    async with serving() as (server, client):
        server.script.add(*[Answer(500)] * 60)
        for _ in range(3):
            assert statuses(await client.many(20)) == {500: 20}
        assert server.counters.opened <= 2


async def test_errors_between_successes_cost_no_connection() -> None:
    async with serving() as (server, client):
        for _ in range(10):
            server.script.add(Answer(500), Answer(503))
            assert statuses([await client.post() for _ in range(3)]) == {200: 1, 500: 1, 503: 1}
        assert server.counters.opened == 1


async def test_refusals_of_requests_cost_no_connection() -> None:
    async with serving() as (server, client):
        server.script.add(*[Answer(410, b"".decode())] * 20)
        assert statuses([await client.post() for _ in range(20)]) == {410: 20}
        assert server.counters.opened == 1


async def test_a_connection_that_is_said_to_end_is_left_at_once() -> None:
    async with serving() as (server, client):
        ending = Client(client.engine, replace(client.endpoint, ends=(b"IdleTimeout",)))
        server.script.add(Answer(400, "IdleTimeout"))
        assert statuses([await ending.post() for _ in range(3)]) == {400: 1, 200: 2}
        assert server.counters.opened == 2


# --- cold connections


@pytest.mark.parametrize("count", [1, 2, 300, 2500])
async def test_a_cold_connection_to_a_peer_that_allows_one_stream_at_first_has_none_refused(count: int) -> None:
    async with serving(first_streams=1, streams=1000, latency=0.02) as (server, client):
        many = Client(client.engine, replace(client.endpoint, connections=4))
        assert statuses(await many.many(count)) == {200: count}
        assert server.counters.refused == 0
        assert server.counters.opened == -(-count // 1000)
        assert Counter(r.path for r in server.requests) == {f"/{i}": 1 for i in range(count)}


async def test_a_connection_that_takes_anothers_place_is_cold_too_and_costs_no_request() -> None:
    async with serving(first_streams=1, streams=1000, latency=0.02, linger=0.01) as (server, client):
        for _ in range(3):
            assert statuses(await client.many(300)) == {200: 300}
            server.goaway_all()
            await asyncio.sleep(0.1)


async def test_who_goes_ahead_and_is_not_answered_holds_nobody_up_for_long() -> None:
    async with serving() as (server, client):
        server.script.add(Silence(), key="/0")
        results = [client.within(4.0).start(f"/{i}") for i in range(20)]
        assert statuses(await asyncio.wait_for(asyncio.gather(*results[1:]), 3)) == {200: 19}
        assert not results[0].done()


async def test_who_goes_ahead_and_fails_alone_fails_alone() -> None:
    async with serving() as (server, client):
        server.script.add(RstStream(), key="/0")
        assert statuses(await client.many(20)) == {200: 19, -STREAM_RESET: 1}


# --- names


async def test_a_dead_name_delays_only_its_own_origin(dns: Dns) -> None:
    async with Server() as server:
        dns.names["push.test"] = ["127.0.0.1"]
        engine = HttpEngine(resolver=Resolver([f"127.0.0.1:{dns.port}"], timeout=1.0))
        try:
            here = replace(endpoint_of(server), url=f"https://localhost:{server.port}")
            dead = [Client(engine, replace(here, url=f"https://dead{i}.test")).start() for i in range(200)]
            began = asyncio.get_running_loop().time()
            assert statuses(await Client(engine, here).many(20)) == {200: 20}
            assert asyncio.get_running_loop().time() - began < 0.8
            failures = await asyncio.wait_for(asyncio.gather(*dead), 10)
            assert {(str(f), getattr(f, "unreachable", None)) for f in failures} == {("host name not resolved", True)}
        finally:
            await engine.close()


async def test_a_name_that_leads_elsewhere_later_is_followed(dns: Dns) -> None:
    async with Server(host="127.0.0.1") as first, Server(host="127.0.0.2", port=first.port) as second:
        dns.names["localhost.test"] = ["127.0.0.1"]
        resolver = Resolver([f"127.0.0.1:{dns.port}"])
        engine = HttpEngine(resolver=resolver)
        try:
            origin = replace(endpoint_of(first), url=f"https://localhost.test:{first.port}")
            client = Client(engine, origin)
            assert isinstance(await client.post(), HttpFailure)  # it has another name, so that TLS refuses
            resolver._keep("localhost.test", Addresses.of(["127.0.0.2"]), float("inf"))
            assert isinstance(await client.post(), HttpFailure)
            assert (first.counters.opened, second.counters.opened) == (1, 1)
        finally:
            await engine.close()


async def test_a_name_with_an_address_that_does_not_answer_is_reached_at_the_next(dns: Dns) -> None:
    async with serving() as (server, client):
        client.engine._names._keep("localhost", Addresses.of(["127.0.0.9", "127.0.0.1"]), float("inf"))
        named = replace(client.endpoint, url=f"https://localhost:{server.port}")
        assert statuses(await Client(client.engine, named).many(5)) == {200: 5}


# --- what is told on demand


async def test_the_date_of_an_answer_is_there_if_it_was_asked_for() -> None:
    async with serving() as (server, client):
        date = (("date", "Tue, 15 Nov 1994 08:12:31 GMT"),)
        server.script.add(*[Answer(403, headers=date)] * 3, Answer(403, headers=(("date", "soon"),)), Answer(403))
        plain = HttpRequest(client.endpoint, "/", (), BODY)
        for request, expected in (
            (plain, None),
            (structs.replace(plain, dated=True), 784_887_151.0),
            (plain, None),
            (structs.replace(plain, dated=True), None),
            (structs.replace(plain, dated=True), None),
        ):
            result: asyncio.Future[HttpResult] = asyncio.get_running_loop().create_future()
            client.engine.send([(request, result.set_result)])
            answer = await asyncio.wait_for(result, 10)
            assert isinstance(answer, HttpResponse)
            assert answer.date == expected


async def test_strangers_are_told_no_more_than_our_name() -> None:
    async with serving() as (server, client):
        await client.post()
        assert dict(server.requests[0].headers)["user-agent"] == "ntf-relay"


async def test_the_kernel_gives_up_a_peer_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[int] = []
    notice = links._notice_soon

    def spy(fd: int) -> None:
        notice(fd)
        with socket.socket(fileno=os.dup(fd)) as s:
            set_to.append(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    monkeypatch.setattr(links, "_notice_soon", spy)
    async with serving() as (_, client):
        await client.post()
    assert set_to == [10_000]


# --- connections that go wrong


@pytest.mark.parametrize("fault", [CutTls(100), CutTls(5, during="response"), CutTls()])
async def test_a_cut_connection_fails_its_requests_and_is_replaced(fault: CutTls) -> None:
    async with serving(latency=0.02) as (server, client):
        server.script.add(fault, key="/5")
        results = await client.many(10)
        for failure in results:  # libcurl sends again what it knows to have had no effect
            assert isinstance(failure, HttpResponse) or not (failure.timeout or failure.unreachable)
        assert statuses(await client.many(10)) == {200: 10}
        assert server.counters.opened > 1


async def test_what_is_lost_with_a_warm_connection_is_sent_again_a_few_times() -> None:
    async with serving() as (server, client):
        drawn: list[str] = []
        draw = server.draw
        server.draw = lambda r: (drawn.append(r.path), draw(r))[1]  # type: ignore[method-assign]
        await client.post()
        server.script.add(CutTls(), CutTls(), key="/once")
        assert statuses([await client.post("/once")]) == {200: 1}
        server.script.add(*[CutTls()] * 50, key="/always")
        failure = await client.post("/always")
        assert isinstance(failure, HttpFailure)
        assert not (failure.unreachable or failure.timeout)
        assert 2 <= drawn.count("/always") < 30
        assert statuses(await client.many(10)) == {200: 10}


async def test_an_outage_and_its_end() -> None:
    async with serving(latency=1.0) as (server, client):  # longer than a stop takes on a busy machine
        await client.post()
        waiting = asyncio.gather(*(client.start() for _ in range(20)))
        await until_requests(server, 21)
        await server.stop()
        assert all(isinstance(r, HttpFailure) for r in await asyncio.wait_for(waiting, 10))
        refused = await client.many(3)
        assert statuses(refused) == {-pycurl.E_COULDNT_CONNECT: 3}
        assert {(str(r), r.unreachable) for r in refused if isinstance(r, HttpFailure)} == {
            ("connection refused", True)
        }
        await server.start()
        assert statuses(await client.many(20)) == {200: 20}


async def test_the_certificate_must_be_of_the_given_authority() -> None:
    with throwaway_tls() as other:
        async with serving() as (server, client):
            stranger = Client(client.engine, replace(client.endpoint, ca_file=str(other.ca_file)))
            failure = await stranger.post()
            assert failure == HttpFailure(pycurl.E_PEER_FAILED_VERIFICATION, timeout=False)
            assert failure.unreachable
            assert str(failure) == "certificate not trusted"
            assert statuses([await client.post()]) == {200: 1}
            assert isinstance(await stranger.post(), HttpFailure)  # not on the connection of the other authority
            assert len(server.requests) == 1


async def test_the_certificate_must_be_of_that_name() -> None:
    async with serving() as (server, client):
        named = Client(client.engine, replace(client.endpoint, url=f"https://127.0.0.2:{server.port}"))
        async with Server(host="127.0.0.2", port=server.port):
            failure = await named.post()
        assert failure == HttpFailure(pycurl.E_PEER_FAILED_VERIFICATION, timeout=False)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"url": f"https://{'x' * 64}.test:443"}, "host name not resolved"),
        ({"ca_file": "/nonexistent/ca.pem"}, "CA file not readable"),
    ],
)
async def test_a_peer_that_cannot_be_reached(change: dict[str, str], text: str) -> None:
    async with serving() as (_, client):
        failure = await Client(client.engine, replace(client.endpoint, **change)).post()
        assert isinstance(failure, HttpFailure)
        assert (str(failure), failure.unreachable, failure.timeout) == (text, True, False)
        assert statuses([await client.post()]) == {200: 1}


async def test_a_peer_that_never_answers_the_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        async with serving() as (_, client):
            url = f"https://127.0.0.1:{mute.getsockname()[1]}"
            other = Client(client.engine, replace(client.endpoint, url=url, connect_timeout=0.2))
            failures = await other.many(3)
            assert all(isinstance(f, HttpFailure) and f.timeout for f in failures)
            assert statuses(await client.many(3)) == {200: 3}


async def test_a_peer_that_speaks_no_tls() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"220 mail.example.org ESMTP\r\n" * 10)
        writer.close()

    async with serving() as (_, client), await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        failure = await Client(client.engine, replace(client.endpoint, url=url)).post()
        assert isinstance(failure, HttpFailure)
        assert failure.unreachable
        assert str(failure) == "TLS handshake failed"


async def test_of_a_body_without_end_the_beginning_is_taken() -> None:
    """The status counts, as that of any other answer: a subscription that is gone is gone."""
    async with serving() as (server, client):
        server.script.add(*(Answer(410, body=bytes(size)) for size in (16_383, 16_384, 16_385, 1_000_000)))
        answers = [await client.post() for _ in range(4)]
        assert statuses(answers) == {410: 4}
        assert [len(a.body) for a in answers if isinstance(a, HttpResponse)] == [16_383, *[16_384] * 3]
        assert statuses([await client.post()]) == {200: 1}


async def test_strangers_have_an_end_put_to_headers_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if they stop before libcurl has enough of them, and while others are served."""
    closed, close = Counter[bool](), links.Transfer.close

    def counted(transfer: links.Transfer) -> None:
        closed[transfer.spent] += 1
        close(transfer)

    monkeypatch.setattr(links.Transfer, "close", counted)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = (b"x-%d: %s\r\n" % (i, bytes(200).replace(b"\0", b"y")) for i in range(200))
        writer.write(b"HTTP/1.1 201 Created\r\n" + b"".join(lines))
        await reader.read()

    async with serving() as (server, client):
        context = server.tls.server_context()
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener:
            url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            theirs = replace(client.endpoint, url=url, http2_only=False, public_only=True)
            stranger = Client(client.engine, replace(theirs, allowed=(IPv4Network("127.0.0.0/8"),)))
            failures = await stranger.many(3)
            assert {str(f) for f in failures} == {"answer too large"}
            assert statuses([await client.post()]) == {200: 1}
            assert closed[True] == 3  # or they would wait for the garbage collector, with all that they hold


@pytest.mark.parametrize(("path", "headers"), [("/ü", ()), ("/\0", ()), ("/", ("x: ü",)), ("/", ("x: \0",))])
async def test_what_cannot_be_sent_is_refused_and_the_engine_lives_on(path: str, headers: tuple[str, ...]) -> None:
    async with serving() as (server, client):
        failure = await client.post(path, headers=headers)
        assert isinstance(failure, HttpFailure)
        assert not failure.unreachable
        assert str(failure) == "URL or header not valid"
        assert statuses([await client.post()]) == {200: 1}
        assert len(server.requests) == 1


# --- HTTP/1.1 where the peer wants it


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
async def test_the_version_that_alpn_chooses(protocol: str) -> None:
    async with serving(http1=True) as (server, client):
        assert server._context is not None
        server._context.set_alpn_protocols([protocol])
        either = Client(client.engine, replace(client.endpoint, http2_only=False))
        assert statuses(await either.many(10)) == {200: 10}
        assert server.counters.opened <= 2
        kind = Connection if protocol == "h2" else Http1Connection
        assert {type(link) for link in server.connections} == {kind}


async def test_http_2_only_does_not_fall_back() -> None:
    async with serving(http1=True) as (server, client):
        assert server._context is not None
        server._context.set_alpn_protocols(["http/1.1"])
        assert isinstance(await client.post(), HttpFailure)
        assert server.requests == []


async def test_an_endpoint_that_changes_takes_nothing_of_the_last_one(tmp_path: Path) -> None:
    """Transfers are used again: first through a proxy with a certificate and to public hosts only, then plainly."""
    async with Proxy() as proxy, serving() as (_, client):
        cert, key = client_certificate(tmp_path)
        shown = {"client_cert": Path(cert).read_bytes(), "client_key": Path(key).read_bytes()}
        odd = replace(client.endpoint, proxy=proxy.url(), http2_only=False, **shown)
        public = replace(client.endpoint, public_only=True)
        assert statuses([await Client(client.engine, odd).post()]) == {200: 1}
        assert statuses([await Client(client.engine, public).post()]) == {-pycurl.E_COULDNT_CONNECT: 1}
        assert statuses([await client.post()]) == {200: 1}
        assert statuses([await Client(client.engine, odd).post()]) == {200: 1}
        assert len(proxy.targets) == 1


# --- hosts of strangers


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"])
async def test_an_address_that_is_not_public_is_not_connected_to(host: str) -> None:
    async with serving() as (server, client):
        url = f"https://{host}:{server.port}"
        failures = await Client(client.engine, replace(client.endpoint, url=url, public_only=True)).many(3)
        assert statuses(failures) == {-pycurl.E_COULDNT_CONNECT: 3}
        assert server.counters.opened == 0
        assert statuses([await client.post()]) == {200: 1}


async def test_a_name_is_judged_by_where_it_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    monkeypatch.setattr(names, "is_public_ip", lambda ip: judged.append(ip) or ip == "127.0.0.1")
    monkeypatch.setattr(names, "is_own_ip", lambda _: False)
    async with serving() as (_, client):
        named = replace(client.endpoint, url=client.endpoint.url.replace("127.0.0.1", "localhost"), public_only=True)
        assert statuses(await Client(client.engine, named).many(5)) == {200: 5}
        assert "127.0.0.1" in judged
        before = open_files()
        mine = Client(client.engine, replace(named, url=named.url.replace("localhost", "127.0.0.2")))
        assert statuses(await mine.many(20)) == {-pycurl.E_COULDNT_CONNECT: 20}
        assert open_files() <= before


async def test_networks_that_are_allowed_are_connected_to_though_they_are_not_public() -> None:
    async with serving() as (_, client):
        url = client.endpoint.url.replace("127.0.0.1", "localhost")
        for network, expected in (("127.0.0.2/32", -pycurl.E_COULDNT_CONNECT), ("127.0.0.1/32", 200)):
            allowed = (IPv4Network("10.0.0.0/8"), IPv4Network(network))
            endpoint = replace(client.endpoint, url=url, public_only=True, allowed=allowed)
            assert statuses([await Client(client.engine, endpoint).post()]) == {expected: 1}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with serving() as (server, client), Server() as elsewhere:
        server.script.add(Answer(status, headers=(("location", f"{elsewhere.url}/x"),)))
        answer = await Client(client.engine, replace(client.endpoint, http2_only=False)).post()
        assert isinstance(answer, HttpResponse)
        assert answer.status == status
        assert (len(server.requests), elsewhere.counters.opened) == (1, 0)


# --- proxies

USER, PASSWORD = "user", "pass@word:%"
IN_URL = "user:pass%40word%3A%25"


@contextlib.asynccontextmanager
async def through(
    kind: Any, credentials: tuple[str, str] | None = None, **options: Any
) -> AsyncIterator[tuple[Server, Client, Proxy]]:
    async with serving() as (server, client):
        tls = server.tls.server_context() if kind == "https" else None
        async with Proxy(kind, credentials, tls, **options) as proxy:
            yield server, Client(client.engine, replace(client.endpoint, proxy=proxy.url())), proxy


@pytest.mark.parametrize("http2_only", [True, False])
@pytest.mark.parametrize("kind", ["http", "https", "socks5"])
async def test_a_proxy(kind: str, http2_only: bool) -> None:
    async with through(kind) as (server, client, proxy):
        client.endpoint = replace(client.endpoint, http2_only=http2_only)
        assert statuses(await client.many(50)) == {200: 50}
        assert set(proxy.targets) == {f"127.0.0.1:{server.port}"}
        assert len(proxy.targets) == server.counters.opened <= 2


@pytest.mark.parametrize("kind", ["http", "https", "socks5"])
async def test_a_proxy_with_credentials(kind: str) -> None:
    async with through(kind, (USER, PASSWORD)) as (server, client, proxy):
        right = replace(client.endpoint, proxy=proxy.url(IN_URL))
        for url in (proxy.url(), proxy.url("user:SECRET")):
            refused = await Client(client.engine, replace(right, proxy=url)).post()
            assert isinstance(refused, HttpFailure)
            assert (str(refused), refused.unreachable) == ("refused by the proxy", True)
            assert "SECRET" not in repr(replace(right, proxy=url)) + repr(refused)
        assert proxy.refused >= 2
        assert server.counters.opened == 0
        assert statuses(await Client(client.engine, right).many(20)) == {200: 20}
        assert PASSWORD not in repr(right)
        assert IN_URL not in repr(right)


@pytest.mark.parametrize("kind", ["http", "socks5"])
async def test_a_proxy_that_is_down_comes_back_and_costs_only_its_own(kind: Any) -> None:
    async with serving() as (_, client):
        async with Proxy(kind) as proxy:
            pass
        proxied = Client(client.engine, replace(client.endpoint, proxy=proxy.url()))
        down = await proxied.many(3)
        assert all(isinstance(r, HttpFailure) and r.unreachable for r in down)
        assert statuses([await client.post()]) == {200: 1}
        async with proxy:
            assert statuses([await proxied.post()]) == {200: 1}


async def test_a_proxy_that_is_not_found() -> None:
    async with serving() as (_, client):
        url = f"http://{'x' * 64}.test:3128"
        failure = await Client(client.engine, replace(client.endpoint, proxy=url)).post()
        assert isinstance(failure, HttpFailure)
        assert (str(failure), failure.unreachable) == ("proxy name not resolved", True)


async def test_socks5h_leaves_the_name_to_the_proxy() -> None:
    async with through("socks5", names={"push.example": "127.0.0.1"}) as (server, client, proxy):
        endpoint = replace(client.endpoint, url=f"https://push.example:{server.port}", proxy=proxy.url("", "socks5h"))
        failure = await Client(client.engine, endpoint).post()
        assert failure == HttpFailure(pycurl.E_PEER_FAILED_VERIFICATION, timeout=False)  # it has another name
        assert set(proxy.targets) == {f"push.example:{server.port}"}


async def test_what_the_proxy_says_is_not_taken_for_the_answer() -> None:
    async with through("http", headers=b"Retry-After: 999\r\n") as (server, client, _):
        server.script.add(Answer(503))
        assert await client.post() == HttpResponse(503)


# --- certificates of our own


async def test_a_client_certificate_is_shown(tmp_path: Path) -> None:
    cert, key = client_certificate(tmp_path)
    async with serving() as (server, client):
        assert server._context is not None
        server._context.load_verify_locations(cert)
        server._context.verify_mode = ssl.CERT_REQUIRED
        refused = await client.post()
        assert isinstance(refused, HttpFailure)
        pem = {"client_cert": Path(cert).read_bytes(), "client_key": Path(key).read_bytes()}
        shown = Client(client.engine, replace(client.endpoint, **pem))
        assert statuses(await shown.many(20)) == {200: 20}
        assert isinstance(await client.post(), HttpFailure)  # not on the connection of the other
        [link] = server.connections
        assert link._transport is not None
        subject = dict(pair for [pair] in link._transport.get_extra_info("peercert")["subject"])
        assert subject["commonName"] == "Apple Push Services: chat.example.app"


@pytest.mark.parametrize("damage", ["no certificate", "no key", "another key", "a key with a password"])
async def test_a_client_certificate_that_cannot_be_used(tmp_path: Path, damage: str) -> None:
    cert, key = client_certificate(tmp_path)
    match damage:
        case "no certificate":
            Path(cert).write_bytes(b"none")
        case "no key":
            Path(key).write_bytes(b"none")
        case "another key":
            (tmp_path / "other").mkdir()
            _, key = client_certificate(tmp_path / "other")
        case _:
            cert, key = client_certificate(tmp_path, b"password")
    async with serving() as (_, client):
        pem = {"client_cert": Path(cert).read_bytes(), "client_key": Path(key).read_bytes()}
        failure = await Client(client.engine, replace(client.endpoint, **pem)).post()
        assert isinstance(failure, HttpFailure)
        assert (str(failure), failure.unreachable) == ("client certificate not usable", True)
        assert statuses([await client.post()]) == {200: 1}


# --- the end, and what is left


async def test_close_with_requests_in_flight() -> None:
    async with Server() as server:
        server.script.add(*[Silence()] * 20)
        async with running(server) as client:
            results = [client.start() for _ in range(20)]
            await until_requests(server, 20)
        assert "push" not in {t.name for t in threading.enumerate()}
        await asyncio.wait_for(server.idle.wait(), 10)
        assert not any(r.done() for r in results)


async def test_after_close_nothing_is_sent() -> None:
    async with Server() as server:
        async with running(server) as client:
            await client.post()
        canary = os.eventfd(0, os.EFD_NONBLOCK)  # has likely the number that was the engine's
        try:
            result = client.start()
            await client.engine.close()
            with pytest.raises(BlockingIOError):
                os.eventfd_read(canary)
        finally:
            os.close(canary)
        assert not result.done()
        assert len(server.requests) == 1


async def test_no_threads_and_no_files_are_left() -> None:
    async with Server() as server:
        async with running(server) as client:  # loads whatever stays open
            await client.post()
        await asyncio.wait_for(server.idle.wait(), 10)
        before = open_files()
        for _ in range(3):
            async with running(server) as client:
                server.script.add(Silence(), key="/silent")
                await client.within(0.1).post("/silent")
                assert statuses(await client.many(5)) == {200: 5}
            await asyncio.wait_for(server.idle.wait(), 10)
        assert open_files() == before
        assert "push" not in {t.name for t in threading.enumerate()}


@pytest.fixture
def many_open_files() -> Iterator[None]:
    """Every file that is opened from now on has a number of 1,024 or more, beyond what select() can take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    with open(os.devnull) as null:  # noqa: PTH123
        files = [fcntl.fcntl(null, fcntl.F_DUPFD, 0)]
        while files[-1] < 1024:
            files.append(fcntl.fcntl(null, fcntl.F_DUPFD, 0))
        yield
        for each in files:
            os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_open_files")
async def test_more_than_1024_open_files() -> None:
    async with serving() as (_, client):
        assert statuses(await client.many(20)) == {200: 20}


def test_requests_and_answers_show_no_secrets() -> None:
    request = HttpRequest(Endpoint("https://x", "ca"), "/SECRET", ("a: SECRET",), b"SECRET")
    assert "SECRET" not in repr((request, HttpResponse(200, b"SECRET")))
