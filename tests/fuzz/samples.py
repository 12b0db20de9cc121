"""Good values to begin with, the same in each run: keys, certificates, addresses, every command and every answer."""

import datetime
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from smp_bridge import crypto, ntf, smp
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import short
from smp_bridge.identity import Credentials
from smp_bridge.transmission import Err

NOW: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

ED25519: Final = Ed25519PrivateKey.from_private_bytes(b"1" * 32)
ED448: Final = Ed448PrivateKey.from_private_bytes(b"2" * 57)
X25519: Final = X25519PrivateKey.from_private_bytes(b"3" * 32)
X448: Final = X448PrivateKey.from_private_bytes(b"4" * 56)
P256: Final = ec.derive_private_key(5, ec.SECP256R1())
PRIVATE: Final = (ED25519, ED448, X25519, X448)
DH: Final = X25519PrivateKey.from_private_bytes(b"6" * 32).public_key()
ID: Final = b"an entity's id: 24 bytes"

# Fermat primes and the like would be refused: RSA keys are numbers that were generated once.
_P: Final = 2**521 - 1
_Q: Final = 2**607 - 1


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    """Of two Mersenne primes: the same each time."""
    d = rsa.rsa_recover_private_exponent(65537, _P, _Q)
    numbers = rsa.RSAPrivateNumbers(
        _P, _Q, d, d % (_P - 1), d % (_Q - 1), rsa.rsa_crt_iqmp(_P, _Q), rsa.RSAPublicNumbers(65537, _P * _Q)
    )
    return numbers.private_key()


ADDRESSES: Final = (
    ServerAddress("smp", ("smp.example.org",), "", b"k" * 32),
    ServerAddress("smp", ("smp4.simplex.im",), "5223", b"k" * 32),
    ServerAddress("smp", ("a.example", "b" * 56 + ".onion", "2001:db8::1", "192.0.2.1"), "5224", b"k" * 32),
    ServerAddress("ntf", ("localhost",), "443", b"h" * 32),
    ServerAddress("ntf", ("::1",), "8443", b"h" * 32),
)

POINT: Final = P256.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def web_push(host: bytes = b"push.example.org", port: bytes = b"", path: bytes = b"/send/abc?d=1") -> bytes:
    """A device token of Web Push."""
    return b"".join(map(short, (host, port, path, b"s" * 16, POINT)))


def device_tokens() -> list[ntf.DeviceToken]:
    """One of each provider."""
    others = [ntf.DeviceToken(p, b"0123456789abcdef" * 4) for p in ntf.Provider if p is not ntf.Provider.WEB_PUSH]
    return [*others, ntf.DeviceToken(ntf.Provider.WEB_PUSH, web_push())]


def _instances(fields: dict[type[Any], list[tuple[Any, ...]]], known: Any) -> Iterator[Any]:
    for kind in known.values():
        for arguments in fields[kind] if not kind.bare else [()]:
            yield kind(*arguments)


def ntf_messages() -> list[Any]:
    """Of every kind, commands and answers."""
    errors = [("AUTH",), ("CMD", "SYNTAX"), ("STORE", "database"), ("BLOCKED", "reason=spam"), ("PROXY", "NO_SESSION")]
    fields: dict[type[Any], list[tuple[Any, ...]]] = {
        ntf.TNew: [(t, k.public_key(), DH) for t in device_tokens() for k in (ED25519, ED448, X25519)],
        ntf.TVfy: [(b"c" * 32,)],
        ntf.TRpl: [(t,) for t in device_tokens()],
        ntf.TCrn: [(0,), (20,), (65535,)],
        ntf.SNew: [(ID, a, ID, k) for a in ADDRESSES[:3] for k in (ED25519, ED448, X25519)],
        ntf.IdTkn: [(ID, DH)],
        ntf.IdSub: [(ID,)],
        ntf.Tkn: [(s,) for s in ntf.TokenStatus] + [(ntf.TokenStatus.INVALID, r) for r in ntf.InvalidReason],
        ntf.Sub: [(s,) if s is not ntf.SubscriptionStatus.ERR else (s, "a text") for s in ntf.SubscriptionStatus],
        Err: errors,
    }
    return [*_instances(fields, ntf.COMMANDS), *_instances(fields, ntf.ANSWERS)]


def smp_messages() -> list[Any]:
    """Of every kind, commands and answers."""
    creds, server_creds = smp.NtfCreds(ED25519.public_key(), DH), smp.ServerNtfCreds(ID, DH)
    key = ED25519.public_key()
    fields: dict[type[Any], list[tuple[Any, ...]]] = {
        smp.New: [(key, DH), (key, DH, b"password", "C", "C", creds), (X25519.public_key(), DH, None, "S", None)],
        smp.Key: [(k.public_key(),) for k in (ED25519, ED448, X25519)],
        smp.SKey: [(key,)],
        smp.NKey: [(creds,)],
        smp.Ack: [(ID,)],
        smp.Send: [(True, b"a body"), (False, b"")],
        smp.Ids: [(ID, ID, DH), (ID, ID, DH, "C", ID, ID, server_creds)],
        smp.Nid: [(server_creds,)],
        smp.SOk: [(None,), (ID,)],
        smp.SOks: [(1000,)],
        smp.Ends: [(-1,)],
        smp.Msg: [(ID, b"m" * 40)],
        smp.NMsg: [(b"n" * 24, b"m" * 144)],
        Err: [("AUTH",), ("CMD", "NO_QUEUE"), ("BLOCKED", "reason=content"), ("QUOTA",)],
    }
    return [*_instances(fields, smp.COMMANDS), *_instances(fields, smp.ANSWERS)]


def _issue(key: Any, name: str, issuer: str, issuer_key: Any, serial: int, *, ca: bool) -> x509.Certificate:
    """As `identity` issues them, but for the serial number, which is random there."""
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW - datetime.timedelta(days=300))
        .not_valid_after(NOW + datetime.timedelta(days=300_000))
        .add_extension(x509.BasicConstraints(ca, None), True)
        .sign(issuer_key, None)
    )


@cache
def credentials(number: int = 0) -> Credentials:
    """A server's, or a service's, with keys that everybody knows."""
    ca_key, key = (Ed25519PrivateKey.from_private_bytes(bytes([c]) * 32) for c in (10 + number, 50 + number))
    ca = _issue(ca_key, "CA", "CA", ca_key, 1, ca=True)
    return Credentials((_issue(key, "localhost", "CA", ca_key, 2, ca=False), ca), key)


def chain(number: int = 0) -> tuple[bytes, ...]:
    """DER of its certificates."""
    return tuple(credentials(number).chain_der)


def signed_key() -> crypto.SignedKey:
    """A session key."""
    return crypto.SignedKey.sign(ED25519, X25519.public_key())
