"""`ntf-server demo`: a wake-up from end to end on this machine, told line by line.

The relay is a process of its own, so that it can really be killed; the device is the command `ntf-client`.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ntf_server.identity_files import write_file
from ntf_server.testing import MockApns, Push
from smp_bridge.crypto import encode_private
from smp_bridge.encoding import b64url
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient

_KEY_ID: Final = "DEMO123456"
_TEAM_ID: Final = "TEAM123456"
_START_TIMEOUT: Final = 20.0
_COLOURS: Final = {"Device": 36, "SMP server": 35, "Relay": 33, "Apple": 32, "Sender": 34, "Recipient": 34}


class DemoError(Exception):
    """Something that the story tells did not happen."""


class _Teller:
    """Prints the story: who, and what they see."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def heading(self, text: str) -> None:
        print(f"\n\033[1m{text}\033[0m" if self._colour else f"\n{text}", flush=True)

    def says(self, who: str, text: str) -> None:
        name = f"{who:>10}"
        print(f"\033[{_COLOURS[who]}m{name}\033[0m  {text}" if self._colour else f"{name}  {text}", flush=True)


def _check(fact: bool, what: str) -> None:
    if not fact:
        raise DemoError(what)


def _cut(text: str, size: int = 24) -> str:
    return text if len(text) <= size else text[:size] + "…"


