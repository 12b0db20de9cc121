"""The model of Redis is held to a real one: the conformance suite of the store asks both, and they answer the same."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import pytest
from redis_media import RedisMedium
from redis_servers import HOST, Server

from ntf_server.store.redis.script import Script, scripts
from ntf_server.testing.store_suite import Check, checks, name, run
from sim.valkey.data import Data
from sim.valkey.keyspace import COMMANDS, ReplyError
from sim.valkey.lua import Lua
from sim.valkey.wire import Commands

_UNEQUAL = {b"INFO", b"CONFIG", b"KEYS", b"SRANDMEMBER", b"SSCAN"}  # by their nature
# Scripts of `migrate`, of what nodes count together, of notifications that are cut, of a server's own clock: no check
# of the suite needs these, and their own tests try them on a real server.
_OF_OTHERS = {"fill", "fill_on", "fill_own", "filled", "put_queues", "put_token", "read_tokens"}
_OF_OTHERS |= {"recall", "revise", "spend", "drop_notification", "hasten"}
_QUICK = {"nodes", "claims", "clocks", "standings"}  # modules of checks that are tried each time; --all tries all
_IN_ANY_ORDER = {"recover", "win"}  # as they go through a hash
_SHA1 = {Script.load(script).sha1.encode(): script for script in scripts()}


class Both:
    """Between nodes and a real server: one command after the other, and each is done by a model too."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._micros = 0
        self.model = Data(Lua(), lambda: self._micros)
        self.asked: set[str] = set()
        self.differences: list[str] = []
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Its URL."""
        self._reader, self._writer = await asyncio.open_connection(HOST, self._server.port)
        self._answers = hiredis.Reader()
        listening = await asyncio.start_server(self._take, HOST, 0)
        port = listening.sockets[0].getsockname()[1]
        try:
            yield f"redis://{HOST}:{port}"
        finally:
            listening.close()
            self._writer.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = Commands()
        try:
            while data := await reader.read(1 << 16):
                for words in commands.feed(data):
                    writer.write(await self._answer(words))
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, words: list[bytes]) -> bytes:
        if b"BLOCK" not in words:
            return (await self._ask(words))[0]
        at = words.index(b"BLOCK")
        ends_at = asyncio.get_running_loop().time() + int(words[at + 1]) / 1000
        while True:
            raw, answer = await self._ask([*words[:at], *words[at + 2 :]])
            if answer is not None or asyncio.get_running_loop().time() >= ends_at:
                return raw
            await asyncio.sleep(0.02)

    async def _ask(self, words: list[bytes]) -> tuple[bytes, Any]:
        """Both: the real one's answer, as it came, and parsed."""
        async with self._turn:
            self._writer.write(hiredis.pack_command(tuple(words)))
            raw = b""
            while (answer := self._answers.gets()) is False:
                data = await self._reader.read(1 << 16)
                if not data:
                    raise ConnectionResetError("the test is over")
                raw += data
                self._answers.feed(data)
        told = self._name(words)
        self.asked.add(told)
        self._set_clock(told, answer)
        try:
            modelled: Any = self.model.answer(words)
        except ReplyError as e:
            modelled = hiredis.ReplyError(str(e))
        if words[0] not in _UNEQUAL and self._seen(told, answer) != self._seen(told, modelled):
            self.differences.append(f"{told} {words[2:]}: {answer!r} is told, {modelled!r} by the model")
        return raw, answer

    @staticmethod
    def _name(words: list[bytes]) -> str:
        if words[0] == b"EVALSHA":
            return _SHA1[words[1]]
        if words[0] == b"EVAL":
            return next(n for n in _SHA1.values() if Script.load(n).text.encode() == words[1])
        return words[0].decode()

    def _set_clock(self, told: str, answer: Any) -> None:
        """The model's time is the server's, where that is told: in fences, in ids of a stream."""
        if told == "publish" and isinstance(answer, bytes):
            self._micros = int(answer.partition(b"-")[0]) * 1000
        elif told == "TIME":
            self._micros = int(answer[0]) * 1_000_000 + int(answer[1])
        elif told in {"acquire", "hold"}:
            fences = answer if isinstance(answer, list) else [answer]
            known = [int(f) for f in fences if isinstance(f, bytes) and f.isdigit()]
            self._micros = max([self._micros, *known])

    @staticmethod
    def _seen(told: str, answer: Any) -> Any:
        if isinstance(answer, hiredis.ReplyError):
            code, _, text = str(answer).partition(" ")
            return code, text if code in {"FENCED", "CONFLICT"} else ""
        if told == "HGETALL":
            return sorted(zip(answer[::2], answer[1::2], strict=True))
        if told in _IN_ANY_ORDER and isinstance(answer, list):
            return sorted(map(repr, answer))
        return answer

    def dump(self) -> dict[bytes, Any]:
        """What the real one has, as the model tells it."""
        ask = self._server.ask
        out: dict[bytes, Any] = {}
        for key in sorted(ask("KEYS", "*")):
            match ask("TYPE", key):
                case b"hash":
                    words = ask("HGETALL", key)
                    out[key] = dict(zip(words[::2], words[1::2], strict=True))
                case b"set":
                    out[key] = set(ask("SMEMBERS", key))
                case b"zset":
                    words = ask("ZRANGE", key, 0, -1, "WITHSCORES")
                    out[key] = list(zip(words[1::2], words[::2], strict=True))
                case b"stream":
                    out[key] = [fields for _, fields in ask("XRANGE", key, "-", "+")]
                case _:
                    out[key] = ask("GET", key)
        return out


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


async def try_both(server: Server, check: Check) -> Both:
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    both = Both(server)
    async with both.serve() as url:
        await run(check, RedisMedium(url))
    assert both.differences == []
    assert both.model.keys.dump() == both.dump()
    return both


def is_quick(check: Check) -> bool:
    return name(check).partition("-")[0] in _QUICK


@pytest.mark.parametrize("check", [check for check in checks(shared=True) if is_quick(check)], ids=name)
async def test_the_model_answers_as_a_real_server_does(server: Server, check: Check) -> None:
    both = await try_both(server, check)
    assert {"hold", "make", "clock"} <= both.asked


@pytest.mark.long
async def test_the_model_answers_as_a_real_server_does_whatever_is_asked(server: Server) -> None:
    asked: set[str] = set()
    for check in checks(shared=True):
        asked |= (await try_both(server, check)).asked
    assert set(scripts()) - asked <= _OF_OTHERS


async def test_a_model_that_answers_otherwise_is_found(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, b"ZREM", lambda _keyspace, _key, *_members: 1)
    quick = [check for check in checks(shared=True) if name(check) == "claims-a_claim_ends_once"]
    with pytest.raises(AssertionError):
        await try_both(server, *quick)
