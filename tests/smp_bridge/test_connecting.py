import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID
from listening import Listener, exchange, listen

from smp_bridge import crypto
from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.connecting import connect
from smp_bridge.handshake import (
    HandshakeError,
    IdentityMismatchError,
    ServiceCredentials,
    ServiceRefusedError,
)
from smp_bridge.identity import Credentials, SignAlgorithm, generate_key, issue_leaf
from smp_bridge.network import HostNotAllowedError, Network
from smp_bridge.testing import SmpServer
from smp_bridge.tls import SslTls, client_context, server_context
from smp_bridge.transmission import Session
from smp_bridge.transport import (
    BlockConnection,
    ConnectionClosedError,
    accept,
    serve,
)

NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    async with listen() as listener:
        yield listener


def without_alpn() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# --- TLS


@pytest.mark.parametrize("services", [True, False])
async def test_no_host_is_named_to_a_server_with_a_web_page(services: bool) -> None:
    async with SmpServer(sni="web", services=services) as server:
        connection, session = await connect(server.address)
        assert session.version == 20
        await connection.close()


@pytest.mark.parametrize("scheme", ["smp", "ntf"])
async def test_no_host_is_named(scheme: Scheme) -> None:
    named: list[str | None] = []
    credentials = Credentials.generate("ED25519", "localhost")[0]
    context = server_context(scheme, credentials)
    context.sni_callback = lambda _, host, __: named.append(host)  # type: ignore[assignment, misc]
    tls = partial(SslTls, context, server_side=True)
    async with listen(credentials, scheme, tls=tls) as listener:
        connection, _ = await connect(listener.address)
        await connection.close()
    assert named in ([], [None])


# --- versions


@pytest.mark.parametrize(("scheme", "version"), [("smp", v) for v in range(6, 19)] + [("ntf", v) for v in (1, 2, 3)])
async def test_every_version(scheme: Scheme, version: int) -> None:
    async with listen(scheme=scheme) as listener:
        client, ours = await connect(listener.address, versions=(1, version))
        server, theirs = await listener.accepted.get()
        assert ours.version == theirs.version == version
        assert ours.session_id == theirs.session_id != b""
        encrypted = scheme == "smp" and version >= 11
        assert (ours.send_chain is not None) == (theirs.receive_chain is not None) == encrypted
        for _ in range(3):
            await exchange(client, server)


async def test_the_server_limits_the_version() -> None:
    async with listen(versions=(8, 12)) as listener:
        _, session = await connect(listener.address)
        assert session.version == 12
        with pytest.raises(HandshakeError, match="version"):
            await connect(listener.address, versions=(6, 7))


@pytest.mark.parametrize(("scheme", "legacy"), [("smp", 6), ("ntf", 1)])
async def test_a_client_without_alpn_gets_the_legacy_version(scheme: Scheme, legacy: int) -> None:
    async with listen(scheme=scheme) as listener:
        client, session = await connect(listener.address, context=without_alpn())
        assert session.version == legacy
        await exchange(client, (await listener.accepted.get())[0])
        with pytest.raises(HandshakeError, match="version"):
            await connect(listener.address, context=without_alpn(), versions=(legacy + 1, legacy + 2))


async def test_only_tls_with_chacha20(listener: Listener) -> None:
    client, _ = await listener.pair()
    assert isinstance(client._tls, SslTls)
    assert client._tls.tls.version() == "TLSv1.3"
    assert client._tls.tls.session is not None
    assert not client._tls.tls.session.has_ticket
    context = client_context("smp")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM")
    with pytest.raises(OSError):  # a TLS alert, or already the reset that follows
        await connect(listener.address, context=context)
    assert listener.accepted.empty()
    context.set_ciphers("ECDHE+CHACHA20")
    older, session = await connect(listener.address, context=context)
    assert isinstance(older._tls, SslTls)
    assert older._tls.tls.version() == "TLSv1.2"
    assert session.version == 20


# --- identity


async def test_another_identity_than_the_address_says(listener: Listener) -> None:
    with pytest.raises(IdentityMismatchError):
        await connect(replace(listener.address, key_hash=bytes(32)))
    assert isinstance(await listener.failed.get(), ConnectionClosedError)


async def test_the_leaf_is_not_the_identity() -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    async with listen(credentials) as listener:
        leaf = crypto.key_hash(credentials.chain_der[0])
        with pytest.raises(IdentityMismatchError):
            await connect(replace(listener.address, key_hash=leaf))


@pytest.mark.parametrize("algorithm", ["ED25519", "ED448"])
async def test_both_kinds_of_credentials(algorithm: SignAlgorithm) -> None:
    credentials, _ = Credentials.generate(algorithm, "localhost")
    async with listen(credentials) as listener:
        await exchange(*await listener.pair())


