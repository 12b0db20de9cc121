"""The identity on disk: made, loaded, renewed; also identities and chains that were made elsewhere."""

import base64
import datetime
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from ntf_server.admission.sessions import Peer
from ntf_server.commands import Commands
from ntf_server.config.identity_files import (
    FILES,
    IdentityFileError,
    create_identity,
    load_credentials,
    renew_certificate,
    write_file,
)
from ntf_server.listener import Listener, ListenerConfig
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.identity import SignAlgorithm, generate_key, issue_ca, issue_leaf, load_private_key, private_key_pem
from smp_bridge.transmission import Message, Session, Transmission

NOW = datetime.datetime.now(datetime.UTC)
MODES = {"ca.key": 0o600, "server.key": 0o600, "ca.crt": 0o644, "server.crt": 0o644, "fingerprint": 0o644}
SECRETS = {"master.key", "vapid.key"}  # made by `init`, not of the identity


class Pongs(Commands):
    """Answers PONG to everything."""

    def __init__(self) -> None:
        pass

    async def handle(self, session: Session, t: Transmission, command: Message, peer: Peer) -> Message:
        return ntf.Pong()

    def answered(self, command: Message, answer: Message) -> None:
        pass


async def serves(directory: Path) -> bool:
    """Whether clients that pin its identity get on with what is in this folder."""
    credentials = load_credentials(directory)
    listener = Listener(ListenerConfig("127.0.0.1", 0), credentials, Pongs())
    await listener.start()
    address = ServerAddress("ntf", ("127.0.0.1",), str(listener.port), credentials.key_hash)
    try:
        async with await Client.connect(address) as client:
            return await client.request(ntf.Ping()) == ntf.Pong()
    finally:
        await listener.close()


def modes(directory: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mode & 0o777 for f in directory.iterdir()}


def contents(directory: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in directory.iterdir()}


@pytest.mark.parametrize("algorithm", ["ED448", "ED25519"])
async def test_a_new_identity(tmp_path: Path, algorithm: SignAlgorithm) -> None:
    key_hash = create_identity(tmp_path, algorithm, "ntf.example.org")
    assert modes(tmp_path) == MODES
    assert set(FILES) == set(MODES) | SECRETS
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    assert hashlib.sha256(ca.public_bytes(Encoding.DER)).digest() == key_hash
    assert base64.urlsafe_b64decode((tmp_path / "fingerprint").read_text()) == key_hash
    leaf = x509.load_pem_x509_certificate((tmp_path / "server.crt").read_bytes())
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "ntf.example.org"
    kind = Ed448PrivateKey if algorithm == "ED448" else Ed25519PrivateKey
    assert all(isinstance(load_private_key((tmp_path / n).read_bytes()), kind) for n in ("ca.key", "server.key"))
    assert load_credentials(tmp_path).key_hash == key_hash
    assert await serves(tmp_path)


def test_the_umask_cannot_open_the_keys(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        create_identity(tmp_path, "ED25519", "localhost")
    finally:
        os.umask(previous)
    assert modes(tmp_path) == MODES


def test_a_file_is_replaced_with_its_mode_whatever_was_there(tmp_path: Path) -> None:
    file, left_over = tmp_path / "server.key", tmp_path / "server.key.new"
    for path in (file, left_over):
        path.write_text("old")
        path.chmod(0o666)
    write_file(file, b"new")
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"new", 0o600)
    assert not left_over.exists()


def test_root_gives_a_file_to_the_owner_of_the_one_that_it_replaces_or_is_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda _, uid, gid: given.append((uid, gid)))
    there, new = tmp_path / "there", tmp_path / "new"
    there.touch()
    owner = there.stat().st_uid, there.stat().st_gid
    for uid, expected in ((0, [owner, owner]), (1000, [])):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        given.clear()
        write_file(there, b"replaced")
        write_file(new, b"like it", like=there)
        new.unlink()
        write_file(new, b"nobody's yet")
        new.unlink()
        assert given == expected
    assert there.read_bytes() == b"replaced"


async def test_ca_key_is_not_needed(tmp_path: Path) -> None:
    create_identity(tmp_path, "ED25519", "localhost")
    (tmp_path / "ca.key").unlink()
    (tmp_path / "fingerprint").unlink()
    assert await serves(tmp_path)


# --- identities made elsewhere


