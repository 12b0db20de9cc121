"""Turns of codes over all nodes: as one process gives them, whichever node is asked, and whatever befalls it."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis_servers import Server
from redis_stores import How, Nodes, ask, fault, keys

from ntf_server.admission.code_turns import HOUR, MAX_REPLACEMENTS, SPACING, DeviceTurns
from ntf_server.admission.shared_codes import Memo, SharedCodes
from ntf_server.admission.verifications import Asked, Codes, LocalCodes
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.records import Ref
from ntf_server.store.redis.engine import RedisStore

DEVICE = b"APNS" + b"d" * 64
OTHER = b"APNS" + b"e" * 64

Two = tuple[RedisStore, RedisStore]


class World:
    """Registrations are numbered; the store is what it was told."""

    def __init__(self, nodes: Nodes, *codes: Codes) -> None:
        self.nodes = nodes
        self.codes = codes
        self.due: dict[Ref, float] = {}  # when the store may have each pushed
        self.deleted: set[Ref] = set()
        self.made = 0

    @property
    def now(self) -> float:
        return self.nodes.clock.wall()

    async def put_off(self, waits: Mapping[Ref, float | None]) -> None:
        for ref, wait in waits.items():
            if wait is not None:
                if self.due.get(ref, 0.0) > self.now:
                    self.due[ref] = self.now + wait
            elif self.due.pop(ref, None) is not None:
                self.deleted.add(ref)

    async def ask(
        self, source: bytes, ref: bytes | None = None, *, device: bytes = DEVICE, node: int | None = None
    ) -> bytes | None:
        """A registration of a source, each in a network of its own, at the next node: its ref, None if refused."""
        self.made += 1
        number = self.made
        codes = self.codes[(self.made if node is None else node) % len(self.codes)]
        asked = await codes.ask(device, source, source, ref)
        if asked is None:
            return None
        ref = ref or b"%024d" % number
        self.due[ref] = self.now + asked.wait
        await codes.made(asked, ref, self.put_off)
        return ref

    def waits(self, *refs: bytes | None) -> list[float]:
        return [round(self.due[ref] - self.now, 2) for ref in refs]


@pytest.fixture
def world(nodes: Nodes, two: Two) -> World:
    return World(nodes, *(SharedCodes(store.ledger) for store in two))


# --- the same policy


async def test_nodes_together_give_the_turns_that_one_process_gives(nodes: Nodes, two: Two) -> None:
    for seed in range(8):
        dice = random.Random(seed)
        shared = World(nodes, *(SharedCodes(store.ledger) for store in two))
        local = World(nodes, LocalCodes(nodes.clock.steady))
        devices = [b"%d device %d" % (seed, n) for n in range(2)]
        for _ in range(60):
            nodes.clock.pass_(dice.choice([0, 0, 0, 1, 30, 61, 400]))
            source, device = b"%d" % dice.randrange(8), dice.choice(devices)
            known = sorted(ref for ref in shared.due if isinstance(ref, bytes))
            ref = dice.choice(known) if known and dice.random() < 0.4 else None
            if ref is not None and dice.random() < 0.3:
                for one in (shared, local):
                    await one.codes[dice.randrange(2) % len(one.codes)].verified(ref)
                continue
            assert await shared.ask(source, ref, device=device) == await local.ask(source, ref, device=device)
            assert shared.due == pytest.approx(local.due, abs=0.01)
            assert shared.deleted == local.deleted


async def test_a_device_gets_three_an_hour_in_all(world: World, nodes: Nodes) -> None:
    """Though they come through two nodes in turn."""
    refs = [await world.ask(b"source %d" % n) for n in range(7)]
    assert world.waits(*refs) == [0, SPACING, 2 * SPACING, HOUR, HOUR + SPACING, HOUR + 2 * SPACING, 2 * HOUR]
    nodes.clock.pass_(HOUR)
    assert world.waits(await world.ask(b"late")) == [HOUR + SPACING]


async def test_turns_rotate_over_sources_of_both_nodes(world: World) -> None:
    """Who floods one node delays an owner who asks the other by a turn, and replaces his own only."""
    flood = [await world.ask(b"stranger", node=0) for _ in range(20)]
    owner = await world.ask(b"owner", node=1)
    assert world.waits(flood[0], owner, flood[-1]) == [0, SPACING, 2 * SPACING]
    assert world.deleted == set(flood[1:-1])
    more = [await world.ask(b"stranger", node=1) for _ in range(2)]
    assert world.waits(owner, more[-1]) == [SPACING, 2 * SPACING]


async def test_of_two_at_once_each_has_a_turn_of_its_own(world: World) -> None:
    refs = await asyncio.gather(*(world.ask(b"source %d" % n) for n in range(12)))
    at = sorted(world.waits(*refs))
    assert at == [HOUR * (n // 3) + SPACING * (n % 3) for n in range(12)]


# --- registrations


async def test_an_active_registration_has_one_of_its_own_a_minute(world: World, nodes: Nodes) -> None:
    one, two = world.codes
    assert [await codes.again(b"ref") for codes in (one, two, one)] == [0.0, SPACING, SPACING]
    nodes.clock.pass_(SPACING)
    assert [await codes.again(b"ref") for codes in (two, one)] == [0.0, SPACING]


async def test_one_that_is_not_verified_is_replaced_so_often_by_all(world: World) -> None:
    one, two = world.codes
    replaced = [await codes.replace(b"ref", verified=False) for codes in (one, two, one, two)]
    assert replaced == [True] * MAX_REPLACEMENTS + [False] * 2
    await one.verified(b"ref")
    assert await two.replace(b"ref", verified=False)
    assert all([await two.replace(b"ref", verified=True) for _ in range(5)])


async def test_of_those_at_once_no_more(world: World) -> None:
    found = await asyncio.gather(*(world.codes[n % 2].replace(b"ref", verified=False) for n in range(10)))
    assert sum(found) == MAX_REPLACEMENTS


async def test_who_was_verified_on_another_node_waits_no_longer(world: World, nodes: Nodes) -> None:
    await world.ask(b"first")
    waiting = await world.ask(b"waiting", node=0)
    assert waiting is not None
    await world.codes[1].verified(waiting)
    assert world.waits(await world.ask(b"next", node=0)) == [SPACING]
    nodes.clock.pass_(1)
    del world.due[waiting]
    await world.ask(b"another")
    assert waiting not in world.due  # nobody speaks of it any more


async def test_who_moves_to_another_device_waits_there_only(world: World) -> None:
    await world.ask(b"first")
    moved = await world.ask(b"moves", node=0)
    await world.ask(b"first", device=OTHER, node=1)
    await world.ask(b"moves", moved, device=OTHER, node=1)
    assert world.waits(moved) == [SPACING]
    assert world.waits(await world.ask(b"next", node=0)) == [SPACING]
    assert world.waits(moved) == [SPACING]


# --- nodes that fail


async def test_what_a_dead_node_did_not_tell_is_told_by_the_next(world: World) -> None:
    await world.ask(b"first")
    lost = await world.ask(b"a", node=0)

    async def die(_: Mapping[Ref, float | None]) -> None:
        raise StoreUnavailableError("in the middle")

    asked = await world.codes[0].ask(DEVICE, b"a", b"a", None)
    assert asked is not None
    with pytest.raises(StoreUnavailableError):
        await world.codes[0].made(asked, b"ref", die)
    assert not world.deleted
    await world.ask(b"b", node=1)
    assert world.deleted == {lost}


async def test_who_tells_last_tells_what_is_so(world: World, nodes: Nodes) -> None:
    """A node is slow to tell what it saw; meanwhile the other has moved the same turn once more."""
    for source in (b"old", b"a", b"b"):
        await world.ask(source)
    nodes.clock.pass_(HOUR - 1)  # all of them had a turn within the hour, when these come
    waiting = await world.ask(b"old", node=0)
    before = world.waits(waiting)
    held: list[Mapping[Ref, float | None]] = []

    async def be_slow(waits: Mapping[Ref, float | None]) -> None:
        if not held:
            held.append(dict(waits))
            await world.ask(b"newer", node=1)
        await world.put_off(waits)

    asked = await world.codes[0].ask(DEVICE, b"new", b"new", None)
    assert asked is not None
    await world.codes[0].made(asked, b"ref", be_slow)
    assert held[0].keys() == {waiting}
    [value] = [v for v in await devices(nodes) if any(p.ref == waiting for p in v.waiting)]
    [place] = [p for p in value.waiting if p.ref == waiting]
    assert world.due[waiting] == pytest.approx(place.at, abs=0.01)
    assert place.told == place.at
    assert world.waits(waiting) > before


async def devices(nodes: Nodes) -> Sequence[DeviceTurns]:
    store = nodes._open[0]
    prefix = store._node.database.prefix.encode() + b":"
    found = [await ask(store, b"GET", prefix + key) for key in await keys(store) if key.startswith(b"{b")]
    return [DeviceTurns.unpack(value[8:]) for value in found]


async def test_what_is_asked_twice_by_a_lost_answer_is_one_turn(world: World, two: Two) -> None:
    with fault(two[0], How.TWICE, "recall", "revise"), fault(two[1], How.TWICE, "recall", "revise"):
        refs = [await world.ask(b"source %d" % n) for n in range(4)]
        assert [await world.codes[0].replace(b"ref", verified=False) for _ in range(3)] == [True, True, False]
    assert world.waits(*refs) == [0, SPACING, 2 * SPACING, HOUR]


@pytest.mark.parametrize("name", ["recall", "revise"])
async def test_without_the_store_nobody_has_a_turn(world: World, two: Two, name: str) -> None:
    with fault(two[0], How.UNDONE, name):
        for work in (
            world.ask(b"a", node=0),
            world.codes[0].again(b"ref"),
            world.codes[0].replace(b"r", verified=False),
        ):
            with pytest.raises(StoreUnavailableError):
                await work
    assert world.waits(await world.ask(b"a", node=0)) == [0]


# --- what is left in the store


async def test_it_expires_and_tells_nobody_anything(world: World, nodes: Nodes, server: Server) -> None:
    source = b"\xc0\x00\x02\x07"
    refs = [await world.ask(source + bytes([n])) for n in range(3)]
    assert refs[1] is not None
    await world.codes[0].again(refs[0] or b"")
    await world.codes[1].replace(refs[1], verified=False)
    store = nodes._open[0]
    prefix = store._node.database.prefix.encode() + b":"
    found = sorted(key for key in await keys(store) if key.startswith(b"{b"))
    assert len(found) == 4  # a device, and three registrations
    expiries = sorted([await ask(store, b"PTTL", prefix + key) / 1000 for key in found])
    # The active one's minute; the device, an hour after the last turn; who waits, and who was replaced, a day.
    assert expiries == pytest.approx([SPACING, HOUR + 2 * SPACING, 24 * HOUR, 24 * HOUR], abs=10)
    for key in found:
        value = await ask(store, b"GET", prefix + key)
        assert not any(secret in text for secret in (source, DEVICE[4:12], b"APNS") for text in (key, value))
    for _ in range(2):
        await world.codes[0].verified(refs[1])
    nodes.clock.pass_(SPACING)
    await world.codes[1].verified(refs[0] or b"")
    assert len([key for key in await keys(store) if key.startswith(b"{b")]) == 2


@given(st.builds(Memo, st.floats(0, 4e9), st.integers(0, 9), st.binary(max_size=16)))
def test_what_is_known_of_a_registration_is_unpacked_as_it_was(memo: Memo) -> None:
    assert Memo.unpack(memo.pack()) == memo


@given(st.binary(max_size=40))
def test_what_cannot_be_read_is_a_registration_that_nothing_is_known_of(rubbish: bytes) -> None:
    assert isinstance(Memo.unpack(rubbish).replaced, int)
    assert Memo.unpack(None) == Memo()


async def test_a_device_whose_turns_are_gone_loses_nobody(world: World, nodes: Nodes, server: Server) -> None:
    """Somebody emptied the store between two steps, or wrote what cannot be read."""
    await world.ask(b"first")
    asked = await world.codes[0].ask(DEVICE, b"a", b"a", None)
    assert asked is not None and asked.turn is not None
    world.due[b"ref"] = world.now + asked.wait
    key = nodes._open[0]._node.names.memo(asked.device)
    for value in (b"12345678rubbish", None):
        server.ask(*(("SET", key, value) if value else ("DEL", key)))
        await world.codes[0].made(asked, b"ref", world.put_off)
    assert not world.deleted
    assert isinstance(asked, Asked)


def test_of_a_registration_little_is_kept() -> None:
    kept: Any = msgspec.msgpack.decode(Memo(1.8e9, 2, bytes(16)).pack())
    assert len(kept) == 3
    assert len(Memo(1.8e9, 2, bytes(16)).pack()) < 40
