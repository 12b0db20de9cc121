"""Between nodes of the relay and real servers: what is asked of these is asked of models too, and compared."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any, Final

import hiredis
from redis_servers import HOST, Server

from ntf_server.store.redis.script import Script, scripts
from sim.valkey.cluster import Node
from sim.valkey.data import Data
from sim.valkey.keyspace import ReplyError, Status
from sim.valkey.lua import Lua
from sim.valkey.server import Server as Model
from sim.valkey.slots import View, told
from sim.valkey.wire import Commands

_UNEQUAL: Final = {b"INFO", b"CONFIG", b"KEYS", b"SRANDMEMBER", b"SSCAN"}  # by their nature
_IN_ANY_ORDER: Final = {"recover", "win"}  # as they go through a hash
_SHA1: Final = {Script.load(script).sha1.encode(): script for script in scripts()}
_AT: Final = HOST.encode() + b":%d"
_WITH_TEXT: Final = {"FENCED", "CONFLICT", "MOVED", "ASK", "TRYAGAIN", "CROSSSLOT", "CLUSTERDOWN", "ERR"}


class Both:
    """One command after the other, also of several connections: `turn` is whose turn it is.

    `differences`: what the models answered otherwise; `asked`: scripts and commands; `refused`: codes of errors, and of
    those that scripts end with.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self._micros = 0
        self.servers = servers
        self.turn = asyncio.Lock()
        self.asked: set[str] = set()
        self.refused: set[str] = set()
        self.differences: list[str] = []
        self._ports: list[int] = []
        self._taking: set[asyncio.Task[Any]] = set()
        self.view = View([f"node{i}" for i in range(len(servers))])
        loop: Any = asyncio.get_running_loop()
        make = Node if len(servers) > 1 else Model
        lua = Lua()
        self.models = [make(f"node{i}", loop, Random(0), Data(lua, lambda: self._micros)) for i in range(len(servers))]
        for i, node in enumerate(self.models):
            if isinstance(node, Node):
                node.group, node.slots = i, self._slots
                node.learn(self.view)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Its URL."""
        async with AsyncExitStack() as stack:
            for i in range(len(self.servers)):
                listening = await asyncio.start_server(self._taker(i), HOST, 0)
                stack.callback(listening.close)
                self._ports.append(listening.sockets[0].getsockname()[1])
            kind = "redis+cluster" if len(self.servers) > 1 else "redis"
            try:
                yield f"{kind}://{','.join(f'{HOST}:{port}' for port in self._ports)}"
            finally:
                for task in self._taking:
                    task.cancel()
                await asyncio.gather(*self._taking, return_exceptions=True)

    def _slots(self, view: View) -> list[Any]:
        return told(view, 6379, [[] for _ in self.models], {model.name: b"" for model in self.models})

    def _taker(self, number: int) -> Any:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if (task := asyncio.current_task()) is not None:
                self._taking.add(task)
                task.add_done_callback(self._taking.discard)
            real, away = await asyncio.open_connection(HOST, self.servers[number].port)
            conversation = _Conversation(self, number, real, away)
            commands = Commands()
            try:
                while data := await reader.read(1 << 16):
                    for words in commands.feed(data):
                        writer.write(await conversation.answer(words))
            except (ConnectionError, asyncio.CancelledError):
                pass
            finally:
                writer.close()
                away.close()

        return take

    def _renamed(self, raw: bytes, form: bytes, names: Sequence[bytes]) -> bytes:
        """An answer with others in the places of real servers, whose ports are told in such a form."""
        for server, name in zip(self.servers, names, strict=True):
            raw = raw.replace(form % server.port, name)
        return raw

    def to_node(self, words: list[bytes], raw: bytes) -> bytes:
        """As nodes of the relay have to be told it."""
        if raw.startswith(b"-"):
            return self._renamed(raw, _AT, [_AT % port for port in self._ports])
        if words[0] == b"CLUSTER":
            return self._renamed(raw, b":%d\r\n", [b":%d\r\n" % port for port in self._ports])
        return raw

    def compare(self, number: int, words: list[bytes], answer: Any, *, asking: bool) -> None:
        """What a real one answered with what its model does."""
        name = self._name(words)
        self.asked.add(name)
        self._set_clock(name, answer)
        modelled = self.models[number].answer(words, asking=asking)
        ours, theirs = self._seen(name, modelled), self._seen(name, answer)
        if isinstance(ours, tuple) and isinstance(modelled, ReplyError):
            self.refused.add(" ".join(ours))
        if words[0] not in _UNEQUAL and ours != theirs:
            self.differences.append(f"{name} {words[2:]}: {theirs!r} is told by node{number}, {ours!r} by the model")

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

    def _seen(self, told: str, answer: Any) -> Any:
        if isinstance(answer, hiredis.ReplyError | ReplyError):
            raw = self._renamed(str(answer).encode(), _AT, [b"%s:6379" % model.name.encode() for model in self.models])
            code, _, text = raw.decode().partition(" script: ")[0].partition(" ")
            return code, text if code in _WITH_TEXT else ""
        if told == "CLUSTER":
            ports = {server.port: model.name for server, model in zip(self.servers, self.models, strict=True)}
            return [(first, last, ports.get(at[1], at[0].decode())) for first, last, at, *_ in answer]
        if told == "HGETALL":
            return sorted(zip(answer[::2], answer[1::2], strict=True))
        if told in _IN_ANY_ORDER and isinstance(answer, list):
            return sorted(map(repr, answer))
        return answer.encode() if isinstance(answer, Status) else answer

    def modelled(self) -> list[dict[bytes, Any]]:
        """What each model has."""
        return [model.data.keys.all() for model in self.models]


class _Conversation:
    """A connection of a node's to a server."""

    def __init__(self, of: Both, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._of = of
        self._number = number
        self._reader = reader
        self._writer = writer
        self._answers = hiredis.Reader()
        self._asking = False

    async def answer(self, words: list[bytes]) -> bytes:
        """As it is for the node."""
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
        """Both: the real one's answer, for the node and parsed."""
        async with self._of.turn:
            self._writer.write(hiredis.pack_command(tuple(words)))
            raw = b""
            while (answer := self._answers.gets()) is False:
                data = await self._reader.read(1 << 16)
                if not data:
                    raise ConnectionResetError("the test is over")
                raw += data
                self._answers.feed(data)
            self._of.compare(self._number, words, answer, asking=self._asking)
            self._asking = words == [b"ASKING"]
        return self._of.to_node(words, raw), answer


def dump(server: Server) -> dict[bytes, Any]:
    """What a real one has, as a model tells it."""
    ask = server.ask
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
