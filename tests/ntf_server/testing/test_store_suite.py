"""The conformance suite finds engines that break the contract: each of these does in one way."""

import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from shared_nodes import Node, SharedMedium
from store_media import MemoryMedium

from ntf_server.store.contract import Places
from ntf_server.store.records import (
    NO_LIMITS,
    Added,
    Arrival,
    Backlog,
    Census,
    Change,
    Confirmed,
    Cursor,
    LimitReached,
    Limits,
    Lost,
    NewSubscription,
    NewToken,
    Notification,
    Notified,
    Outcome,
    Page,
    Ref,
    Replacement,
    ServiceCertificate,
    ServiceState,
    Session,
    Taken,
    Token,
)
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing.store_suite import Check, checks, name, run
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider, SubscriptionStatus


class TakesAnyCode(SqliteStore):
    async def verify(self, token: Ref, code: bytes) -> bool:
        row = self._state.claims.get(token) if isinstance(token, int) else None
        return await super().verify(token, row.claim.code if row and row.claim.code else code)


class ForgetsOtherRegistrations(SqliteStore):
    async def delete_token(self, token: Ref) -> None:
        """Nothing is deleted."""


class KnowsCase(SqliteStore):
    async def register(self, new: NewToken) -> Token | None:
        device = DeviceToken(new.device.provider, b"x" + new.device.token)  # no hex any more
        return await super().register(replace(new, device=device))


class ReplacesTwice(SqliteStore):
    async def replace(self, token: Ref, new: Replacement) -> bool:
        await super().replace(token, new)
        return True


class HasNoLimits(SqliteStore):
    async def subscribe(
        self, token: Ref, new: NewSubscription, limits: Limits = NO_LIMITS
    ) -> Added | LimitReached | None:
        return await super().subscribe(token, new)


class TakesAnyKey(SqliteStore):
    async def subscribe(
        self, token: Ref, new: NewSubscription, limits: Limits = NO_LIMITS
    ) -> Added | LimitReached | None:
        return await super().subscribe(token, replace(new, notifier_key=b"one key for all"), limits)


class LosesTheLast(SqliteStore):
    async def notify(
        self, session: Session, notifications: Sequence[Notification], places: Mapping[Provider, Places]
    ) -> Notified:
        return await super().notify(session, notifications[:-1] if len(notifications) > 2 else notifications, places)


class HandsOutTwice(SqliteStore):
    _last: list[Any]

    async def take(self, provider: Provider, places: Places) -> Taken:
        taken = await super().take(provider, places)
        self._last, again = list(taken.claims), getattr(self, "_last", [])
        return taken if taken.claims else Taken(again, taken.next_in)


class TakesTooMany(SqliteStore):
    async def take(self, provider: Provider, places: Places) -> Taken:
        class More:
            total = places.total + 1
            room = staticmethod(places.room)

        return await super().take(provider, More())


class IgnoresPauses(SqliteStore):
    async def take(self, provider: Provider, places: Places) -> Taken:
        class Open:
            total = places.total

            @staticmethod
            def room(_: bytes) -> int:
                return places.total

        return await super().take(provider, Open())


class SaysNothingIsRefused(SqliteStore):
    async def record(self, outcomes: Sequence[Outcome]) -> int:
        await super().record(outcomes)
        return 0


class RetriesAtOnce(SqliteStore):
    async def record(self, outcomes: Sequence[Outcome]) -> int:
        for outcome in outcomes:
            outcome.after = 0.0
        return await super().record(outcomes)


class TellsNobody(SqliteStore):
    def watch(self, on_due: Callable[[Provider, float], None]) -> None:
        """Nobody is told."""


class BeginsNumbersAnew(SqliteStore):
    def arrive(self, session: Session, count: int) -> Arrival:
        first, at = super().arrive(session, count)
        return Arrival(first & 0xFFFFFFFF, at)


class EndsForOldSessions(SqliteStore):
    async def end(
        self, session: Session, notifier_ids: Sequence[bytes], status: SubscriptionStatus, number: int | None = None
    ) -> int:
        current = Session(session.server, self._state.fences.get(session.server, 0))
        return await super().end(current, notifier_ids, status, number)


class ConfirmsForOldSessions(SqliteStore):
    async def confirm(self, session: Session, answers: Sequence[Confirmed]) -> None:
        await super().confirm(Session(session.server, self._state.fences.get(session.server, 0)), answers)


class SkipsOne(SqliteStore):
    async def page(self, session: Session, after: Cursor | None, limit: int) -> Page:
        page = await super().page(session, after, limit)
        return Page(page.wanted[:-1], page.cursor) if after and len(page.wanted) > 1 else page


class ForgetsServices(SqliteStore):
    async def begin(self, session: Session, service_id: bytes | None) -> ServiceState:
        return await super().begin(session, random.randbytes(8))


class KeepsAssociations(SqliteStore):
    async def reassociate(self, session: Session) -> ServiceState:
        return await self.service_state(session)


