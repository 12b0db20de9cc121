"""What a copied file gives away, what a changed one does, and key rotation."""

import asyncio
import base64
import contextlib
import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from ntf_server.store.records import (
    ALL_ASSOCIATIONS,
    START,
    WANTED,
    Added,
    Confirmed,
    Delivered,
    LimitReached,
    Limits,
    NewSubscription,
    NewToken,
    Notification,
    PushKind,
    ServiceCertificate,
    ServiceState,
    StoreCorruptError,
    StoreError,
    Subscription,
    Token,
    Wanted,
)
from ntf_server.store.sealing import MasterKey, Sealer
from ntf_server.store.sqlite import keys as sqlite_keys
from ntf_server.store.sqlite.database import APPLICATION_ID, Database
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.rekey import Rekeyed, rekey
from ntf_server.store.sqlite.rows import insert_token
from ntf_server.store.sqlite.schema import SCHEMA_1, migrations
from smp_bridge import crypto
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus

NOW = 1_800_000_000
SMP = ServerAddress("smp", ("smp.example.org",), "", b"h" * 32)
OLD, NEW = MasterKey(b"\x01" * 32), MasterKey(b"\x02" * 32)
OTHER_SMP = ServerAddress("smp", ("2001:db8::1",), "5224", b"i" * 32)
SEALED = {
    "tokens": ("device_token", "client_dh", "server_dh", "secret", "code"),
    "subscriptions": ("notifier_key",),
    "servers": ("certificate_key",),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


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
        await store.set_service_certificate(server, certificate)
    return made


def token_secrets(t: NewToken | Token) -> set[bytes]:
    return {t.device.token, t.client_dh, t.server_dh, t.secret, t.code}


async def fill(store: SqliteStore, tokens: int = 4, queues: int = 3) -> list[tuple[NewToken, list[NewSubscription]]]:
    made = []
    for _ in range(tokens):
        new, subscriptions = new_token(), [new_subscription() for _ in range(queues)]
        token = await store.register_token(new, NOW)
        assert token is not None
        assert await store.verify_token(token.ref, new.code) == []
        for each in subscriptions:
            assert await store.add_subscription(token.ref, each, NOW)
        made.append((new, subscriptions))
    return made


def migrated(made: list[tuple[NewToken, list[NewSubscription]]]) -> list[tuple[NewToken, list[NewSubscription]]]:
    """As it is since schema 4."""
    return [(replace(t, secret=crypto.box_key(t.secret)), each) for t, each in made]


def secrets_of(made: list[tuple[NewToken, list[NewSubscription]]]) -> set[bytes]:
    return {s for t, _ in made for s in token_secrets(t)} | {s.notifier_key for _, each in made for s in each}


async def records(store: SqliteStore, made: list[tuple[NewToken, list[NewSubscription]]]) -> list[Any]:
    tokens = [await store.find_token(t.token_id) for t, _ in made]
    return tokens + [await store.find_subscription(s.subscription_id) for _, each in made for s in each]


async def expect_all(store: SqliteStore, made: list[tuple[NewToken, list[NewSubscription]]]) -> None:
    """Every value is what was given."""
    for new, subscriptions in made:
        token = await store.find_token(new.token_id)
        assert token is not None
        assert (token.device, token.verify_key) == (new.device, new.verify_key)
        given = new.client_dh, new.server_dh, new.secret, new.code
        assert (token.client_dh, token.server_dh, token.secret, token.code) == given
        for each in subscriptions:
            found = await store.find_subscription(each.subscription_id)
            assert found is not None
            assert (found[0], found[1].notifier_key) == (token, each.notifier_key)
        again = await store.register_token(replace(new, token_id=os.urandom(24)), NOW)
        assert again is not None
        assert again.ref == token.ref


# --- what a copied file gives away


def test_the_search_finds_what_is_in_the_clear(path: Path) -> None:
    """Else the tests below would prove nothing."""
    value, absent = os.urandom(32), os.urandom(32)
    for form in (value, value.hex().encode(), base64.b64encode(b"x" + value), base64.urlsafe_b64encode(b"xy" + value)):
        path.write_bytes(b"before" + form + b"after")
        assert leaks(path, [value, absent]) == {value}
        path.with_name("relay.db-wal").write_bytes(path.read_bytes())
        path.write_bytes(b"")
        assert leaks(path, [value, absent]) == {value}
        path.with_name("relay.db-wal").unlink()


async def test_a_busy_sessions_files_hold_no_secret_in_any_form(path: Path) -> None:
    async with opened(path) as store:
        made = await fill(store, 8, 4)
        secrets = secrets_of(made)
        found = [await store.find_token(new.token_id) for new, _ in made]
        tokens = [t for t in found if t]
        device, code = DeviceToken(Provider.APNS, os.urandom(32)), os.urandom(32)
        await store.replace_token(tokens[0].ref, device, code, NOW)
        secrets |= {device.token, code}
        thief = new_token(tokens[1].device.token)
        stolen = await store.register_token(thief, NOW)
        assert stolen is not None
        await store.verify_token(stolen.ref, thief.code)
        secrets |= token_secrets(thief)
        await store.delete_token(tokens[2].ref)
        for _, subscriptions in made[3:5]:
            await store.notify(SMP, [Notification(s.notifier_id, NOW, bytes(24), b"meta") for s in subscriptions])
        pushes = await store.load_pushes([t.ref for t in tokens] + [stolen.ref], NOW)
        assert len(pushes) == 3
        await store.record([Delivered(p, NOW, p.notifications) for p in pushes])
        services = [s for _ in range(2) for s in (await serve(store)).values()]  # one replaces the other
        secrets |= {s.key for s in services}
        assert await store.page(SMP, START, ALL_ASSOCIATIONS, 100)
        assert await store.load_wanted([1])
        assert await store.service_certificate(SMP) in services
        assert len(files(path)) == 3
        assert len(secrets) > 60
        assert leaks(path, secrets) == set()
    assert leaks(path, secrets) == set()
    async with opened(path):
        assert leaks(path, secrets) == set()


async def test_what_a_copied_file_still_tells_is_what_the_page_says(path: Path) -> None:
    async with opened(path) as store:
        [(token, [subscription])] = await fill(store, 1, 1)
        services = await serve(store)
        await store.begin_service(SMP, service_id := os.urandom(24))
    public = {token.token_id, token.verify_key, subscription.subscription_id, subscription.notifier_id}
    public |= {service_id} | {s.chain for s in services.values()}
    assert leaks(path, public) == public


async def test_the_file_does_not_hold_the_keys(path: Path) -> None:
    async with opened(path):
        pass
    with raw(path) as c:
        key = sqlite_keys.load_key(c, OLD)
    assert leaks(path, [key, b"\x01" * 32]) == set()


async def test_equal_values_look_different(path: Path) -> None:
    async with opened(path) as store:
        first = new_token()
        await store.register_token(first, NOW)
        await store.register_token(replace(first, token_id=os.urandom(24), verify_key=b"other"), NOW)
    with raw(path) as c:
        for column in SEALED["tokens"]:
            assert c.execute(f"SELECT count(DISTINCT {column}) FROM tokens").fetchone() == (2,)
        assert c.execute("SELECT count(DISTINCT device_lookup) FROM tokens").fetchone() == (1,)


# --- what is opened


async def test_only_what_is_needed_is_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[bytes] = []

    def spy(self: Sealer, sealed: bytes, context: bytes) -> bytes:
        contexts.append(context.partition(b":")[0])
        return original(self, sealed, context)

    original = Sealer.open
    async with opened(path) as store:
        [(new, subscriptions)] = await fill(store, 1)
        token = await store.find_token(new.token_id)
        assert token is not None
        monkeypatch.setattr(Sealer, "open", spy)
        assert await store.load_pushes([token.ref], NOW) == []
        block = [Notification(s.notifier_id, NOW, bytes(24), b"meta") for s in subscriptions]
        assert len((await store.notify(SMP, block)).due) == 1
        await store.all_due()
        await store.confirm([Confirmed(1, SubscriptionStatus.ACTIVE, "", 1)])
        assert len(await store.to_audit(0, 100, NOW)) == 3
        assert (await store.service_state(SMP)).associated == 0
        assert contexts == []
        [push] = await store.load_pushes([token.ref], NOW)
        assert push.kind is PushKind.MESSAGES
        assert sorted(contexts) == [b"tokens.device_token", b"tokens.secret"]
        contexts.clear()
        await store.record([Delivered(push, NOW, push.notifications)])
        assert contexts == []
        await store.replace_token(token.ref, token.device, b"code", NOW)
        [push] = await store.load_pushes([token.ref], NOW)
        assert sorted(contexts) == [b"tokens.code", b"tokens.device_token", b"tokens.secret"]


# --- a changed file

CHANGES: dict[str, tuple[str, str]] = {
    **{f"tokens.{c} of another row": (f"tokens.{c}", other_row) for c, other_row in (
        (c, f"UPDATE tokens SET {c} = (SELECT {c} FROM tokens WHERE ref = 2) WHERE ref = 1") for c in SEALED["tokens"]
    )},
    "secret and code swapped": ("tokens.secret", "UPDATE tokens SET secret = code, code = secret WHERE ref = 1"),
    "dh keys swapped": (
        "tokens.client_dh", "UPDATE tokens SET client_dh = server_dh, server_dh = client_dh WHERE ref = 1"
    ),
    "another row's id": (
        "tokens.device_token", "UPDATE tokens SET token_id = iif(ref = 1, x'00', token_id) WHERE ref = 1"
    ),
    "empty": ("tokens.secret", "UPDATE tokens SET secret = x'' WHERE ref = 1"),
    "cut": ("tokens.code", "UPDATE tokens SET code = substr(code, 1, 27) WHERE ref = 1"),
    "in the clear": ("tokens.device_token", "UPDATE tokens SET device_token = zeroblob(32) WHERE ref = 1"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_token_is_refused_by_name(path: Path, change: str) -> None:
    column, sql = CHANGES[change]
    async with opened(path) as store:
        made = await fill(store, 3, 0)
    with raw(path) as c:
        c.execute(sql)
        [token_id] = c.execute("SELECT token_id FROM tokens WHERE ref = 1").fetchone()
    reported: list[StoreCorruptError] = []
    async with opened(path, on_corrupt=reported.append) as store:
        with pytest.raises(StoreCorruptError, match=rf"sealed value of {column} cannot be opened") as caught:
            await store.find_token(token_id)
        assert str(path) in str(caught.value)
        await asyncio.sleep(0)
        assert reported
        assert await store.find_token(made[2][0].token_id)  # the others are as they were


async def test_a_changed_device_token_or_secret_is_not_pushed_with(path: Path) -> None:
    async with opened(path) as store:
        for _ in range(3):
            await store.register_token(new_token(), NOW)
    with raw(path) as c:
        c.execute("UPDATE tokens SET secret = (SELECT secret FROM tokens WHERE ref = 3) WHERE ref = 1")
        c.execute("UPDATE tokens SET code = (SELECT code FROM tokens WHERE ref = 3) WHERE ref = 2")
    async with opened(path) as store:
        for ref in (1, 2):
            with pytest.raises(StoreCorruptError):
                await store.load_pushes([ref], NOW)
        assert len(await store.load_pushes([3], NOW)) == 1


async def test_a_moved_notifier_key_is_refused(path: Path) -> None:
    async with opened(path) as store:
        [(_, subscriptions)] = await fill(store, 1, 2)
    with raw(path) as c:
        c.execute("UPDATE subscriptions SET notifier_key = (SELECT notifier_key FROM subscriptions WHERE ref = 2)")
    async with opened(path) as store:
        with pytest.raises(StoreCorruptError, match=r"subscriptions\.notifier_key"):
            await store.find_subscription(subscriptions[0].subscription_id)
        with pytest.raises(StoreCorruptError, match=r"subscriptions\.notifier_key"):
            await store.page(SMP, START, ALL_ASSOCIATIONS, 10)
        with pytest.raises(StoreCorruptError, match=r"subscriptions\.notifier_key"):
            await store.load_wanted([2, 1])
        with pytest.raises(StoreCorruptError, match=r"subscriptions\.notifier_key"):
            await store.add_subscription(1, subscriptions[0], NOW)
        assert await store.find_subscription(subscriptions[1].subscription_id)
        assert len(await store.page(SMP, (0, 1), ALL_ASSOCIATIONS, 10)) == 1


@pytest.mark.parametrize(
    "change",
    [
        "certificate_key = (SELECT certificate_key FROM servers WHERE ref = 2)",
        "certificate_key = (SELECT notifier_key FROM subscriptions)",
        "certificate_key = x''",
    ],
)
async def test_a_changed_service_key_is_refused(path: Path, change: str) -> None:
    async with opened(path) as store:
        await fill(store, 1, 1)
        services = await serve(store)
    with raw(path) as c:
        c.execute(f"UPDATE servers SET {change} WHERE ref = 1")
    async with opened(path) as store:
        with pytest.raises(StoreCorruptError, match=r"sealed value of servers\.certificate_key cannot be opened"):
            await store.service_certificate(SMP)
        assert await store.service_certificate(OTHER_SMP) == services[OTHER_SMP]


# --- keys


async def test_another_master_key_is_refused_and_the_file_left_as_it_is(path: Path) -> None:
    async with opened(path) as store:
        made = await fill(store)
    before = files(path)
    with pytest.raises(StoreError, match="not the one that this database was sealed with") as caught:
        await SqliteStore.open(path, master_key=NEW)
    assert str(path) in str(caught.value)
    assert "give the right one" in str(caught.value)
    assert files(path) == before
    async with opened(path) as store:
        await expect_all(store, made)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE keys SET wrapped = CAST(substr(wrapped, 1, 30) || x'ff00ff' || substr(wrapped, 34) AS BLOB)",
        "UPDATE keys SET wrapped = substr(wrapped, 1, 67)",
        "UPDATE keys SET wrapped = x''",
        "DELETE FROM keys",
    ],
)
async def test_a_damaged_wrapped_key_is_told_and_the_file_left_as_it_is(path: Path, damage: str) -> None:
    async with opened(path) as store:
        await fill(store, 1, 1)
    with raw(path) as c:
        c.execute(damage)
    before = files(path)
    with pytest.raises(StoreCorruptError, match=r"wrapped database key .*restore a backup"):
        await SqliteStore.open(path, master_key=OLD)
    assert files(path) == before


async def test_every_database_has_its_own_key(tmp_path: Path) -> None:
    wrapped = set()
    for name in ("a.db", "b.db"):
        async with opened(tmp_path / name):
            pass
        with raw(tmp_path / name) as c:
            wrapped.add(sqlite_keys.load_key(c, OLD))
    assert len(wrapped) == 2


# --- a file of schema 1


def schema_1(path: Path, tokens: list[tuple[NewToken, list[NewSubscription]]], *, gone: int) -> None:
    """As the version before made it; `gone` of the tokens are deleted again."""
    with raw(path) as c:
        c.execute("PRAGMA journal_mode = WAL")
        c.executescript(SCHEMA_1)
        c.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        c.execute("PRAGMA user_version = 1")
        c.execute("INSERT INTO servers (address) VALUES (?)", (SMP.encode(),))
        for ref, (t, subscriptions) in enumerate(tokens, 1):
            given = t.token_id, t.device.provider, t.device.token, t.verify_key, t.client_dh, t.server_dh
            c.execute(
                "INSERT INTO tokens (token_id, provider, device_token, verify_key, client_dh, server_dh, secret, code,"
                " status, verification_due, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'ACTIVE', ?, ?)",
                (*given, t.secret, t.code, NOW + 5 if ref == 1 else None, NOW),
            )
            c.executemany(
                "INSERT INTO subscriptions (subscription_id, token, server, notifier_id, notifier_key, status,"
                " created_at) VALUES (?, ?, 1, ?, ?, 'NEW', ?)",
                [(s.subscription_id, ref, s.notifier_id, s.notifier_key, NOW) for s in subscriptions],
            )
        c.execute("PRAGMA secure_delete = OFF")
        c.execute("PRAGMA foreign_keys = ON")
        c.execute("DELETE FROM tokens WHERE ref > ?", (len(tokens) - gone,))


@pytest.mark.parametrize("crashed", [False, True], ids=["closed", "crashed"])
async def test_a_file_of_schema_1_is_sealed_and_its_plaintexts_are_gone(
    path: Path, tmp_path: Path, crashed: bool
) -> None:
    made = [(new_token(), [new_subscription() for _ in range(3)]) for _ in range(60)]
    secrets = secrets_of(made)
    if crashed:
        with raw(path) as c:
            c.execute("PRAGMA journal_mode = WAL")
            c.execute("SELECT * FROM sqlite_master")
            schema_1(path, made, gone=20)
            for suffix in ("", "-wal"):
                shutil.copy(f"{path}{suffix}", tmp_path / f"crashed.db{suffix}")
        path = tmp_path / "crashed.db"
        assert path.with_name("crashed.db-wal").stat().st_size > 0
    else:
        schema_1(path, made, gone=20)
    deleted = secrets_of(made[40:])
    assert leaks(path, secrets) >= secrets - deleted
    assert leaks(path, deleted)
    async with opened(path) as store:
        assert leaks(path, secrets) == set()
        await expect_all(store, migrated(made[:40]))
        assert await store.find_token(made[40][0].token_id) is None
        assert leaks(path, secrets) == set()
    assert leaks(path, secrets) == set()


async def test_schema_1_did_not_know_when_a_token_was_registered_last(path: Path) -> None:
    made = [(new_token(), [new_subscription()]) for _ in range(2)]
    schema_1(path, made, gone=0)
    async with opened(path) as store:
        await store.notify(SMP, [Notification(made[1][1][0].notifier_id, NOW, bytes(24), b"meta")])
        due, other = await store.load_pushes([1, 2], NOW)
        assert (due.registered_at, other.registered_at) == (NOW + 5, NOW)


async def test_a_migration_that_was_killed_before_its_end_is_finished_at_the_next_start(path: Path) -> None:
    made = [(new_token(), [new_subscription()]) for _ in range(60)]
    schema_1(path, made, gone=20)

    def killed(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Database.open(path, migrations(OLD), lambda _: None, killed)
    assert leaks(path, secrets_of(made))
    async with opened(path) as store:
        await expect_all(store, migrated(made[:40]))
        assert leaks(path, secrets_of(made)) == set()


async def test_a_failing_migration_leaves_schema_1_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [(new_token(), [new_subscription()]) for _ in range(5)]
    schema_1(path, made, gone=0)
    before = files(path)
    calls = iter(range(17))

    def full(self: Sealer, plain: bytes, context: bytes) -> bytes:
        if next(calls, None) is None:
            raise sqlite3.OperationalError("database or disk is full")
        return original(self, plain, context)

    original = Sealer.seal
    with monkeypatch.context() as patch:
        patch.setattr(Sealer, "seal", full)
        with pytest.raises(StoreError, match="disk is full"):
            await SqliteStore.open(path, master_key=OLD)
    assert files(path) == before
    async with opened(path) as store:
        await expect_all(store, migrated(made))


async def test_migration_and_reseal_go_through_all_batches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_keys, "_BATCH", 4)
    made = [(new_token(), [new_subscription() for _ in range(2)]) for _ in range(9)]
    schema_1(path, made, gone=1)
    assert await rekey(path, OLD, NEW, reseal=True) == Rekeyed(8, 16)
    async with opened(path, NEW) as store:
        await expect_all(store, migrated(made[:8]))
    assert leaks(path, secrets_of(made)) == set()


# --- a file of schema 2

STATUSES = list(SubscriptionStatus)
SESSIONS = {SMP: 57, OTHER_SMP: 0, ServerAddress("smp", ("empty.example.org",), "", b"e" * 32): 3}


def schema_2(path: Path, tokens: list[NewToken]) -> None:
    """As the version before made it: each token has subscriptions in all statuses on SMP, one on OTHER_SMP."""
    with raw(path) as c:
        c.execute("PRAGMA journal_mode = WAL")
        c.executescript(SCHEMA_1)
        c.execute("BEGIN")
        migrations(OLD)[1](c)  # type: ignore[operator]
        c.execute("COMMIT")
        c.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        c.execute("PRAGMA user_version = 2")
        sealer = Sealer(sqlite_keys.load_key(c, OLD))
        c.executemany(
            "INSERT INTO servers (address, session) VALUES (?, ?)", [(a.encode(), n) for a, n in SESSIONS.items()]
        )
        for t in tokens:
            ref = insert_token(c, sealer, t, NOW).ref
            for n, (server, status) in enumerate([*((1, s) for s in STATUSES), (2, "NEW")]):
                id_ = b"%d %d" % (ref, n)
                key = sealer.seal(b"key of " + id_, sqlite_keys.NOTIFIER_KEY + id_)
                session = 57 if status == "ACTIVE" else 0
                c.execute(
                    "INSERT INTO subscriptions (subscription_id, token, server, notifier_id, notifier_key, status,"
                    " error, session, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (id_, ref, server, id_, key, status, "text", session, NOW),
                )


async def test_a_file_of_schema_2_gets_its_counts_and_no_association(path: Path) -> None:
    tokens = [new_token() for _ in range(3)]
    schema_2(path, tokens)
    async with opened(path) as store:
        await expect_all(store, migrated([(t, []) for t in tokens]))
        for token in (1, 2, 3):
            for n, status in enumerate([*STATUSES, SubscriptionStatus.NEW]):
                found = await store.find_subscription(b"%d %d" % (token, n))
                assert found is not None
                owner, s = found
                assert (owner.ref, s.status, s.error, s.association) == (token, status, "text", 0)
                assert (s.notifier_id, s.notifier_key) == (s.subscription_id, b"key of " + s.subscription_id)
        with raw(path) as c:
            assert c.execute("SELECT subscriptions FROM servers ORDER BY ref").fetchall() == [(27,), (3,), (0,)]
            assert c.execute("SELECT subscriptions FROM tokens ORDER BY ref").fetchall() == [(10,), (10,), (10,)]
            assert c.execute("PRAGMA foreign_key_check").fetchall() == []
            assert c.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert await store.subscription_count() == 30
        wanted = [w.notifier_id for w in await store.page(SMP, START, ALL_ASSOCIATIONS, 100)]
        assert wanted == [b"%d %d" % (t, n) for t in (1, 2, 3) for n, s in enumerate(STATUSES) if s in WANTED]
        assert set(await store.servers()) == {SMP, OTHER_SMP}


async def test_after_schema_2_no_service_was_seen_and_generations_go_on(path: Path) -> None:
    schema_2(path, [new_token()])
    async with opened(path) as store:
        for server, session in SESSIONS.items():
            assert await store.service_certificate(server) is None
            assert await store.service_state(server) == ServiceState(session, 0, 0)
            assert await store.begin_service(server, None) == ServiceState(session, 0, 0)
            assert await store.begin_service(server, b"service id") == ServiceState(session + 1, 0, 0)


async def test_the_triggers_work_on_a_file_of_schema_2(path: Path) -> None:
    schema_2(path, [new_token() for _ in range(3)])
    async with opened(path) as store:
        await store.begin_service(SMP, b"service id")
        [first, *_] = page = await store.page(SMP, START, ALL_ASSOCIATIONS, 3)
        await store.confirm([Confirmed(w.ref, SubscriptionStatus.ACTIVE, "", 58) for w in page])
        await store.delete_subscription(first.ref)
        assert await store.service_state(SMP) == ServiceState(58, 2, 1)
        assert await store.subscription_count() == 29
        await store.delete_token(1)
        assert await store.service_state(SMP) == ServiceState(58, 0, 3)
        assert await store.subscription_count() == 20
        full = Limits(per_token=10)
        assert await store.add_subscription(2, new_subscription(), NOW, full) is LimitReached.TOKEN
        await store.delete_subscription(30)
        assert isinstance(await store.add_subscription(3, new_subscription(), NOW, full), Added)


async def test_a_migration_that_fails_at_its_end_leaves_schema_2_as_it_was(path: Path) -> None:
    schema_2(path, [new_token()])
    with raw(path) as c:
        c.execute("CREATE TRIGGER subscription_removed AFTER DELETE ON subscriptions BEGIN SELECT 1; END")
        before = list(c.iterdump())
    with pytest.raises(StoreError, match="subscription_removed already exists"):
        await SqliteStore.open(path, master_key=OLD)
    with raw(path) as c:
        assert list(c.iterdump()) == before
        assert c.execute("PRAGMA user_version").fetchone() == (2,)
        c.execute("DROP TRIGGER subscription_removed")
    async with opened(path) as store:
        assert await store.subscription_count() == 10


async def test_a_new_file_and_a_migrated_one_have_the_same_tables(path: Path, tmp_path: Path) -> None:
    schema_2(path, [new_token()])
    for file in (path, tmp_path / "new.db"):
        async with opened(file):
            pass

    def tables(file: Path) -> list[Any]:
        with raw(file) as c:
            return c.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()

    assert tables(path) == tables(tmp_path / "new.db")


# --- a file of schema 3


async def test_a_file_of_schema_3_gets_the_keys_of_boxes_in_place_of_dh_secrets(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_keys, "_BATCH", 2)
    async with opened(path) as store:
        made = await fill(store, 5, 1)
        await store.notify(SMP, [Notification(s.notifier_id, NOW, bytes(24), b"meta") for _, [s] in made])
    with raw(path) as c:
        c.execute("PRAGMA user_version = 3")  # nothing else is another
    async with opened(path) as store:
        await expect_all(store, migrated(made))
        pushes = await store.load_pushes(range(1, 6), NOW)
        assert [p.secret for p in pushes] == [crypto.box_key(t.secret) for t, _ in made]
        assert leaks(path, secrets_of(made) | secrets_of(migrated(made))) == set()


# --- scrubbing


def to_scrub(path: Path) -> bool:
    with raw(path) as c:
        return bool(c.execute("SELECT to_scrub FROM keys").fetchone()[0])


async def test_a_reader_puts_scrubbing_off_to_the_next_start(path: Path) -> None:
    made = [(new_token(), [new_subscription()]) for _ in range(60)]
    schema_1(path, made, gone=20)
    with raw(path) as reader:
        with raw(path) as c:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM tokens").fetchone()
            c.execute("BEGIN")
            migrations(OLD)[1](c)  # type: ignore[operator]
            c.execute("PRAGMA user_version = 2")
            c.execute("COMMIT")
            sqlite_keys.prepare(OLD)(c)
            assert c.execute("SELECT to_scrub FROM keys").fetchone() == (1,)
        assert leaks(path, secrets_of(made))
        reader.execute("ROLLBACK")
    async with opened(path) as store:
        await expect_all(store, migrated(made[:40]))
        assert leaks(path, secrets_of(made)) == set()
    assert not to_scrub(path)


async def test_a_clean_file_is_not_scrubbed(path: Path) -> None:
    new = path.with_name("new.db")
    with raw(new) as c:  # not even a new one
        c.executescript(SCHEMA_1)
        migrations(OLD)[1](c)  # type: ignore[operator]
    assert not to_scrub(new)
    async with opened(path) as store:
        await fill(store)
    assert not to_scrub(path)
    with raw(path) as c:
        statements: list[str] = []
        c.set_trace_callback(statements.append)
        sqlite_keys.prepare(OLD)(c)
    assert statements
    assert not [s for s in statements if "VACUUM" in s]


# --- rotation


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


@pytest.mark.parametrize("reseal", [False, True])
async def test_after_rotation_the_new_master_key_opens_everything_and_the_old_nothing(path: Path, reseal: bool) -> None:
    async with opened(path) as store:
        made = await fill(store)
        before = await records(store, made)
        services = await serve(store)
    sealed, wrapped = sealed_values(path), wrapped_key(path)
    assert len(sealed) == 4 * 5 + 12 + 2
    assert await rekey(path, OLD, NEW, reseal=reseal) == (Rekeyed(4, 12) if reseal else Rekeyed(0, 0))
    with pytest.raises(StoreError, match="not the one"):
        await SqliteStore.open(path, master_key=OLD)
    async with opened(path, NEW) as store:
        assert await records(store, made) == before
        await expect_all(store, made)
        assert {s: await store.service_certificate(s) for s in services} == services
    assert leaks(path, [wrapped]) == set()
    assert leaks(path, sealed) == (set() if reseal else set(sealed))
    assert leaks(path, secrets_of(made) | {s.key for s in services.values()}) == set()
    assert not to_scrub(path)


async def test_reseal_makes_a_new_database_key(path: Path) -> None:
    async with opened(path):
        pass
    keys = []
    for reseal in (False, True, True):
        with raw(path) as c:
            keys.append(sqlite_keys.load_key(c, OLD))
        await rekey(path, OLD, OLD, reseal=reseal)
    assert keys[0] == keys[1]
    assert keys[1] != keys[2]


async def test_counts_and_associations_survive_a_reseal(path: Path) -> None:
    async with opened(path) as store:
        await fill(store, 2, 3)
        await store.begin_service(SMP, b"service id")
        await store.confirm([Confirmed(ref, SubscriptionStatus.ACTIVE, "", 1) for ref in (1, 2, 4)])
        await store.delete_subscription(2)
        await serve(store)
    await rekey(path, OLD, NEW, reseal=True)
    async with opened(path, NEW) as store:
        assert await store.begin_service(SMP, b"service id") == ServiceState(1, 2, 1)
        assert await store.subscription_count() == 5
        await store.delete_token(1)  # the triggers are there still
        assert await store.service_state(SMP) == ServiceState(1, 1, 2)
        assert await store.subscription_count() == 3


async def test_what_is_due_survives_rotation(path: Path) -> None:
    async with opened(path) as store:
        [(_, subscriptions)] = await fill(store, 1)
        await store.notify(SMP, [Notification(s.notifier_id, NOW, bytes(24), b"meta") for s in subscriptions])
        before = await store.load_pushes([1], NOW)
    await rekey(path, OLD, NEW, reseal=True)
    async with opened(path, NEW) as store:
        assert await store.load_pushes([1], NOW) == before
        assert len(before) == 1


@pytest.mark.parametrize("reseal", [False, True])
async def test_a_running_server_is_not_rotated_under(path: Path, reseal: bool) -> None:
    async with opened(path) as store:
        made = await fill(store, 1)
        with pytest.raises(StoreError, match="another ntf-server uses this database"):
            await rekey(path, OLD, NEW, reseal=reseal)
        await expect_all(store, made)
    async with opened(path) as store:
        await expect_all(store, made)


@pytest.mark.parametrize("reseal", [False, True])
async def test_rotation_needs_the_right_master_key(path: Path, reseal: bool) -> None:
    async with opened(path) as store:
        await fill(store)
    before = files(path)
    with pytest.raises(StoreError, match="not the one that this database was sealed with"):
        await rekey(path, NEW, NEW, reseal=reseal)
    assert files(path) == before


async def test_rotation_makes_no_database(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        await rekey(path, OLD, NEW, reseal=False)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "column", "ref"), [("subscriptions", "notifier_key", 12), ("servers", "certificate_key", 2)]
)
async def test_a_changed_value_stops_a_reseal_and_nothing_is_changed(
    path: Path, table: str, column: str, ref: int
) -> None:
    async with opened(path) as store:
        await fill(store)
        await serve(store)
    with raw(path) as c:
        c.execute(f"UPDATE {table} SET {column} = x'00' WHERE ref = {ref}")
    sealed, wrapped = sealed_values(path), wrapped_key(path)
    with pytest.raises(StoreCorruptError, match=rf"{table}\.{column}"):
        await rekey(path, OLD, NEW, reseal=True)
    assert (sealed_values(path), wrapped_key(path)) == (sealed, wrapped)


