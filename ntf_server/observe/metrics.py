"""Counters and gauges in the Prometheus text exposition format 0.0.4; to be used in the event loop's thread only."""

import math
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final, Literal, Self

from smp_bridge.address import ServerAddress
from smp_bridge.ntf import Provider

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_HOSTS: Final = 1000  # own hosts with a label: whoever subscribes may invent names in a domain that has a wildcard

_PROVIDERS: Final = tuple(p.value for p in Provider)
# What the supervisor looks after, and closes; "other" for what is not named here.
_PARTS: Final = (
    "push",
    "push_outcomes",
    "smp_events",
    "subscription_changes",
    "unwanted_smp_server",
    "lost_smp_events",
    "periodic_checks",
    "upkeep_of_the_store",
    "tokens_due",
    "audit",
    "reload",
    "listener",
    "admin",
    "subscriber",
    "dispatcher",
    "providers",
    "store",
    "other",
)


class _Metric(StrEnum):
    """A name with its help text, and with what the subclasses add."""

    help: str
    label: str
    kinds: tuple[str, ...]

    def __new__(cls, name: str, text: str, label: str = "", kinds: tuple[str, ...] = ()) -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.help, member.label, member.kinds = text, label, kinds
        return member


class _ServerMetric(_Metric):
    @property
    def other(self) -> str:
        """The name of the sum over all servers that are not own ones."""
        stem = self.value.removesuffix("_total")
        return f"{stem}_other{self.value[len(stem) :]}"


class Counter(_Metric):
    """Plain counters."""

    AUDITED = "ntf_subscriptions_audited_total", "Subscriptions that the audit asked an SMP server for again."
    SERVERS_FORGOTTEN = (
        "ntf_servers_forgotten_total",
        "SMP servers that were forgotten, as nothing was subscribed there any more.",
    )
    SERVERS_DISPROVED = (
        "ntf_smp_servers_disproved_total",
        "SMP servers that could not be connected to for so long that they are tried less often.",
    )
    CLOCK_STEPS = "ntf_clock_steps_total", "Times that the wall clock was set by more than a little."


WRONG_ADDRESS: Final = "wrong_address"


class KindCounter(_Metric):
    """Counters with one label, and its values."""

    PUSHES_DELIVERED = (
        "ntf_pushes_delivered_total",
        "Pushes that the provider took.",
        "provider",
        _PROVIDERS,
    )
    PUSHES_FAILED = (
        "ntf_pushes_failed_total",
        "Pushes that failed because the device token is dead.",
        "provider",
        _PROVIDERS,
    )
    PUSHES_RETRIED = (
        "ntf_pushes_retried_total",
        "Pushes that failed and are tried again.",
        "provider",
        _PROVIDERS,
    )
    PUSHES_REFUSED = (
        "ntf_pushes_refused_total",
        "Pushes refused for a fault of this server's configuration or payloads; tried again, slowly.",
        "provider",
        _PROVIDERS,
    )
    EXPIRED = (
        "ntf_expired_total",
        "What was given up, as it was over its time to live before a provider took it.",
        "kind",
        ("notification", "verification", "check"),
    )
    TOKENS_EXPIRED = (
        "ntf_tokens_expired_total",
        "Registrations that were deleted: never verified, or without a command for long (dead: INVALID or EXPIRED).",
        "kind",
        ("unverified", "dead", "silent"),
    )
    QUARANTINED = (
        "ntf_records_quarantined_total",
        "Records that cannot be read, and were set aside.",
        "kind",
        ("tokens", "subscriptions", "notifications"),
    )
    STORE_ERRORS = (
        "ntf_store_errors_total",
        "What the store could not do; unavailable and full: tried again.",
        "kind",
        ("unavailable", "full", "fenced", "conflict", "damaged", "corrupt"),
    )
    SMP_CONNECT_FAILED = (
        "ntf_smp_connect_failed_total",
        "Failed attempts to connect to an SMP server; identity: someone may be impersonating it;"
        " wrong_address: another identity, of a server that never confirmed a subscription.",
        "kind",
        ("resolve", "not_allowed", "tcp", "timeout", "tls", "identity", WRONG_ADDRESS, "handshake", "proxy", "crowded"),
    )
    SUBSCRIPTIONS_REFUSED = (
        "ntf_subscriptions_refused_total",
        "Subscriptions that an SMP server refused.",
        "kind",
        ("auth", "service", "error"),
    )
    SUBSCRIPTIONS_ENDED = (
        "ntf_subscriptions_ended_total",
        "Subscriptions that an SMP server ended: taken over by another client, or the queue was deleted;"
        " given_up: the server could not be connected to for days.",
        "kind",
        ("end", "deleted", "given_up"),
    )
    AUDIT_DRIFT = (
        "ntf_audit_drift_total",
        "Where the audit found that an SMP server did not agree with this one.",
        "kind",
        ("refused", "service_count", "reassociated"),
    )
    SERVICE_FALLBACK = (
        "ntf_service_fallback_total",
        "Times that a service subscription gave way to subscriptions one by one.",
        "kind",
        ("refused", "changed", "lost", "mismatch", "audited", "ended"),
    )
    SNEW_REFUSED = (
        "ntf_snew_refused_total",
        "Subscriptions that this server refused to devices.",
        "kind",
        ("host", "server_list", "token_limit", "server_limit", "never_active"),
    )
    LIMITS_CLOSED = (
        "ntf_limits_closed_total",
        "Connections of clients that were closed, or not taken, as a budget was used up.",
        "what",
        ("half_open_per_address", "half_open", "sessions_per_address", "sessions"),
    )
    LIMITS_DELAYED = (
        "ntf_limits_delayed_total",
        "Times that a client's session, a code or a connect had to wait, as a budget was used up.",
        "what",
        (
            "handshakes_per_address",
            "handshakes",
            "commands_per_session",
            "commands_per_address",
            "commands",
            "registrations_per_address",
            "registrations",
            "replacements_per_address",
            "replacements",
            "verifications",
            "new_servers_per_token",
            "new_servers_per_address",
            "connects_per_destination",
            "connects",
        ),
    )
    LIMITS_REFUSED = (
        "ntf_limits_refused_total",
        "Commands that were refused, as no honest client gives so many.",
        "what",
        ("registrations_per_device", "replacements_unverified"),
    )
    PART_FAILURES = (
        "ntf_part_failures_total",
        "Failures of parts of this server, which were started again; each is a fault of the program.",
        "part",
        _PARTS,
    )


