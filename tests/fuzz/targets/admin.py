"""What stands open on the operator's side: metrics over HTTP, and the socket for commands."""

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any, Final

from fuzz import life, relay
from fuzz.target import Target, add
from ntf_server.admin import health, socket
from ntf_server.admin.tokens import INVALIDATE, on_invalidate
from ntf_server.observe.condition import Facts, Phase, assess
from ntf_server.observe.exposition import Exposition
from ntf_server.observe.metrics import Metrics


class _Memory(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self._protocol = protocol

    def write(self, data: Any) -> None:
        self.written += data

    def write_eof(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()


async def _serve(run: Any, data: bytes, limit: int) -> bytes:
    """What a connection gives that sends this, and then its end."""
    reader = asyncio.StreamReader(limit=limit)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport = _Memory(protocol)
    protocol.connection_made(transport)
    writer = asyncio.StreamWriter(transport, protocol, reader, asyncio.get_running_loop())
    reader.feed_data(data)
    reader.feed_eof()
    await run(reader, writer)
    await asyncio.sleep(0)
    assert transport.closed
    return bytes(transport.written)


_STATUSES: Final = (200, 400, 404, 405, 431)


async def _http(data: bytes) -> None:
    endpoint = health.Admin(None, 0, Exposition(Metrics()).page, lambda: assess(Facts(Phase.RUNNING), 0.0))
    answer = await _serve(endpoint._run, data, health.MAX_HEAD)
    if b"\r\n\r\n" not in data:
        assert not answer or answer.startswith(b"HTTP/1.1 431 ")
        return
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    assert head.startswith(b"HTTP/1.1 ")
    assert status in _STATUSES, status
    length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
    assert len(body) == length or (data.startswith(b"HEAD") and not body)


def _http_seeds() -> list[bytes]:
    end = b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return [
        b"GET /metrics" + end,
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: application/openmetrics-text;version=1.0.0;q=0.5,*/*\r\n\r\n",
        b"HEAD /health" + end,
        b"GET /live" + end,
        b"GET /ready" + end,
        b"POST /health" + end,
        b"GET http://localhost/health?x=1" + end,
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"GET /other" + end,
        b"GET /health HTTP/1.1\r\n\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * 300,
    ]


add(
    Target(
        "metrics request",
        lambda data: life.run(_http(data)),
        _http_seeds,
        ["ntf_server.admin.health.Admin"],
        max_size=400,
        share=0.25,
        words=[
            b"GET ",
            b"HEAD ",
            b"/metrics",
            b"/health",
            b"/live",
            b"/ready",
            b" HTTP/1.1\r\n",
            b"Host: ",
            b"Accept: ",
            b"\r\n\r\n",
            b"http://",
        ],
    )
)


async def _commands(data: bytes) -> None:
    inside = await relay.inside()
    try:
        commands = {INVALIDATE: partial(on_invalidate, inside.store)}
        operators = socket.AdminSocket(Path("unused"), commands)
        written = await _serve(operators._run, data, socket.MAX_LINE)
        asked = data.split(b"\n")[:-1]
        answers = [json.loads(line) for line in written.splitlines()]
        assert len(answers) == len(asked), (len(answers), len(asked))
        for line, answer in zip(asked, answers, strict=True):
            assert isinstance(answer["ok"], bool)
            assert answer["ok"] or isinstance(answer["error"], str)
            assert answer["ok"] or "log" not in answer["error"], answer
            if not answer["ok"] and answer["error"].startswith("more than"):
                assert len(line) >= socket.MAX_LINE
    finally:
        await inside.close()


def _command_seeds() -> list[bytes]:
    command = {"command": INVALIDATE, "status": "ACTIVE", "reason": "TOPIC"}
    lines = [json.dumps(c).encode() for c in (command, command | {"status": 1}, command | {"reason": []}, {}, [], 1)]
    return [*(line + b"\n" for line in lines), b"\n".join(lines) + b"\n", b'{"command":"x"}\n', b"{", b"\xff\n"]


add(
    Target(
        "operator command",
        lambda data: life.run(_commands(data)),
        _command_seeds,
        ["ntf_server.admin.socket.AdminSocket", "ntf_server.admin.tokens.on_invalidate"],
        max_size=4000,
        share=0.02,
        words=[b'"command":', b'"tokens invalidate"', b'"status":', b'"reason":', b"\n", b"[" * 64, b"{" * 8],
    )
)
