"""Devices that are registered with the reference: what it keeps of them, as rows of its database and lines of its log.

Written from the published facts: names and types of columns, forms of values. Triggers and indexes, which reading does
not see, are left out.
"""

import datetime
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from ntf_server.store.reference.postgres import ASSOCIATED, CERTIFICATES, FIRST, KNOWN
from smp_bridge import crypto, identity
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url, b64url_bytes, large, listing
from smp_bridge.ntf import InvalidReason, Provider, SubscriptionStatus, TokenStatus
from smp_bridge.service import ids_hash

DAY = 24 * 3600
TODAY = 1_790_035_200  # a beginning of a day
SMP = ServerAddress("smp", ("smp.example.org",), "", b"i" * 32)
PROVIDERS = {"apns_prod": Provider.APNS, "apns_dev": Provider.APNS_SANDBOX, "apns_test": Provider.APNS_TEST}

# What each column holds, and from which version on.
TABLES = {
    "tokens": {
        FIRST: {
            "token_id": "bytea PRIMARY KEY", "push_provider": "text NOT NULL", "push_provider_token": "bytea NOT NULL",
            "status": "text NOT NULL", "verify_key": "bytea NOT NULL", "dh_priv_key": "bytea NOT NULL",
            "dh_secret": "bytea NOT NULL", "reg_code": "bytea NOT NULL", "cron_interval": "bigint NOT NULL",
            "cron_sent_at": "bigint", "updated_at": "bigint",
        },
    },
    "smp_servers": {
        FIRST: {
            "smp_server_id": "bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY", "smp_host": "text NOT NULL",
            "smp_port": "text NOT NULL", "smp_keyhash": "bytea NOT NULL",
        },
        ASSOCIATED: {"ntf_service_id": "bytea"},
        "20250830_queue_ids_hash": {
            "smp_notifier_count": "bigint NOT NULL DEFAULT 0",
            "smp_notifier_ids_hash": "bytea NOT NULL DEFAULT decode(repeat('00', 16), 'hex')",
        },
        CERTIFICATES: {"ntf_service_cert": "bytea", "ntf_service_cert_hash": "bytea", "ntf_service_priv_key": "bytea"},
    },
    "subscriptions": {
        FIRST: {
            "subscription_id": "bytea PRIMARY KEY", "token_id": "bytea NOT NULL REFERENCES {schema}.tokens",
            "smp_server_id": "bigint REFERENCES {schema}.smp_servers", "smp_notifier_id": "bytea NOT NULL",
            "smp_notifier_key": "bytea NOT NULL", "status": "text NOT NULL",
        },
        ASSOCIATED: {"ntf_service_assoc": "boolean NOT NULL DEFAULT false"},
    },
    "last_notifications": {
        FIRST: {
            "token_ntf_id": "bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY",
            "token_id": "bytea NOT NULL REFERENCES {schema}.tokens",
            "subscription_id": "bytea NOT NULL REFERENCES {schema}.subscriptions",
            "sent_at": "timestamptz NOT NULL", "nmsg_nonce": "bytea NOT NULL", "nmsg_data": "bytea NOT NULL",
        },
    },
}  # fmt: skip
V6_5, V7_0 = KNOWN[:2], KNOWN


@dataclass
class Queue:
    """A subscription. `last`: when its newest notification came, its nonce and metadata."""

    server: ServerAddress = SMP
    notifier_id: bytes = field(default_factory=lambda: os.urandom(24))
    key: crypto.AuthPrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    subscription_id: bytes = field(default_factory=lambda: os.urandom(24))
    status: str = "ACTIVE"
    associated: bool = False
    last: tuple[int, bytes, bytes] | None = None

    def line(self, token_id: bytes) -> bytes:
        """Of the store log."""
        key = b64url(crypto.encode_private(self.key))
        text = f"SCREATE subId={b64url(self.subscription_id)} smpQueue={self.name} notifierKey={key}"
        flag = "T" if self.associated else "F"
        return f"{text} tknId={b64url(token_id)} subStatus={self.status} serviceAssoc={flag}\n".encode()

    @property
    def name(self) -> str:
        return f"{self.server}/{b64url(self.notifier_id)}"


@dataclass
class Registration:
    """A device: what it has, and what the reference made for it."""

    provider: str = "apns_test"
    device_token: str = field(default_factory=lambda: os.urandom(32).hex())
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    client: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    server: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    token_id: bytes = field(default_factory=lambda: os.urandom(24))
    code: bytes = field(default_factory=lambda: os.urandom(32))
    status: str = "ACTIVE"
    period: int = 0
    period_at: int | None = None
    active_at: int | None = TODAY
    queues: list[Queue] = field(default_factory=list)

    @property
    def secret(self) -> bytes:
        return crypto.dh(self.client, self.server.public_key())

    def row(self) -> tuple[Any, ...]:
        """Of `tokens`."""
        return (
            self.token_id, self.provider, self.device_token.encode(), self.status,
            crypto.encode_public(self.key.public_key()), crypto.encode_private(self.server), self.secret, self.code,
            self.period, self.period_at, self.active_at,
        )  # fmt: skip

    def line(self) -> bytes:
        """Of the store log."""
        public, private = crypto.encode_public(self.server.public_key()), crypto.encode_private(self.server)
        facts = {
            "tknId": b64url(self.token_id),
            "token": f"{self.provider} {self.device_token}",
            "tokenStatus": self.status,
            "verifyKey": b64url(crypto.encode_public(self.key.public_key())),
            "dhKeys": f"{b64url(public)} {b64url(private)}",
            "dhSecret": b64url(self.secret),
            "regCode": b64url(self.code),
            "cron": str(self.period),
        }
        if self.active_at is not None:
            facts["updatedAt"] = str(self.active_at)
        return f"TCREATE {' '.join(f'{name}={value}' for name, value in facts.items())}\n".encode()


