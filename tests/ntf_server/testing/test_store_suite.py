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


# By the check that has to find each.
BROKEN: dict[type[SqliteStore], str] = {
    CountsWhatWaitsAsDue: "deliveries-how_long_the_oldest_is_due",
    CountsSomeTwice: "census-tokens_are_counted_by_provider_and_status",
    KnowsNoVapidKeys: "census-tokens_of_web_push_are_counted_by_vapid_key",
    TakesAnyCode: "tokens-replacing_takes_the_new_device_token",
    ForgetsOtherRegistrations: "tokens-a_deleted_token_is_gone_at_once",
    KnowsCase: "tokens-a_device_is_known_by_its_fingerprint",
    ReplacesTwice: "tokens-replacing_by_another_registration_is_refused",
    HasNoLimits: "queues-deleting_a_token_makes_room",
    TakesAnyKey: "queues-the_same_queue_is_found_again",
    LosesTheLast: "queues-a_push_names_the_server_as_the_device_did",
    HandsOutTwice: "tokens-a_claim_of_one_made_invalid_may_end",
    TakesTooMany: "deliveries-due_state_survives_reopening",
    IgnoresPauses: "lanes-a_lane_without_room_is_passed_over",
    SaysNothingIsRefused: "turns-a_turn_counts_while_a_push_is_under_way",
    RetriesAtOnce: "tokens-a_claim_of_one_made_invalid_may_end",
    TellsNobody: "retries-retries_are_told",
    BeginsNumbersAnew: "queues-a_push_names_the_server_as_the_device_did",
    EndsForOldSessions: "sessions-an_old_session_is_refused",
    ConfirmsForOldSessions: "sessions-an_old_session_is_refused",
    SkipsOne: "tokens-a_damaged_queue_is_set_aside",
    ForgetsServices: "services-associations_outlive_sessions",
    KeepsAssociations: "services-associated_ones_are_paged_apart",
    MakesNewCertificates: "queues-all_spellings_of_a_server_are_one",
    KeepsChangesToItself: "sessions-changes_are_told",
    ChecksTwice: "periods-checks_come_a_few_at_a_time",
    HearsNobody: "expiry-each_way_to_be_heard_counts",
    ForgetsNobody: "standings-how_long_a_server_is_tried_counts_from_its_first_subscription",
    KnowsSpellings: "queues-all_spellings_of_a_server_are_one",
    NamesServersAsItLikes: "queues-a_push_names_the_server_as_the_device_did",
    ChecksForWhatIsLostAgainAndAgain: "lost-a_check_for_what_may_be_lost_comes_once_an_hour",
}
CHECKS = {name(check): check for check in checks(shared=False)}


@pytest.mark.parametrize("engine", BROKEN)
async def test_a_broken_engine_is_found(engine: type[SqliteStore]) -> None:
    try:
        await run(CHECKS[BROKEN[engine]], MemoryMedium(engine))
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


BROKEN_NODES: dict[type[Node], str] = {
    TakesOverAtOnce: "nodes-a_node_that_lost_a_server_is_fenced",
    KeepsWhatTheDeadHad: "nodes-claims_of_a_dead_node_are_given_again",
    TellsItself: "nodes-who_can_take_it_is_told_of_what_is_due",
    LosesWhatItRenews: "nodes-a_session_that_is_renewed_is_kept",
}


@pytest.mark.parametrize("kind", BROKEN_NODES)
async def test_broken_nodes_are_found(kind: type[Node]) -> None:
    [check] = [check for check in TWO_NODES if name(check) == BROKEN_NODES[kind]]
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
