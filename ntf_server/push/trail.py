"""What came of the last pushes, for operators who ask after one: in memory, and as events."""

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, Final

from ntf_server.observe.events import Event, EventLog
from ntf_server.store.records import Ended, Outcome, PushKind, push_uuid
from smp_bridge.ntf import DeviceToken

log = EventLog(__name__)

_ENDED: Final = Event.PUSH_ENDED  # to look up a member of an enum takes a while
KEPT: Final = 5000  # pushes, of all devices together


# A try of a push that ended: when (Unix seconds), device, push id, kind, since when it was due, failures before it,
# what came of it, the provider's words. A bare tuple, as each push makes one.
_Tried = tuple[float, DeviceToken, bytes, PushKind, int, int, Ended, str]


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
        self._kept: deque[_Tried] = deque(maxlen=KEPT)

    def add(self, outcome: Outcome) -> None:
        """A provider answered, or did not."""
        c = outcome.claim
        now, ended, reason = self._clock(), outcome.ended, outcome.reason
        tried: _Tried = (now, c.device, c.push_id, c.kind, c.since, c.attempts, ended, reason)
        self.added += 1
        self._kept.append(tried)
        if log.is_told(_ENDED):
            fields = self._fields(tried)
            words = fields["provider"], ended.value, reason or "taken"
            log.tell(_ENDED, "a push through %s: %s: %s", *words, **fields)

    def of(self, fingerprint: str, after: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Pushes to a device, oldest first, each with the fields of `push.ended` and `at`: of those that were added
        behind the first `after` ones. And how many were added ever.
        """
        behind = max(0, len(self._kept) - (self.added - after))
        found = [
            {"at": tried[0], **self._fields(tried)}
            for tried in islice(self._kept, behind, None)
            if self._fingerprint(tried[1]) == fingerprint
        ]
        return found, self.added

    def _fields(self, tried: _Tried) -> dict[str, Any]:
        at, device, push_id, kind, since, failures, ended, reason = tried
        return {
            "push": push_uuid(push_id),
            "token": self._fingerprint(device),
            "provider": device.provider.value,
            "service": self._origin(device),
            "kind": kind.name.lower(),
            "age": round(max(0.0, at - since), 3),
            "attempt": failures + 1,
            "outcome": ended.value,
            "reason": reason,
        }
