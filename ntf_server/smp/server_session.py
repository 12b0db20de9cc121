"""A session with an SMP server, as what SCHK answers rests on it. No I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from ntf_server.store.records import Confirmed, Cursor, Ref, Removed, ServiceState, Session, Subscription, Wanted
from smp_bridge.address import ServerAddress
from smp_bridge.failure import NsubAnswer
from smp_bridge.ntf import SubscriptionStatus
from smp_bridge.subscriptions import NsubRequest, NsubResult

_TO_WRITE: Final = 1  # tag of subscriptions whose confirmation the store does not have yet
_MAX_REMOVED: Final = 10_000  # that are remembered
_MAX_ERROR: Final = 128  # bytes kept of a server's error text: SCHK's answer has to fit a block

_STATUS: Final = {
    NsubAnswer.SUBSCRIBED: SubscriptionStatus.ACTIVE,
    NsubAnswer.ASSOCIATED: SubscriptionStatus.ACTIVE,
    NsubAnswer.AUTH: SubscriptionStatus.AUTH,
    NsubAnswer.SERVICE: SubscriptionStatus.SERVICE,
    NsubAnswer.ERROR: SubscriptionStatus.ERR,
}


@dataclass(slots=True, eq=False)
class ServerSession:
    """A session with a server: `cursor` says how far its pages went, `missing` what of them is not confirmed."""

    stored: Session
    service: bool
    prefix: str = ""  # where it leads
    proved: bool = False  # that it confirmed a subscription is known to the store
    associated: bool = False  # there are subscriptions that NSUBS subscribes
    cursor: Cursor | None = None
    complete: bool = False
    missing: set[Ref] = field(default_factory=set)
    service_active: bool = True
    auditing: bool = False  # what is associated is confirmed one by one, up to `audit_cursor`
    audit_size: int = 0
    audit_cursor: Cursor | None = None
    audit_complete: bool = False
    ended: bool = False  # another session took the service's subscriptions over
    recounted: bool = False
    announced: bool = False  # other nodes know that all that should be is confirmed
    asked: ServiceState | None = None  # what the service should have, when the server was asked for its count
    confirmed: int = 0
    audited: set[Ref] = field(default_factory=set)
    removed: set[Ref] = field(default_factory=set)  # deleted while it was not clear whether they count as confirmed

    @property
    def server(self) -> ServerAddress:
        """With whom."""
        return self.stored.server

    def active(self, s: Subscription | Removed) -> bool:
        """Whether a subscription that should be active was confirmed."""
        if s.ref in self.missing:
            return False
        if not self.service or not s.associated:
            return self.complete or (self.cursor is not None and bool(s.cursor <= self.cursor))
        if not self.auditing:
            return self.service_active
        return self.audit_complete or (self.audit_cursor is not None and bool(s.cursor <= self.audit_cursor))

    def request(self, w: Wanted) -> NsubRequest:
        """What is to be subscribed in it."""
        written = not w.fresh and (not self.service or w.associated)
        return NsubRequest(w.ref, w.notifier_id, w.notifier_key, 0 if written else _TO_WRITE)

    @property
    def confirms_all(self) -> bool:
        """Whether `active` is true of all that is not missing."""
        if not self.service:
            return self.complete
        return self.complete and (self.audit_complete if self.auditing else self.service_active)

    def begin_again(self) -> None:
        """No association holds any more."""
        self.cursor, self.complete, self.confirmed = None, False, 0
        self.service_active, self.auditing = True, False

    def begin_audit(self, count: int) -> None:
        """Some of so many associations may not hold: each is confirmed again."""
        self.auditing, self.audit_cursor, self.audit_complete = True, None, False
        self.recounted = True
        self.audit_size = count
        self.confirmed = max(0, self.confirmed - count)

    def take_audit_page(self, refs: Sequence[Ref], cursor: Cursor | None) -> list[Ref]:
        """Those of the next page that are to be confirmed; `cursor`: None after the last."""
        self.audit_cursor, self.audit_complete = cursor, cursor is None
        new = [ref for ref in refs if ref not in self.missing and ref not in self.removed]
        self.missing.update(new)
        self.audited.update(new)
        return new

    def count_service(self, associated: int) -> None:
        """The server has all that our service should have there."""
        self.service_active, self.auditing = True, False
        self.confirmed = max(self.confirmed, associated)

    def end_service(self, count: int) -> None:
        """Another session took so many of the service's subscriptions over."""
        self.service_active, self.auditing, self.ended = False, False, True
        self.confirmed = max(0, self.confirmed - count)

    def add(self, refs: Iterable[Ref]) -> None:
        """They came since, and are to be subscribed; one that was deleted before counts again."""
        self.removed.difference_update(refs)
        self.missing.update(refs)

    def remove(self, s: Removed) -> None:
        """It was deleted: it counts no more, nor does the answer to an NSUB of it that is under way."""
        if len(self.removed) >= _MAX_REMOVED:
            self.removed.clear()  # the gauge may be a little wrong then, until the session ends
        if s.ref in self.missing:
            self.missing.discard(s.ref)
            self.removed.add(s.ref)
        elif s.active and self.active(s):
            self.confirmed = max(0, self.confirmed - 1)
        elif not self.complete or (self.auditing and not self.audit_complete):
            self.removed.add(s.ref)  # a page that was read before may still bring it
        if s.ref in self.audited:
            self.audited.discard(s.ref)
            self.removed.add(s.ref)


def confirmed(r: NsubResult) -> Confirmed:
    """What an answer to an NSUB means to the store."""
    error = r.error.encode()[:_MAX_ERROR].decode(errors="ignore")
    return Confirmed(r.ref, _STATUS[r.answer], error, True if r.answer is NsubAnswer.ASSOCIATED else None)
