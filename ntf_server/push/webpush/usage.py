"""Which VAPID keys are still needed: how many registrations are for each, as they were counted last."""

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from ntf_server.observe.condition import VapidFacts
from ntf_server.observe.events import Event, EventLog
from ntf_server.store.contract import StoreError, Tokens
from ntf_server.store.records import Claim

events = EventLog(__name__)

_SHOWN: Final = 12  # characters of a public key: enough to tell keys apart


class KeyUsage:
    """`take` what was counted; `learnt` has the store know better. `keys`: public keys by id, the one in force first,
    none: Web Push is off; `clock`: a monotonic one; `write` has what it is given run.
    """

    def __init__(
        self,
        keys: Callable[[], Mapping[bytes, str]],
        clock: Callable[[], float],
        store: Tokens,
        write: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._store = store
        self._write = write
        self._counted: Mapping[bytes, int] | None = None
        self._counted_at = 0.0
        self._unused: set[bytes] = set()  # those that it was told of

    def learnt(self, claim: Claim, key_id: bytes) -> None:
        """A push service showed that a token is for this key. While the store fails, its next push shows it again."""

        async def write() -> None:
            with contextlib.suppress(StoreError):
                await self._store.set_vapid_key(claim.token, key_id)

        with contextlib.suppress(RuntimeError):  # the relay stops
            self._write(write())

    def take(self, counted: Mapping[bytes, int]) -> None:
        """How many registrations are for each key, by its id; empty: that is not known. An older key that nobody needs
        any more is told of, once.
        """
        self._counted, self._counted_at = counted, self._clock()
        keys = self._keys()
        if any(number and key not in keys for key, number in counted.items()):
            return  # it may be for any of them
        unused = {key for key in [*keys][1:] if not counted.get(key)}
        for key in sorted(unused - self._unused):
            text = "no registration is for the older VAPID key %s… any more"
            events.tell(Event.VAPID_KEY_UNUSED, text, keys[key][:_SHOWN], key=keys[key])
        self._unused = unused

    def facts(self) -> VapidFacts | None:
        """By the keys that there are now; None: Web Push is off, or nothing was counted yet."""
        keys = [*self._keys()]
        if self._counted is None or not keys:
            return None
        in_force, old = self._counted.get(keys[0], 0), sum(self._counted.get(key, 0) for key in keys[1:])
        unknown = sum(self._counted.values()) - in_force - old
        return VapidFacts(in_force, old, unknown, self._clock() - self._counted_at)

    def gauge(self) -> Mapping[str, float]:
        """The same for metrics, by `names.VAPID_KEYS`."""
        facts = self.facts()
        return {} if facts is None else {"in_force": facts.in_force, "old": facts.old, "unknown": facts.unknown}
