"""Rows as records."""

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_world import MASTER, OTHER_SMP, SMP, TABLET, register, take

from ntf_server.observe.names import KindCounter
from ntf_server.store.sealing import Sealer
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.store.sqlite.rows import NO_IDS, DamagedRowError, lane_of, quarantine, server_address
from smp_bridge.ntf import DeviceToken, Provider
from smp_bridge.service import ids_hash, xor


@given(st.lists(st.binary(max_size=30)), st.lists(st.binary(max_size=30)))
def test_hashes_of_two_sets_are_that_of_both(a: list[bytes], b: list[bytes]) -> None:
    assert xor(ids_hash(a), ids_hash(b)) == ids_hash([*a, *b])
    assert xor(ids_hash(a), ids_hash(a)) == NO_IDS


def test_the_hash_of_one_id_is_its_md5() -> None:
    assert ids_hash([b"id"]) == hashlib.md5(b"id", usedforsecurity=False).digest()


def test_only_lanes_of_web_push_have_an_origin() -> None:
    sealer = Sealer(os.urandom(32))
    for provider in Provider:
        lane = lane_of(sealer, DeviceToken(provider, b"x"), "https://push.example")
        assert lane[:2] == provider.encode()
        assert lane[2:] == (sealer.origin("https://push.example") if provider is Provider.WEB_PUSH else b"")
    assert lane_of(sealer, DeviceToken(Provider.WEB_PUSH, b"x"), "") == b"WP"
    assert Sealer(os.urandom(32)).origin("https://push.example") != sealer.origin("https://push.example")


def test_addresses_are_what_was_encoded() -> None:
    for server in (SMP, OTHER_SMP):
        assert server_address(server.encode()) == server


async def test_what_is_set_aside_is_counted_once_and_told_without_secrets(
    store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    token, _ = await register(store), await register(store, TABLET)
    damaged = DamagedRowError("tokens", 1)
    for _ in range(2):
        await store._database.run(lambda c: quarantine(c, store._state, [damaged]))
    assert store._metrics.value(KindCounter.QUARANTINED, "tokens") == 1
    assert len(caplog.records) == 1
    assert "row 1 of tokens" in caplog.text
    assert token.token_id.hex() not in caplog.text
    assert not await take(store)
    assert MASTER.key_id.hex() not in caplog.text
