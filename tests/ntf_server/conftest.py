"""A relay in this process, and sessions with it that are made by hand."""

import asyncio
import contextlib
import gc
import logging
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from node import Node

from ntf_server.app import Relay
from ntf_server.config import files as config
from ntf_server.config import identity_files
from ntf_server.config.files import Config
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing import MockApns
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.connecting import connect
from smp_bridge.identity import Credentials, SignPrivateKey, private_key_pem
from smp_bridge.testing import Queue, Recipient, SmpServer
from smp_bridge.tls import client_context
from smp_bridge.transmission import (
    CORR_ID_SIZE,
    Message,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
)
from smp_bridge.transport import BlockConnection

Identity = tuple[Credentials, SignPrivateKey]


def write_identity(directory: Path, identity: Identity) -> None:
    """The files that `ntf-server init` makes, but for the configuration."""
    credentials, ca_key = identity
    directory.mkdir(parents=True, exist_ok=True)
    leaf, ca = credentials.chain
    for name, data in (
        ("ca.key", private_key_pem(ca_key)),
        ("ca.crt", ca.public_bytes(Encoding.PEM)),
        ("server.key", private_key_pem(credentials.key)),
        ("server.crt", leaf.public_bytes(Encoding.PEM)),
        ("master.key", generate_key_text().encode()),
    ):
        identity_files.write_file(directory / name, data)


class Wire:
    """A session whose transmissions and blocks are the test's."""

    def __init__(self, connection: BlockConnection, session: Session) -> None:
        self.connection = connection
        self.session = session

    def encode(
        self,
        command: Message | bytes,
        entity_id: bytes = b"",
        key: crypto.AuthPrivateKey | None = None,
        corr_id: bytes | None = None,
    ) -> bytes:
        raw = command if isinstance(command, bytes) else command.encode(self.session.version)
        corr_id = os.urandom(CORR_ID_SIZE) if corr_id is None else corr_id
        return encode_transmission(self.session, corr_id, entity_id, raw, key)

    def send(self, *transmissions: bytes) -> None:
        for block in encode_blocks(self.session, transmissions):
            self.connection.send(block)

    def send_raw(self, block: bytes) -> None:
        """These bytes, padded by nobody."""
        self.connection._tls.write(block)
        self.connection._flush()

    async def receive(self) -> list[Transmission]:
        """The answers of the next block."""
        content = await asyncio.wait_for(self.connection.receive(), 10)
        answers = parse_block(self.session, content)
        assert all(isinstance(a, Transmission) for a in answers)
        return [a for a in answers if isinstance(a, Transmission)]

    async def ask_raw(self, transmission: bytes) -> Transmission:
        self.send(transmission)
        [answer] = await self.receive()
        return answer

    async def ask(
        self, command: Message | bytes, entity_id: bytes = b"", key: crypto.AuthPrivateKey | None = None
    ) -> Message:
        """The answer to one command; correlation and entity id are checked against the rules of echoing."""
        corr_id = os.urandom(CORR_ID_SIZE)
        answer = await self.ask_raw(self.encode(command, entity_id, key, corr_id))
        message = ntf.parse_answer(answer.command, self.session.version)
        echoed = b"" if isinstance(message, ntf.IdTkn | ntf.IdSub | ntf.Pong) else entity_id
        assert (answer.corr_id, answer.entity_id, answer.authenticator) == (corr_id, echoed, b"")
        return message


Dial = Callable[..., Awaitable[Wire]]


@pytest.fixture
async def recipient(smp_server: SmpServer) -> AsyncIterator[Recipient]:
    """Who makes queues on the in-memory SMP server."""
    async with await Recipient.connect(smp_server.address) as connected:
        yield connected


@pytest.fixture
async def queues(recipient: Recipient) -> list[Queue]:
    """Five of them."""
    return [await recipient.queue() for _ in range(5)]


@pytest.fixture
async def node(open_node: Callable[..., AbstractAsyncContextManager[Node]]) -> AsyncIterator[Node]:
    """A node as the test's `open_node` opens it."""
    async with open_node() as opened:
        yield opened


@pytest.fixture(scope="session")
def identity() -> Identity:
    """Credentials of a server, and the private key of its identity."""
    return Credentials.generate("ED25519", "localhost")


@pytest.fixture
def make_config(tmp_path: Path, identity: Identity, mock_apns: MockApns) -> Callable[..., Config]:
    """Makes configurations, all in one folder: `make_config(inactive_clients__ttl=5)`."""
    directory = tmp_path / "relay"
    write_identity(directory, identity)
    (directory / config.CONFIG_FILE).touch()

    def make(**settings: Any) -> Config:
        defaults = {
            "transport__bind": "127.0.0.1",
            "transport__port": 0,
            "apns__test__host": "localhost",
            "apns__test__port": mock_apns.port,
            "apns__test__ca_file": mock_apns.ca_file,
            "delivery__min_backoff": 0.05,
            "delivery__max_backoff": 0.2,
            "subscriber__allow_private_hosts": "true",
            "limits__enabled": "false",
        }
        return config.load(directory, {f"NTF_SERVER__{k.upper()}": str(v) for k, v in {**defaults, **settings}.items()})

    return make


@pytest.fixture
async def relay(make_config: Callable[..., Config]) -> AsyncIterator[Relay]:
    """A relay with the mock APNs as its provider AT."""
    async with Relay(make_config()) as running:
        yield running


@pytest.fixture
def address_of(identity: Identity) -> Callable[..., ServerAddress]:
    """The address of what listens on a port of loopback."""
    return lambda server: ServerAddress("ntf", ("127.0.0.1",), str(server.port), identity[0].key_hash)


@pytest.fixture
async def dial(address_of: Callable[..., ServerAddress]) -> AsyncIterator[Dial]:
    """Opens sessions by hand: `await dial(relay, version=2)`."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_wire(server: Any, version: int = 3, *, alpn: bool = True) -> Wire:
            context = client_context("ntf") if alpn else context_without_alpn()
            connection, session = await connect(address_of(server), context=context, versions=(version, version))
            stack.push_async_callback(connection.close)
            stack.callback(connection.abort)  # first: what a test left unsent must not be waited for
            return Wire(connection, session)

        yield open_wire


@pytest.fixture
async def client(relay: Relay, address_of: Callable[..., ServerAddress]) -> AsyncIterator[Client]:
    """A client of the relay."""
    async with await Client.connect(address_of(relay)) as connected:
        yield connected


def context_without_alpn() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """All records, from debug on."""
    records: list[logging.LogRecord] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler, root = Collect(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logging.getLogger("hpack").setLevel(logging.INFO)  # the mock's, a dozen lines for each push
    yield records
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def quiet(logged: list[logging.LogRecord]) -> Iterator[None]:
    """No traceback, and no complaint of asyncio, is logged, also not when everything is gone."""
    yield
    gc.collect()
    assert [r.getMessage() for r in logged if r.exc_info or (r.name == "asyncio" and r.levelno > logging.DEBUG)] == []