async def test_rotation_tells_when_the_old_could_not_be_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as store:
        made = await fill(store, 1)

    def full(c: sqlite3.Connection) -> None:
        [due] = c.execute("SELECT to_scrub FROM keys").fetchone()
        if due:
            raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_keys, "_scrub", full)
        with pytest.raises(StoreError, match=r"disk is full.*the new master key is in force"):
            await rekey(path, OLD, NEW, reseal=True)
    async with opened(path, NEW) as store:
        await expect_all(store, made)
    assert not to_scrub(path)


# Rekeys, and stands still where it is to be killed: at the call numbered `at` of the function `name`.
PROGRAM = """
import asyncio, importlib, pathlib, sys, time
from ntf_server.store.sqlite import rekey
from ntf_server.store.sealing import MasterKey
path, module, name, at = sys.argv[1:]
module = importlib.import_module("ntf_server.store." + module)
owner = module.Sealer if name == "seal" else module
original, count = getattr(owner, name), 0
def stop(*args):
    global count
    count += 1
    if count == int(at):
        print("here", flush=True)
        time.sleep(60)
    return original(*args)
setattr(owner, name, stop)
asyncio.run(rekey.rekey(pathlib.Path(path), MasterKey(b"\\1" * 32), MasterKey(b"\\2" * 32), reseal=True))
"""


