"""What operations of a store bring with them, and stamps."""

import logging
from collections.abc import Sequence

import pytest
from claims import claim

from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Counter, KindCounter
from ntf_server.store import effects as module
from ntf_server.store.contract import StoreConflictError, StoreCorruptError, StoreUnavailableError
from ntf_server.store.effects import Arrivals, give_back, tell
from ntf_server.store.memory import Effects
from ntf_server.store.records import Ended, Outcome, Session
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider

SMP = ServerAddress("smp", ("smp.example.org",), "", bytes(32))


def test_all_of_it_is_told(caplog: pytest.LogCaptureFixture) -> None:
    metrics, due = Metrics(), []
    effects = Effects()
    effects.expired["check"] += 2
    effects.quarantined["tokens"] += 3
    effects.forgotten["silent"] += 4
    effects.servers_forgotten = 5
    effects.stepped = -3600.0
    effects.due(Provider.FCM, 7.0)
    effects.due(Provider.FCM, 1.5)
    with caplog.at_level(logging.WARNING):
        tell(effects, metrics, lambda provider, seconds: due.append((provider, seconds)))
    assert metrics.value(KindCounter.EXPIRED, "check") == 2
    assert metrics.value(KindCounter.QUARANTINED, "tokens") == 3
    assert metrics.value(KindCounter.TOKENS_EXPIRED, "silent") == 4
    assert metrics.value(Counter.SERVERS_FORGOTTEN) == 5
    assert metrics.value(Counter.CLOCK_STEPS) == 1
    assert due == [(Provider.FCM, 1.5)]
    assert "set by -3600 s" in caplog.text


def test_numbers_grow_also_over_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SESSIONS", 2)
    arrivals, first, second = Arrivals(), Session(SMP, 7), Session(SMP, 8)
    one, two = arrivals.stamp(first, 3, 100.9), arrivals.stamp(first, 1, 101.0)
    assert (two.first - one.first, one.received_at, two.received_at) == (3, 100, 101)
    assert arrivals.stamp(second, 1, 101.0).first > two.first
    for fence in range(9, 20):
        arrivals.stamp(Session(SMP, fence), 1, 102.0)
    assert len(arrivals._counts) <= 2


async def test_claims_are_given_back_as_soon_as_the_store_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.0)
    answers: list[Exception | None] = [StoreUnavailableError("busy"), StoreUnavailableError("busy"), None]
    given: list[Sequence[Outcome]] = []

    async def record(outcomes: Sequence[Outcome]) -> int:
        given.append(outcomes)
        if (error := answers.pop(0)) is not None:
            raise error
        return 0

    claims = [claim(Provider.APNS, b"", ref=n) for n in range(2)]
    await give_back(record, claims)
    assert len(given) == 3
    assert [(o.claim.token, o.ended) for o in given[-1]] == [(0, Ended.UNTRIED), (1, Ended.UNTRIED)]
    answers += [StoreConflictError("closed"), StoreCorruptError("gone")]
    for _ in range(2):
        await give_back(record, claims)  # whoever opens it next recovers them
    assert not answers