def certificate(subject: str, key: Any, issuer: str, issuer_key: Any, *, is_ca: bool) -> x509.Certificate:
    """As OpenSSL makes it for the reference: common name and organization, and no more extensions than it needs."""

    def name(text: str) -> x509.Name:
        common_name, _, organization = text.partition("/")
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if organization:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        return x509.Name(attributes)

    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(hours=1))
        .not_valid_after(NOW + datetime.timedelta(days=999999))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=is_ca)
        .sign(issuer_key, None)
    )


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def write_chain(directory: Path, above: int, algorithm: SignAlgorithm = "ED448", *, whole: bool = False) -> Any:
    """A leaf, an identity and so many authorities above it; `whole`: all in server.crt. The identity certificate."""
    names = ["ntf.example.org", "SMP server CA/SimpleX", "Network/SimpleX", "Operator/SimpleX"][: 2 + above]
    keys = [generate_key(algorithm) for _ in names]
    chain = [
        certificate(name, key, names[min(i + 1, len(names) - 1)], keys[min(i + 1, len(names) - 1)], is_ca=i > 0)
        for i, (name, key) in enumerate(zip(names, keys, strict=True))
    ]
    (directory / "server.key").write_bytes(private_key_pem(keys[0]))
    (directory / "server.crt").write_bytes(pem(*chain) if whole else pem(chain[0]))
    (directory / "ca.crt").write_bytes(pem(*chain[1:]))
    (directory / "ca.key").write_bytes(private_key_pem(keys[1]))
    return chain[1]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("above", [0, 1, 2])
@pytest.mark.parametrize("algorithm", ["ED448", "ED25519"])
async def test_chains_made_elsewhere(tmp_path: Path, algorithm: SignAlgorithm, above: int, whole: bool) -> None:
    identity = write_chain(tmp_path, above, algorithm, whole=whole)
    credentials = load_credentials(tmp_path)
    assert credentials.key_hash == hashlib.sha256(identity.public_bytes(Encoding.DER)).digest()
    assert len(credentials.chain) == 2 + above
    assert await serves(tmp_path)


@pytest.mark.parametrize("above", [0, 1, 2])
async def test_their_certificates_are_renewed(tmp_path: Path, above: int) -> None:
    write_chain(tmp_path, above)
    before = load_credentials(tmp_path)
    renew_certificate(tmp_path, tmp_path / "ca.key", "ED25519", None)
    after = load_credentials(tmp_path)
    assert (after.key_hash, after.chain[1:]) == (before.key_hash, before.chain[1:])
    assert after.chain[0].subject == before.chain[0].subject
    assert await serves(tmp_path)


# --- mistakes


def other_key(directory: Path) -> None:
    (directory / "server.key").write_bytes(private_key_pem(Ed25519PrivateKey.generate()))


def other_leaf(directory: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (directory / "server.crt").write_bytes(pem(issue_leaf(key, "x", issue_ca(key, "CA", NOW), key, NOW)))


def expired(directory: Path) -> None:
    ca_key, key = load_private_key((directory / "ca.key").read_bytes()), Ed25519PrivateKey.generate()
    ca = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
    leaf = (
        x509.CertificateBuilder()
        .subject_name(ca.subject)
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=2))
        .not_valid_after(NOW - datetime.timedelta(days=1))
        .sign(ca_key, None)
    )
    (directory / "server.crt").write_bytes(pem(leaf))
    (directory / "server.key").write_bytes(private_key_pem(key))


