"""deploy/balancers: HAProxy and nginx, as their files say, in front of two relays that share a store."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from debian import files, program
from harness import Phone, RelayProcess, environment
from redis_servers import Server
from relay_nodes import Nodes

from ntf_server.testing import MockApns
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.transport import ConnectionClosedError

BALANCERS = Path(__file__).parents[1] / "deploy/balancers"
EXAMPLE = "198.51.100."  # its network; the relays are 11 and 12, the balancer 2


@pytest.mark.parametrize("name", ["haproxy.cfg", "nginx.conf"])
def test_examples_say_how_the_relays_are_to_be_set_up(name: str) -> None:
    text = (BALANCERS / name).read_text()
    assert all(f"{EXAMPLE}{n}:5223" in text for n in (11, 12))
    assert "[transport] port = 5223" in text and f'["{EXAMPLE}2"]' in text
    assert ("send-proxy-v2" in text) == ("proxies = " in text)
    assert ("send-proxy-v2" in text) != ("[limits] shared" in text)


class Node(RelayProcess):
    async def begin(self) -> None:
        process = await self.run()
        assert process.stdout is not None
        assert (await asyncio.wait_for(process.stdout.readline(), 20)).startswith(b"listening on ")


@pytest.fixture
def network() -> str:
    """Of loopback, in the place of the examples'."""
    return f"127.{random.randrange(20, 250)}.{random.randrange(250)}."


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "redis") as server:
        yield server


@asynccontextmanager
async def relays(tmp_path: Path, url: str, network: str, apns: MockApns, **settings: str) -> AsyncIterator[list[Node]]:
    nodes = Nodes(tmp_path, environment(apns) | settings, url)
    await nodes.init(2)
    made = []
    for number, node in enumerate(nodes.nodes):
        own = {f"NTF_SERVER__{section}__BIND": f"{network}{11 + number}" for section in ("TRANSPORT", "METRICS")}
        more = own | {"NTF_SERVER__METRICS__PORT": "9464"}
        made.append(Node(node.directory, node.environment | more, port=5223, key_hash=nodes.nodes[0].key_hash))
        await made[-1].begin()
    try:
        yield made
    finally:
        for node in made:
            await node.stop(signal.SIGKILL)


@asynccontextmanager
async def balancer(*command: str | Path) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(*command)
    yield process
    if process.returncode is None:
        process.terminate()
    await process.wait()


async def checked(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=asyncio.subprocess.STDOUT)
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()


async def connected(address: ServerAddress) -> Client:
    """As soon as the balancer knows a relay that is well."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await Client.connect(address)
            except (OSError, ConnectionClosedError):
                await asyncio.sleep(0.2)


async def serves(address: ServerAddress, nodes: list[Node], device: Phone) -> None:
    """A device registers through the balancer; then one relay is stopped, and the other has it."""
    async with await connected(address) as client:
        await device.register(client)
        await device.verify(client)
    assert await nodes[0].stop() == 0
    async with await connected(address) as client:
        assert (await device.status(client)).status == "ACTIVE"
        assert await client.request(ntf.Ping()) == ntf.Pong()


@pytest.mark.long
async def test_haproxy(
    tmp_path: Path, redis: Server, network: str, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """It says whose connections they are, or none would be taken."""
    text = (BALANCERS / "haproxy.cfg").read_text().replace(EXAMPLE, network)
    text = text.replace("bind :443", f"bind {network}2:5223").replace("maxconn 60000", "maxconn 1000")
    file = tmp_path / "haproxy.cfg"
    file.write_text(text.replace("default-server ", f"default-server source {network}2 "))
    haproxy = program("haproxy")
    await checked(haproxy, "-c", "-f", BALANCERS / "haproxy.cfg")
    settings = {"NTF_SERVER__TRANSPORT__PROXIES": f"{network}2"}
    running = relays(tmp_path, redis.url, network, mock_apns, **settings)
    async with running as nodes, balancer(haproxy, "-f", file, "-db"):
        await serves(ServerAddress("ntf", (f"{network}2",), "5223", nodes[0].key_hash), nodes, phone())


@pytest.mark.long
async def test_nginx(
    tmp_path: Path, redis: Server, network: str, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    [module, *_] = files("usr/lib/nginx/modules/ngx_stream_module.so")
    (tmp_path / "nginx").mkdir()
    text = (BALANCERS / "nginx.conf").read_text().replace(EXAMPLE, network)
    text = text.replace("modules/ngx_stream_module.so", str(module)).replace("listen 443 ", f"listen {network}2:5223 ")
    text = text.replace("/var/log/nginx", str(tmp_path / "nginx")).replace("/run/", f"{tmp_path}/nginx/")
    text = text.replace("worker_rlimit_nofile 131072", "worker_rlimit_nofile 1024").replace(" 65536", " 500")
    file = tmp_path / "nginx.conf"
    file.write_text(text)
    command = (program("nginx"), "-p", tmp_path / "nginx", "-e", tmp_path / "nginx/error.log", "-c", file)
    await checked(*command, "-t")
    settings = {"NTF_SERVER__LIMITS__ENABLED": "true", "NTF_SERVER__LIMITS__SHARED": "127.0.0.1"}
    running = relays(tmp_path, redis.url, network, mock_apns, **settings)
    async with running as nodes, balancer(*command, "-g", "daemon off;"):
        await serves(ServerAddress("ntf", (f"{network}2",), "5223", nodes[0].key_hash), nodes, phone())
