"""Which VAPID keys are still needed."""

from collections.abc import Coroutine
from typing import Any

import pytest
from claims import claim

from ntf_server.observe.condition import VapidFacts
from ntf_server.observe.events import FIELD, FIELDS
from ntf_server.push.webpush.usage import KeyUsage
from ntf_server.store.contract import StoreUnavailableError
from smp_bridge.ntf import Provider

NEW, OLD, OLDER, GONE = b"new", b"old", b"older", b"gone"


class World:
    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        self._log = log
        self.now = 100.0
        self.keys = {NEW: "N" * 87, OLD: "O" * 87, OLDER: "P" * 87}
        self.known: dict[Any, bytes] = {}
        self.fails = self.stops = False
        self.usage = KeyUsage(lambda: self.keys, lambda: self.now, self, self.write)  # type: ignore[arg-type]

    async def set_vapid_key(self, token: Any, key_id: bytes) -> None:
        if self.fails:
            raise StoreUnavailableError("busy")
        self.known[token] = key_id

    def write(self, learnt: Coroutine[Any, Any, None]) -> None:
        if self.stops:
            learnt.close()
            raise RuntimeError("too late")
        with pytest.raises(StopIteration):
            learnt.send(None)

    def take(self, **counted: int) -> list[str]:
        """Keys that it tells of as unused."""
        self._log.clear()
        self.usage.take({name.encode().replace(b"nobody_knows", b""): n for name, n in counted.items()})
        assert {getattr(r, FIELD) for r in self._log.records} <= {"vapid.unused"}
        return [getattr(r, FIELDS)["key"][0] for r in self._log.records]


@pytest.fixture
def world(caplog: pytest.LogCaptureFixture) -> World:
    return World(caplog)


def test_how_many_there_are_for_each(world: World) -> None:
    assert world.usage.facts() is None
    assert world.usage.gauge() == {}
    world.take(new=5, old=2, older=1, gone=4, nobody_knows=3)
    world.now += 60
    assert world.usage.facts() == VapidFacts(5, 3, 7, 60.0)
    assert world.usage.gauge() == {"in_force": 5, "old": 3, "unknown": 7}


def test_keys_that_were_replaced_since(world: World) -> None:
    world.take(new=5, old=2)
    world.keys = {b"newest": "M" * 87, **world.keys}
    assert world.usage.facts() == VapidFacts(0, 7, 0, 0.0)
    world.keys = {}
    assert world.usage.facts() is None


def test_a_key_that_nobody_needs_is_told_of_once(world: World) -> None:
    assert world.take(new=5, old=2, older=1) == []
    assert world.take(new=5, old=2) == ["P"]
    assert world.take(new=5, old=2) == []
    assert world.take(new=5) == ["O"]
    assert world.take(new=5, old=1) == []
    assert world.take(new=5) == ["O"]


def test_nothing_is_said_while_some_may_be_for_any_key(world: World) -> None:
    assert world.take(new=5, nobody_knows=1) == []
    assert world.take(new=5, gone=1) == []
    assert world.take(new=5) == ["O", "P"]


def test_what_a_push_service_showed_is_kept_if_the_store_can(world: World) -> None:
    learnt = claim(Provider.WEB_PUSH, b"", ref=7)
    world.usage.learnt(learnt, OLD)
    assert world.known == {7: OLD}
    world.fails = True
    world.usage.learnt(learnt, NEW)
    world.fails, world.stops = False, True
    world.usage.learnt(learnt, NEW)
    assert world.known == {7: OLD}
