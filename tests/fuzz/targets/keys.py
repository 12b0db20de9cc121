"""Keys and certificates: of peers, and in an operator's files."""

import contextlib
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fuzz import samples
from fuzz.target import Target, add
from ntf_server.config.client_certificate import ClientCertificate, ClientCertificateError
from ntf_server.config.service_account import parse_service_account
from ntf_server.push import jose
from ntf_server.push.fcm.settings import ServiceAccountError
from ntf_server.store.sealing import MasterKey, SealingError
from smp_bridge import crypto
from smp_bridge.encoding import ParseError, Reader, large, listing
from smp_bridge.identity import Credentials, IdentityError, load_certificates, load_private_key, verify_chain


def _public_ders() -> list[bytes]:
    p256 = samples.P256.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return [*(crypto.encode_public(k.public_key()) for k in samples.PRIVATE), p256]


def _private_ders() -> list[bytes]:
    p256 = samples.P256.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return [*(crypto.encode_private(k) for k in samples.PRIVATE), p256]


def _check_public(key: Any) -> None:
    der = crypto.encode_public(key)
    assert crypto.parse_public(der) == key
    for parse in (crypto.parse_auth_public, crypto.parse_x25519):
        with contextlib.suppress(ParseError):
            assert parse(der) == key


def _same_private(one: Any, other: Any) -> None:
    assert crypto.encode_private(one) == crypto.encode_private(other)


def _check_private(key: Any) -> None:
    der = crypto.encode_private(key)
    _same_private(crypto.parse_private(der), key)
    assert crypto.raw_x25519(der) == (key.private_bytes_raw() if len(der) == 48 and der[11] == 0x6E else None)


def _check_quick(quick: bytes) -> None:
    key = crypto.parse_quick_private(quick)
    assert crypto.quick_private(key) == quick
    assert crypto.to_quick_private(crypto.quick_private_der(quick)) == quick
    if seed := crypto.raw_ed25519(quick):
        assert crypto.verify(key.public_key(), crypto.sign_ed25519(seed, b"data"), b"data")


add(
    Target(
        "public key",
        crypto.parse_public,
        _public_ders,
        ["smp_bridge.crypto.parse_public", "smp_bridge.crypto.parse_auth_public", "smp_bridge.crypto.parse_x25519"],
        (ParseError,),
        _check_public,
        max_size=255,
    )
)
add(
    Target(
        "private key",
        crypto.parse_private,
        _private_ders,
        ["smp_bridge.crypto.parse_private", "smp_bridge.crypto.parse_auth_private"],
        (ParseError,),
        _check_private,
        max_size=255,
    )
)
add(
    Target(
        "quick private key",
        crypto.to_quick_private,
        _private_ders,
        ["smp_bridge.crypto.to_quick_private", "smp_bridge.crypto.parse_quick_private"],
        (ParseError,),
        _check_quick,
        max_size=255,
    )
)


def _check_signed(key: crypto.SignedKey) -> None:
    r = Reader(key.encode())
    assert crypto.SignedKey.parse(r.large()) == key
    for signer in samples.PRIVATE:
        key.verify(signer.public_key())


add(
    Target(
        "signed key",
        crypto.SignedKey.parse,
        lambda: [
            samples.signed_key().der,
            crypto.SignedKey.sign(samples.ED448, samples.X448.public_key()).der,
        ],
        ["smp_bridge.crypto.SignedKey.parse"],
        (ParseError,),
        _check_signed,
        share=0.5,
    )
)


def _chain(data: bytes) -> Any:
    r = Reader(data)
    chain = r.listing(r.large)
    r.end()
    # The identity is the peer's to choose here: what is tried is what comes after it.
    return verify_chain(chain, crypto.key_hash(chain[1]) if len(chain) > 1 else b"", samples.NOW)


def _chain_seeds() -> list[bytes]:
    one, other = samples.chain(0), samples.chain(1)
    chains = [one, one[::-1], (*one, one[1]), (one[0], other[1]), (one[1], one[1]), one[:1]]
    return [listing(large(c) for c in chain) for chain in chains]


add(
    Target(
        "certificate chain",
        _chain,
        _chain_seeds,
        ["smp_bridge.identity.verify_chain"],
        (ParseError, IdentityError),
        max_size=1500,
        share=0.5,
    )
)


# --- an operator's files