class ServerCounter(_ServerMetric):
    """Counters per own SMP server, and for all others together."""

    RECEIVED = "ntf_notifications_received_total", "Notifications received from SMP servers."
    RECEIVED_UNKNOWN = "ntf_notifications_unknown_total", "Notifications received for no subscription."
    DELIVERED = "ntf_notifications_delivered_total", "Notifications delivered: in a push taken for the first time."
    FAILED = "ntf_notifications_failed_total", "Undelivered notifications in pushes that found the device token dead."


class Gauge(_Metric):
    """Gauges, read when they are rendered."""

    PUSHES_IN_FLIGHT = "ntf_pushes_in_flight", "Pushes under way to providers."
    TOKENS_DUE = "ntf_tokens_due", "Device tokens that have something to be pushed and are not being pushed to."
    CLIENT_SESSIONS = "ntf_client_sessions", "Sessions of clients."
    CLIENT_HANDSHAKES = "ntf_client_handshakes", "Connections of clients whose handshake is not done yet."
    SMP_CONNECTING = "ntf_smp_connecting", "Connects to known SMP servers that are under way, or wait for their turn."
    SMP_CONNECTING_NEW = "ntf_smp_connecting_new", "The same of servers that never confirmed a subscription."
    START_TIME = "ntf_process_start_time_seconds", "When the server was started, in Unix seconds."


class ServerGauge(_ServerMetric):
    """Gauges per own SMP server, and for all others together."""

    SESSIONS = "ntf_smp_sessions", "Sessions with SMP servers."
    SUBSCRIPTIONS = "ntf_subscriptions_active", "Subscriptions active on SMP servers."

    @property
    def other_servers(self) -> str:
        """The name of the number of servers behind `other`."""
        return f"{self.other}_servers"


ReadGauge = Callable[[], float]
ReadServerGauge = Callable[[], Iterable[tuple[ServerAddress, float]]]