def store_log(registrations: Iterable[Registration]) -> bytes:
    """As the reference writes it anew when it starts."""
    known = list(registrations)
    return b"".join([*(r.line() for r in known), *(q.line(r.token_id) for r in known for q in r.queues)])


def last_log(registrations: Iterable[Registration]) -> bytes:
    """Its log of last notifications."""
    return b"".join(
        f"v1 {b64url(r.token_id)} {q.name} {q.last[0]} {b64url(q.last[1])} {b64url(q.last[2])}\n".encode()
        for r in registrations
        for q in r.queues
        if q.last is not None
    )


class Service:
    """That the reference is on an SMP server since 7.0: one certificate, signed by itself."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = identity.issue_ca(self.key, "simplex", now)
        self.service_id = os.urandom(24)

    @property
    def columns(self) -> dict[str, bytes]:
        der = self.certificate.public_bytes(Encoding.DER)
        return {
            "ntf_service_id": self.service_id,
            "ntf_service_cert": listing([large(der)]),
            "ntf_service_cert_hash": b64url_bytes(crypto.key_hash(der)),
            "ntf_service_priv_key": crypto.encode_private(self.key),
        }


def make_schema(connection: Any, schema: str, migrations: Sequence[str] = V7_0) -> None:
    """Empty tables, of that version."""
    run = connection.execute
    run(f"CREATE SCHEMA {schema}")
    run(f"CREATE TABLE {schema}.migrations (name text PRIMARY KEY, ts timestamp NOT NULL, down text)")
    for name in migrations:
        run(f"INSERT INTO {schema}.migrations (name, ts) VALUES (%s, now()::timestamp)", [name])
    for table, parts in TABLES.items():
        columns = [f"{c} {kind}" for since, cs in parts.items() if since in migrations for c, kind in cs.items()]
        run(f"CREATE TABLE {schema}.{table} ({', '.join(columns)})".replace("{schema}", schema))


def add_server(
    connection: Any, schema: str, server: ServerAddress, hosts: str = "", service: Service | None = None
) -> int:
    """Its number."""
    row = {
        "smp_host": hosts or ",".join(server.hosts),
        "smp_port": server.port,
        "smp_keyhash": b64url_bytes(server.key_hash),
    }
    row |= service.columns if service else {}
    return int(_insert(connection, f"{schema}.smp_servers", row, "smp_server_id"))


def fill(
    connection: Any,
    schema: str,
    registrations: Sequence[Registration],
    migrations: Sequence[str] = V7_0,
    service: Service | None = None,
) -> None:
    """Its tables, with these devices. `service`: that the reference is on each SMP server."""
    make_schema(connection, schema, migrations)
    names = list(TABLES["tokens"][FIRST])
    servers: dict[str, int] = {}
    for r in registrations:
        _insert(connection, f"{schema}.tokens", dict(zip(names, r.row(), strict=True)))
        for q in r.queues:
            key = str(q.server)
            if key not in servers:
                servers[key] = add_server(connection, schema, q.server, service=service)
            add_queue(connection, schema, r, q, servers[key], associated=ASSOCIATED in migrations)
    if "20250830_queue_ids_hash" in migrations:
        for key, number in servers.items():
            ids = [q.notifier_id for r in registrations for q in r.queues if str(q.server) == key and q.associated]
            connection.execute(
                f"UPDATE {schema}.smp_servers SET smp_notifier_count = %s, smp_notifier_ids_hash = %s"
                " WHERE smp_server_id = %s",
                [len(ids), ids_hash(ids), number],
            )


def add_queue(connection: Any, schema: str, r: Registration, q: Queue, server: int, *, associated: bool = True) -> None:
    """A subscription, and its newest notification."""
    row: dict[str, Any] = {
        "subscription_id": q.subscription_id,
        "token_id": r.token_id,
        "smp_server_id": server,
        "smp_notifier_id": q.notifier_id,
        "smp_notifier_key": crypto.encode_private(q.key),
        "status": q.status,
    }
    row |= {"ntf_service_assoc": q.associated} if associated else {}
    _insert(connection, f"{schema}.subscriptions", row)
    if q.last is not None:
        at, nonce, meta = q.last
        moment = datetime.datetime.fromtimestamp(at, datetime.UTC)
        last = {"token_id": r.token_id, "subscription_id": q.subscription_id, "sent_at": moment}
        _insert(connection, f"{schema}.last_notifications", last | {"nmsg_nonce": nonce, "nmsg_data": meta})


def _insert(connection: Any, table: str, row: dict[str, Any], returning: str = "") -> Any:
    query = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})"
    done = connection.execute(query + (f" RETURNING {returning}" if returning else ""), list(row.values()))
    return done.fetchone()[0] if returning else None


def many() -> list[Registration]:
    """Of every status, with queues of every status."""
    statuses = [s.value for s in TokenStatus] + [f"INVALID,{reason.value}" for reason in InvalidReason]
    known = [Registration(provider=list(PROVIDERS)[n % 3], status=s) for n, s in enumerate(statuses)]
    for n, status in enumerate(s.value for s in SubscriptionStatus):
        queue = Queue(SMP if n % 2 else ServerAddress("smp", ("smp8.simplex.im",), "5223", b"j" * 32))
        queue.status = f"{status} timed out, so" if status == "ERR" else status
        queue.last = (TODAY + n, os.urandom(24), b"meta") if n % 3 else None
        known[n % 4].queues.append(queue)
    known[0].period, known[3].period, known[3].period_at, known[5].active_at = 20, 1440, TODAY - 100, None
    return known
