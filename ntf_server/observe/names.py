"""The names of all metrics, with their help texts, labels and the labels' values: the one table of them."""

from enum import StrEnum
from typing import Final, Self

from smp_bridge import ntf

PROVIDERS: Final = tuple(p.value for p in ntf.Provider)
WAYS: Final = ("open", "paused", "probed")
# Of `ntf_provider_trouble_seconds`: states of `condition.State`, and what may be so in any of them.
TROUBLES: Final = ("failing", "paused", "probing", "ours-to-mend", "stalled")
PUSH_KINDS: Final = ("verification", "messages", "check")
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
    "census",
    "statistics",
    "loop_lag",
    "watchdog",
    "certificates",
    "live_page",
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


CERTIFICATES: Final = ("online", "identity", "apns", "redis")
VAPID_KEYS: Final = ("in_force", "old", "unknown")
TOKEN_STATUSES: Final = (*(status.value for status in ntf.TokenStatus), "damaged")
COMMANDS: Final = (*(tag.decode() for tag in ntf.COMMANDS), "invalid")
ANSWERS: Final = ("OK", "AUTH", "BLOCK", "CMD", "INTERNAL", "QUOTA", "SESSION", "STORE")
# Upper bounds in seconds.
_QUICK: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ANSWER: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_WAY: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0)


class Metric(StrEnum):
    """A name with its help text, and where it has a label, that and its values: `kinds`."""

    help: str
    label: str
    kinds: tuple[str, ...]

    __hash__ = str.__hash__  # an enum's own is Python's, and counts are looked up by names

    def __new__(cls, name: str, text: str, label: str = "", kinds: tuple[str, ...] = ()) -> Self:
        """As the tables below give them."""
        return cls._made(name, text, label, kinds)

    @classmethod
    def _made(cls, name: str, text: str, label: str, kinds: tuple[str, ...]) -> Self:
        member = str.__new__(cls, name)
        member._value_ = name
        member.help, member.label, member.kinds = text, label, kinds
        return member

    @property
    def labels(self) -> tuple[str, ...]:
        """Their names."""
        return (self.label,) if self.label else ()


