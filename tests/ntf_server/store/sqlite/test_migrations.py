"""Databases of every released schema: brought up to date with all that is in them, or refused as they are."""

import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from old_databases import (
    MASTER,
    NEWEST_OLD,
    NOW,
    OLDEST,
    SERVERS,
    SERVICE_ID,
    Numbers,
    OldQueue,
    OldToken,
    content,
    ddl,
    dump,
    make,
    merged,
    version,
)

from ntf_server.store.clock import Clock
from ntf_server.store.contract import Store, StoreCorruptError, StoreError, StoreUnavailableError
from ntf_server.store.memory import Times
from ntf_server.store.records import Claim, Ended, NewToken, Outcome, PushKind, ServiceCertificate
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.migrations import copy_name, migrate
from ntf_server.store.sqlite.schema import migrations
from ntf_server.testing.store_suite.medium import ROOM, ManualClock, acquire, ids_hash, pages
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, InvalidReason, Provider, SubscriptionStatus, TokenStatus

NEWEST = len(migrations(MASTER))
SCHEMAS = pytest.mark.parametrize("schema", range(OLDEST, NEWEST_OLD + 1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relay.db"


@contextlib.asynccontextmanager
async def opened(path: Path) -> AsyncIterator[SqliteStore]:
    """A minute after all that is in the database."""
    clock = Clock(lambda: NOW + 60.0, lambda: 1000.0)
    store = await SqliteStore.open(path, master_key=MASTER, clock=clock, times=Times(spacing=0))
    try:
        yield store
    finally:
        await store.close()


async def find_all(store: Store, tokens: list[OldToken], schema: int) -> None:
    """Tokens, queues and what is due are as they were; twins are one."""
    for token_id, group in merged(tokens).items():
        kept = group[0]
        found = await store.find_token(token_id)
        assert found is not None
        assert found.verify_key == kept.verify_key
        reason = InvalidReason(kept.reason) if kept.reason else None
        assert (found.status, found.reason, found.period) == (TokenStatus(kept.status), reason, kept.period)
        assert found.proven == (kept.status == "ACTIVE" or any(t.queues for t in group))
        for loser in group[1:]:
            assert await store.find_token(loser.token_id) is None
        for queue in (q for t in group for q in t.queues):
            pair = await store.find_subscription(queue.subscription_id)
            assert pair is not None
            owner, subscription = pair
            assert owner.token_id == token_id
            assert (subscription.server, subscription.notifier_id) == (SERVERS[queue.server], queue.name)
            assert subscription.status is SubscriptionStatus(queue.status)
            wanted = queue.status in ("NEW", "PENDING", "ACTIVE")
            assert subscription.associated == (schema >= 3 and queue.associated and wanted)
    assert await store.subscription_count() == sum(len(t.queues) for t in tokens)
    assert set(await store.servers()) == set(SERVERS)


async def push_all(store: Store) -> dict[bytes, list[Claim]]:
    """All that is due, by device token."""
    out: dict[bytes, list[Claim]] = {}
    for provider in (Provider.APNS, Provider.FCM, Provider.WEB_PUSH):
        for _ in range(100):
            claims = (await store.take(provider, ROOM)).claims
            for claim in claims:
                out.setdefault(claim.device.token, []).append(claim)
            if not claims:
                break
            assert await store.record([Outcome(c, Ended.DELIVERED, held=c.entries) for c in claims]) == 0
    return out


async def push_as_before(store: Store, tokens: list[OldToken]) -> None:
    pushed = await push_all(store)
    for group in merged(tokens).values():
        kept = group[0]
        claims = pushed.pop(kept.device.token, [])
        kinds = [PushKind.VERIFICATION] if kept.code_due else []
        unsent = {q.name: q for t in group for q in t.queues if q.notification and not q.notification[-1]}
        if kept.status == "ACTIVE":
            kinds += [PushKind.MESSAGES] if unsent else []
            kinds += [PushKind.CHECK] if kept.check_due else []
        assert [c.kind for c in claims] == kinds
        for claim in claims:
            assert (claim.secret, claim.lane.provider) == (kept.secret, kept.device.provider)
            assert claim.kind is not PushKind.VERIFICATION or claim.code == kept.code
            if claim.kind is PushKind.MESSAGES:
                fresh = [e for e in claim.entries if not e.sent]
                assert {e.notifier_id for e in fresh} == unsent.keys()
                for entry in fresh:
                    notification = (entry.seq, entry.received_at, entry.nonce, entry.meta, 0)
                    assert notification == unsent[entry.notifier_id].notification
    assert pushed == {}


@SCHEMAS
def test_released_schemas_are_what_the_migrations_make(schema: int) -> None:
    """`tests/…/schemas/N.sql` came from a released relay."""
    migrated, released = (sqlite3.connect(":memory:", isolation_level=None) for _ in range(2))
    migrate(migrated, migrations(MASTER)[:schema], None)
    released.executescript(ddl(schema))
    query = "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY name"
    assert migrated.execute(query).fetchall() == released.execute(query).fetchall()


@SCHEMAS
async def test_everything_is_found_again(path: Path, schema: int) -> None:
    tokens = content()
    make(path, schema, tokens)
    async with opened(path) as store:
        assert version(path) == NEWEST
        await find_all(store, tokens, schema)
        await push_as_before(store, tokens)
    async with opened(path) as store:  # and once more, without a migration
        await find_all_after_pushes(store, tokens)


async def find_all_after_pushes(store: Store, tokens: list[OldToken]) -> None:
    for token_id, group in merged(tokens).items():
        found = await store.find_token(token_id)
        assert found is not None
        accepted = group[0].status == "REGISTERED" and group[0].code_due
        assert found.status is TokenStatus("CONFIRMED" if accepted else group[0].status)
    assert await push_all(store) == {}


@SCHEMAS
async def test_devices_are_known_as_before(path: Path, schema: int) -> None:
    """TNEW again finds the token, however an APNs token is spelled, and TVFY takes the code from before."""
    tokens = content()
    make(path, schema, tokens)
    async with opened(path) as store:
        for token_id, group in merged(tokens).items():
            kept = group[0]
            devices = [kept.device]
            if kept.device.provider is Provider.APNS:
                devices.append(DeviceToken(kept.device.provider, kept.device.token.swapcase()))
            for device in devices:
                fresh = NewToken(os.urandom(24), device, kept.verify_key, kept.client_dh, *[bytes(32)] * 3)
                found = await store.register(fresh)
                assert found is not None
                assert (found.token_id, found.server_dh) == (token_id, kept.server_dh)
            stranger = NewToken(os.urandom(24), kept.device, kept.verify_key, *[bytes(32)] * 4)
            assert await store.register(stranger) is None
            rivals = [t for t in tokens if t not in group and t.device.token.lower() == kept.device.token.lower()]
            assert rivals or await store.verify(found.ref, kept.code)


@pytest.mark.parametrize("schema", [3, 4, 5])
async def test_services_are_as_before(path: Path, schema: int) -> None:
    tokens = content()
    make(path, schema, tokens)
    queues = [q for t in tokens for q in t.queues if q.server == 0 and q.status in ("NEW", "PENDING", "ACTIVE")]
    associated = [q.name for q in queues if q.associated]
    async with opened(path) as store:
        session = await acquire(store, SERVERS[0])
        state = await store.begin(session, SERVICE_ID)
        assert (state.associated, state.released, state.changed) == (len(associated), 2, False)
        await store.set_released(session, 0)
        assert (await store.service_state(session)).ids_hash == ids_hash(associated)
        wanted = await pages(store, session)
        assert sorted(w.notifier_id for w in wanted) == sorted(q.name for q in queues if not q.associated)
        assert {w.notifier_key for w in wanted} == {q.key for q in queues if not q.associated}
        kept = await store.service_certificate(SERVERS[0], lambda: ServiceCertificate(b"new", b"new"))
        assert kept == ServiceCertificate(b"chain", b"service key")


# --- servers in several spellings

_HASH = b"k" * 32
_ONION = "jjbyvoemxysm7qxap7m5d5m35jzv5qq6gnlv7s4rsn7tdwwmuqciwpid.onion"
SPELLINGS = (
    ServerAddress("smp", ("smp.example.org", "b.example.org"), "", _HASH),  # has a service since schema 3
    ServerAddress("smp", ("SMP.Example.org", "b.example.org"), "5223", _HASH),
    ServerAddress("smp", ("b.example.org.", "smp.example.org"), "", _HASH),
    ServerAddress("smp", ("smp5.simplex.im",), "", _HASH),
    ServerAddress("smp", ("smp5.simplex.im", _ONION), "5223", _HASH),
    ServerAddress("smp", ("smp.example.org", "b.example.org"), "5224", _HASH),
)


def _spelled() -> tuple[list[OldToken], set[bytes]]:
    """Tokens with queues on them, and the subscription ids of those that are to stay."""
    n = Numbers()
    stay: set[bytes] = set()
    active, second = OldToken(n.device(), b"active"), OldToken(n.device(), b"second")
    unverified = OldToken(n.device(), b"unverified", "CONFIRMED")

    def add(token: OldToken, name: bytes, server: int, *, stays: bool, **more: Any) -> None:
        number = n()
        notification = (number, NOW - 100 + number, b"n" * 24, b"meta %d" % number, 0)
        queue = OldQueue(name, server=server, notification=notification, **more)
        token.queues.append(queue)
        if stays:
            stay.add(queue.subscription_id)

    for server in range(len(SPELLINGS)):
        add(active, b"of its own %d" % server, server, stays=True, associated=server < 2)
    for server in (0, 3, 5):
        add(second, b"another's", server, stays=True)
    add(active, b"active and not", 1, stays=True)
    add(unverified, b"active and not", 0, stays=False, associated=True)
    add(unverified, b"not and active", 2, stays=False)
    add(active, b"not and active", 0, stays=True, associated=True)
    add(second, b"both active", 0, stays=False, associated=True, at=NOW - 4000)
    add(active, b"both active", 1, stays=False, at=NOW - 3000)
    add(second, b"both active", 2, stays=True, at=NOW - 2000)
    add(unverified, b"neither", 4, stays=True, at=NOW - 2000)
    add(unverified, b"neither", 3, stays=False, at=NOW - 3000)
    return [active, second, unverified], stay


@SCHEMAS
async def test_spellings_of_a_server_become_one(path: Path, schema: int) -> None:
    """Of a queue that was subscribed in several that of an ACTIVE token stays, or the newest."""
    tokens, stay = _spelled()
    make(path, schema, tokens, servers=SPELLINGS)
    async with opened(path) as store:
        assert set(await store.servers()) == {SPELLINGS[0], SPELLINGS[3], SPELLINGS[5]}
        assert len(await store.servers()) == 3
        assert await store.subscription_count() == len(stay)
        queues = [(t, q) for t in tokens for q in t.queues]
        for token, queue in queues:
            found = await store.find_subscription(queue.subscription_id)
            assert (found is not None) == (queue.subscription_id in stay)
            if found is not None:
                assert found[0].token_id == token.token_id
                assert found[1].server == SPELLINGS[queue.server]
        claims = [c for of_token in (await push_all(store)).values() for c in of_token]
        named = {(e.notifier_id, str(e.server)) for c in claims for e in c.entries}
        active = [(t, q) for t, q in queues if t.status == "ACTIVE" and q.subscription_id in stay]
        assert named == {(q.name, str(SPELLINGS[q.server])) for _, q in active}
        await _one_session_for_all(store, schema, [q for _, q in queues if q.subscription_id in stay])
        with closing(sqlite3.connect(path)) as c:
            for table, column in (("servers", "server"), ("tokens", "token")):
                query = f"SELECT 1 FROM {table} t WHERE subscriptions <> (SELECT count(*) FROM subscriptions s"
                assert not c.execute(f"{query} WHERE s.{column} = t.ref)").fetchall()
            assert c.execute("SELECT count(*) FROM notifications").fetchone() == (len(stay),)


async def _one_session_for_all(store: Store, schema: int, queues: list[OldQueue]) -> None:
    """What its service has stays so; the server goes on counting what of that was dropped."""
    session = await acquire(store, SPELLINGS[2])
    state = await store.begin(session, SERVICE_ID)
    theirs = [q for q in queues if q.server < 3]
    associated = [q for q in theirs if q.associated and q.server == 0 and schema >= 3]
    if schema >= 3:
        assert (state.associated, state.released, state.changed) == (len(associated), 2 + 2, False)
        kept = await store.service_certificate(SPELLINGS[1], lambda: ServiceCertificate(b"new", b"new"))
        assert kept == ServiceCertificate(b"chain", b"service key")
    wanted = {w.notifier_id for w in await pages(store, session)}
    assert wanted == {q.name for q in theirs} - {q.name for q in associated}


@SCHEMAS
async def test_what_was_there_before_is_neither_unverified_nor_silent(path: Path, schema: int) -> None:
    """Times count from the migration on; but for what never was more than a registration."""
    tokens = content()
    make(path, schema, tokens)
    years = 3 * 365 * 86_400
    clock = ManualClock()
    clock.step(NOW + years - clock.wall())
    store = await SqliteStore.open(path, master_key=MASTER, clock=Clock(clock.wall, clock.steady))
    try:
        await _tend(store, clock)
        kept = {t for t in merged(tokens) if await store.find_token(t) is not None}
        groups = merged(tokens)
        never = {i for i, g in groups.items() if g[0].status in ("REGISTERED", "CONFIRMED") and not _used(g)}
        assert kept == groups.keys() - never
        assert never
        with closing(sqlite3.connect(path)) as c:
            assert c.execute("SELECT count(*) FROM servers WHERE proven > 0").fetchone() == (3,)
        clock.pass_(366 * 86_400)
        await _tend(store, clock)
        assert [t for t in groups if await store.find_token(t) is not None] == []
    finally:
        await store.close()


def _used(group: list[OldToken]) -> bool:
    return any(t.queues for t in group) or group[0].period > 0


async def _tend(store: Store, clock: ManualClock) -> None:
    while await store.tend() < 1:
        clock.pass_(0.01)


@SCHEMAS
async def test_a_copy_is_kept_that_can_be_gone_back_to(
    path: Path, schema: int, caplog: pytest.LogCaptureFixture
) -> None:
    make(path, schema, content())
    before = dump(path)
    caplog.set_level("INFO")
    async with opened(path):
        pass
    copy = copy_name(path, schema)
    assert dump(copy) == before
    assert copy.stat().st_mode & 0o777 == 0o600
    [line] = [r.getMessage() for r in caplog.records if "go back" in r.getMessage()]
    assert copy.name in line
    assert "\n" not in line
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    copy.replace(path)
    assert dump(path) == before
    async with opened(path):  # and forward again
        assert version(path) == NEWEST


async def test_a_new_database_leaves_no_copy(path: Path) -> None:
    async with opened(path):
        pass
    assert not list(path.parent.glob("*schema*"))


# --- kill -9 in the middle

_KILLED = """
import asyncio, os, signal, sqlite3, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
left = int(sys.argv[2])

def counting(name):
    plain = getattr(sqlite3.Connection, name)
    def method(self, *arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *arguments)
    return method

class Connection(sqlite3.Connection):
    execute, executemany, executescript = map(counting, ("execute", "executemany", "executescript"))

connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Connection)
from test_migrations_child import run
run(Path(sys.argv[1]))
print(10**6 - left)
"""


def _run(path: Path, kill_at: int, script: Path) -> int | None:
    """Open, and so migrate, it in a process that kills itself before the n-th statement; None: it did, else how many
    there were.
    """
    arguments = [sys.executable, "-c", _KILLED, str(path), str(kill_at), str(script.parent)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == -signal.SIGKILL:
        return None
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "child/test_migrations_child.py"
    file.parent.mkdir()
    file.write_text(
        "import asyncio\n"
        "from ntf_server.store.sealing import MasterKey\n"
        "from ntf_server.store.sqlite.engine import SqliteStore\n"
        "async def main(path):\n"
        f"    master = MasterKey({b'a master key of thirty-two bytes'!r})\n"
        "    await (await SqliteStore.open(path, master_key=master)).close()\n"
        "def run(path):\n"
        "    asyncio.run(main(path))\n"
    )
    return file


@pytest.mark.parametrize("schema", [1, 4, 5])
async def test_a_kill_in_the_middle_leaves_the_old_database(path: Path, schema: int, script: Path) -> None:
    """Wherever it comes: the file is as it was, or a whole step ahead, and the next start finishes."""
    tokens = content()
    make(path, schema, tokens)
    original, before = path.read_bytes(), dump(path)
    statements = _run(path, 10**6, script)
    assert statements is not None
    interrupted = 0
    for kill_at in sorted({round(statements * part / 9) for part in range(1, 9)}):
        for file in path.parent.glob("relay.db*"):
            file.unlink()
        path.write_bytes(original)
        assert _run(path, kill_at, script) is None
        if version(path) == schema:
            assert dump(path) == before
        interrupted += version(path) < NEWEST
        with closing(sqlite3.connect(path)) as c:
            assert c.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        async with opened(path) as store:
            assert version(path) == NEWEST
            await find_all(store, tokens, schema)
        if copy_name(path, schema).exists():
            assert dump(copy_name(path, schema)) == before
    assert interrupted >= (1 if schema == 5 else 3)


# --- memory

_PEAK = """
import re, sys
from pathlib import Path
from test_migrations_child import run
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
run(Path(sys.argv[1]))
print(peak() - before)
"""


def test_a_large_database_is_not_read_into_memory(path: Path, script: Path) -> None:
    """Neither by what is written anew, nor to scrub what that replaced."""
    queues = [OldQueue(b"queue %019d" % n, notifier_key=bytes(112)) for n in range(130_000)]
    make(path, OLDEST, [OldToken(DeviceToken(Provider.APNS, b"ab" * 32), b"key", queues=queues)])
    with closing(sqlite3.connect(path)) as c:
        c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert path.stat().st_size > 30 * 2**20
    environment = os.environ | {"PYTHONPATH": str(script.parent)}
    command = [sys.executable, "-c", _PEAK, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert version(path) == NEWEST
    assert int(done.stdout) < 25 * 2**20


# --- refused


async def _refused(path: Path, error: type[Exception], *words: str) -> None:
    before = hashlib.sha256(path.read_bytes()).digest()
    for _ in range(2):
        with pytest.raises(error) as e:
            await SqliteStore.open(path, master_key=MASTER)
        assert not isinstance(e.value, StoreUnavailableError)  # whoever tries again is refused again
        assert "\n" not in str(e.value)
        assert str(path) in str(e.value)
        for word in words:
            assert word in str(e.value)
    assert hashlib.sha256(path.read_bytes()).digest() == before


async def test_a_newer_schema_is_refused(path: Path) -> None:
    async with opened(path):
        pass
    with closing(sqlite3.connect(path)) as c:
        c.execute(f"PRAGMA user_version = {NEWEST + 1}")
    await _refused(path, StoreError, "newer", str(NEWEST + 1))


@pytest.mark.parametrize("kind", ["text", "another program's", "another program's, of our version"])
async def test_a_foreign_file_is_refused(path: Path, kind: str) -> None:
    if kind == "text":
        path.write_bytes(b"this is no database at all, but a long text\n" * 100)
    else:
        with closing(sqlite3.connect(path)) as c:
            c.execute("CREATE TABLE tokens (ref INTEGER PRIMARY KEY)")
            c.execute(f"PRAGMA user_version = {NEWEST if 'our' in kind else 0}")
    await _refused(path, StoreCorruptError)


@pytest.mark.parametrize("schema", [2, NEWEST])
@pytest.mark.parametrize("kept", [0.3, 0.7])
async def test_a_truncated_file_is_refused(path: Path, kept: float, schema: int) -> None:
    make(path, min(schema, NEWEST_OLD), content())
    if schema == NEWEST:
        async with opened(path):
            pass
        for copy in path.parent.glob("*.schema*"):
            copy.unlink()
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    await _refused(path, StoreCorruptError, "corrupt", "restore")


async def test_another_master_key_is_refused(path: Path) -> None:
    make(path, 4, content())
    before = dump(path)
    with pytest.raises(StoreError, match="master key") as e:
        await SqliteStore.open(path, master_key=MasterKey(bytes(32)))
    assert "\n" not in str(e.value)
    assert dump(path) == before


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Whoever may do anything may write to a read-only file, too: for a while we are somebody who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("schema", [4, NEWEST])
@pytest.mark.parametrize("what", ["file", "folder"])
async def test_a_read_only_place_is_refused(schema: int, what: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        folder.mkdir()
        path = folder / "relay.db"
        make(path, 4, content())
        if schema == NEWEST:
            async with opened(path):
                pass
        for file in folder.iterdir():
            file.chmod(0o444 if what == "file" else 0o666)
        Path(name).chmod(0o755)
        folder.chmod(0o777 if what == "file" else 0o555)
        (folder / "relay.db.lock").unlink(missing_ok=True)
        with nobody():
            await _refused(path, StoreError)
        folder.chmod(0o777)
