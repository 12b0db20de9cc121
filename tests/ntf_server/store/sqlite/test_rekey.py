"""Key rotation."""

import asyncio
import os
import sqlite3
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace
from sealed_world import (
    NEW,
    OLD,
    expect_all,
    files,
    fill,
    leaks,
    opened,
    raw,
    sealed_values,
    secrets_of,
    serve,
    services_of,
    to_scrub,
    wrapped_key,
)
from store_world import OTHER_SMP, SMP, acquire, notify, take

from ntf_server.store.contract import StoreError
from ntf_server.store.records import Confirmed, ServiceCertificate
from ntf_server.store.sealing import MasterKey
from ntf_server.store.sqlite import keys
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.rekey import Rekeyed, opens, rekey, rewrap
from smp_bridge.ntf import SubscriptionStatus


@pytest.mark.parametrize("reseal", [False, True])
async def test_after_rotation_the_new_master_key_opens_everything_and_the_old_nothing(path: Path, reseal: bool) -> None:
    async with opened(path) as store:
        made = await fill(store)
        services = await serve(store)
    sealed, wrapped = sealed_values(path), wrapped_key(path)
    assert len(sealed) == 4 * 5 + 12 + 2
    assert await rekey(path, OLD, NEW, reseal=reseal) == (Rekeyed(4, 12) if reseal else Rekeyed(0, 0))
    with pytest.raises(StoreError, match="not the one"):
        await SqliteStore.open(path, master_key=OLD)
    async with opened(path, NEW) as store:
        await expect_all(store, made)
        assert await services_of(store) == services
    assert leaks(path, [wrapped]) == set()
    assert leaks(path, sealed) == (set() if reseal else set(sealed))
    assert leaks(path, secrets_of(made) | {s.key for s in services.values()}) == set()
    assert not to_scrub(path)


async def test_reseal_makes_a_new_database_key(path: Path) -> None:
    async with opened(path):
        pass
    found = []
    for reseal in (False, True, True):
        with raw(path) as c:
            found.append(keys.load_key(c, OLD))
        await rekey(path, OLD, OLD, reseal=reseal)
    assert found[0] == found[1]
    assert found[1] != found[2]


async def test_counts_associations_and_what_is_due_survive_a_reseal(path: Path) -> None:
    async with opened(path) as store:
        [(new, subscriptions), _] = await fill(store, 2, 3)
        session = await acquire(store)
        await store.begin(session, b"service id")
        await store.confirm(session, [Confirmed(r, SubscriptionStatus.ACTIVE, "", True) for r in (1, 2, 4)])
        await store.unsubscribe(2)
        await notify(store, session, subscriptions[0].notifier_id)
        before = await store.service_state(session)
    assert (before.associated, before.released) == (2, 1)
    await rekey(path, OLD, NEW, reseal=True)
    async with opened(path, NEW) as store:
        session = await acquire(store)
        assert await store.begin(session, b"service id") == before
        assert await store.subscription_count() == 5
        [claim] = await take(store)
        assert (claim.device, claim.secret) == (new.device, new.secret)
        await store.delete_token(1)  # the triggers are there still
        assert await store.subscription_count() == 3


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


async def test_a_changed_value_stays_unreadable_and_stops_no_reseal(path: Path) -> None:
    async with opened(path) as store:
        made = await fill(store)
        services = await serve(store)
    with raw(path) as c:
        c.execute("UPDATE subscriptions SET notifier_key = x'00' WHERE ref = 12")
        c.execute("UPDATE tokens SET device_token = x'00' WHERE ref = 3")
        c.execute("UPDATE servers SET certificate_key = x'00' WHERE address = ?", (OTHER_SMP.encode(),))
    assert await rekey(path, OLD, NEW, reseal=True) == Rekeyed(4, 12)
    async with opened(path, NEW) as store:
        await expect_all(store, made[:2])
        session = await acquire(store)
        assert len((await store.page(session, None, 100)).wanted) == 11
        assert await store.service_certificate(SMP, lambda: services[OTHER_SMP]) == services[SMP]
        new = ServiceCertificate(b"chain", b"key")
        assert await store.service_certificate(OTHER_SMP, lambda: new) == new
        anew = await store.register(replace(made[2][0], token_id=os.urandom(24)))  # cannot be read, so it is made anew
        assert anew is not None
        assert anew.token_id != made[2][0].token_id


async def test_rotation_tells_when_the_old_could_not_be_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(path) as store:
        made = await fill(store, 1)

    def full(c: sqlite3.Connection) -> None:
        [due] = c.execute("SELECT to_scrub FROM keys").fetchone()
        if due:
            raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(keys, "_scrub", full)
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
        ("sqlite.rekey", "_with_file", 2, NEW),  # committed, but not scrubbed
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
        assert await services_of(store) == services
        remains = leaks(path, [*sealed, wrapped])
    assert remains == ({*sealed, wrapped} if after is OLD else set())
    assert not to_scrub(path)


async def test_another_master_key_while_a_server_uses_the_database(path: Path) -> None:
    """It goes on to read and write; what the old key wrapped is gone from the file at the next start."""
    async with opened(path) as store:
        made = await fill(store)
        wrapped = wrapped_key(path)
        assert (opens(path, OLD), opens(path, NEW)) == (True, False)
        rewrap(path, OLD, NEW)
        assert (opens(path, OLD), opens(path, NEW)) == (False, True)
        with pytest.raises(StoreError, match="not the one"):
            rewrap(path, OLD, NEW)
        await expect_all(store, made)
        token = await store.find_token(made[0][0].token_id)
        assert token is not None
        await store.set_period(token.ref, 30)
    async with opened(path, NEW) as store:
        await expect_all(store, made)
    assert leaks(path, [wrapped]) == set()
    assert not to_scrub(path)