class _Relay:
    """The relay as an operator runs it: `ntf-server start` in a process of its own."""

    def __init__(self, directory: Path, apns: MockApns, key_file: Path) -> None:
        self._identity = ""
        self._directory = directory
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        self._environment = os.environ | {
            "NTF_SERVER__APNS__KEY_FILE": str(key_file),
            "NTF_SERVER__APNS__KEY_ID": _KEY_ID,
            "NTF_SERVER__APNS__TEAM_ID": _TEAM_ID,
            "NTF_SERVER__SUBSCRIBER__ALLOW_PRIVATE_HOSTS": "true",
            "NTF_SERVER__TRANSPORT__BIND": "127.0.0.1",
            "NTF_SERVER__LOG__LEVEL": "warning",
        }
        for section in ("TEST", "PRODUCTION", "SANDBOX"):  # nothing may leave this machine
            self._environment |= {
                f"NTF_SERVER__APNS__{section}__HOST": "localhost",
                f"NTF_SERVER__APNS__{section}__PORT": str(apns.port),
                f"NTF_SERVER__APNS__{section}__CA_FILE": str(apns.ca_file),
            }

    @property
    def address(self) -> str:
        """The address that a device needs."""
        return f"{self._identity}:{self._port}"

    async def init(self) -> None:
        """`ntf-server init`."""
        arguments = ["init", "--path", str(self._directory), "--fqdn", "localhost"]
        self._identity = await _run("ntf_server", arguments, stderr=asyncio.subprocess.DEVNULL)

    async def start(self) -> None:
        """`ntf-server start`, and wait until it listens; a restart takes the same port."""
        self._process = await asyncio.create_subprocess_exec(
            *_command("ntf_server", ["start", "--path", str(self._directory)]),
            env=self._environment | {"NTF_SERVER__TRANSPORT__PORT": str(self._port)},
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(_START_TIMEOUT):
            line = (await self._process.stdout.readline()).decode().strip()
        _check(line.startswith("listening on "), "the relay did not start")
        self._port = int(line.rpartition(":")[2])

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; gives the exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        return await process.wait()


def _command(module: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


async def _run(module: str, arguments: Sequence[str], given: bytes = b"", stderr: int | None = None) -> str:
    """Run one of the project's commands; gives what it printed."""
    process = await asyncio.create_subprocess_exec(
        *_command(module, arguments), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr
    )
    out, _ = await process.communicate(given)
    _check(process.returncode == 0, f"{module} {arguments[0]} failed")
    return out.decode().strip()


class _Story:
    """The parties, and what they do."""

    def __init__(self, directory: Path, smp: SmpServer, apns: MockApns, relay: _Relay) -> None:
        self.directory = directory
        self.smp = smp
        self.apns = apns
        self.relay = relay
        self.state = directory / "device.json"
        self.token = secrets.token_hex(32)
        self.tell = _Teller()

    async def client(self, *arguments: str, given: bytes = b"") -> str:
        """Run `ntf-client` as this device."""
        command, *rest = arguments
        return await _run("ntf_client", ["--state", str(self.state), command, *rest], given)

    async def register(self) -> None:
        """Register, get the code by push, prove it."""
        says = self.tell.says
        self.tell.heading("1. A phone registers its push token")
        says("Device", f"I register my token {_cut(self.token, 12)} with {_cut(self.relay.address, 40)}")
        await self.client("register", self.relay.address, "--provider", "AT", "--token", self.token)
        push = await self._apple_sees()
        code = (await self._opened(push))["code"]
        await self.client("verify", code)
        status = json.loads(await self.client("status", "--json"))
        _check(status["token"]["status"] == "ACTIVE", "the token is not active")
        says("Device", f"Only I can open it: the code is {_cut(code, 12)} I send it back, and am ACTIVE")

    async def subscribe(self, queue: Queue) -> None:
        """Give the relay what it needs for one queue."""
        says = self.tell.says
        self.tell.heading("2. It subscribes a queue")
        says("Recipient", f"I made a queue; its notifier id is {_cut(b64url(queue.notifier_id), 12)}")
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
        push = await self._apple_sees()
        newest = (await self._opened(push))["notifications"][-1]
        _check(newest["error"] is None, "the metadata does not open")
        at = time.strftime("%H:%M:%S", time.localtime(newest["timestamp"]))
        says("Device", f"I woke up and opened it: message {_cut(newest['message_id'], 12)} of {at}")
        message = await queue.receive()
        says("Recipient", f"I fetched message {_cut(b64url(message.message_id), 12)}: {message.body.decode()!r}")
        _check(newest["message_id"] == b64url(message.message_id), "the message ids differ")
        says("Device", "The ids are equal on both paths")

    async def _opened(self, push: Push) -> dict[str, Any]:
        """What the device reads in a push."""
        opened: dict[str, Any] = json.loads(
            await self.client("decrypt", "--json", "-", given=json.dumps(push.body).encode())
        )
        return opened

    async def _apple_sees(self) -> Push:
        push = await self.apns.next(self.token)
        data = push.body["notificationData"]
        [name] = set(data) - {"nonce"}
        says = self.tell.says
        says("Apple", f"A push of {push.size} bytes for {_cut(push.token, 12)}: {push.push_type}, {name} =")
        says("Apple", f"{_cut(data[name], 60)}")
        _check(push.size <= 4096, "the push is larger than APNs takes")
        return push

    async def killed(self, queue: Queue) -> None:
        """kill -9, a message meanwhile, a restart."""
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


def _make_apns_key(path: Path) -> ec.EllipticCurvePublicKey:
    """A `.p8` file like Apple's; gives the public key that Apple would know."""
    key = ec.generate_private_key(ec.SECP256R1())
    write_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key.public_key()


@asynccontextmanager
async def _parties() -> AsyncIterator[tuple[_Story, Recipient]]:
    with tempfile.TemporaryDirectory(prefix="ntf-demo-") as name:
        key_file = Path(name, "AuthKey.p8")
        public_key = _make_apns_key(key_file)
        async with SmpServer() as smp, MockApns(public_key=public_key, key_id=_KEY_ID, team_id=_TEAM_ID) as apns:
            relay = _Relay(Path(name, "relay"), apns, key_file)
            recipient = await Recipient.connect(smp.address)
            try:
                await relay.init()
                await relay.start()
                yield _Story(Path(name), smp, apns, relay), recipient
            finally:
                await relay.stop(signal.SIGKILL)
                await recipient.close()


async def run(*, keep: bool = False) -> int:
    """Tell the story. 0 if all of it held, else 1."""
    print("Starting an SMP server, a mock APNs, the relay and a device on this machine …", flush=True)
    try:
        async with _parties() as (story, recipient):
            queue = await _tell(story, recipient)
            if keep:
                await _stay(story, queue)
            code = await story.relay.stop(signal.SIGTERM)
            _check(code == 0, f"the relay did not stop cleanly ({code})")
    except (DemoError, TimeoutError) as e:
        print(f"The demo failed: {e or 'nothing came in time'}", file=sys.stderr)
        return 1
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
    print(f"\nrelay       {story.relay.address}")
    print(f"SMP server  {story.smp.address}")
    print(f"mock APNs   https://localhost:{story.apns.port} (CA: {story.apns.ca_file})")
    print(f"device      ntf-client --state {story.state} status")
    print("A line that you type is sent as a message. Ctrl-C ends it.", flush=True)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    tasks = [asyncio.create_task(_type(story, queue)), asyncio.create_task(stopped.wait())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for error in results:
        if isinstance(error, Exception):
            raise error


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
