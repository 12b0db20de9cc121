import contextlib
import datetime
import ssl
from pathlib import Path
from typing import Literal

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from smp_bridge.identity import Credentials, generate_key, issue_ca
from smp_bridge.testing.tls import OpenSslTls, service_context, show_web_page
from smp_bridge.tls import SslTls, Tls, TlsClosedError, client_context, server_context

SERVER, _ = Credentials.generate("ED448", "localhost")
CLIENT, CLIENT_CA_KEY = Credentials.generate("ED25519", "client")
CLIENT_448, _ = Credentials.generate("ED448", "client")
CONTEXT = service_context("smp", SERVER)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
BLOCK = 16384
DAY = datetime.timedelta(days=1)


def client(credentials: Credentials | None = None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> SslTls:
    context = client_context("smp", credentials)
    context.minimum_version = context.maximum_version = version
    return SslTls(context)


def pump(a: Tls, b: Tls) -> None:
    """Carry what one has to send to the other."""
    if data := a.output():
        b.feed(data)


def shake(ours: Tls, theirs: Tls) -> None:
    done = False
    for _ in range(5):
        mine = ours.handshake()
        pump(ours, theirs)
        done = theirs.handshake()
        pump(theirs, ours)
        if mine and done:
            return
    raise AssertionError("the handshake does not end")


def read(tls: Tls, size: int = BLOCK) -> bytes:
    buffer = memoryview(bytearray(size))
    return bytes(buffer[: tls.read_into(buffer)])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("credentials", [None, CLIENT, CLIENT_448])
def test_handshake(version: ssl.TLSVersion, credentials: Credentials | None) -> None:
    ours, theirs = client(credentials, version), OpenSslTls(CONTEXT)
    shake(ours, theirs)
    assert theirs.finished() == ours.finished() != b""
    assert theirs.alpn() == ours.alpn() == "smp/1"
    assert ours.peer_chain() == tuple(SERVER.chain_der)
    assert theirs.peer_chain() == (tuple(credentials.chain_der) if credentials else ())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("length", [1, 3, 4])
def test_client_chains_of_every_length(version: ssl.TLSVersion, length: int) -> None:
    key = generate_key("ED25519")
    lone = issue_ca(key, "client", CLIENT.chain[0].not_valid_before_utc)
    credentials = Credentials((lone,) if length == 1 else (*CLIENT.chain, *[lone] * (length - 2)), key)
    if length > 1:
        credentials = Credentials(credentials.chain, CLIENT.key)
    ours, theirs = client(credentials, version), OpenSslTls(CONTEXT)
    shake(ours, theirs)
    assert theirs.peer_chain() == tuple(c.public_bytes(Encoding.DER) for c in credentials.chain)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("offered", [None, "ntf/1"])
def test_no_alpn(version: ssl.TLSVersion, offered: str | None) -> None:
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
    plain.maximum_version = version
    if offered:
        plain.set_alpn_protocols([offered])
    ours, theirs = SslTls(plain), OpenSslTls(CONTEXT)
    shake(ours, theirs)
    assert theirs.alpn() is ours.alpn() is None


@pytest.mark.parametrize("version", VERSIONS)
def test_data_both_ways(version: ssl.TLSVersion) -> None:
    ours, theirs = client(version=version), OpenSslTls(CONTEXT)
    shake(ours, theirs)
    assert read(ours) == read(theirs) == b""
    block = bytes(range(256)) * (BLOCK // 256)
    for a, b in ((ours, theirs), (theirs, ours)):
        a.write(block)
        a.write(b"more")
        data = a.output()
        assert a.output() == b""
        for start in range(0, len(data), 5000):
            b.feed(memoryview(data)[start : start + 5000])
        assert read(b, 10000) + read(b) == block
        assert read(b) == b"more"
        assert read(b) == b""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("who", ["client", "server"])
def test_close(version: ssl.TLSVersion, who: Literal["client", "server"]) -> None:
    ours, theirs = client(version=version), OpenSslTls(CONTEXT)
    shake(ours, theirs)
    a, b = (ours, theirs) if who == "client" else (theirs, ours)
    a.write(b"the last")
    a.close()
    pump(a, b)
    assert read(b) == b"the last"
    with pytest.raises(TlsClosedError):
        read(b)


def test_bytes_that_are_no_tls() -> None:
    theirs = OpenSslTls(CONTEXT)
    theirs.feed(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ssl.SSLError) as e:
        theirs.handshake()
    assert e.value.reason
    theirs.close()


def test_a_record_that_was_changed() -> None:
    ours, theirs = client(), OpenSslTls(CONTEXT)
    shake(ours, theirs)
    ours.write(b"data")
    data = bytearray(ours.output())
    data[-1] ^= 1
    theirs.feed(bytes(data))
    with pytest.raises(ssl.SSLError) as e:
        read(theirs)
    assert "mac" in e.value.reason.lower()
    assert theirs.output()  # the alert
    with pytest.raises(ssl.SSLError):
        theirs.write(b"more")


@pytest.mark.parametrize("ciphers", ["ECDHE+AESGCM"])
def test_ciphers_of_tls_1_2(ciphers: str) -> None:
    context = client_context("smp")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    with pytest.raises(ssl.SSLError, match="no shared cipher"):
        shake(SslTls(context), OpenSslTls(CONTEXT))


@pytest.mark.parametrize("version", VERSIONS)
def test_no_resumption(version: ssl.TLSVersion) -> None:
    context = client_context("smp", CLIENT)
    context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session: ssl.SSLSession | None = None
    for _ in range(2):
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = context.wrap_bio(incoming, outgoing, session=session)
        theirs = OpenSslTls(CONTEXT)
        done = False
        while not done:
            with contextlib.suppress(ssl.SSLWantReadError):
                ours.do_handshake()
            theirs.feed(outgoing.read())
            done = theirs.handshake()
            incoming.write(theirs.output())
        ours.do_handshake()
        theirs.write(b"x")
        incoming.write(theirs.output())
        assert ours.read(1) == b"x"  # and with it the tickets, if there are any
        assert ours.session_reused is False
        assert theirs.finished() == ours.get_channel_binding("tls-unique")
        session = ours.session


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("by", ["ssl", "pyOpenSSL"])
def test_who_names_a_host_is_shown_another_certificate(version: ssl.TLSVersion, by: str) -> None:
    if by == "ssl":
        plain = server_context("smp", SERVER)
        show_web_page(plain, server_context("smp", CLIENT_448))
    else:
        both = service_context("smp", SERVER, CLIENT_448)
    for host, shown in ((None, SERVER), ("localhost", CLIENT_448)):
        ours = client(version=version)
        ours.tls = ours.tls.context.wrap_bio(ours._incoming, ours._outgoing, server_hostname=host)
        theirs = SslTls(plain, server_side=True) if by == "ssl" else OpenSslTls(both)
        shake(ours, theirs)
        assert ours.peer_chain() == tuple(shown.chain_der)


def test_a_key_of_another_certificate() -> None:
    with pytest.raises(ssl.SSLError, match="mismatch"):
        service_context("smp", Credentials(SERVER.chain, CLIENT_448.key))


@pytest.mark.parametrize("curve", ["prime256v1", "secp384r1"])
def test_groups_that_the_reference_does_not_offer(curve: str) -> None:
    context = client_context("smp")
    context.set_ecdh_curve(curve)
    with pytest.raises(ssl.SSLError):
        shake(SslTls(context), OpenSslTls(CONTEXT))


@pytest.mark.parametrize("curve", ["X25519", "X448"])
def test_its_groups(curve: str) -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)  # not every Python's ssl knows these
    assert SSL._lib.SSL_CTX_set1_curves_list(context._context, curve.encode())
    ours, theirs = SSL.Connection(context, None), OpenSslTls(CONTEXT)
    ours.set_connect_state()
    done = agreed = False
    for _ in range(10):
        with contextlib.suppress(SSL.WantReadError):
            ours.do_handshake()
            done = True
        with contextlib.suppress(SSL.WantReadError):
            theirs.feed(ours.bio_read(65536))
        agreed = theirs.handshake()
        if output := theirs.output():
            ours.bio_write(output)
    assert done
    assert agreed


def test_a_client_certificate_of_another_kind(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "client.pem").write_bytes(pem)
    context = client_context("smp")
    context.load_cert_chain(tmp_path / "client.pem")
    ours, theirs = SslTls(context), OpenSslTls(CONTEXT)
    shake(ours, theirs)
    assert theirs.peer_chain() == ()  # none that the server takes
