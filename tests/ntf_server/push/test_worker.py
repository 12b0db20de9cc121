import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import IPv4Network
from typing import Any

import pycurl
import pytest

from ntf_server.push import links, worker
from ntf_server.push.exchange import Endpoint, HttpFailure, HttpRequest, HttpResult
from ntf_server.push.http import HttpEngine
from ntf_server.push.links import Transfer
from ntf_server.push.worker import Worker
from ntf_server.testing import Answer, Fault, Http2Server, Request, Script

pytestmark = pytest.mark.filterwarnings("error")


class Server(Http2Server):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.script = Script()

    def draw(self, request: Request) -> Fault | None:
        return self.script.take(request.path)

    def respond(self, request: Request, scripted: Answer | None) -> Answer:
        return scripted or Answer(200)


Post = Callable[..., asyncio.Future[HttpResult]]


@contextlib.asynccontextmanager
async def posting(**options: Any) -> AsyncIterator[tuple[Server, HttpEngine, Post]]:
    async with Server(**options) as server:
        engine = HttpEngine()

        def post(path: str = "/", **changes: Any) -> asyncio.Future[HttpResult]:
            endpoint = replace(Endpoint(server.url, str(server.ca_file), timeout=5.0), **changes)
            result: asyncio.Future[HttpResult] = asyncio.get_running_loop().create_future()
            engine.send([(HttpRequest(endpoint, path, (), b"x"), result.set_result)])
            return result

        try:
            yield server, engine, post
        finally:
            await engine.close()


def ok(results: list[HttpResult]) -> list[bool]:
    return [not isinstance(r, HttpFailure) and r.status == 200 for r in results]


async def test_an_error_inside_fails_what_is_under_way_and_the_engine_lives_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with posting(latency=0.2) as (server, _, post):
        await post()
        waiting = [post(f"/{i}") for i in range(5)]
        async with asyncio.timeout(5):
            while server.counters.requests < 6:
                await asyncio.sleep(0.005)
        expire = links.Multi.expire

        def fail(self: links.Multi, now: float) -> None:
            monkeypatch.setattr(links.Multi, "expire", expire)
            raise RuntimeError("a bug")

        monkeypatch.setattr(links.Multi, "expire", fail)
        last = post("/last")
        failed = await asyncio.wait_for(asyncio.gather(*waiting, last), 5)
        assert failed == [HttpFailure(pycurl.E_FAILED_INIT, timeout=False)] * 6
        assert ok(await asyncio.wait_for(asyncio.gather(*(post() for _ in range(10))), 5)) == [True] * 10
    assert "begins anew" in caplog.text


async def test_results_that_were_got_before_an_error_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with posting() as (_, _, post):
        await post()
        take_off = Worker._take_off

        def fail(self: Worker, link: Any, transfer: Transfer) -> None:
            monkeypatch.setattr(Worker, "_take_off", take_off)
            raise RuntimeError("a bug")

        monkeypatch.setattr(Worker, "_take_off", fail)
        results = await asyncio.wait_for(asyncio.gather(*(post(f"/{i}") for i in range(20))), 5)
        assert True in ok(results)  # the answer during which it happened
        assert ok([await asyncio.wait_for(post(), 5)]) == [True]


async def test_a_thread_that_ends_by_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Worker) -> None:
        raise MemoryError

    monkeypatch.setattr(Worker, "_begin_anew", fail)
    async with posting() as (_, engine, post):
        await post()
        monkeypatch.setattr(Worker, "_turn", fail)
        post()
        with pytest.raises(MemoryError):
            await asyncio.wait_for(asyncio.shield(engine.failed), 5)
        post()  # nothing happens, also to nobody else's descriptor
    assert "push" not in {t.name for t in threading.enumerate()}


async def test_a_thread_that_is_closed_has_not_failed() -> None:
    async with posting() as (_, engine, post):
        await post()
    assert engine.failed.cancelled()


