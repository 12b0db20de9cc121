"""Where revisions are compared: mocks and SMP servers that both use, and for each a relay whose devices are known.

Devices register by the protocol, once for each revision; what they registered is there again when its relay starts.
"""

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import devices
from bursts import Bursts, Measured, Target
from control import Child, child
from devices import Device
from ntf_load import Connection, connected
from smp_load import notifier_id
from wire_relay import BUDGETS, OPTIONAL, Folder, Running, Side, new_folder, running

from ntf_client.push import Notifications
from ntf_server.testing.tls import TlsFiles, throwaway_tls
from smp_bridge.address import ServerAddress

CONNECTIONS: Final = 8
WINDOW: Final = 32  # commands under way on each
TIMEOUT: Final = 120.0
_STREAMS: Final = 1000
_PAGE: Final = 1000  # pushes

_BASE: Final = """\
[transport]
host = "localhost"
port = 0
bind = "127.0.0.1"

[apns.test]
host = "localhost"
port = {port}
ca_file = "{ca_file}"

[subscriber]
allow_private_hosts = true
audit_period = 0

[log]
level = "warning"
"""
_WEB_PUSH: Final = """\
[web_push]
key_file = "vapid.key"
contact = "mailto:bench@example.org"
ca_file = "{ca_file}"
"""
_ALLOW_HOSTS: Final = 'allow_hosts = ["localhost"]\n'  # goes on with [web_push]; earlier revisions do not know it


@dataclass(frozen=True, slots=True)
class Stage:
    """What a bench is given. `quick`: loads that show that it works, and nothing else; `budgets`: on where they are."""

    stack: AsyncExitStack
    folder: Path
    sides: Sequence[Side]
    quick: bool
    budgets: bool = False

    def size(self, full: int, quick: int) -> int:
        """One of them."""
        return quick if self.quick else full

    async def scene(self, queues: int = 0, servers: int = 1, *, web_push: bool = False) -> "Scene":
        """With so many queues on so many SMP servers. It ends with the stage's `stack`."""
        enter = self.stack.enter_async_context
        tls = self.stack.enter_context(throwaway_tls())
        options = ("--cert", str(tls.cert_file), "--key", str(tls.key_file), "--streams", str(_STREAMS))
        mock = await enter(child("apns_load.py", *options))
        load = await enter(child("smp_load.py", "--servers", str(servers), "--queues", str(queues)))
        addresses = [ServerAddress.from_text(text) for text in load.ready["servers"]]
        where = Path(tempfile.mkdtemp(dir=self.folder))
        return Scene(where, mock, load, addresses, queues, tls, web_push, self.budgets)


