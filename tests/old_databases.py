"""Databases as older relays left them: of schemas 1 to 5, with everything that a migration may meet."""

import hashlib
import hmac
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ntf_server.store.sealing import MasterKey, Sealer
from ntf_server.store.sqlite.migrations import migrate
from ntf_server.store.sqlite.schema import migrations
from smp_bridge.address import ServerAddress
from smp_bridge.crypto import box_key
from smp_bridge.encoding import short
from smp_bridge.ntf import DeviceToken, Provider

NOW: Final = 1_800_000_000
MASTER_KEY: Final = b"a master key of thirty-two bytes"
MASTER: Final = MasterKey(MASTER_KEY)
APPLICATION_ID: Final = 0x4E544652
OLDEST, NEWEST_OLD = 1, 5
_WRITTEN: Final = 4  # the newest schema that is written here; a later one is what a migration from it left
SERVERS: Final = tuple(ServerAddress("smp", (f"smp{n}.example.org",), "", bytes([n]) * 32) for n in range(3))
SERVICE_ID: Final = b"service id of the first server"
_SCHEMAS: Final = Path(__file__).parent / "ntf_server/store/sqlite/schemas"


def ddl(schema: int) -> str:
    """What a database of this schema is made by, as sqlite_master of a released relay had it."""
    return (_SCHEMAS / f"{3 if schema == 4 else schema}.sql").read_text()


@dataclass
class OldQueue:
    """A subscription, made `at`; `notification`: seq, received_at, nonce, metadata, sent."""

    name: bytes
    server: int = 0
    status: str = "ACTIVE"
    associated: bool = False
    notification: tuple[int, int, bytes, bytes, int] | None = None
    subscription_id: bytes = field(default_factory=lambda: os.urandom(24))
    notifier_key: bytes = b""
    at: int = NOW - 5000

    @property
    def key(self) -> bytes:
        return self.notifier_key or b"PKCS#8 of " + self.name


@dataclass
class OldToken:
    """A registration; `at`: of its last TNEW or TRPL."""

    device: DeviceToken
    verify_key: bytes
    status: str = "ACTIVE"
    reason: str | None = None
    at: int = NOW - 300
    code_due: bool = False
    check_due: bool = False
    period: int = 0
    queues: list[OldQueue] = field(default_factory=list)
    token_id: bytes = field(default_factory=lambda: os.urandom(24))
    client_dh: bytes = field(default_factory=lambda: os.urandom(32))
    server_dh: bytes = field(default_factory=lambda: os.urandom(32))
    dh_secret: bytes = field(default_factory=lambda: os.urandom(32))
    code: bytes = field(default_factory=lambda: os.urandom(32))

    @property
    def verification_due(self) -> int | None:
        return self.at if self.code_due else None

    @property
    def secret(self) -> bytes:
        """What pushes are boxed with."""
        return box_key(self.dh_secret)


