from __future__ import annotations

import asyncio
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store

from ntf_server.testing.tls import TlsFiles, throwaway_tls


async def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str | None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server) as listener:
        port = listener.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name)
        protocol: str | None = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        writer.close()
        await writer.wait_closed()
        return protocol


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1"])
async def test_strict_client_accepts_loopback_names(name: str) -> None:
    with throwaway_tls() as files:
        client = files.client_context(["h2"])
        assert client.verify_flags & ssl.VERIFY_X509_STRICT
        assert await handshake(files.server_context(["h2"]), client, name) == "h2"


async def test_no_alpn_unless_asked_for() -> None:
    with throwaway_tls() as files:
        assert await handshake(files.server_context(), files.client_context(["h2"]), "localhost") is None


async def test_other_name_is_refused() -> None:
    with throwaway_tls() as files, pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)mismatch"):
        await handshake(files.server_context(), files.client_context(), "example.org")


async def test_certificate_of_another_authority_is_refused() -> None:
    with throwaway_tls() as files, throwaway_tls() as other, pytest.raises(ssl.SSLCertVerificationError):
        await handshake(files.server_context(), other.client_context(), "localhost")


def test_second_verifier_accepts_the_chain() -> None:
    with throwaway_tls(["push.test"]) as files:
        ca = x509.load_pem_x509_certificate(files.ca_file.read_bytes())
        leaf = x509.load_pem_x509_certificate(files.cert_file.read_bytes())
    verifier = PolicyBuilder().store(Store([ca])).build_server_verifier(x509.DNSName("push.test"))
    assert verifier.verify(leaf, []) == [leaf, ca]
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)


def test_files_are_private_and_removed() -> None:
    with throwaway_tls() as files:
        directory = files.ca_file.parent
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(files.key_file.stat().st_mode) == 0o600
        assert b"PRIVATE KEY" not in files.ca_file.read_bytes() + files.cert_file.read_bytes()
    assert not directory.exists()


def test_files_are_removed_after_an_error() -> None:
    seen: list[TlsFiles] = []
    with pytest.raises(RuntimeError), throwaway_tls() as files:
        seen.append(files)
        raise RuntimeError
    assert not Path(seen[0].key_file).exists()
