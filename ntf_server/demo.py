"""`ntf-server demo`: a wake-up from end to end on this machine, told line by line.

The relay is a process of its own, so that it can really be killed; the device is the command `ntf-client`.
"""

import asyncio
import json
import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from ntf_server import demo_parties
from ntf_server.demo_nodes import Nodes
from ntf_server.demo_parties import SERVICES, DemoError, PushService, RelayProcess, check, cut
from smp_bridge.crypto import encode_private
from smp_bridge.encoding import b64url
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient

_COLOURS: Final = {"Device": 36, "SMP server": 35, "Relay": 33, "Sender": 34, "Recipient": 34}
_SERVICE_COLOUR: Final = 32


class _Teller:
    """Prints the story: who, and what they see."""

    def __init__(self, service: str) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._width = max(map(len, [*_COLOURS, service]))

    def heading(self, text: str) -> None:
        print(f"\n\033[1m{text}\033[0m" if self._colour else f"\n{text}", flush=True)

    def says(self, who: str, text: str) -> None:
        name = who.rjust(self._width)
        colour = _COLOURS.get(who, _SERVICE_COLOUR)
        print(f"\033[{colour}m{name}\033[0m  {text}" if self._colour else f"{name}  {text}", flush=True)


class _Story:
    """The parties, and what they do."""

    def __init__(self, directory: Path, smp: SmpServer, service: PushService, relay: RelayProcess | Nodes) -> None:
        self.directory = directory
        self.smp = smp
        self.service = service
        self.relay = relay
        self.state = directory / "device.json"
        self.tell = _Teller(service.who)
        self._sizes: set[int] = set()

    async def client(self, *arguments: str, given: bytes = b"") -> str:
        """Run `ntf-client` as this device."""
        return await demo_parties.run("ntf_client", ["--state", str(self.state), *arguments], given)

    async def register(self) -> None:
        """Register, get the code by push, prove it."""
        says = self.tell.says
        token, options = self.service.registration()
        self.tell.heading("1. A device registers for pushes")
        says("Device", f"I register my {token} with {cut(self.relay.address, 40)}")
        await self.client("register", self.relay.address, *options)
        code = (await self._pushed("verification"))["code"]
        await self.client("verify", code)
        status = json.loads(await self.client("status", "--json"))
        check(status["token"]["status"] == "ACTIVE", "the token is not active")
        says("Device", f"Only I can open it: the code is {cut(code, 12)} I send it back, and am ACTIVE")

    async def subscribe(self, queue: Queue) -> None:
        """Give the relay what it needs for one queue."""
        says = self.tell.says
        self.tell.heading("2. It subscribes a queue")
        says("Recipient", f"I made a queue; its notifier id is {cut(b64url(queue.notifier_id), 12)}")
        key = self.directory / "notifier.key"
        key.touch(mode=0o600)
        key.write_text(b64url(encode_private(queue.notifier_key)))
        await self.client(
            "subscribe",
            str(self.smp.address),
            "--notifier-id",
            b64url(queue.notifier_id),
            "--notifier-key",
            str(key),
            "--secret",
            b64url(queue.notifier_secret),
        )
        await self.smp.until(lambda: self.smp.subscribed(queue.notifier_id))
        says("SMP server", "The relay may hear when a message arrives in this queue, and nothing else")

    async def wake(self, queue: Queue, text: str) -> None:
        """A message is sent, and wakes the device."""
        self.tell.says("Sender", f"I send {text!r}")
        await queue.send(text)
        await self.woken(queue)

    async def woken(self, queue: Queue) -> None:
        """The push arrives, and says the same as the message itself."""
        says = self.tell.says
        newest = (await self._pushed("messages"))["notifications"][-1]
        check(newest["error"] is None, "the metadata does not open")
        at = time.strftime("%H:%M:%S", time.localtime(newest["timestamp"]))
        says("Device", f"I woke up and opened it: message {cut(newest['message_id'], 12)} of {at}")
        message = await queue.receive()
        says("Recipient", f"I fetched message {cut(b64url(message.message_id), 12)}: {message.body.decode()!r}")
        check(newest["message_id"] == b64url(message.message_id), "the message ids differ")
        says("Device", "The ids are equal on both paths")

    async def _pushed(self, kind: str) -> dict[str, Any]:
        """What the device reads in the next push, after its service has seen it."""
        seen = await self.service.next()
        for line in seen.lines:
            self.tell.says(self.service.who, line)
        check(seen.size <= self.service.limit, "the push is larger than its service takes")
        if kind == "messages":
            self._sizes.add(seen.size)
            check(len(self._sizes) == 1, "the pushes differ in size")
        opened: dict[str, Any] = json.loads(await self.client("decrypt", "--json", "-", given=seen.payload))
        check(opened["kind"] == kind, f"the push is not of the kind {kind}")
        return opened

    async def killed(self, queue: Queue) -> None:
        """kill -9, and a message meanwhile."""
        if isinstance(self.relay, Nodes):
            await self._node_killed(queue, self.relay)
        else:
            await self._restarted(queue)

    async def _node_killed(self, queue: Queue, nodes: Nodes) -> None:
        """Of the node that listens to the queue; another one takes it over."""
        says = self.tell.says
        self.tell.heading("4. The node is killed that listens to this queue")
        dead = await nodes.holder(self.smp.address)
        others = ", ".join(name for name in nodes.names if name != dead)
        says("Relay", f"{dead} speaks to the SMP server, under a lease in Valkey; {others} do not")
        began = time.monotonic()
        await nodes.kill(dead)
        says("Relay", f"{dead}: kill -9")
        text = "are you there?"
        says("Sender", f"I send {text!r} meanwhile")
        await queue.send(text)
        heir = await nodes.holder(self.smp.address)
        says("Relay", f"{heir}: {time.monotonic() - began:.1f} s later its lease is over, and I have its queues")
        await self.woken(queue)
        says("Device", f"That was {time.monotonic() - began:.1f} s after the kill; nobody had to start anything")
        await self.wake(queue, "and the next one")

    async def _restarted(self, queue: Queue) -> None:
        says = self.tell.says
        self.tell.heading("4. The relay is killed")
        await self.relay.stop(signal.SIGKILL)
        says("Relay", "kill -9")
        text = "are you there?"
        says("Sender", f"I send {text!r} meanwhile")
        await queue.send(text)
        await self.relay.start()
        says("Relay", "started again: I read my subscriptions from disk")
        await self.woken(queue)
        await self.wake(queue, "and the next one")


