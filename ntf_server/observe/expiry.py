"""Certificates that end: told at the start, then once a day from 30 days before; and when they were renewed."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from ntf_server.observe.condition import CertificateCondition, State, certificate, certificate_sentence
from ntf_server.observe.events import Event, EventLog
from ntf_server.observe.moments import moment

events = EventLog(__name__)

LOOK: Final = 3600.0  # seconds between two looks
AGAIN: Final = 24 * 3600.0  # seconds after which it is told again
_TOLD: Final = {State.ENDING: Event.CERTIFICATE_ENDING, State.FAILING: Event.CERTIFICATE_ENDED}


class _Told(NamedTuple):
    state: State
    at: float  # Unix seconds


class Expiry:
    """Looks at the certificates in use. `ends`: when each does, in Unix seconds, by `names.CERTIFICATES`; `clock`: the
    wall clock. Its `run` never ends.
    """

    def __init__(self, ends: Callable[[], Mapping[str, float]], clock: Callable[[], float] = time.time) -> None:
        self._ends = ends
        self._clock = clock
        self._told: dict[str, _Told] = {}

    async def run(self) -> None:
        """Look, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK)

    def look(self) -> None:
        """Now, as after a reload: what was told of and is well again is told of too."""
        now = self._clock()
        for name, ends in self._ends().items():
            found = certificate(name, ends, now)
            told = self._told.get(name)
            if found.state is State.WELL:
                if self._told.pop(name, None):
                    text = "the certificate %s was renewed"
                    events.tell(Event.CERTIFICATE_WELL, text, name, certificate=name, ends=moment(ends))
            elif told is None or told.state is not found.state or not 0 <= now - told.at < AGAIN:
                self._told[name] = _Told(found.state, now)
                self._tell(found, now)

    def _tell(self, found: CertificateCondition, now: float) -> None:
        text = certificate_sentence(found, now)
        events.tell(_TOLD[found.state], "%s", text, certificate=found.name, ends=moment(found.ends))