class PairMetric(Metric):
    """With a second label, and its values: `seconds`."""

    second_label: str
    seconds: tuple[str, ...]

    def __new__(
        cls, name: str, text: str, first: tuple[str, tuple[str, ...]], second: tuple[str, tuple[str, ...]]
    ) -> Self:
        """As the tables below give them."""
        member = cls._made(name, text, *first)
        member.second_label, member.seconds = second
        return member

    @property
    def labels(self) -> tuple[str, ...]:
        """Their names."""
        return self.label, self.second_label


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
    TOKEN_EVENTS = (
        "ntf_token_events_total",
        "Registrations that clients made anew, verified, gave another device token, and deleted.",
        "kind",
        ("created", "verified", "replaced", "deleted"),
    )
    SUBSCRIPTION_EVENTS = (
        "ntf_subscription_events_total",
        "Subscriptions that clients made anew, and deleted.",
        "kind",
        ("created", "deleted"),
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


class PairCounter(PairMetric):
    """Counters with two labels, and their values."""

    PUSHES_DELIVERED = (
        "ntf_pushes_delivered_total",
        "Pushes that the provider took.",
        ("provider", PROVIDERS),
        ("kind", PUSH_KINDS),
    )
    PUSHES_FAILED = (
        "ntf_pushes_failed_total",
        "Pushes that failed because the device token is dead.",
        ("provider", PROVIDERS),
        ("kind", PUSH_KINDS),
    )
    PUSHES_RETRIED = (
        "ntf_pushes_retried_total",
        "Pushes that failed and are tried again.",
        ("provider", PROVIDERS),
        ("kind", PUSH_KINDS),
    )
    PUSHES_REFUSED = (
        "ntf_pushes_refused_total",
        "Pushes refused for a fault of this server's configuration or payloads; tried again, slowly.",
        ("provider", PROVIDERS),
        ("kind", PUSH_KINDS),
    )
    COMMANDS = (
        "ntf_commands_total",
        "Commands of clients; invalid: those that could not be parsed.",
        ("command", COMMANDS),
        ("answer", ANSWERS),
    )


class ServerCounter(ServerMetric):
    """Counters per own SMP server, and for all others together."""

    RECEIVED = "ntf_notifications_received_total", "Notifications received from SMP servers."
    RECEIVED_UNKNOWN = "ntf_notifications_unknown_total", "Notifications received for no subscription."
    DELIVERED = "ntf_notifications_delivered_total", "Notifications delivered: in a push taken for the first time."
    FAILED = "ntf_notifications_failed_total", "Undelivered notifications in pushes that found the device token dead."


class Histogram(Metric):
    """How often what took how many seconds. `buckets`: upper bounds."""

    buckets: tuple[float, ...]

    def __new__(
        cls, name: str, text: str, buckets: tuple[float, ...], label: str = "", kinds: tuple[str, ...] = ()
    ) -> Self:
        """As the table below gives them."""
        member = cls._made(name, text, label, kinds)
        member.buckets = buckets
        return member

    NOTIFICATION_STORED = (
        "ntf_notification_stored_seconds",
        "From a notification's NMSG until it is stored.",
        _QUICK,
    )
    NOTIFICATION_DELIVERED = (
        "ntf_notification_delivered_seconds",
        "From a notification's NMSG until a provider took it for the first time.",
        _WAY,
    )
    PUSH_ANSWERED = (
        "ntf_push_answered_seconds",
        "From the sending of a push until its provider's answer, or until there will be none.",
        *(_ANSWER, "provider", PROVIDERS),
    )
    LOOP_LAG = (
        "ntf_loop_lag_seconds",
        "By how much the event loop is late, looked at twice a second.",
        _QUICK,
    )
    STORE_COMMIT = (
        "ntf_store_commit_seconds",
        "What one commit of the store takes, of many operations or one.",
        _QUICK,
    )


class Gauge(Metric):
    """Gauges, read when they are shown."""

    CLIENT_SESSIONS = "ntf_client_sessions", "Sessions of clients."
    CLIENT_HANDSHAKES = "ntf_client_handshakes", "Connections of clients whose handshake is not done yet."
    SMP_CONNECTING = "ntf_smp_connecting", "Connects to known SMP servers that are under way, or wait for their turn."
    SMP_CONNECTING_NEW = "ntf_smp_connecting_new", "The same of servers that never confirmed a subscription."
    SUBSCRIPTIONS_STORED = "ntf_subscriptions", "Subscriptions that are stored, in whatever status."
    STORE_BYTES = "ntf_store_bytes", "What the store takes: the database's files, or the memory of Redis."
    STORE_LOG = "ntf_store_wal_bytes", "What of these the database's write-ahead log takes."
    STORE_ROOM = "ntf_store_room_bytes", "What the store may still take: of the disk, or until Redis's maxmemory."
    STORE_SHARDS = "ntf_store_shards_held", "Parts of a shared store that this node has the lease of."
    STORE_NODES = "ntf_store_nodes", "Nodes that live on a shared store, as this one sees it."
    STORE_SHARDS_ALL = "ntf_store_shards", "Parts of a shared store, whoever has their leases."
    STORE_SHARDS_SILENT = (
        "ntf_store_shards_silent",
        "Those of them that cannot be had now, as the server that has them is away.",
    )
    TIME = "ntf_time_seconds", "What this machine's clock shows, in Unix seconds."


class Info(Metric):
    """What does not change, as the labels of a gauge that is 1."""

    BUILD = "ntf_build_info", "Which program it is, and with what it runs."


class KindGauge(Metric):
    """Gauges with one label, and its values."""

    TOKENS_ACTIVE = (
        "ntf_tokens_active",
        "Registrations that took a push within so long.",
        "within",
        ("day", "week", "month"),
    )
    CERTIFICATE_ENDS = (
        "ntf_certificate_end_time_seconds",
        "When a certificate in use ends, in Unix seconds.",
        "certificate",
        CERTIFICATES,
    )
    STORE_FAILING = (
        "ntf_store_failing_seconds",
        "For how long what is asked of the store has failed, by how; 0: it has not.",
        "kind",
        ("unavailable", "full", "corrupt", "silent"),
    )
    VAPID_TOKENS = (
        "ntf_web_push_tokens",
        "Registrations of Web Push that are pushed to, by the VAPID key that they are for.",
        *("key", VAPID_KEYS),
    )
    PUSHES_IN_FLIGHT = "ntf_pushes_in_flight", "Pushes under way to providers.", "provider", PROVIDERS
    PUSHES_HELD = (
        "ntf_pushes_held",
        "Of these, pushes that are taken from the store but not yet given to the provider.",
        *("provider", PROVIDERS),
    )
    TOKENS_DUE = (
        "ntf_tokens_due",
        "Device tokens that have something to be pushed now and are not being pushed to.",
        *("provider", PROVIDERS),
    )
    TOKENS_WAITING = (
        "ntf_tokens_waiting",
        "Device tokens that have something to be pushed later: after a failure, or when their code has its turn.",
        *("provider", PROVIDERS),
    )
    OLDEST_DUE = (
        "ntf_oldest_due_seconds",
        "For how long the device token that is due for longest has been; 0: none is.",
        *("provider", PROVIDERS),
    )
    LAST_DELIVERED = (
        "ntf_last_delivered_time_seconds",
        "When the provider took a push last, since the start, in Unix seconds.",
        *("provider", PROVIDERS),
    )
    PROVIDER_PAUSED = (
        "ntf_provider_paused",
        "1: the provider failed as a whole, and nothing is pushed through it for a while.",
        *("provider", PROVIDERS),
    )
    PROVIDER_PROBED = (
        "ntf_provider_probed",
        "1: after a pause single pushes try whether the provider is back.",
        *("provider", PROVIDERS),
    )
    ORIGINS = (
        "ntf_push_origins",
        "Push services of Web Push that were pushed to of late.",
        *("state", WAYS),
    )


class PairGauge(PairMetric):
    """Gauges with two labels, and their values."""

    TOKENS = (
        "ntf_tokens",
        "Registrations that are stored; damaged: they cannot be read, and are set aside.",
        ("provider", PROVIDERS),
        ("status", TOKEN_STATUSES),
    )
    PROVIDER_TROUBLE = (
        "ntf_provider_trouble_seconds",
        "For how long a provider in trouble has taken nothing, by its state; 0: it is not in that state.",
        ("provider", PROVIDERS),
        ("state", TROUBLES),
    )


class ServerGauge(ServerMetric):
    """Gauges per own SMP server, and for all others together."""

    SESSIONS = "ntf_smp_sessions", "Sessions with SMP servers."
    SERVICES = "ntf_smp_service_sessions", "Those of them in which this server is a service."
    AWAY = (
        "ntf_smp_servers_away",
        "SMP servers that confirmed a subscription before, and have not been connected for long.",
    )
    SUBSCRIPTIONS = "ntf_subscriptions_active", "Subscriptions active on SMP servers."
    PENDING = "ntf_subscriptions_pending", "Subscriptions asked for in a session, and not confirmed yet."

    @property
    def other_servers(self) -> str:
        """The name of the number of servers behind `other`."""
        return f"{self.other}_servers"
