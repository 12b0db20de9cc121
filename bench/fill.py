"""A relay's configuration, and a database as it is when the relay was at work before."""

import asyncio
import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import nacl.bindings
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from smp_load import ID_SIZE, notifier_id, service_id

from ntf_server.config import files as config
from ntf_server.smp.certificates import new_service_certificate
from ntf_server.store.contract import Store
from ntf_server.store.records import NewToken, Ref
from ntf_server.store.sealing import NOTIFIER_KEY, Sealer
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.keys import load_key
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.identity import load_certificates
from smp_bridge.service import ids_hash

KeyKind = Literal["ed25519", "x25519"]

_PKCS8: Final[dict[KeyKind, bytes]] = {  # what precedes the 32 bytes of a key (RFC 8410)
    "ed25519": bytes.fromhex("302e020100300506032b657004220420"),
    "x25519": bytes.fromhex("302e020100300506032b656e04220420"),
}
_CACHE: Final = 1024 * 2**10  # KiB of the database in memory


@dataclass(frozen=True, slots=True)
class Content:
    """What the database is to hold. `first`: nothing was subscribed, nor associated with a service, yet.

    `provider`: of the tokens; the default one takes everything. Subscription i is of token i modulo their number.
    """

    subscriptions: int
    tokens: int = 1000
    key: KeyKind = "ed25519"
    services: bool = False
    first: bool = False
    provider: ntf.Provider = ntf.Provider.APNS_NULL


async def init(directory: Path) -> None:
    """A new identity and configuration."""
    arguments = ("init", "--path", str(directory), "--fqdn", "localhost", "--sign-algorithm", "ED25519")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ntf_server", *arguments), stdout=asyncio.subprocess.DEVNULL, stderr=-1
    )
    _, error = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"ntf-server init: {error.decode()}")


def environment(*, services: bool) -> dict[str, str]:
    """What differs from the defaults: loopback, no budgets of clients, and whether to be a service."""
    settings = {
        "TRANSPORT__BIND": "127.0.0.1",
        "TRANSPORT__PORT": "0",
        "SUBSCRIBER__ALLOW_PRIVATE_HOSTS": "true",
        "LIMITS__ENABLED": "false",
        "SUBSCRIBER__USE_SERVICE_CREDENTIALS": str(services).lower(),
        "SUBSCRIBER__AUDIT_PERIOD": "0",  # its NSUBs would be counted
    }
    return {f"NTF_SERVER__{name}": value for name, value in settings.items()}


async def fill(loaded: config.Config, servers: Sequence[ServerAddress], content: Content) -> list[bytes]:
    """Fill an empty database; the certificate hashes of the services, one a server, if there are any."""
    store = await SqliteStore.open(config.load_database_path(loaded.directory), master_key=loaded.master_key)
    try:
        tokens = await asyncio.gather(*(_add_token(store, content.provider, i) for i in range(content.tokens)))
        services: list[bytes] = []
        if content.services and not content.first:
            services = [await _add_service(store, server) for server in servers]
    finally:
        await store.close()
    await asyncio.to_thread(_add_subscriptions, loaded, servers, content, tokens)
    return services


def device_token(number: int) -> bytes:
    """As long as Apple's: 64 hex digits."""
    return hashlib.sha256(b"bench %d" % number).hexdigest().encode()


async def _add_token(store: Store, provider: ntf.Provider, number: int) -> Ref:
    """An active token."""
    key, dh_key, server_dh = Ed25519PrivateKey.generate(), X25519PrivateKey.generate(), X25519PrivateKey.generate()
    device = ntf.DeviceToken(provider, device_token(number))
    public, raw = dh_key.public_key(), server_dh.public_key().public_bytes_raw()
    verify_key, secret = crypto.encode_public(key.public_key()), crypto.box_key(crypto.dh(server_dh, public))
    code = os.urandom(32)
    new = NewToken(os.urandom(ID_SIZE), device, verify_key, public.public_bytes_raw(), raw, secret, code)
    token = await store.register(new)
    assert token is not None
    await store.verify(token.ref, code)
    return token.ref


async def _add_service(store: Store, server: ServerAddress) -> bytes:
    """A service that the server knows: its certificate's hash."""
    certificate = await store.service_certificate(server, lambda: new_service_certificate(time.time()))
    identity = load_certificates(certificate.chain)[1]
    certificate_hash = crypto.key_hash(identity.public_bytes(Encoding.DER))
    session = await store.acquire(server)
    assert session is not None
    await store.begin(session, service_id(certificate_hash))
    await store.release(session)
    return certificate_hash


def _private(kind: KeyKind) -> bytes:
    """A new key as the relay keeps it (`crypto.quick_private`)."""
    seed = os.urandom(32)
    public = nacl.bindings.crypto_sign_seed_keypair(seed)[0] if kind == "ed25519" else b""
    return _PKCS8[kind] + seed + public


def _add_subscriptions(
    loaded: config.Config, servers: Sequence[ServerAddress], content: Content, tokens: Sequence[Ref]
) -> None:
    """In one transaction, past the store, which would take one for each. Neighbours are on different servers."""
    now = int(time.time())
    status = "NEW" if content.first else "ACTIVE"
    with closing(sqlite3.connect(config.load_database_path(loaded.directory), isolation_level=None)) as c:
        for pragma in ("synchronous = OFF", f"cache_size = -{_CACHE}", "wal_autocheckpoint = 0"):
            c.execute(f"PRAGMA {pragma}")
        sealer = Sealer(load_key(c, loaded.master_key))
        c.execute("BEGIN")
        addresses = [server.encode() for server in servers]
        query = "INSERT OR IGNORE INTO servers (address, canonical) VALUES (?, ?)"
        c.executemany(query, [(server.encode(), server.identity) for server in servers])
        known = {
            a: (ref, generation) for a, ref, generation in c.execute("SELECT address, ref, generation FROM servers")
        }
        rows_of_servers = [known[a] for a in addresses]  # generation 0: nothing is associated there

        def rows() -> Iterator[tuple[object, ...]]:
            for i in range(content.subscriptions):
                subscription_id = os.urandom(ID_SIZE)
                key = sealer.seal(_private(content.key), NOTIFIER_KEY + subscription_id)
                server, generation = rows_of_servers[i % len(rows_of_servers)]
                yield subscription_id, tokens[i % len(tokens)], server, notifier_id(i), key, status, generation, now

        [trigger] = c.execute("SELECT sql FROM sqlite_master WHERE name = 'subscription_added'").fetchone()
        c.execute("DROP TRIGGER subscription_added")  # which counts one by one
        c.executemany(
            "INSERT INTO subscriptions (subscription_id, token, server, notifier_id, notifier_key, status, association,"
            " created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            rows(),
        )
        c.execute(trigger)
        for table, column in (("servers", "server"), ("tokens", "token")):
            c.execute(
                f"UPDATE {table} SET subscriptions = n FROM (SELECT {column} AS ref, count(*) AS n FROM subscriptions"
                f" GROUP BY {column}) AS s WHERE s.ref = {table}.ref"
            )
        for number, (server, generation) in enumerate(rows_of_servers):
            ids = [notifier_id(i) for i in range(number, content.subscriptions, len(servers)) if generation]
            c.execute(
                "UPDATE servers SET assoc_count = ?, assoc_xor = ?, proven = ? WHERE ref = ?",
                (len(ids), ids_hash(ids), 0 if content.first else now, server),
            )
        c.execute("COMMIT")
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