def _split(data: bytes, parts: int) -> list[bytes]:
    return (data.split(b"\0", parts - 1) + [b""] * parts)[:parts]


def _pem(key: Any) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _credentials(data: bytes) -> Credentials:
    leaf, ca, key = _split(data, 3)
    return Credentials.load(leaf, ca, key, samples.NOW)


def _credentials_seeds() -> list[bytes]:
    c = samples.credentials()
    leaf, ca = (cert.public_bytes(Encoding.PEM) for cert in c.chain)
    return [leaf + b"\0" + ca + b"\0" + _pem(c.key), leaf + ca + b"\0\0" + _pem(c.key), leaf + b"\0" + leaf + b"\0"]


def _check_credentials(c: Credentials) -> None:
    assert Credentials.load(c.chain_pem, b"", _pem(c.key), samples.NOW).key_hash == c.key_hash


add(
    Target(
        "identity files",
        _credentials,
        _credentials_seeds,
        [
            "smp_bridge.identity.Credentials.load",
            "smp_bridge.identity.load_certificates",
            "smp_bridge.identity.load_private_key",
        ],
        (IdentityError,),
        _check_credentials,
        max_size=2000,
        share=0.25,
    )
)


def _pem_seeds() -> list[bytes]:
    keys = [*samples.PRIVATE, samples.P256]
    certificate = samples.credentials().chain[0].public_bytes(Encoding.PEM)
    sec1 = samples.P256.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return [*map(_pem, keys), sec1, certificate]


_PEM_WORDS = [b"-----BEGIN ", b"-----END ", b"ENCRYPTED ", b"PRIVATE KEY-----", b"EC ", b"CERTIFICATE-----", b"\n"]


def _pem_target(name: str, load: Callable[[bytes], Any], error: type[Exception]) -> None:
    add(
        Target(
            name,
            load,
            _pem_seeds,
            [f"{load.__module__}.{load.__name__}"],
            (error,),
            max_size=800,
            share=0.25,
            words=_PEM_WORDS,
        )
    )


_pem_target("key file", load_private_key, IdentityError)
_pem_target("certificate file", load_certificates, IdentityError)
_pem_target("p8 file", jose.load_key, jose.KeyFileError)


def _client_certificate(data: bytes) -> ClientCertificate:
    chain, key = _split(data, 2)
    return ClientCertificate.parse(chain, key, samples.NOW)


def _client_certificate_seeds() -> list[bytes]:
    c = samples.credentials()
    return [c.chain_pem + b"\0" + _pem(c.key), c.chain_pem + b"\0" + _pem(samples.P256), b"\x30\0\x30", b"\0"]


add(
    Target(
        "client certificate",
        _client_certificate,
        _client_certificate_seeds,
        ["ntf_server.config.client_certificate.ClientCertificate.parse"],
        (ClientCertificateError,),
        lambda c: c.not_after.isoformat(),
        max_size=2000,
        share=0.25,
        words=_PEM_WORDS,
    )
)


def _account_seeds() -> list[bytes]:
    pem = _pem(samples.rsa_key()).decode().replace("\n", "\\n")
    fields = f'"project_id":"p-1","client_email":"a@example.org","private_key":"{pem}","private_key_id":"1"'
    return [
        b'{"type":"service_account",' + fields.encode() + b',"token_uri":"https://example.org/token"}',
        b'\xef\xbb\xbf{"project_id":"p","client_email":"a","private_key":"b"}',
        b'{"project_info":{}}',
        b"[]",
        b'{"type":[[]]}',
    ]


add(
    Target(
        "service account",
        parse_service_account,
        _account_seeds,
        ["ntf_server.config.service_account.parse_service_account"],
        (ServiceAccountError,),
        max_size=3000,
        share=0.25,
        words=[b'"project_id":', b'"private_key":', b'"token_uri":"https://', *_PEM_WORDS],
    )
)


add(
    Target(
        "master key",
        MasterKey.from_bytes,
        lambda: [bytes(range(32)), b"k" * 32 + b"\n", b"0f" * 32, b"A" * 43 + b"=", b" " + b"-" * 43 + b"\n"],
        ["ntf_server.store.sealing.MasterKey.from_bytes", "ntf_server.store.sealing.MasterKey.from_text"],
        (SealingError,),
        repr,
        max_size=100,
        share=0.5,
    )
)
