import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
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
