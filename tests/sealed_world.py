"""What a file on the disk gives away: a search for secrets in every form, and a store that has many."""

import base64
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from store_world import OTHER_SMP, SMP

from ntf_server.store.records import Added, NewSubscription, NewToken, ServiceCertificate
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider

OLD, NEW = MasterKey(b"\x01" * 32), MasterKey(b"\x02" * 32)
SEALED = {
    "tokens": ("device_token", "client_dh", "server_dh", "secret", "code"),
    "subscriptions": ("notifier_key",),
    "servers": ("certificate_key",),
}
Made = list[tuple[NewToken, list[NewSubscription]]]


@contextlib.asynccontextmanager
async def opened(path: Path, master: MasterKey = OLD, **options: Any) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, master_key=master, **options)
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The file without the store."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=0)
    try:
        yield connection
    finally:
        connection.close()


def files(path: Path) -> dict[str, bytes]:
    names = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
    return {file.name: file.read_bytes() for file in names if file.exists()}


def forms(value: bytes) -> Iterable[bytes]:
    yield from (value, value[:16], value[-16:], value.hex().encode(), value.hex().upper().encode())
    for start in range(3):  # base64 of a longer text in which it stands
        part = value[start : start + (len(value) - start) // 3 * 3]
        yield from (base64.b64encode(part), base64.urlsafe_b64encode(part))


def leaks(path: Path, values: Iterable[bytes]) -> set[bytes]:
    """Those that the files hold, in any form."""
    contents = files(path).values()
    return {v for v in values if any(form in c for c in contents for form in forms(v))}


def new_token(device: bytes | None = None) -> NewToken:
    parts = [os.urandom(32) for _ in range(4)]
    return NewToken(os.urandom(24), DeviceToken(Provider.APNS, device or os.urandom(32)), os.urandom(44), *parts)


def new_subscription(queue: bytes | None = None) -> NewSubscription:
    return NewSubscription(os.urandom(24), SMP, queue or os.urandom(24), os.urandom(48))


async def serve(store: SqliteStore) -> dict[ServerAddress, ServiceCertificate]:
    """Two services of ours."""
    made = {server: ServiceCertificate(os.urandom(200), os.urandom(48)) for server in (SMP, OTHER_SMP)}
    for server, certificate in made.items():
        assert await store.service_certificate(server, lambda certificate=certificate: certificate) == certificate  # type: ignore[misc]
    return made


async def services_of(store: SqliteStore) -> dict[ServerAddress, ServiceCertificate]:
    """Those that are kept."""
    return {server: await store.service_certificate(server, _none) for server in (SMP, OTHER_SMP)}


def _none() -> ServiceCertificate:
    raise AssertionError("there is none")


def token_secrets(t: NewToken) -> set[bytes]:
    return {t.device.token, t.client_dh, t.server_dh, t.secret, t.code}


async def fill(store: SqliteStore, tokens: int = 4, queues: int = 3) -> Made:
    made = []
    for _ in range(tokens):
        new, subscriptions = new_token(), [new_subscription() for _ in range(queues)]
        token = await store.register(new)
        assert token is not None
        assert await store.verify(token.ref, new.code)
        for each in subscriptions:
            assert isinstance(await store.subscribe(token.ref, each), Added)
        made.append((new, subscriptions))
    return made


def secrets_of(made: Made) -> set[bytes]:
    return {s for t, _ in made for s in token_secrets(t)} | {s.notifier_key for _, each in made for s in each}


async def expect_all(store: SqliteStore, made: Made) -> None:
    """Every value is what was given."""
    session = await store.acquire(SMP)
    assert session is not None
    keys = {w.notifier_id: w.notifier_key for w in (await store.page(session, None, 10_000)).wanted}
    for new, subscriptions in made:
        token = await store.find_token(new.token_id)
        assert token is not None
        assert token.verify_key == new.verify_key
        assert await store.verify(token.ref, new.code)
        for each in subscriptions:
            found = await store.find_subscription(each.subscription_id)
            assert found is not None
            assert found[0].ref == token.ref
            assert keys[each.notifier_id] == each.notifier_key
        again = await store.register(replace(new, token_id=os.urandom(24)))  # by its client key
        assert again is not None
        assert (again.ref, again.server_dh) == (token.ref, new.server_dh)


def sealed_values(path: Path) -> list[bytes]:
    with raw(path) as c:
        return [
            value
            for table, columns in SEALED.items()
            for row in c.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY ref")
            for value in row
            if value is not None
        ]


def wrapped_key(path: Path) -> bytes:
    with raw(path) as c:
        [value] = c.execute("SELECT wrapped FROM keys").fetchone()
        assert isinstance(value, bytes)
        return value


def to_scrub(path: Path) -> bool:
    with raw(path) as c:
        return bool(c.execute("SELECT to_scrub FROM keys").fetchone()[0])
