"""All faults by name: each is to fire in a set of runs."""

from collections.abc import Set
from itertools import product
from typing import Final

_HOSTS: Final = ("apns", "fcm", "web")
_BAD_TIMES: Final = ("refused", "tarpit", "errors", "bad_connection", "busy")
_REQUESTS: Final = ("lost_before", "lost_answer", "late_answer", "one_500", "one_429")

FAULTS: Final = frozenset(
    [f"{host}:{trouble}" for host, trouble in product(_HOSTS, (*_BAD_TIMES, *_REQUESTS, "failing_token"))]
    + ["apns:bad_key", "apns:wrong_topic", "apns:ExpiredProviderToken", "apns:unregistered"]
    + ["fcm:quota", "fcm:bad_account", "fcm:no_permission", "fcm:assertion_refused", "fcm:unregistered"]
    + ["web:forbidden", "web:vapid_refused", "web:gone"]
    + ["relay:crash", "relay:crash_at_start_or_stop", "relay:restart", "relay:reload", "relay:provider_raises"]
    + ["relay:part_fails"]
    + ["disk:busy", "disk:full", "disk:slow", "disk:damaged_record", "clock:step", "clock:right_after_restart"]
    + ["smp:drop", "smp:down", "smp:refused", "smp:hangs", "smp:silent", "smp:vanish", "smp:storm", "smp:take_over"]
    + ["smp:late_end", "smp:deleted", "smp:rush", "smp:end_before_another_session"]
    + [f"stranger:{kind}" for kind in ("tarpit", "refuses", "hangs_up", "confirms_once")]
    + [f"service:{what}" for what in ("forgotten", "loses_some", "loses_all", "unready", "refused", "taken_over")]
    + ["phone:TRPL", "phone:TDEL", "phone:SDEL", "phone:uninstalled", "phone:strangers"]
)

# In worlds on Redis alone, and in those on SQLite alone.
REDIS_FAULTS: Final = frozenset(
    [f"redis:{kind}" for kind in ("lost_request", "half_request", "lost_answer", "silent", "late")]
    + ["redis:busy", "redis:full", "redis:slow", "redis:no_scripts", "redis:clock"]
    + ["redis:restart", "redis:failover", "redis:frozen", "redis:two_primaries", "redis:lost_writes"]
    + ["redis:replicas_stall"]
    + ["redis:lost_notification", "redis:lost_registration", "redis:lost_subscription", "redis:two_in_flight"]
    + ["redis:read_in_vain", "redis:cluster_down", "redis:slot_moves", "redis:slot_of_nobody", "node:cut_off_from_one"]
    + [f"node:{what}" for what in ("stands_still", "cut_off", "killed", "leaves", "joins", "all_killed", "all_restart")]
)
_SQLITE_ALONE: Final = ("disk:", "stranger:", "apns:wrong_topic")


def faults_of(store: str) -> Set[str]:
    """What is to fire in many worlds on it."""
    if store == "redis":
        return {name for name in FAULTS if not name.startswith(_SQLITE_ALONE)} | REDIS_FAULTS
    return FAULTS if store == "sqlite" else FAULTS | REDIS_FAULTS