async def test_origins_that_were_not_used_for_long_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_MAX_ORIGINS", 3)
    async with posting() as (server, engine, post):
        for i in range(1, 9):
            result = await asyncio.wait_for(post(url=server.url.replace("127.0.0.1", f"127.0.0.{i}")), 5)
            assert isinstance(result, HttpFailure) == (i > 1)
        assert len(engine._worker._origins) == 3
        assert engine._worker._idle <= 3


async def test_handles_are_kept_for_the_next_request_but_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    async with posting(latency=0.02) as (_, engine, post):
        engine._worker._streams = 10
        for _ in range(3):
            await asyncio.wait_for(asyncio.gather(*(post(f"/{i}") for i in range(50))), 30)
        assert engine._worker._idle == 10


def strangers(server: Server, count: int) -> list[dict[str, Any]]:
    """Endpoints of so many origins, all of them this server."""
    port = server.url.rpartition(":")[2]
    names = ["".join(c.upper() if i >> n & 1 else c for n, c in enumerate("localhost")) for i in range(count)]
    alike = {"public_only": True, "allowed": (IPv4Network("127.0.0.0/8"),)}
    return [{"url": f"https://{name}:{port}", **alike} for name in names]


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When connections were begun."""
    begun: list[float] = []
    notice_soon = links._notice_soon

    def count(fd: int) -> None:
        begun.append(time.monotonic())
        notice_soon(fd)

    monkeypatch.setattr(links, "_notice_soon", count)
    return begun


async def test_connections_to_strangers_are_made_one_after_another(
    begun: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are made at once the handshakes would hold up all others."""
    monkeypatch.setattr(worker, "_CONNECTS", 10)
    async with posting() as (server, engine, post):
        results = [post(f"/{i}", **where) for where in strangers(server, 30) for i in range(2)]
        assert ok([await asyncio.wait_for(post(), 5)]) == [True]
        assert len(begun) < 31  # he did not wait for them
        assert ok(await asyncio.wait_for(asyncio.gather(*results), 20)) == [True] * 60
        assert len(begun) == 31
        assert begun[-1] - begun[0] > 2.0
        assert not engine._worker._paced
        assert not engine._worker._ahead


async def test_only_those_who_need_a_connection_wait(begun: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    async with posting() as (server, _, post):
        where = strangers(server, 20)
        for _ in range(2):
            assert ok(await asyncio.wait_for(asyncio.gather(*(post(**w) for w in where)), 10)) == [True] * 20
            monkeypatch.setattr(worker, "_CONNECTS", 0.001)  # from now on nobody gets another one
        assert len(begun) == 20


async def test_who_closes_each_connection_gets_the_next_in_turn(
    begun: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with posting() as (server, _, post):
        where = strangers(server, 20)
        for _ in range(2):
            assert ok(await asyncio.wait_for(asyncio.gather(*(post(**w) for w in where)), 10)) == [True] * 20
            server.goaway_all()
            await asyncio.sleep(0.1)
        monkeypatch.setattr(worker, "_CONNECTS", 10)
        assert ok(await asyncio.wait_for(asyncio.gather(*(post(**w) for w in where)), 10)) == [True] * 20
        assert len(begun) == 60
        assert begun[-1] - begun[40] > 1.0


async def test_connections_are_kept_though_little_is_under_way(begun: list[float]) -> None:
    async with posting(latency=0.2) as (server, _, post):
        where = strangers(server, 250)
        for _ in range(2):
            assert ok(await asyncio.wait_for(asyncio.gather(*(post(**w) for w in where)), 10)) == [True] * 250
            for _ in range(3):
                assert ok([await asyncio.wait_for(post(**where[0]), 5)]) == [True]
    assert len(begun) == 250


@pytest.mark.long
async def test_no_answer_waits_for_its_deadline_on_a_busy_machine() -> None:
    """libcurl may have read it together with another one, and not say so (see `Multi`)."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            busy = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
            stack.push_async_callback(busy.wait)
            stack.callback(busy.kill)
        for _ in range(60):
            async with posting(latency=0.02) as (_, engine, post):
                engine._worker._streams = 10
                for _ in range(3):
                    results = await asyncio.wait_for(asyncio.gather(*(post(f"/{i}") for i in range(50))), 30)
                    assert all(ok(results))