@asynccontextmanager
async def _parties(provider: str, nodes: int) -> AsyncIterator[tuple[_Story, Recipient]]:
    with tempfile.TemporaryDirectory(prefix="ntf-demo-") as name:
        directory = Path(name)
        service = SERVICES[provider](directory)
        relay = RelayProcess(directory / "relay") if nodes == 1 else Nodes(directory, nodes)
        async with SmpServer() as smp, service.server, await Recipient.connect(smp.address) as recipient:
            try:
                await relay.init()
                relay.configure(service.settings(relay.directory))
                await relay.start()
                yield _Story(directory, smp, service, relay), recipient
            finally:
                await relay.stop(signal.SIGKILL)


async def run(*, provider: str = "apns", keep: bool = False, nodes: int = 1) -> int:
    """Tell the story with one of `demo_parties.SERVICES`, and with so many relays on one Valkey.

    0 if all of it held, 1 if not, 143 after SIGTERM.
    """
    kind, terminated, task = SERVICES[provider].kind, asyncio.Event(), asyncio.current_task()
    assert task is not None

    def terminate() -> None:  # the relay must not be left behind
        terminated.set()
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    relays = "the relay" if nodes == 1 else f"a Valkey, {nodes} relays on it"
    print(f"Starting an SMP server, a {kind}, {relays} and a device on this machine …", flush=True)
    try:
        async with _parties(provider, nodes) as (story, recipient):
            queue = await _tell(story, recipient)
            if keep:
                await _stay(story, queue)
            code = await story.relay.stop(signal.SIGTERM)
            check(code == 0, f"the relay did not stop cleanly ({code})")
    except (DemoError, TimeoutError) as e:
        print(f"The demo failed: {e or 'nothing came in time'}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        if not terminated.is_set():
            raise
        return 128 + signal.SIGTERM
    return 0


async def _tell(story: _Story, recipient: Recipient) -> Queue:
    await story.register()
    queue = await recipient.queue()
    await story.subscribe(queue)
    story.tell.heading("3. A message wakes the device")
    await story.wake(queue, "hello")
    await story.killed(queue)
    story.tell.heading("All of it held: nothing was lost, and nobody on the way could read anything.")
    return queue


async def _stay(story: _Story, queue: Queue) -> None:
    """Stay up until Ctrl-C or the end of the input; every line that is typed is a message."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server, kind = story.service.server, story.service.kind
    print()
    for name, what in (
        ("relay", story.relay.address),
        ("SMP server", str(story.smp.address)),
        (kind, f"https://localhost:{server.port} (CA: {server.ca_file})"),
        ("device", f"ntf-client --state {story.state} status"),
    ):
        print(f"{name.ljust(max(10, len(kind)))}  {what}")
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(stopped.wait())]
    if _is_typed():
        tasks.append(asyncio.create_task(_type(story, queue)))
        print("A line that you type is sent as a message.", end=" ")
    print("Ctrl-C ends it.", flush=True)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for error in results:
        if isinstance(error, Exception):
            raise error


def _is_typed() -> bool:
    """Whether lines can come: a service's standard input is /dev/null, which the event loop cannot wait for."""
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return sys.stdin.isatty() or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


async def _type(story: _Story, queue: Queue) -> None:
    lines = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    try:
        while line := await lines.readline():
            await story.wake(queue, line.decode(errors="replace").strip())
    finally:
        transport.close()
