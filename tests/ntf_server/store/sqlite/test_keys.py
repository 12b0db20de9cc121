"""What a copied file gives away, and what a changed one does."""

import base64
import os
from pathlib import Path

import pytest
from msgspec.structs import replace
from sealed_world import (
    NEW,
    OLD,
    SEALED,
    expect_all,
    files,
    fill,
    leaks,
    new_token,
    opened,
    raw,
    secrets_of,
    serve,
    to_scrub,
    token_secrets,
)
from store_world import acquire, delivered, notify, take

from ntf_server.observe.names import KindCounter
from ntf_server.store.contract import StoreCorruptError, StoreError
from ntf_server.store.records import Confirmed, NewToken, Replacement, Token
from ntf_server.store.sealing import Sealer
from ntf_server.store.sqlite import keys as module
from ntf_server.store.sqlite.engine import SqliteStore
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus


async def look(store: SqliteStore, new: NewToken) -> Token:
    token = await store.find_token(new.token_id)
    assert token is not None
    return token


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
        tokens = [await look(store, new) for new, _ in made]
        device, code = DeviceToken(Provider.APNS, os.urandom(32)), os.urandom(32)
        await store.replace(tokens[0].ref, Replacement(device, code))
        secrets |= {device.token, code}
        thief = new_token(made[1][0].device.token)
        stolen = await store.register(thief)
        assert stolen is not None
        await store.verify(stolen.ref, thief.code)
        secrets |= token_secrets(thief)
        await store.delete_token(tokens[2].ref)
        session = await acquire(store)
        for _, subscriptions in made[3:5]:
            await notify(store, session, *(s.notifier_id for s in subscriptions))
        claims = await take(store)
        assert len(claims) == 3
        await store.record([delivered(c) for c in claims])
        services = await serve(store)
        secrets |= {s.key for s in services.values()}
        assert (await store.page(session, None, 100)).wanted
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
        service_id = os.urandom(24)
        await store.begin(await acquire(store), service_id)
    public = {token.token_id, token.verify_key, subscription.subscription_id, subscription.notifier_id}
    public |= {service_id} | {s.chain for s in services.values()}
    assert leaks(path, public) == public


async def test_the_file_does_not_hold_the_keys(path: Path) -> None:
    async with opened(path):
        pass
    with raw(path) as c:
        key = module.load_key(c, OLD)
    assert leaks(path, [key, b"\x01" * 32]) == set()


async def test_equal_values_look_different(path: Path) -> None:
    async with opened(path) as store:
        first = new_token()
        await store.register(first)
        await store.register(replace(first, token_id=os.urandom(24), verify_key=b"other"))
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

    def seen() -> list[bytes]:
        now = sorted(contexts)
        contexts.clear()
        return now

    original = Sealer.open
    async with opened(path) as store:
        [(new, subscriptions)] = await fill(store, 1)
        session = await acquire(store)
        monkeypatch.setattr(Sealer, "open", spy)
        assert await take(store) == []
        await notify(store, session, *(s.notifier_id for s in subscriptions))
        await store.confirm(session, [Confirmed(1, SubscriptionStatus.ACTIVE)])
        assert len((await store.to_audit(None, 100, 1))[0]) == 3
        assert seen() == []
        [claim] = await take(store)
        assert seen() == [b"tokens.device_token", b"tokens.secret"]
        await store.record([delivered(claim)])
        assert seen() == []
        token = await look(store, new)
        await store.find_subscription(subscriptions[0].subscription_id)
        assert seen() == []  # so that to find one takes no longer than to find none
        await store.replace(token.ref, Replacement(new.device, b"code"))
        assert seen() == []
        assert len(await take(store)) == 1
        assert seen() == [b"tokens.code", b"tokens.device_token", b"tokens.secret"]


# --- a changed file

CHANGES = {
    **{
        f"{column} of another row": f"UPDATE tokens SET {column} = (SELECT t.{column} FROM tokens t WHERE t.ref = 2)"
        " WHERE ref = 1"
        for column in ("device_token", "server_dh")
    },
    "dh keys swapped": "UPDATE tokens SET client_dh = server_dh, server_dh = client_dh WHERE ref = 1",
    "another row's id": "UPDATE tokens SET token_id = iif(ref = 1, x'00', token_id) WHERE ref = 1",
    "empty": "UPDATE tokens SET server_dh = x'' WHERE ref = 1",
    "cut": "UPDATE tokens SET server_dh = substr(server_dh, 1, 27) WHERE ref = 1",
    "in the clear": "UPDATE tokens SET device_token = zeroblob(32) WHERE ref = 1",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_token_is_made_anew_and_stops_nobody_else(path: Path, change: str) -> None:
    async with opened(path) as store:
        made = await fill(store, 3, 0)
    with raw(path) as c:
        c.execute(CHANGES[change])
        [token_id] = c.execute("SELECT token_id FROM tokens WHERE ref = 1").fetchone()
    first = made[0][0]
    async with opened(path, on_corrupt=_unexpected) as store:
        await expect_all(store, made[1:])
        anew = replace(first, token_id=os.urandom(24))
        registered = await store.register(anew)
        assert registered is not None
        assert registered.token_id == anew.token_id
        assert await store.find_token(token_id) is None
    async with opened(path) as store:  # nor the next start
        await expect_all(store, [(anew, []), *made[1:]])


def _unexpected(error: StoreCorruptError) -> None:
    raise AssertionError from error


async def test_a_changed_device_token_or_secret_is_not_pushed_with(path: Path) -> None:
    async with opened(path) as store:
        for _ in range(3):
            await store.register(new_token())
    with raw(path) as c:
        c.execute("UPDATE tokens SET secret = (SELECT secret FROM tokens WHERE ref = 3) WHERE ref = 1")
        c.execute("UPDATE tokens SET code = (SELECT code FROM tokens WHERE ref = 3) WHERE ref = 2")
    async with opened(path) as store:
        assert [claim.token for claim in await take(store)] == [3]
        assert store._metrics.value(KindCounter.QUARANTINED, "tokens") == 2


# --- keys


async def test_another_master_key_is_refused_and_the_file_left_as_it_is(path: Path) -> None:
    async with opened(path) as store:
        made = await fill(store)
    before = files(path)
    with pytest.raises(StoreError, match="not the one that this database was sealed with") as caught:
        await SqliteStore.open(path, master_key=NEW)
    assert str(path) in str(caught.value)
    assert "restore that one from your copy" in str(caught.value)
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
            wrapped.add(module.load_key(c, OLD))
    assert len(wrapped) == 2


async def test_a_clean_file_is_not_scrubbed(path: Path) -> None:
    async with opened(path) as store:
        await fill(store)
    assert not to_scrub(path)
    with raw(path) as c:
        statements: list[str] = []
        c.set_trace_callback(statements.append)
        module.prepare(OLD)(c)
    assert statements
    assert not [s for s in statements if "VACUUM" in s]


async def test_a_reader_puts_scrubbing_off_to_the_next_start(path: Path) -> None:
    async with opened(path) as store:
        await fill(store)
    with raw(path) as c:
        c.execute("UPDATE keys SET to_scrub = 1")
    with raw(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM tokens").fetchone()
        with raw(path) as c:
            module.prepare(OLD)(c)
        assert to_scrub(path)
    async with opened(path):
        pass
    assert not to_scrub(path)