def authority(
    name: str, key: Ed25519PrivateKey, issuer: x509.Certificate | None, issuer_key: Ed25519PrivateKey
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(issuer_key, None)
    )


def chain_of(length: int, *, forged: bool = False) -> Credentials:
    """Credentials whose chain has this length; with `forged` the identity did not sign the leaf."""
    certificates: list[x509.Certificate] = []
    key = issuer_key = Ed25519PrivateKey.generate()
    for i in range(length - 1):
        certificates.insert(0, authority(f"CA {i}", key, certificates[0] if certificates else None, issuer_key))
        issuer_key, key = key, Ed25519PrivateKey.generate()
    leaf_key = generate_key("ED25519")
    leaf = issue_leaf(leaf_key, "localhost", certificates[0], key if forged else issuer_key, NOW)
    return Credentials((leaf, *certificates), leaf_key)


@pytest.mark.parametrize("length", [2, 3, 4])
async def test_chains(length: int) -> None:
    credentials = chain_of(length)
    assert len(credentials.chain) == length
    async with listen(credentials) as listener:
        client, server = await listener.pair()
        assert client.peer_chain == tuple(credentials.chain_der)
        await exchange(client, server)


@pytest.mark.parametrize("credentials", [chain_of(5), chain_of(3, forged=True)])
async def test_chains_that_do_not_hold(credentials: Credentials) -> None:
    async with listen(credentials) as listener:
        with pytest.raises(IdentityMismatchError):
            await connect(listener.address)


async def test_a_leaf_whose_session_key_another_key_signed() -> None:
    credentials, _ = Credentials.generate("ED25519", "localhost")
    liar = replace(credentials, key=generate_key("ED25519"))

    def on_connected(connection: BlockConnection) -> None:
        tasks.append(asyncio.create_task(accept(connection, liar)))

    tasks: list[asyncio.Task[Session]] = []
    server = await serve("smp", credentials, on_connected, "127.0.0.1", 0)
    address = ServerAddress("smp", ("localhost",), str(server.sockets[0].getsockname()[1]), credentials.key_hash)
    with pytest.raises(IdentityMismatchError, match="session key"):
        await connect(address)
    assert isinstance((await asyncio.gather(*tasks, return_exceptions=True))[0], ConnectionClosedError)
    server.close()


# --- addresses


async def test_the_first_host_that_answers(listener: Listener) -> None:
    await connect(replace(listener.address, hosts=("127.0.0.2", "a" * 64, "localhost")))
    assert (await listener.accepted.get())[1].version == 20


async def test_no_host_answers(listener: Listener) -> None:
    with pytest.raises(ConnectionRefusedError):
        await connect(replace(listener.address, hosts=("127.0.0.2",)))
    with pytest.raises(OSError):
        await connect(replace(listener.address, hosts=()))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_private_hosts_are_not_connected_to_unless_allowed(listener: Listener, host: str) -> None:
    with pytest.raises(HostNotAllowedError):
        await connect(replace(listener.address, hosts=(host,)), network=Network())
    await listener.pair()
    assert listener.accepted.empty()
    assert listener.failed.empty()


async def test_a_server_that_says_nothing(listener: Listener) -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    with pytest.raises(TimeoutError):
        await connect(replace(listener.address, port=port), network=Network(allow_private=True, connect_timeout=0.1))
    server.close()
    for writer in writers:
        writer.close()
        await writer.wait_closed()


# --- services


async def test_a_service_that_is_refused_ends_the_search(listener: Listener) -> None:
    """As an impostor does: no other host's failure may hide it."""
    service, _ = Credentials.generate("ED25519", "service")
    proof = ServiceCredentials(tuple(service.chain_der), service.key, Ed25519PrivateKey.generate())
    async with SmpServer() as server:
        server.refuse_services = True
        address = replace(server.address, hosts=("127.0.0.1", "127.0.0.2"))
        with pytest.raises(ServiceRefusedError):
            await connect(address, context=client_context("smp", service), service=proof)
        with pytest.raises(IdentityMismatchError):
            await connect(replace(address, key_hash=bytes(32)))


async def test_a_connect_that_is_cancelled_leaves_no_timer(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while its socket is made a transport."""

    async def never(*args: object, **kwargs: object) -> None:
        began.set()
        await asyncio.Event().wait()

    began, made = asyncio.Event(), []

    class Watched(BlockConnection):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("smp_bridge.connecting.BlockConnection", Watched)
    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    connecting = asyncio.create_task(connect(listener.address))
    await began.wait()
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert [c._deadline for c in made] == [None]


async def test_the_clock_says_which_certificates_are_valid(listener: Listener) -> None:
    with pytest.raises(IdentityMismatchError):
        await connect(listener.address, clock=lambda: NOW.timestamp() - 10 * 86400)