@dataclass(slots=True)
class Scene:
    """The processes around the relays, and the relays' folders."""

    folder: Path
    mock: Child
    load: Child
    servers: Sequence[ServerAddress]
    queues: int
    tls: TlsFiles
    web_push: bool
    budgets: bool = False
    registered: dict[str, tuple[Folder, list[Device]]] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Of the mock, as a push service."""
        return f"https://localhost:{self.mock.ready['port']}"

    async def new_folder(self, side: Side) -> Folder:
        """A relay of which nobody knows. Raises RelayError."""
        values = {"port": self.mock.ready["port"], "ca_file": self.tls.ca_file}
        sections = [_BASE.format(**values), *([_WEB_PUSH.format(**values)] if self.web_push else []), *side.sections]
        optional = [*([_ALLOW_HOSTS] if self.web_push else []), *(BUDGETS if self.budgets else OPTIONAL)]
        return await new_folder(side, Path(tempfile.mkdtemp(dir=self.folder), "relay"), sections, optional)

    async def populate(self, sides: Sequence[Side], new: Callable[[], list[Device]]) -> None:
        """For each side a relay with devices of its own, to which all queues belong in turn.

        Raises RelayError, RuntimeError if a command is refused, TimeoutError.
        """
        for side in sides:
            folder, owners = await self.new_folder(side), new()
            async with self.clients(side, folder) as (_, connections):
                await self.enrol(connections, owners)
                await devices.subscribe(connections, owners, self.servers, range(self.queues), window=WINDOW)
                await devices.until_subscribed(self.load, self.queues, TIMEOUT)
            self.registered[side.name] = folder, owners

    async def enrol(self, connections: Sequence[Connection], owners: Sequence[Device]) -> float:
        """TNEW, the code by push, TVFY; the seconds of it that were the relay's."""
        await self.mock.call("set")
        _, pushed = await devices.register(connections, owners, self.mock, window=WINDOW, timeout=TIMEOUT)
        verified = await devices.verify(connections, owners, window=WINDOW)
        await self.mock.call("reset")
        return pushed + verified.seconds

    @asynccontextmanager
    async def clients(self, side: Side, folder: Folder) -> AsyncIterator[tuple[Running, list[Connection]]]:
        """A relay, and connections to it."""
        async with running(side, folder) as relay, connected(relay.address, CONNECTIONS) as connections:
            yield relay, connections

    @asynccontextmanager
    async def started(self, side: Side) -> AsyncIterator["Playing"]:
        """The relay of that side with all its queues subscribed, until the block ends."""
        folder, owners = self.registered[side.name]
        await self.mock.call("set")
        async with running(side, folder) as relay:
            await devices.until_subscribed(self.load, self.queues, TIMEOUT)
            target = Target(side.name, [d.path for d in owners])
            yield Playing(self, relay, target, owners, Bursts(self.load, self.mock, TIMEOUT))


@dataclass(frozen=True, slots=True)
class Result:
    """What a burst gave: `measured`, and the CPU seconds of the relay, of recording outcomes too."""

    measured: Measured
    cpu: float

    @property
    def rate(self) -> float:
        """Pushes a second, from the first NMSG that was written to the last push that came."""
        return self.measured.pushes / self.measured.seconds

    @property
    def cpu_each(self) -> float:
        """Milliseconds an NMSG."""
        return self.cpu / self.measured.notified * 1000


@dataclass(frozen=True, slots=True)
class Playing:
    """A relay at work."""

    scene: Scene
    relay: Running
    target: Target
    owners: Sequence[Device]
    bursts: Bursts

    async def burst(self, queues: Sequence[int], *, count: int = 1, rate: float = 0.0) -> Result:
        """Notify these queues `count` times, each time as soon as all is pushed; sums over these.

        Raises RuntimeError if pushes were refused or came twice, TimeoutError if not all came.
        """
        measured, cpu = Measured(), self.relay.cpu()
        for _ in range(count):
            await self.bursts.burst(self.target, queues, measured, rate=rate)
        cpu = self.relay.cpu() - cpu
        if measured.pushes > measured.notified:
            raise RuntimeError(f"{self.target.name} pushed {measured.pushes} times for {measured.notified} NMSGs")
        return Result(measured, cpu)

    async def check(self, queues: Sequence[int]) -> None:
        """Notify these queues and open what comes: fast is only who loses nothing.

        Raises RuntimeError if a queue's NMSG is in no push, or in the wrong device's.
        """
        mock, by_path = self.scene.mock, {d.path: i for i, d in enumerate(self.owners)}
        await mock.call("keep", on=True)
        await self.bursts.burst(self.target, queues, Measured())
        await mock.call("keep", on=False)
        told = set[tuple[int, bytes]]()
        while bodies := await mock.call("bodies", limit=_PAGE):
            for path, body in bodies:
                content = self.owners[by_path[path]].content(body)
                if isinstance(content, Notifications):
                    told.update((by_path[path], info.notifier_id) for info in content.infos)
        lost = {(i % len(self.owners), notifier_id(i)) for i in queues} - told
        if lost:
            raise RuntimeError(f"{self.target.name} told devices nothing of {len(lost)} of {len(queues)} NMSGs")

    async def latency(self, milliseconds: int) -> None:
        """Of the mock from now on."""
        await self.scene.mock.call("set", latency=milliseconds / 1000)