class Metrics:
    """What is counted, and where gauges are read.

    `own_server_domains`: host names of own SMP servers, or domains with all hosts below. A server is known by its
    first host. Hosts of strangers' servers never become labels, so that memory stays bounded.
    """

    def __init__(self, own_server_domains: Sequence[str] = ()) -> None:
        domains = [d for d in (d.lower().lstrip(".") for d in own_server_domains) if d]
        self._own = frozenset(domains)
        self._own_suffixes = tuple(f".{d}" for d in domains)
        self._hosts: set[str] = set()
        self._counts: Tally[tuple[_Metric, str]] = Tally()
        self._gauges: dict[Gauge, ReadGauge] = {}
        self._server_gauges: dict[ServerGauge, ReadServerGauge] = {}

    def is_own(self, server: ServerAddress) -> bool:
        """Whether the server's host is in one of the own domains."""
        host = server.hosts[0].lower()
        return host in self._own or host.endswith(self._own_suffixes)

    def count(self, name: Counter, n: int = 1) -> None:
        """Add to a plain counter."""
        self._counts[name, ""] += n

    def count_kind(self, name: KindCounter, kind: str, n: int = 1) -> None:
        """Add to the count of a kind. Raises ValueError if it is none of the counter's."""
        self._counts[name, _checked(name, kind)] += n

    def count_part(self, name: str) -> None:
        """Add to the failures of a part of the relay: `push AP 1` counts as push."""
        label = name.lower().replace(" ", "_")
        if label not in _PARTS:
            label = "push" if label.startswith("push_") else "other"
        self.count_kind(KindCounter.PART_FAILURES, label)

    def count_server(self, name: ServerCounter, server: ServerAddress, n: int = 1) -> None:
        """Add to the count of an own server, or to that of all others."""
        self._counts[name, self._label(server)] += n

    def gauge(self, name: Gauge, read: ReadGauge) -> None:
        """Have a gauge read; without this it is not rendered."""
        self._gauges[name] = read

    def server_gauge(self, name: ServerGauge, read: ReadServerGauge) -> None:
        """Have a gauge read that gives (server, value) pairs; values of one own host are added up."""
        self._server_gauges[name] = read

    def value(self, name: Counter | KindCounter | ServerCounter, label: str = "") -> int:
        """A count; `label`: the kind (ValueError if it is none), or the own server's host, empty for all others'."""
        return self._counts[name, _checked(name, label) if isinstance(name, KindCounter) else label.lower()]

    def render(self) -> str:
        """Everything, as text."""
        return "".join(f"{line}\n" for line in self._lines())

    def _label(self, server: ServerAddress) -> str:
        """The host of an own server, empty for others."""
        host = server.hosts[0].lower()
        if host in self._hosts:
            return host
        if not self.is_own(server) or len(self._hosts) >= MAX_HOSTS:
            return ""
        self._hosts.add(host)
        return host

    def _lines(self) -> Iterator[str]:
        for counter in Counter:
            yield from _family(counter, counter.help, "counter", [("", self._counts[counter, ""])])
        for kinds in KindCounter:
            samples = [(_pair(kinds.label, k), self._counts[kinds, k]) for k in kinds.kinds]
            yield from _family(kinds, kinds.help, "counter", samples)
        for servers in ServerCounter:
            counts = {host: self._counts[servers, host] for host in ["", *sorted(self._hosts)]}
            yield from _server_families(servers, "counter", counts)
        for gauge, read in self._gauges.items():
            yield from _family(gauge, gauge.help, "gauge", [("", read())])
        for server_gauge, read_pairs in self._server_gauges.items():
            yield from self._server_gauge_lines(server_gauge, read_pairs())

    def _server_gauge_lines(self, name: ServerGauge, pairs: Iterable[tuple[ServerAddress, float]]) -> Iterator[str]:
        values: dict[str, float] = {"": 0}
        others = 0
        for server, value in pairs:
            host = self._label(server)
            values[host] = values.get(host, 0) + value
            others += not host and value != 0
        yield from _server_families(name, "gauge", values)
        yield from _family(name.other_servers, f"Servers behind {name.other}.", "gauge", [("", others)])


def _checked(name: KindCounter, kind: str) -> str:
    if kind not in name.kinds:
        raise ValueError(f"{name} has no kind {kind!r}")
    return str(kind)


def _pair(label: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{{{label}="{escaped}"}}'


def _number(value: float) -> str:
    if math.isfinite(value):
        return str(value)
    return "NaN" if math.isnan(value) else f"{value:+}".title()


def _family(
    name: str, text: str, kind: Literal["counter", "gauge"], samples: Iterable[tuple[str, float]]
) -> Iterator[str]:
    """The lines of one metric; samples are (labels, value)."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{labels} {_number(value)}"


def _server_families(
    name: ServerCounter | ServerGauge, kind: Literal["counter", "gauge"], values: Mapping[str, float]
) -> Iterator[str]:
    """`values`: by own host, empty for all others."""
    own = [(_pair("server", host), value) for host, value in values.items() if host]
    yield from _family(name, f"{name.help} Own servers.", kind, own)
    yield from _family(name.other, f"{name.help} All other servers.", kind, [("", values[""])])
