"""A new configuration for a relay that runs, on a Redis with TLS: who takes what; all of it, or nothing."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from certificates import client_certificate
from cryptography import x509
from harness import Phone
from redis_servers import HOST, Server
from redis_world import front

from ntf_server.admin.socket import RefusedError, ask
from ntf_server.app import Relay
from ntf_server.config.files import CONFIG_FILE, Config, load
from ntf_server.config.identity_files import create_identity, renew_certificate
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing import MockApns
from ntf_server.testing.tls import throwaway_tls
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.tls import client_context


class World:
    """A relay's folder, and the Redis behind TLS that wants to see a client certificate: `shown` to it."""

    def __init__(self, directory: Path, server: Server, context: ssl.SSLContext, shown: list[int]) -> None:
        self.directory = directory
        self.server = server
        self.shown = shown
        self._context = context
        self._renewals = 0

    def renew_client_certificate(self) -> int:
        """Its serial number; Redis trusts it."""
        self._renewals += 1
        cert, _ = client_certificate(self.directory, days=100, name=f"relay {self._renewals}")
        self._context.load_verify_locations(cafile=cert)
        return x509.load_pem_x509_certificate(Path(cert).read_bytes()).serial_number

    def configure(self, old: str, new: str) -> None:
        file = self.directory / CONFIG_FILE
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def config(self) -> Config:
        return load(self.directory, {})


@pytest.fixture
def as_before() -> Iterator[None]:
    """The log is this whole process's."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture
async def world(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mock_apns: MockApns) -> AsyncIterator[World]:
    create_identity(tmp_path, "ED25519", "localhost")
    (tmp_path / "master.key").write_text(generate_key_text())
    shown: list[int] = []
    with throwaway_tls() as files, Server(tmp_path_factory.mktemp("redis")) as server:
        context = files.server_context()
        context.verify_mode = ssl.CERT_REQUIRED
        async with front(server, context, shown) as port:
            url = f"rediss://{HOST}:{port}?ca_file={files.ca_file}&cert_file=push.pem&key_file=push.key"
            (tmp_path / CONFIG_FILE).write_text(
                f"""
                [transport]
                port = 0
                bind = "localhost"
                [store]
                url = "{url}"
                [apns.test]
                host = "localhost"
                port = {mock_apns.port}
                ca_file = "{mock_apns.ca_file}"
                [log]
                level = "info"
                """
            )
            yield World(tmp_path, server, context, shown)


async def connect(relay: Relay, config: Config) -> Client:
    return await Client.connect(ServerAddress("ntf", ("localhost",), str(relay.port), config.credentials.key_hash))


async def leaf(relay: Relay) -> bytes:
    """What it shows to who comes now."""
    context = client_context("ntf")
    context.set_alpn_protocols(["ntf/1"])
    _, writer = await asyncio.open_connection("localhost", relay.port, ssl=context, server_hostname="")
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return shown


@pytest.mark.usefixtures("as_before")
async def test_all_of_it_or_nothing(world: World, phone: Callable[[], Phone]) -> None:
    first = world.renew_client_certificate()
    config = world.config()
    async with Relay(config) as relay, await connect(relay, config) as before:
        assert set(world.shown) == {first}
        second = world.renew_client_certificate()
        key, old_leaf = world.directory / "push.key", config.credentials.chain_der[0]
        assert await leaf(relay) == old_leaf
        good_key = key.read_bytes()
        renew_certificate(world.directory, world.directory / "ca.key", "ED25519", None)
        world.configure('level = "info"', 'level = "error"')
        key.write_text("SECRET")

        with pytest.raises(RefusedError, match=r"not changed: .*ntf-server\.toml: the TLS files of ") as refused:
            await asyncio.to_thread(ask, config.admin_socket, "reload")
        assert "SECRET" not in str(refused.value)
        assert logging.getLogger().level != logging.ERROR
        assert await leaf(relay) == old_leaf

        key.write_bytes(good_key)
        answer = await asyncio.to_thread(ask, config.admin_socket, "reload")
        assert answer["swapped"] == ["the online certificate", "the TLS files of [store] url", "[log] level"]
        assert await leaf(relay) == world.config().credentials.chain_der[0] != old_leaf
        assert logging.getLogger().level == logging.ERROR
        world.server.ask("CLIENT", "KILL", "TYPE", "normal")
        device = phone()
        await device.register(before)  # its session stayed; the store is connected to anew
        await device.verify(before)
        assert world.shown[-1] == second
