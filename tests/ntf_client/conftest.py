"""A relay in this process, a recipient on an SMP server, and an NTF server that says what it is told."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ntf_client import Device, VerificationCode
from ntf_server.app import Relay
from ntf_server.config import identity_files
from ntf_server.config.files import assemble
from ntf_server.config.settings import Apns, ApnsHost, Limits, Settings, Subscriber, Transport
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing import MockApns
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url
from smp_bridge.identity import Credentials
from smp_bridge.testing import Recipient, SmpServer
from smp_bridge.transmission import Invalid, Message, Session, encode_blocks, encode_transmission, parse_block
from smp_bridge.transport import BlockConnection, ConnectionClosedError, accept, serve


@pytest.fixture
async def relay(tmp_path: Path, mock_apns: MockApns) -> AsyncIterator[ServerAddress]:
    """The address of a running relay, whose provider AT is the mock APNs."""
    directory = tmp_path / "relay"
    directory.mkdir()
    identity_files.create_identity(directory, "ED25519", "localhost")
    settings = Settings(
        transport=Transport(host="localhost", port=0, bind="localhost"),
        apns=Apns(test=ApnsHost(host="localhost", port=mock_apns.port, ca_file=str(mock_apns.ca_file))),
        subscriber=Subscriber(allow_private_hosts=True),
        limits=Limits(enabled=False),
    )
    (directory / identity_files.MASTER_KEY).write_text(generate_key_text())
    config = assemble(directory, settings, {})
    async with Relay(config) as running:
        yield ServerAddress("ntf", ("localhost",), str(running.port), config.credentials.key_hash)


@pytest.fixture
async def recipient(smp_server: SmpServer) -> AsyncIterator[Recipient]:
    """A recipient on the SMP server."""
    async with await Recipient.connect(smp_server.address) as connected:
        yield connected


@pytest.fixture
def registered(relay: ServerAddress, mock_apns: MockApns, tmp_path: Path) -> Callable[[], Any]:
    """Makes a device that is registered and verified, and saved."""

    async def make(name: str = "device.json", token: str = "00ff" * 16) -> Device:
        device = Device.create(relay, ntf.DeviceToken(ntf.Provider.APNS_TEST, token.encode()), tmp_path / name)
        async with device.connect() as client:
            await device.register(client)
            content = device.open_push((await mock_apns.next(token)).body)
            assert isinstance(content, VerificationCode)
            await device.verify(client, content.code)
        return device

    return make


class ScriptedServer:
    """Answers each command with the next of `answers`: a message, None (says nothing) or "close"."""

    def __init__(self, *answers: Message | str | None) -> None:
        self.answers = deque(answers)
        self.received: list[Message] = []
        self.credentials = Credentials.generate("ED25519", "localhost")[0]
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await serve("ntf", self.credentials, self._on_connected, "localhost", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = ServerAddress("ntf", ("localhost",), str(port), self.credentials.key_hash)

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _on_connected(self, connection: BlockConnection) -> None:
        task = asyncio.create_task(self._run(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, connection: BlockConnection) -> None:
        with suppress(ConnectionClosedError):
            session = await accept(connection, self.credentials)
            while self._answer(connection, session, await connection.receive()):
                pass
        await connection.close()

    def _answer(self, connection: BlockConnection, session: Session, content: bytes) -> bool:
        for t in parse_block(session, content):
            assert not isinstance(t, Invalid)
            self.received.append(ntf.parse_command(t.command, session.version))
            answer = self.answers.popleft()
            if isinstance(answer, str):
                return False
            if answer is not None:
                encoded = encode_transmission(session, t.corr_id, t.entity_id, answer.encode(session.version))
                for block in encode_blocks(session, [encoded]):
                    connection.send(block)
        return True


@pytest.fixture
async def scripted() -> AsyncIterator[Callable[..., Any]]:
    """Starts scripted servers: `server = await scripted(answer, ...)`."""
    servers: list[ScriptedServer] = []

    async def start(*answers: Message | str | None) -> ScriptedServer:
        server = ScriptedServer(*answers)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture
def secret_texts() -> Callable[[Path], list[str]]:
    """The secrets in a state file, as it holds them."""

    def find(path: Path) -> list[str]:
        from ntf_client import state

        loaded = state.load(path)
        out = [loaded.secret, *(s.secret for s in loaded.subscriptions), loaded.token.token]
        out += [loaded.verify_key.private_bytes_raw(), loaded.dh_key.private_bytes_raw()]
        texts = [b64url(s).rstrip("=") for s in out if s]
        raw = path.read_text()
        return texts + [raw.split(f'"{key}": "')[1].split('"')[0] for key in ("verify_key", "dh_key")]

    return find