@pytest.mark.parametrize(
    ("module", "name", "at", "after"),
    [
        ("sealing", "seal", 1, OLD),
        ("sealing", "seal", 2, OLD),  # one service is done
        ("sealing", "seal", 402, OLD),  # tokens are done in part
        ("sealing", "seal", 801, OLD),  # almost at the end of the transaction
        ("sqlite.rekey", "_open", 2, NEW),  # committed, but not scrubbed
    ],
)
async def test_a_kill_in_the_middle_leaves_all_old_or_all_new(
    path: Path, module: str, name: str, at: int, after: MasterKey
) -> None:
    async with opened(path) as store:
        made = await fill(store, 100)
        services = await serve(store)
    sealed, wrapped = sealed_values(path), wrapped_key(path)
    assert len(sealed) == 802
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, path, module, name, str(at), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"here\n"
    finally:
        process.kill()
        await process.wait()
    other = NEW if after is OLD else OLD
    with pytest.raises(StoreError, match="not the one"):
        await SqliteStore.open(path, master_key=other)
    async with opened(path, after) as store:
        await expect_all(store, made)
        assert {s: await store.service_certificate(s) for s in services} == services
        remains = leaks(path, [*sealed, wrapped])
    assert remains == ({*sealed, wrapped} if after is OLD else set())
    assert not to_scrub(path)


def test_the_lists_of_sealed_columns_are_complete() -> None:
    """What the tests search for is what the records call secret."""

    def shown(record: Any) -> set[str]:
        return {field.name for field in fields(record) if not field.repr}

    assert shown(Token) - {"token_id", "verify_key"} == set(SEALED["tokens"]) - {"device_token"}
    assert shown(Subscription) - {"subscription_id", "notifier_id"} == set(SEALED["subscriptions"])
    assert shown(Wanted) - {"notifier_id"} == set(SEALED["subscriptions"])
    assert {f"certificate_{name}" for name in shown(ServiceCertificate) - {"chain"}} == set(SEALED["servers"])
