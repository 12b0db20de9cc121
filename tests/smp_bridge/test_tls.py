"""TLS in memory: what one end puts out is fed to the other. On sockets it is tested in test_transport."""

import os
import ssl
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smp_bridge.identity import Credentials, generate_key
from smp_bridge.tls import SslTls, TlsClosedError, client_context, server_context

SERVER, _ = Credentials.generate("ED25519", "localhost")
CLIENT, _ = Credentials.generate("ED448", "client")
BLOCK = 16384


def ends(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[SslTls, SslTls]:
    """(client, server) before the handshake."""
    context = client_context("smp")
    context.maximum_version = version
    return SslTls(context), SslTls(server_context("smp", SERVER), server_side=True)


def pass_on(sender: SslTls, receiver: SslTls, size: int = 4096) -> None:
    data = sender.output()
    for i in range(0, len(data), size):
        receiver.feed(data[i : i + size])


def shake_hands(client: SslTls, server: SslTls, size: int = 4096) -> None:
    done = [False, False]
    for _ in range(5):
        for i, (one, other) in enumerate(((client, server), (server, client))):
            done[i] = done[i] or one.handshake()
            pass_on(one, other, size)
    assert done == [True, True]


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def connected(request: pytest.FixtureRequest) -> tuple[SslTls, SslTls]:
    client, server = ends(request.param)
    shake_hands(client, server)
    return client, server


def read(end: SslTls, size: int = BLOCK) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: end.read_into(memoryview(buffer))])


def test_both_ends_agree(connected: tuple[SslTls, SslTls]) -> None:
    client, server = connected
    assert client.alpn() == server.alpn() == "smp/1"
    assert client.finished() == server.finished()
    assert len(client.finished()) >= 12
    assert client.peer_chain() == tuple(SERVER.chain_der)
    assert server.peer_chain() == ()  # Python's ssl module asks for none
    if client.tls.version() == "TLSv1.2":  # in 1.3 two that have AES in hardware may choose it
        assert "CHACHA20" in str(client.tls.cipher())


def test_no_protocol_is_agreed_on_with_another() -> None:
    client = SslTls(client_context("ntf"))
    server = SslTls(server_context("smp", SERVER), server_side=True)
    shake_hands(client, server)
    assert client.alpn() is server.alpn() is None


def test_a_client_with_credentials_gets_through() -> None:
    client = SslTls(client_context("smp", CLIENT))
    server = SslTls(server_context("smp", SERVER), server_side=True)
    shake_hands(client, server)


@pytest.mark.parametrize("make", [client_context, server_context])
def test_bad_credentials(make: object) -> None:
    bad = Credentials(CLIENT.chain, generate_key("ED448"))
    with pytest.raises(ssl.SSLError):
        make("smp", bad)  # type: ignore[operator]


@pytest.mark.parametrize("make", [client_context, server_context])
def test_no_key_touches_a_disk(make: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file is made, even for a moment, its folder was changed."""
    folders = [tmp_path / "temporary", tmp_path / "working"]
    for folder in folders:
        folder.mkdir()
        os.utime(folder, (1, 1))
    monkeypatch.setattr(tempfile, "tempdir", str(folders[0]))
    monkeypatch.chdir(folders[1])
    before = sorted(Path("/proc/self/fd").iterdir())
    make("smp", CLIENT)  # type: ignore[operator]
    assert [folder.stat().st_mtime for folder in folders] == [1, 1]
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_credentials_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that has no writable folder; in one that was removed not even root can make a file."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(tempfile, "tempdir", str(gone))
    with pytest.raises(FileNotFoundError), tempfile.TemporaryFile():
        pass
    client = SslTls(client_context("smp", CLIENT))
    shake_hands(client, SslTls(server_context("smp", SERVER), server_side=True))


def test_nothing_to_read_yet(connected: tuple[SslTls, SslTls]) -> None:
    client, server = connected
    assert (read(client), read(server)) == (b"", b"")
    client.write(b"x" * BLOCK)
    sealed = client.output()
    server.feed(sealed[:-1])
    assert read(server) == b""
    server.feed(sealed[-1:])
    assert read(server) == b"x" * BLOCK
    assert read(server) == b""
    assert server.output() == b""


@given(st.binary(min_size=1, max_size=3000), st.integers(1, 700), st.integers(1, 700))
def test_any_pieces(content: bytes, fed: int, taken: int) -> None:
    client, server = ends()
    shake_hands(client, server, fed)
    client.write(content)
    pass_on(client, server, fed)
    received = b""
    while piece := read(server, taken):
        assert len(piece) <= taken
        received += piece
    assert received == content


def test_goodbye_comes_after_what_was_sent(connected: tuple[SslTls, SslTls]) -> None:
    client, server = connected
    client.write(b"last")
    client.close()
    pass_on(client, server)
    assert read(server) == b"last"
    for _ in range(2):
        with pytest.raises(TlsClosedError):
            read(server)
    client.close()
    server.close()
    pass_on(server, client)


def test_goodbye_before_the_handshake() -> None:
    client, server = ends()
    client.close()
    server.close()
    client.handshake()
    pass_on(client, server)
    server.close()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(300), b"\xff" * 20000])
def test_garbage_instead_of_a_handshake(garbage: bytes) -> None:
    for end in ends():
        end.feed(garbage)
        with pytest.raises(ssl.SSLError):
            while end.handshake() is False:
                end.feed(garbage)


@given(st.integers(5, 300), st.integers(0, 7))
def test_a_record_that_was_changed(position: int, bit: int) -> None:
    client, server = ends()
    shake_hands(client, server)
    client.write(b"x" * 300)
    sealed = bytearray(client.output())
    sealed[position] ^= 1 << bit
    server.feed(bytes(sealed))
    with pytest.raises(ssl.SSLError):
        read(server)
    assert server.output()  # the alert


def test_no_cipher_in_common() -> None:
    context = client_context("smp")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM")
    client = SslTls(context)
    server = SslTls(server_context("smp", SERVER), server_side=True)
    client.handshake()
    pass_on(client, server)
    with pytest.raises(ssl.SSLError):
        server.handshake()
    pass_on(server, client)
    with pytest.raises(ssl.SSLError):  # the alert says so
        client.handshake()


def test_no_session_tickets() -> None:
    client, server = ends()
    shake_hands(client, server)
    server.write(b"x")
    pass_on(server, client)
    assert read(client) == b"x"
    assert client.tls.session is not None
    assert not client.tls.session.has_ticket