def p256_key(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (directory / "server.key").write_bytes(
        key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def encrypted_key(directory: Path) -> None:
    key = Ed25519PrivateKey.generate()
    encryption = serialization.BestAvailableEncryption(b"secret")
    (directory / "server.key").write_bytes(
        key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )


def five_certificates(directory: Path) -> None:
    write_chain(directory, 2)
    ca = (directory / "ca.crt").read_bytes()
    (directory / "ca.crt").write_bytes(ca + ca[-ca[::-1].index(b"-----BEGIN"[::-1]) - 10 :])


@pytest.mark.parametrize(
    ("spoil", "file", "what"),
    [
        (other_key, "server.key", "the private key is not the certificate's"),
        (other_leaf, "server.crt", "the chain is not validly signed"),
        (expired, "server.crt", "a certificate is out of its time"),
        (p256_key, "server.key", "neither Ed25519 nor Ed448"),
        (encrypted_key, "server.key", "not an unencrypted PEM private key"),
        (five_certificates, "ca.crt", "a chain of 5 certificates"),
        (lambda d: (d / "server.crt").write_text("rubbish"), "server.crt", "not a PEM certificate file"),
        (lambda d: (d / "server.crt").write_text(""), "server.crt", "not a PEM certificate file"),
        (lambda d: (d / "ca.crt").write_bytes(b"\xff"), "ca.crt", "not a PEM certificate file"),
        (lambda d: (d / "server.key").write_text(""), "server.key", "not an unencrypted PEM private key"),
        (
            lambda d: (d / "server.key").unlink(),
            "server.key",
            "No such file or directory; make a new online certificate",
        ),
        (
            lambda d: (d / "ca.crt").unlink(),
            "ca.crt",
            "No such file or directory; restore it from a copy: it is the server's identity",
        ),
        (lambda d: (d / "fingerprint").write_text("AAAA"), "fingerprint", "restore the one that belongs to it"),
        (lambda d: (d / "fingerprint").write_bytes(b"\xff\xfe"), "fingerprint", "restore the one that belongs to it"),
        (lambda d: (d / "fingerprint").write_text(""), "fingerprint", "restore the one that belongs to it"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, spoil: Any, file: str, what: str) -> None:
    create_identity(tmp_path, "ED25519", "localhost")
    if spoil is five_certificates:
        (tmp_path / "fingerprint").unlink()
    secrets = [(tmp_path / name).read_text().splitlines()[1] for name in ("ca.key", "server.key")]
    spoil(tmp_path)
    with pytest.raises(IdentityFileError) as e:
        load_credentials(tmp_path)
    assert str(tmp_path / file) in str(e.value)
    assert what in str(e.value)
    assert "\n" not in str(e.value)
    assert not any(secret in str(e.value) for secret in secrets)


# --- renewal


@pytest.mark.parametrize("algorithm", ["ED448", "ED25519"])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_renewal_keeps_the_identity(tmp_path: Path, algorithm: SignAlgorithm, elsewhere: bool) -> None:
    directory, offline = tmp_path / "relay", tmp_path / "offline"
    directory.mkdir()
    offline.mkdir()
    key_hash = create_identity(directory, "ED448", "ntf.example.org")
    ca_key = directory / "ca.key"
    if elsewhere:
        ca_key = ca_key.replace(offline / "my.key")
    before = contents(directory)
    renew_certificate(directory, ca_key, algorithm, None)
    after = contents(directory)
    assert {name for name in before if before[name] != after[name]} == {"server.key", "server.crt"}
    assert set(after) == set(before)
    credentials = load_credentials(directory)
    assert credentials.key_hash == key_hash
    assert credentials.chain[0].subject.rfc4514_string() == "CN=ntf.example.org"
    assert (directory / "server.key").stat().st_mode & 0o777 == 0o600
    assert await serves(directory)


def test_renewal_with_another_name(tmp_path: Path) -> None:
    create_identity(tmp_path, "ED25519", "old.example.org")
    renew_certificate(tmp_path, tmp_path / "ca.key", "ED25519", "new.example.org")
    assert load_credentials(tmp_path).chain[0].subject.rfc4514_string() == "CN=new.example.org"


@pytest.mark.parametrize("subject", ["O", ""])
def test_renewal_needs_a_name(tmp_path: Path, subject: str) -> None:
    create_identity(tmp_path, "ED25519", "localhost")
    ca_key = load_private_key((tmp_path / "ca.key").read_bytes())
    ca = x509.load_pem_x509_certificate((tmp_path / "ca.crt").read_bytes())
    key = load_private_key((tmp_path / "server.key").read_bytes())
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject)] if subject else []
    nameless = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=1))
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .sign(ca_key, None)
    )
    (tmp_path / "server.crt").write_bytes(pem(nameless))
    with pytest.raises(IdentityFileError, match="has no common name; give one by --fqdn"):
        renew_certificate(tmp_path, tmp_path / "ca.key", "ED25519", None)
    renew_certificate(tmp_path, tmp_path / "ca.key", "ED25519", "new.example.org")
    load_credentials(tmp_path)


@pytest.mark.parametrize(
    ("ca_key", "what"),
    [
        (private_key_pem(Ed25519PrivateKey.generate()), "is not the key of"),
        (private_key_pem(Ed448PrivateKey.generate()), "is not the key of"),
        (b"rubbish", "not an unencrypted PEM private key"),
        (b"", "not an unencrypted PEM private key"),
        (None, "No such file or directory"),
    ],
)
def test_a_wrong_ca_key_changes_nothing(tmp_path: Path, ca_key: bytes | None, what: str) -> None:
    create_identity(tmp_path, "ED25519", "localhost")
    (tmp_path / "ca.key").unlink()
    if ca_key is not None:
        (tmp_path / "ca.key").write_bytes(ca_key)
    before = contents(tmp_path)
    with pytest.raises(IdentityFileError, match=what) as e:
        renew_certificate(tmp_path, tmp_path / "ca.key", "ED25519", None)
    assert str(tmp_path / "ca.key") in str(e.value)
    assert contents(tmp_path) == before
