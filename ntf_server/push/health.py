"""Is this way open? What is known of a provider, or of one push service of Web Push, from its answers. No I/O, no
clock.

A way is *open*, or *paused* until a moment, or *probed*: after a pause one push shows whether the trouble is over.
Times are seconds of one monotonic clock.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ntf_server.observe.condition import WayFacts
from ntf_server.observe.events import Event
from ntf_server.store.records import Record

FIRST_PAUSE = 1.0


class Notice(Record, frozen=True):
    """An event for the operator, and its fields: the way's name, the provider's words, since how many seconds."""

    event: Event
    text: str
    provider: str
    reason: str
    seconds: int


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """Seconds. `longest_pause`: of a way whose trouble is the operator's, who sees within a minute that he has mended
    it; `longest_silence`: of one that cannot be reached; `longest_refusal`: of one that refuses everything;
    `longest_asked`: of what a peer asks for by Retry-After; `loud_after`: that nothing went through, before it is an
    error, which the next failure tells, and which is repeated after `loud_again`.

    `suspicious`: answers that all call good tokens bad, before the way is paused instead; `refusals`: pushes refused in
    a row, before the whole way counts as refusing.
    """

    longest_pause: float = 45.0
    longest_silence: float = 30.0
    longest_refusal: float = 600.0
    longest_asked: float = 3600.0
    loud_after: float = 25.0
    loud_again: float = 600.0
    suspicious: int = 3
    refusals: int = 10


class Health:
    """Of one way. `loud`: its lasting trouble is the operator's to know, even if nothing ever went through."""

    __slots__ = (
        "_config",
        "_loud",
        "_paused",
        "_rng",
        "_said_at",
        "accepted_at",
        "is_ours",
        "paused_until",
        "pauses",
        "proven",
        "reason",
        "refused",
        "suspected",
        "troubled_since",
    )

    def __init__(self, config: HealthConfig, rng: Callable[[], float], *, loud: bool = True) -> None:
        self._config = config
        self._rng = rng
        self._loud = loud
        self._paused = False
        self._said_at: float | None = None  # when its trouble was told last
        self.accepted_at: float | None = None  # the last push that went through
        self.is_ours = False  # the trouble is the operator's to mend, or ours
        self.paused_until = 0.0
        self.proven = False  # something went through since the start, or since `mended`
        self.pauses = 0  # in a row
        self.refused = 0  # in a row
        self.suspected = 0
        self.troubled_since: float | None = None
        self.reason = ""

    def is_paused(self, now: float) -> bool:
        """Nothing may be sent now."""
        return self._paused and now < self.paused_until

    def is_probed(self, now: float) -> bool:
        """A pause is over: one push at a time, until one goes through."""
        return self._paused and now >= self.paused_until

    def way(self, now: float) -> str:
        """One of `names.WAYS`."""
        return "open" if not self._paused else "paused" if now < self.paused_until else "probed"

    def succeeded(self, name: str, now: float) -> Notice | None:
        """A push went through: the way is open."""
        self.accepted_at = now
        if self._paused or self.troubled_since is not None or not self.proven:
            return self._recovered(name, now)
        self.refused = 0
        return None

    def _recovered(self, name: str, now: float) -> Notice | None:
        since, told, reason = self.troubled_since, self._said_at is not None, self.reason
        self._paused, self.is_ours, self.proven = False, False, True
        self.pauses = self.refused = self.suspected = 0
        self.troubled_since = self._said_at = None
        if not told or since is None:
            return None
        seconds = round(now - since)
        text = f"{name}: pushes go through again, after {seconds} s: {reason}"
        return Notice(Event.PROVIDER_WELL, text, name, reason, seconds)

    def answered(self, now: float) -> None:
        """An answer that is about the push alone: whoever was out of reach is there again."""
        if self.is_probed(now):
            self._paused = self.is_ours = False
            self.pauses = 0

    def pause(self, now: float, reason: str, *, longest: float, after: float | None = None) -> None:
        """Send nothing for a while: longer each time, and no less than the peer asked for.

        While it is paused already, answers that come late change nothing.
        """
        self._trouble(now, reason)
        if self.is_paused(now):
            return
        bound = min(FIRST_PAUSE * 2.0 ** min(self.pauses, 30), longest)
        delay = bound * (0.75 + 0.25 * self._rng())
        if after is not None:
            delay = max(delay, min(after, self._config.longest_asked))
        self.pauses += 1
        self._paused = True
        self.paused_until = now + delay

    def ours(self, name: str, now: float, reason: str) -> Notice | None:
        """The operator's fault, or ours: pause, and say so at once."""
        self.is_ours = True
        self.pause(now, reason, longest=self._config.longest_pause)
        return self._say(name, now, f"{name} refuses pushes for a fault of this server: {reason}")

    def unreachable(self, now: float, reason: str, after: float | None) -> None:
        """It cannot be reached, or asks to be left alone."""
        self.pause(now, reason, longest=self._config.longest_silence, after=after)
        self.is_ours = False

    def refuse(self, name: str, now: float, reason: str) -> Notice | None:
        """A push was refused for whatever reason. Whoever refuses everything is paused."""
        self._trouble(now, reason)
        self.refused += 1
        if self.refused < self._config.refusals and not self.is_probed(now):
            return None
        self.pause(now, reason, longest=self._config.longest_refusal)
        return self._say(name, now, f"{name} refuses all pushes: {reason}") if self.proven else None

    def suspect(self, name: str, now: float, reason: str) -> Notice | None:
        """A token that was good is called bad, and nothing went through yet: is it we who are wrong?"""
        self._trouble(now, reason)
        self.suspected += 1
        if self.suspected < self._config.suspicious:
            return None
        self.is_ours = True
        self.pause(now, reason, longest=self._config.longest_pause)
        text = (
            f"{name} calls tokens bad that it took before, and has taken none since the start ({reason}): are topic,"
            " host and key the right ones? The tokens stay as they are; mend the configuration, then reload"
        )
        return self._say(name, now, text)

    def failed(self, name: str, now: float, reason: str) -> Notice | None:
        """A push failed, for a reason that may be its own. If that lasts, it is told."""
        self._trouble(now, reason)
        since = self.troubled_since
        if since is None or now - since < self._config.loud_after or not (self._loud or self.proven):
            return None
        return self._say(name, now, f"{name}: no push has gone through for {now - since:.0f} s: {reason}")

    def facts(self, name: str, now: float) -> WayFacts:
        """How this way is. `name`: of the provider."""
        return WayFacts(
            name,
            troubled_for=None if self.troubled_since is None else now - self.troubled_since,
            paused_for=self.paused_until - now if self.is_paused(now) else 0.0,
            is_probed=self.is_probed(now),
            is_ours=self.is_ours,
            reason=self.reason,
            accepted_ago=None if self.accepted_at is None else now - self.accepted_at,
        )

    def mended(self, now: float) -> None:
        """The operator may have mended it: try at once, and trust nothing that was proven before."""
        self.proven = False
        self.suspected = 0
        self.pauses = 0
        if self._paused:
            self.paused_until = now

    def _trouble(self, now: float, reason: str) -> None:
        self.reason = reason
        if self.troubled_since is None:
            self.troubled_since = now

    def _say(self, name: str, now: float, text: str) -> Notice | None:
        if self._said_at is not None and now - self._said_at < self._config.loud_again:
            return None
        self._said_at = now
        since = now if self.troubled_since is None else self.troubled_since
        return Notice(Event.PROVIDER_TROUBLE, text, name, self.reason, round(now - since))
