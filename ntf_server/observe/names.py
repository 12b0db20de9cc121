"""The names of all metrics, with their help texts, labels and the labels' values: the one table of them."""

from enum import StrEnum
from typing import Final, Self

from smp_bridge.ntf import Provider

PROVIDERS: Final = tuple(p.value for p in Provider)
# What the supervisor looks after, and closes; "other" for what is not named here.
PARTS: Final = (
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


class Metric(StrEnum):
    """A name with its help text, and where it has a label, that and its values: `kinds`."""

    help: str
    label: str
    kinds: tuple[str, ...]

    def __new__(cls, name: str, text: str, label: str = "", kinds: tuple[str, ...] = ()) -> Self:
        """As the tables below give them."""
        member = str.__new__(cls, name)
        member._value_ = name
        member.help, member.label, member.kinds = text, label, kinds
        return member


class ServerMetric(Metric):
    """Of own SMP servers one by one, and of all others together."""

    @property
    def other(self) -> str:
        """The name of the sum over all servers that are not own ones."""
        stem = self.value.removesuffix("_total")
        return f"{stem}_other{self.value[len(stem) :]}"


class Counter(Metric):
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


class KindCounter(Metric):
    """Counters with one label, and its values."""

    PUSHES_DELIVERED = (
        "ntf_pushes_delivered_total",
        "Pushes that the provider took.",
        "provider",
        PROVIDERS,
    )
    PUSHES_FAILED = (
        "ntf_pushes_failed_total",
        "Pushes that failed because the device token is dead.",
        "provider",
        PROVIDERS,
    )
    PUSHES_RETRIED = (
        "ntf_pushes_retried_total",
        "Pushes that failed and are tried again.",
        "provider",
        PROVIDERS,
    )
    PUSHES_REFUSED = (
        "ntf_pushes_refused_total",
        "Pushes refused for a fault of this server's configuration or payloads; tried again, slowly.",
        "provider",
        PROVIDERS,
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
        PARTS,
    )


class ServerCounter(ServerMetric):
    """Counters per own SMP server, and for all others together."""

    RECEIVED = "ntf_notifications_received_total", "Notifications received from SMP servers."
    RECEIVED_UNKNOWN = "ntf_notifications_unknown_total", "Notifications received for no subscription."
    DELIVERED = "ntf_notifications_delivered_total", "Notifications delivered: in a push taken for the first time."
    FAILED = "ntf_notifications_failed_total", "Undelivered notifications in pushes that found the device token dead."


class Gauge(Metric):
    """Gauges, read when they are rendered."""

    PUSHES_IN_FLIGHT = "ntf_pushes_in_flight", "Pushes under way to providers."
    TOKENS_DUE = "ntf_tokens_due", "Device tokens that have something to be pushed and are not being pushed to."
    CLIENT_SESSIONS = "ntf_client_sessions", "Sessions of clients."
    CLIENT_HANDSHAKES = "ntf_client_handshakes", "Connections of clients whose handshake is not done yet."
    SMP_CONNECTING = "ntf_smp_connecting", "Connects to known SMP servers that are under way, or wait for their turn."
    SMP_CONNECTING_NEW = "ntf_smp_connecting_new", "The same of servers that never confirmed a subscription."
    START_TIME = "ntf_process_start_time_seconds", "When the server was started, in Unix seconds."


class ServerGauge(ServerMetric):
    """Gauges per own SMP server, and for all others together."""

    SESSIONS = "ntf_smp_sessions", "Sessions with SMP servers."
    SUBSCRIPTIONS = "ntf_subscriptions_active", "Subscriptions active on SMP servers."

    @property
    def other_servers(self) -> str:
        """The name of the number of servers behind `other`."""
        return f"{self.other}_servers"