class MakesNewCertificates(SqliteStore):
    async def service_certificate(
        self, server: ServerAddress, make: Callable[[], ServiceCertificate]
    ) -> ServiceCertificate:
        await super().service_certificate(server, make)
        return make()


class KeepsChangesToItself(SqliteStore):
    async def _none(self) -> AsyncIterator[Change]:
        async for change in super().changes():
            if not change.removed:
                yield change

    def changes(self) -> AsyncIterator[Change]:
        return self._none()


class ChecksTwice(SqliteStore):
    async def mark_checks(self, limit: int) -> int:
        return await super().mark_checks(limit * 2)


class HearsNobody(SqliteStore):
    def seen(self, token: Token) -> None:
        """Nobody is heard."""


class ForgetsNobody(SqliteStore):
    async def tend(self) -> float:
        return 60.0


class KnowsSpellings(SqliteStore):
    async def is_wanted(self, server: ServerAddress) -> bool:
        return str(server) in {str(s) for s in await self.servers()} and await super().is_wanted(server)


class NamesServersAsItLikes(SqliteStore):
    async def subscribe(
        self, token: Ref, new: NewSubscription, limits: Limits = NO_LIMITS
    ) -> Added | LimitReached | None:
        return await super().subscribe(token, replace(new, server=new.server.plain), limits)


class ChecksForWhatIsLostAgainAndAgain(SqliteStore):
    async def mark_lost(self, session: Session, after: Cursor | None, limit: int, within: float) -> Lost:
        self._state.lost.clear()
        return await super().mark_lost(session, after, limit, within)


class CountsWhatWaitsAsDue(SqliteStore):
    async def backlog(self, provider: Provider) -> Backlog:
        found = await super().backlog(provider)
        return Backlog(found.tokens, 0, found.oldest)


class CountsSomeTwice(SqliteStore):
    async def census(
        self, after: Cursor | None, limit: int, *, everywhere: bool = False
    ) -> tuple[Census, Cursor | None]:
        counted, cursor = await super().census(after, limit)
        return counted, cursor and cursor - 1


class KnowsNoVapidKeys(SqliteStore):
    async def set_vapid_key(self, token: Ref, key_id: bytes) -> None:
        pass


BROKEN = (
    CountsWhatWaitsAsDue, CountsSomeTwice, KnowsNoVapidKeys,
    TakesAnyCode, ForgetsOtherRegistrations, KnowsCase, ReplacesTwice, HasNoLimits, TakesAnyKey, LosesTheLast,
    HandsOutTwice, TakesTooMany, IgnoresPauses, SaysNothingIsRefused, RetriesAtOnce, TellsNobody, BeginsNumbersAnew,
    EndsForOldSessions, ConfirmsForOldSessions, SkipsOne, ForgetsServices, KeepsAssociations, MakesNewCertificates,
    KeepsChangesToItself, ChecksTwice, HearsNobody, ForgetsNobody, KnowsSpellings, NamesServersAsItLikes,
    ChecksForWhatIsLostAgainAndAgain,
)  # fmt: skip


@pytest.mark.parametrize("engine", BROKEN)
async def test_a_broken_engine_is_found(engine: type[SqliteStore]) -> None:
    for check in checks(shared=False):
        try:
            await run(check, MemoryMedium(engine))
        except Exception:
            return
    raise AssertionError("it passes for one that is not")


# --- two nodes

TWO_NODES = [check for check in checks(shared=True) if check not in checks(shared=False)]


@pytest.mark.parametrize("check", TWO_NODES, ids=name)
async def test_two_nodes_with_leases_pass(check: Check) -> None:
    await run(check, SharedMedium())


class TakesOverAtOnce(Node):
    def is_anothers(self, server: ServerAddress) -> bool:
        return False


class KeepsWhatTheDeadHad(Node):
    async def take(self, provider: Provider, places: Places) -> Taken:
        return await self.store.take(provider, places)


class TellsItself(Node):
    def watch(self, on_due: Callable[[Provider, float], None]) -> None:
        """Only who wrote something is told."""


class LosesWhatItRenews(Node):
    async def renew(self, sessions: Sequence[Session]) -> list[Session]:
        return []


@pytest.mark.parametrize("kind", [TakesOverAtOnce, KeepsWhatTheDeadHad, TellsItself, LosesWhatItRenews])
async def test_broken_nodes_are_found(kind: type[Node]) -> None:
    for check in TWO_NODES:
        try:
            await run(check, SharedMedium(kind))
        except Exception:
            return
    raise AssertionError("it passes for one that is not")


def test_every_check_has_a_name_of_its_own() -> None:
    all_checks: list[Check] = checks(shared=True)
    names = [name(check) for check in all_checks]
    assert len(names) == len(set(names)) > len(checks(shared=False)) > 100
    assert {n.partition("-")[0] for n in names} >= {
        "tokens",
        "queues",
        "deliveries",
        "sessions",
        "races",
        "paging",
        "nodes",
    }