class Numbers:
    """Names and numbers that are each used once."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> int:
        self._last += 1
        return self._last

    def device(self, provider: Provider = Provider.APNS) -> DeviceToken:
        return DeviceToken(provider, hashlib.sha256(b"%d" % self()).hexdigest().encode())

    def queue(self, **more: Any) -> OldQueue:
        return OldQueue(b"queue %d" % self(), **more)

    def unsent(self, **more: Any) -> OldQueue:
        number = self()
        return self.queue(notification=(number, NOW - 100 + number, b"n" * 24, b"meta %d" % number, 0), **more)


def content() -> list[OldToken]:
    """All sorts of tokens, twins among them."""
    n = Numbers()
    tokens: list[OldToken] = []

    def add(device: DeviceToken | None = None, key: bytes | None = None, **more: Any) -> OldToken:
        token = OldToken(device or n.device(), key or b"verify key %d" % n(), **more)
        tokens.append(token)
        return token

    for status in ("REGISTERED", "CONFIRMED", "ACTIVE", "EXPIRED"):
        for due in (False, True):
            add(status=status, code_due=due, queues=[n.queue(), n.unsent(server=1)])
    for reason in ("BAD", "TOPIC", "EXPIRED", "UNREGISTERED"):
        add(status="INVALID", reason=reason, queues=[n.unsent()])
    for status in ("NEW", "PENDING", "ACTIVE", "END", "DELETED", "AUTH", "ERR"):
        add(queues=[n.queue(status=status), n.queue(status=status, associated=True)])
    sent = n.queue(notification=(n(), NOW - 50, b"s" * 24, b"sent", 1))
    add(queues=[sent, n.unsent(), n.unsent(server=2)])
    add(period=30, check_due=True)
    add(period=30, queues=[n.unsent()])
    add(n.device(Provider.FCM))
    add(web_push_device(n()), queues=[n.unsent()])
    for twin in _twins(n):
        tokens.append(twin)
    return tokens


def web_push_device(number: int) -> DeviceToken:
    """Host, port, path, auth secret, P-256 key (wire.md, section 8)."""
    fields = (b"push.example.org", b"", b"/p/%d" % number, b"a" * 16, b"\4" * 65)
    return DeviceToken(Provider.WEB_PUSH, b"".join(map(short, fields)))


def _upper(device: DeviceToken) -> DeviceToken:
    return DeviceToken(device.provider, device.token.upper())


def _twins(n: Numbers) -> Iterator[OldToken]:
    """Registrations of one device token and verify key, which is one by now; and some that only look like it."""
    device, key = n.device(), b"twin %d" % n()
    yield OldToken(device, key, at=NOW - 900, queues=[n.unsent()])
    yield OldToken(_upper(device), key, "REGISTERED", at=NOW - 100, code_due=True, queues=[n.unsent(), n.queue()])
    device, key = n.device(), b"twin %d" % n()
    yield OldToken(_upper(device), key, "REGISTERED", at=NOW - 100, code_due=True, queues=[n.unsent()])
    yield OldToken(device, key, "CONFIRMED", at=NOW - 500, queues=[n.unsent()])
    device, key = n.device(), b"twin %d" % n()
    yield OldToken(device, key, "INVALID", "BAD", at=NOW - 50, queues=[n.queue(associated=True)])
    yield OldToken(device, key, at=NOW - 700, queues=[n.unsent(associated=True)])
    yield OldToken(device, key, "REGISTERED", at=NOW - 60, queues=[n.unsent()])
    for provider in (Provider.APNS, Provider.FCM):  # not the same key; the same letters, but not hex
        device = n.device(provider)
        yield OldToken(device, b"one %d" % n(), "REGISTERED", code_due=True)
        key = b"one %d" % n() if provider is Provider.APNS else b"other %d" % n()
        yield OldToken(_upper(device), key, "REGISTERED", code_due=True)
    device, key = n.device(Provider.FCM), b"key %d" % n()
    yield OldToken(device, key)
    yield OldToken(_upper(device), key)


def merged(tokens: Sequence[OldToken]) -> dict[bytes, list[OldToken]]:
    """By the id of the one that stays: it, and those whose queues it gets."""
    groups: dict[tuple[DeviceToken, bytes], list[OldToken]] = {}
    for token in tokens:
        device = token.device
        if device.provider is not Provider.FCM and device.provider is not Provider.WEB_PUSH:
            device = DeviceToken(device.provider, device.token.lower())
        groups.setdefault((device, token.verify_key), []).append(token)
    out = {}
    for group in groups.values():
        group.sort(key=lambda t: (t.status != "ACTIVE", -t.at))
        out[group[0].token_id] = group
    return out


# --- writing them


def make(path: Path, schema: int, tokens: Sequence[OldToken], *, servers: Sequence[ServerAddress] = SERVERS) -> None:
    """A database of this schema; `servers`: what `OldQueue.server` counts."""
    written = min(schema, _WRITTEN)
    path.touch(mode=0o600)
    with closing(sqlite3.connect(path, isolation_level=None)) as c:
        c.execute("PRAGMA journal_mode = WAL")
        c.executescript(ddl(written))
        c.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        c.execute(f"PRAGMA user_version = {written}")
        c.execute("BEGIN")
        sealer = _Writer(c, written)
        for ref, server in enumerate(servers, 1):
            sealer.server(ref, server)
        for token in tokens:
            sealer.token(token)
        c.execute("COMMIT")
        migrate(c, migrations(MASTER)[:schema], None)


class _Writer:
    """Rows as the relay of a schema wrote them."""

    def __init__(self, c: sqlite3.Connection, schema: int) -> None:
        self._c = c
        self._schema = schema
        key = os.urandom(32)
        self._sealer = Sealer(key)
        if schema >= 2:
            self._insert("keys", ref=1, wrapped=MASTER.wrap(key), to_scrub=0)

    def _insert(self, table: str, **columns: Any) -> int:
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        cursor = self._c.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(columns.values()))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _seal(self, value: bytes, where: str, public_id: bytes) -> bytes:
        return self._sealer.seal(value, where.encode() + b":" + public_id) if self._schema >= 2 else value

    def server(self, ref: int, address: ServerAddress) -> None:
        more: dict[str, Any] = {"session": 3}
        if self._schema >= 3:
            more = {"generation": 3}
            if ref == 1:
                key = self._seal(b"service key", "servers.certificate_key", address.encode())
                more |= {"certificate": b"chain", "certificate_key": key, "service_id": SERVICE_ID, "released": 2}
        self._insert("servers", ref=ref, address=address.encode(), **more)

    def token(self, t: OldToken) -> None:
        more: dict[str, Any] = {}
        if self._schema >= 2:
            name, key = t.device.provider.encode(), self._sealer._lookup_key
            more["device_lookup"] = hmac.digest(key, bytes([len(name)]) + name + t.device.token, "sha256")
            more["registered_at"] = t.at
        secret = t.secret if self._schema >= 4 else t.dh_secret
        ref = self._insert(
            "tokens",
            token_id=t.token_id,
            provider=t.device.provider.value,
            device_token=self._seal(t.device.token, "tokens.device_token", t.token_id),
            verify_key=t.verify_key,
            client_dh=self._seal(t.client_dh, "tokens.client_dh", t.token_id),
            server_dh=self._seal(t.server_dh, "tokens.server_dh", t.token_id),
            secret=self._seal(secret, "tokens.secret", t.token_id),
            code=self._seal(t.code, "tokens.code", t.token_id),
            status=t.status,
            reason=t.reason,
            period=t.period,
            period_at=NOW - 600,
            verification_due=t.verification_due,
            check_due=NOW - 100 if t.check_due else None,
            created_at=t.at,
            **more,
        )
        for queue in t.queues:
            self._queue(ref, queue)

    def _queue(self, token: int, q: OldQueue) -> None:
        more: dict[str, Any] = {"session": 3}
        if self._schema >= 3:
            more = {"association": 3 if q.associated else 1}
        ref = self._insert(
            "subscriptions",
            subscription_id=q.subscription_id,
            token=token,
            server=q.server + 1,
            notifier_id=q.name,
            notifier_key=self._seal(q.key, "subscriptions.notifier_key", q.subscription_id),
            status=q.status,
            error="words" if q.status == "ERR" else "",
            created_at=q.at,
            **more,
        )
        if q.notification is not None:
            seq, received_at, nonce, meta, sent = q.notification
            self._insert(
                "notifications",
                subscription=ref,
                token=token,
                seq=seq,
                received_at=received_at,
                nonce=nonce,
                meta=meta,
                sent=sent,
            )


def dump(path: Path) -> list[str]:
    """All that is in a database, as SQL; a copy has its indexes and triggers in another order."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as c:
        return [f"version {version(path)}", *sorted(c.iterdump())]


def version(path: Path) -> int:
    """Its schema."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as c:
        return int(c.execute("PRAGMA user_version").fetchone()[0])
