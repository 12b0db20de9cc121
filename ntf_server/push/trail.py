"""What came of the last pushes, for operators who ask after one: in memory, and as events."""

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, NamedTuple

from ntf_server.observe.events import Event, EventLog
from ntf_server.store.records import Outcome, PushKind, push_uuid
from smp_bridge.ntf import DeviceToken

log = EventLog(__name__)

KEPT: Final = 5000  # pushes, of all devices together


class _Ended(NamedTuple):
    """A try of a push that ended `at` (Unix seconds). The device token stays out of reprs, as `DeviceToken` does."""

    at: float
    device: DeviceToken
    push_id: bytes
    kind: PushKind
    since: int
    attempt: int
    outcome: str
    reason: str


class Trail:
    """`add` what ends; `of` a device. `fingerprint`: see `Store`; `origin`: of a push service, empty if a provider has
    one; `clock`: the wall clock.
    """

    def __init__(
        self,
        fingerprint: Callable[[DeviceToken], str],
        origin: Callable[[DeviceToken], str],
        clock: Callable[[], float],
    ) -> None:
        self.added = 0  # so many, ever
        self._fingerprint = fingerprint
        self._origin = origin
        self._clock = clock
        self._kept: deque[_Ended] = deque(maxlen=KEPT)

    def add(self, outcome: Outcome) -> None:
        """A provider answered, or did not."""
        claim = outcome.claim
        ended = _Ended(
            self._clock(),
            claim.device,
            claim.push_id,
            claim.kind,
            claim.since,
            claim.attempts + 1,
            outcome.ended.value,
            outcome.reason,
        )
        self.added += 1
        self._kept.append(ended)
        if log.is_told(Event.PUSH_ENDED):
            fields = self._fields(ended)
            words = fields["provider"], ended.outcome, ended.reason or "taken"
            log.tell(Event.PUSH_ENDED, "a push through %s: %s: %s", *words, **fields)

    def of(self, fingerprint: str, after: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Pushes to a device, oldest first, each with the fields of `push.ended` and `at`: of those that were added
        behind the first `after` ones. And how many were added ever.
        """
        behind = max(0, len(self._kept) - (self.added - after))
        found = [
            {"at": ended.at, **self._fields(ended)}
            for ended in islice(self._kept, behind, None)
            if self._fingerprint(ended.device) == fingerprint
        ]
        return found, self.added

    def _fields(self, ended: _Ended) -> dict[str, Any]:
        return {
            "push": push_uuid(ended.push_id),
            "token": self._fingerprint(ended.device),
            "provider": ended.device.provider.value,
            "service": self._origin(ended.device),
            "kind": ended.kind.name.lower(),
            "age": round(max(0.0, ended.at - ended.since), 3),
            "attempt": ended.attempt,
            "outcome": ended.outcome,
            "reason": ended.reason,
        }
