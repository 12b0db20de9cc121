"""The dashboards of deploy/grafana: `scripts/dashboards` writes them, in the JSON model of Grafana 10 and newer.

A dashboard is rows of panels, laid out from left to right in a grid of 24 columns. Every query is for what the
variables `job` and `instance` choose.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parents[1] / "deploy/grafana/dashboards"
_WIDTH: Final = 24
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_OF: Final = 'job="$job", instance=~"$instance"'
_AGAIN: Final = "[$__rate_interval]"

GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True)
class Panel:
    """`queries`: expressions and their legends; `unit`: one of Grafana's; `steps`: from which value which colour."""

    title: str
    queries: list[tuple[str, str]]
    about: str
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    steps: list[tuple[float, str]] = field(default_factory=list)
    stacked: bool = False
    decimals: int | None = None

    def made(self, number: int, x: int, y: int) -> dict[str, Any]:
        """As Grafana has it."""
        steps = [{"color": GREEN, "value": None}, *({"color": c, "value": v} for v, c in self.steps)]
        defaults: dict[str, Any] = {
            "unit": self.unit,
            "color": {"mode": "thresholds" if self.kind == "stat" else "palette-classic"},
            "thresholds": {"mode": "absolute", "steps": steps},
        }
        if self.decimals is not None:
            defaults["decimals"] = self.decimals
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.about,
            "datasource": _SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [self._target(n, *query) for n, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": defaults | self._drawn(), "overrides": []},
            "options": self._options(),
            "transformations": self._as_one_table() if self.kind == "table" else [],
        }

    def _as_one_table(self) -> list[dict[str, Any]]:
        """Legends are the names of the columns."""
        one = len(self.queries) == 1
        columns = {"Value" if one else f"Value #{chr(ord('A') + n)}": name for n, (_, name) in enumerate(self.queries)}
        options = {"excludeByName": {"Time": True, "__name__": True, "job": True}, "renameByName": columns}
        return [{"id": "merge", "options": {}}, {"id": "organize", "options": options}]

    def _target(self, number: int, expr: str, legend: str) -> dict[str, Any]:
        once = self.kind in {"stat", "table"}
        return {
            "refId": chr(ord("A") + number),
            "datasource": _SOURCE,
            "expr": expr,
            "legendFormat": legend,
            "instant": once,
            "range": not once,
            "format": "table" if self.kind == "table" else "time_series",
        }

    def _drawn(self) -> dict[str, Any]:
        if self.kind != "timeseries":
            return {}
        custom: dict[str, Any] = {"lineWidth": 1, "fillOpacity": 30 if self.stacked else 8, "showPoints": "never"}
        if self.stacked:
            custom["stacking"] = {"mode": "normal", "group": "A"}
        if self.steps:
            custom["thresholdsStyle"] = {"mode": "dashed"}
        return {"custom": custom, "min": 0}

    def _options(self) -> dict[str, Any]:
        match self.kind:
            case "stat":
                reduce = {"calcs": ["lastNotNull"], "fields": "", "values": False}
                return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
            case "table":
                return {"showHeader": True, "cellHeight": "sm"}
            case _:
                legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
                return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


@dataclass(frozen=True)
class Row:
    title: str
    panels: list[Panel]


@dataclass(frozen=True)
class Dashboard:
    """`name`: of its file, and in its address."""

    name: str
    title: str
    about: str
    rows: list[Row]

    def made(self) -> dict[str, Any]:
        return {
            "uid": f"ntf-relay-{self.name}",
            "title": f"ntf-relay: {self.title}",
            "description": self.about,
            "tags": ["ntf-relay"],
            "schemaVersion": 39,
            "version": 1,
            "editable": True,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-6h", "to": "now"},
            "timezone": "browser",
            "links": [_OTHERS],
            "annotations": {"list": [_ALERTS]},
            "templating": {"list": _VARIABLES},
            "panels": self._panels(),
        }

    def _panels(self) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = []
        y = 0
        for row in self.rows:
            at = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
            made.append(
                {
                    "id": len(made) + 1,
                    "type": "row",
                    "title": row.title,
                    "collapsed": False,
                    "gridPos": at,
                    "panels": [],
                }
            )
            y, x, tallest = y + 1, 0, 0
            for panel in row.panels:
                if x + panel.width > _WIDTH:
                    y, x, tallest = y + tallest, 0, 0
                made.append(panel.made(len(made) + 1, x, y))
                x, tallest = x + panel.width, max(tallest, panel.height)
            y += tallest
        return made


_OTHERS: Final = {
    "type": "dashboards",
    "title": "ntf-relay",
    "tags": ["ntf-relay"],
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
}
_ALERTS: Final = {
    "name": "Alerts",
    "datasource": _SOURCE,
    "enable": True,
    "iconColor": "red",
    "expr": 'ALERTS{alertname=~"Ntf.*", alertstate="firing"}',
    "titleFormat": "{{alertname}}",
    "textFormat": "{{instance}} {{provider}} {{server}}",
    "step": "30s",
}


def _choice(name: str, label: str, query: str, *, several: bool) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": "A"},
        "refresh": 2,
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "current": {"text": "All", "value": "$__all"} if several else {},
    }


_VARIABLES: Final = [
    {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}},
    _choice("job", "Store", "label_values(ntf_build_info, job)", several=False),
    _choice("instance", "Relay", 'label_values(ntf_build_info{job="$job"}, instance)', several=True),
]


# --- how expressions are put together


def of(metric: str, more: str = "") -> str:
    return f"{metric}{{{_OF}{', ' if more else ''}{more}}}"


def total(metric: str, by: str = "", more: str = "") -> str:
    """Of a gauge, over what is chosen."""
    return f"sum{f' by ({by})' if by else ''} ({of(metric, more)})"


def most(metric: str, by: str = "", more: str = "") -> str:
    return f"max{f' by ({by})' if by else ''} ({of(metric, more)})"


def rate(metric: str, by: str = "", more: str = "") -> str:
    """Of a counter, a second."""
    return f"sum{f' by ({by})' if by else ''} (rate({of(metric, more)}{_AGAIN}))"


def within(metric: str, by: str = "", more: str = "") -> str:
    """Of a counter, over the time that is shown."""
    return f"sum{f' by ({by})' if by else ''} (increase({of(metric, more)}[$__range]))"


def both(metric: str) -> str:
    """Of own servers and all others."""
    stem = metric.removesuffix("_total")
    return f"(({rate(metric)}) or vector(0)) + {rate(f'{stem}_other{metric[len(stem) :]}')}"


def quantiles(metric: str, *wanted: float, by: str = "") -> list[tuple[str, str]]:
    """Of a histogram, in seconds."""
    legend = f"{{{{{by}}}}} " if by else ""
    buckets = rate(f"{metric}_bucket", f"{by}, le" if by else "le")
    return [(f"histogram_quantile({q}, {buckets})", f"{legend}{q * 100:g} %") for q in wanted]


def _number(title: str, expr: str, about: str, unit: str = "short", steps: Sequence[tuple[float, str]] = ()) -> Panel:
    return Panel(title, [(expr, "")], about, unit, kind="stat", width=4, height=4, steps=list(steps))


PROVIDERS: Final = "AD, AP: Apple; FC: Google; WP: Web Push, whose services strangers choose."

OVERVIEW: Final = Dashboard(
    "overview",
    "overview",
    "Is it well, and what flows.",
    [
        Row(
            "Now",
            [
                _number(
                    "Alerts",
                    'count(ALERTS{alertname=~"Ntf.*", alertstate="firing"}) or vector(0)',
                    "That fire now, of all relays.",
                    steps=[(1, RED)],
                ),
                _number("Relays", f"sum(up{{{_OF}}})", "That answer Prometheus."),
                _number(
                    "Oldest push due",
                    most("ntf_oldest_due_seconds", more='provider!="WP"'),
                    "For how long the device that waits longest has been due. Not Web Push.",
                    unit="s",
                    steps=[(60, YELLOW), (120, RED)],
                ),
                _number("Pushes a second", rate("ntf_pushes_delivered_total"), "That providers took.", unit="reqps"),
                _number(
                    "Devices active today",
                    total("ntf_tokens_active", more='within="day"'),
                    "Registrations that took a push within 24 hours.",
                ),
                _number(
                    "Subscriptions",
                    most("ntf_subscriptions"),
                    "That are stored. On a shared store each relay counts all of them.",
                ),
            ],
        ),
        Row(
            "What flows",
            [
                Panel(
                    "Notifications and pushes",
                    [
                        (both("ntf_notifications_received_total"), "received from SMP servers"),
                        (rate("ntf_pushes_delivered_total", more='kind="messages"'), "pushes of messages"),
                        (rate("ntf_pushes_delivered_total", more='kind="check"'), "checks"),
                        (rate("ntf_pushes_delivered_total", more='kind="verification"'), "codes"),
                    ],
                    "Of several notifications for one queue only the newest is pushed.",
                    unit="reqps",
                    width=12,
                ),
                Panel(
                    "How late wake-ups are",
                    quantiles("ntf_notification_delivered_seconds", 0.5, 0.95, 0.99),
                    "From the NMSG until a provider took it for the first time.",
                    unit="s",
                    width=12,
                ),
                Panel(
                    "Devices that wait",
                    [
                        (total("ntf_tokens_due"), "due now"),
                        (total("ntf_tokens_waiting"), "later: retries, and codes until their turn"),
                        (total("ntf_pushes_in_flight"), "under way"),
                    ],
                    "Device tokens with something to be pushed.",
                    width=12,
                ),
                Panel(
                    "Devices by status",
                    [(total("ntf_tokens", "status"), "{{status}}")],
                    "Registrations that are stored. Counted every ten minutes.",
                    width=12,
                    stacked=True,
                ),
            ],
        ),
        Row(
            "What is not well",
            [
                Panel(
                    "Providers in trouble",
                    [
                        (
                            f"{most('ntf_provider_trouble_seconds', 'instance, provider, state')} > 0",
                            "{{instance}} {{provider}} {{state}}",
                        )
                    ],
                    "For how long, by state, as /health has it. " + PROVIDERS,
                    unit="s",
                ),
                Panel(
                    "The store",
                    [(f"{most('ntf_store_failing_seconds', 'instance, kind')} > 0", "{{instance}} {{kind}}")],
                    "For how long it has failed, by how.",
                    unit="s",
                ),
                Panel(
                    "SMP servers away",
                    [
                        (total("ntf_smp_servers_away", "server"), "{{server}}"),
                        (total("ntf_smp_servers_away_other"), "others"),
                    ],
                    "That were there before, and have not been connected for long. Others are strangers'.",
                ),
            ],
        ),
    ],
)

PROVIDER: Final = Dashboard(
    "providers",
    "providers",
    "Pushes by provider: how many, how fast, what came of them. " + PROVIDERS,
    [
        Row(
            "Pushes",
            [
                Panel(
                    "Taken",
                    [(rate("ntf_pushes_delivered_total", "provider"), "{{provider}}")],
                    "A second, of all kinds.",
                    unit="reqps",
                ),
                Panel(
                    "Not taken",
                    [
                        (rate("ntf_pushes_retried_total", "provider"), "{{provider}} tried again"),
                        (rate("ntf_pushes_failed_total", "provider"), "{{provider}} token dead"),
                        (rate("ntf_pushes_refused_total", "provider"), "{{provider}} refused: ours to mend"),
                    ],
                    "A second. Of WP what is refused may be a stranger's push service.",
                    unit="reqps",
                ),
                Panel(
                    "By kind",
                    [(rate("ntf_pushes_delivered_total", "provider, kind"), "{{provider}} {{kind}}")],
                    "Taken: messages, checks, and codes that verify a token.",
                    unit="reqps",
                ),
                Panel(
                    "Answers take",
                    quantiles("ntf_push_answered_seconds", 0.5, 0.99, by="provider"),
                    "From the sending until the answer, waiting for a connection included.",
                    unit="s",
                    width=12,
                ),
                Panel(
                    "Under way",
                    [
                        (total("ntf_pushes_in_flight", "provider"), "{{provider}}"),
                        (total("ntf_pushes_held", "provider"), "{{provider}} not sent yet"),
                    ],
                    "At [delivery] in_flight the provider is the limit.",
                    width=12,
                ),
            ],
        ),
        Row(
            "What waits",
            [
                Panel(
                    "Oldest due",
                    [(most("ntf_oldest_due_seconds", "provider"), "{{provider}}")],
                    "For how long the device that waits longest has been due.",
                    unit="s",
                    steps=[(120, RED)],
                ),
                Panel(
                    "Devices due",
                    [(total("ntf_tokens_due", "provider"), "{{provider}}")],
                    "Now, and not being pushed to.",
                ),
                Panel(
                    "Devices that wait",
                    [(total("ntf_tokens_waiting", "provider"), "{{provider}}")],
                    "For a retry, their turn, or a moment after their last push.",
                ),
            ],
        ),
        Row(
            "Trouble",
            [
                Panel(
                    "By state",
                    [(f"{most('ntf_provider_trouble_seconds', 'provider, state')} > 0", "{{provider}} {{state}}")],
                    "For how long the provider has taken nothing.",
                    unit="s",
                ),
                Panel(
                    "Since a push was taken",
                    [
                        (
                            f"min by (provider) ({of('ntf_time_seconds')} - on (job, instance) group_right ()"
                            f" {of('ntf_last_delivered_time_seconds')})",
                            "{{provider}}",
                        )
                    ],
                    "Not there before a provider took one since the start.",
                    unit="s",
                ),
                Panel(
                    "Tokens called dead",
                    [
                        (
                            rate("ntf_pushes_failed_total", "provider", 'kind=~"messages|check"')
                            + " / ("
                            + rate("ntf_pushes_failed_total", "provider", 'kind=~"messages|check"')
                            + " + "
                            + rate("ntf_pushes_delivered_total", "provider", 'kind=~"messages|check"')
                            + ")",
                            "{{provider}}",
                        )
                    ],
                    "Share of pushes to verified tokens. A jump: NtfTokensDie.",
                    unit="percentunit",
                ),
                Panel(
                    "Push services of Web Push",
                    [(total("ntf_push_origins", "state"), "{{state}}")],
                    "That were pushed to of late. Strangers choose them: no alarm.",
                    stacked=True,
                ),
                Panel(
                    "Paused",
                    [(most("ntf_provider_paused", "provider"), "{{provider}}")],
                    "1: nothing is sent for a while.",
                ),
                Panel(
                    "Given up",
                    [(rate("ntf_expired_total", "kind"), "{{kind}}")],
                    "Over their time to live. Of all providers, Web Push too.",
                    unit="reqps",
                ),
            ],
        ),
    ],
)

SMP: Final = Dashboard(
    "smp-servers",
    "SMP servers",
    "Sessions and subscriptions: own servers (own_server_domains) one by one, all others together.",
    [
        Row(
            "Own servers",
            [
                Panel(
                    "Servers",
                    [
                        (total("ntf_smp_sessions", "server"), "sessions"),
                        (total("ntf_smp_service_sessions", "server"), "as a service"),
                        (total("ntf_subscriptions_active", "server"), "active"),
                        (total("ntf_subscriptions_pending", "server"), "pending"),
                    ],
                    "Sessions, and subscriptions that are active or asked for. Who is not connected is under Away.",
                    kind="table",
                    width=12,
                ),
                Panel(
                    "Notifications",
                    [(rate("ntf_notifications_received_total", "server"), "{{server}}")],
                    "Received a second.",
                    unit="reqps",
                    width=12,
                ),
                Panel(
                    "Away",
                    [(total("ntf_smp_servers_away", "server"), "{{server}}")],
                    "Were there before, and have not been for long.",
                ),
                Panel(
                    "For no subscription",
                    [(rate("ntf_notifications_unknown_total", "server"), "{{server}}")],
                    "Notifications a second that nobody here wants.",
                    unit="reqps",
                ),
                Panel(
                    "Delivered and failed",
                    [
                        (rate("ntf_notifications_delivered_total", "server"), "{{server}} delivered"),
                        (rate("ntf_notifications_failed_total", "server"), "{{server}} token dead"),
                    ],
                    "Notifications in pushes, a second.",
                    unit="reqps",
                ),
            ],
        ),
        Row(
            "All others",
            [
                Panel(
                    "Sessions",
                    [
                        (total("ntf_smp_sessions_other"), "sessions"),
                        (total("ntf_smp_service_sessions_other"), "of these as a service"),
                        (total("ntf_smp_servers_away_other"), "away for long"),
                    ],
                    "Strangers choose these servers: that some go away is no alarm.",
                ),
                Panel(
                    "Subscriptions",
                    [
                        (total("ntf_subscriptions_active_other"), "active"),
                        (total("ntf_subscriptions_pending_other"), "pending"),
                    ],
                    "Confirmed in the current sessions, and asked for.",
                ),
                Panel(
                    "Notifications",
                    [
                        (rate("ntf_notifications_received_other_total"), "received"),
                        (rate("ntf_notifications_delivered_other_total"), "delivered"),
                        (rate("ntf_notifications_unknown_other_total"), "for no subscription"),
                        (rate("ntf_notifications_failed_other_total"), "token dead"),
                    ],
                    "A second.",
                    unit="reqps",
                ),
            ],
        ),
        Row(
            "Connecting and agreeing",
            [
                Panel(
                    "Connects under way",
                    [
                        (total("ntf_smp_connecting"), "to proven servers"),
                        (total("ntf_smp_connecting_new"), "to servers that never confirmed anything"),
                    ],
                    "Or waiting for their turn.",
                ),
                Panel(
                    "Failed connects",
                    [(rate("ntf_smp_connect_failed_total", "kind"), "{{kind}}")],
                    "identity: a server that was right before has another one.",
                    unit="reqps",
                ),
                Panel(
                    "Subscriptions that end",
                    [(rate("ntf_subscriptions_ended_total", "kind"), "{{kind}}")],
                    "end: another client took over.",
                    unit="reqps",
                ),
                Panel(
                    "Subscriptions refused",
                    [(rate("ntf_subscriptions_refused_total", "kind"), "{{kind}}")],
                    "By SMP servers.",
                    unit="reqps",
                ),
                Panel(
                    "What servers lost",
                    [
                        (within("ntf_audit_drift_total", "kind"), "audit: {{kind}}"),
                        (within("ntf_service_fallback_total", "kind"), "service given up: {{kind}}"),
                    ],
                    "Within the time that is shown.",
                    kind="stat",
                ),
                Panel(
                    "Servers forgotten",
                    [
                        (within("ntf_servers_forgotten_total"), "nothing is subscribed there"),
                        (within("ntf_smp_servers_disproved_total"), "tried less often"),
                        (within("ntf_subscriptions_audited_total"), "subscriptions audited"),
                    ],
                    "Within the time that is shown.",
                    kind="stat",
                ),
            ],
        ),
    ],
)

STORE: Final = Dashboard(
    "store",
    "store",
    "What is kept, how fast it is written, and what room there is.",
    [
        Row(
            "Room",
            [
                Panel(
                    "Size",
                    [
                        (most("ntf_store_bytes", "instance"), "{{instance}}"),
                        (most("ntf_store_wal_bytes", "instance"), "{{instance}} write-ahead log"),
                    ],
                    "The database's files, or the memory of Redis.",
                    unit="bytes",
                ),
                Panel(
                    "Room",
                    [(f"min by (instance) ({of('ntf_store_room_bytes')})", "{{instance}}")],
                    "On the disk, or until maxmemory.",
                    unit="bytes",
                ),
                Panel(
                    "Failing",
                    [(f"{most('ntf_store_failing_seconds', 'instance, kind')} > 0", "{{instance}} {{kind}}")],
                    "For how long what is asked of it has failed.",
                    unit="s",
                ),
            ],
        ),
        Row(
            "Work",
            [
                Panel(
                    "A commit takes",
                    quantiles("ntf_store_commit_seconds", 0.5, 0.95, 0.99),
                    "Of many operations, or one.",
                    unit="s",
                ),
                Panel(
                    "Commits",
                    [(rate("ntf_store_commit_seconds_count", "instance"), "{{instance}}")],
                    "A second.",
                    unit="ops",
                ),
                Panel(
                    "A notification is stored after",
                    quantiles("ntf_notification_stored_seconds", 0.5, 0.95, 0.99),
                    "From its NMSG.",
                    unit="s",
                ),
                Panel(
                    "Errors",
                    [(rate("ntf_store_errors_total", "kind"), "{{kind}}")],
                    "unavailable and full are tried again; conflict is a fault of the program.",
                    unit="ops",
                    width=12,
                ),
                Panel(
                    "Records set aside",
                    [(within("ntf_records_quarantined_total", "kind"), "{{kind}}")],
                    "Damaged ones, within the time that is shown.",
                    kind="stat",
                    width=12,
                    steps=[(1, RED)],
                ),
            ],
        ),
        Row(
            "What is kept",
            [
                Panel(
                    "Tokens by provider",
                    [(total("ntf_tokens", "provider"), "{{provider}}")],
                    "Counted every ten minutes.",
                    stacked=True,
                ),
                Panel(
                    "Tokens by status",
                    [(total("ntf_tokens", "status"), "{{status}}")],
                    "damaged: they cannot be read.",
                    stacked=True,
                ),
                Panel(
                    "Active tokens",
                    [(total("ntf_tokens_active", "within"), "within a {{within}}")],
                    "That took a push.",
                ),
                Panel("Subscriptions", [(most("ntf_subscriptions"), "stored")], "In whatever status."),
                Panel(
                    "Web Push by VAPID key",
                    [(total("ntf_web_push_tokens", "key"), "{{key}}")],
                    "Once nobody has the old one left, it can go.",
                    stacked=True,
                ),
                Panel(
                    "Registrations forgotten",
                    [(rate("ntf_tokens_expired_total", "kind"), "{{kind}}")],
                    "unverified: after a day.",
                    unit="ops",
                ),
                Panel(
                    "Clock set",
                    [(within("ntf_clock_steps_total", "instance"), "{{instance}}")],
                    "Times within the time that is shown; what is kept was moved with it.",
                    kind="stat",
                    width=24,
                    height=4,
                    steps=[(1, YELLOW)],
                ),
            ],
        ),
    ],
)

STRANGERS: Final = Dashboard(
    "strangers",
    "strangers and budgets",
    "What anybody may ask for, and what of that was too much. Nothing here is in an alert.",
    [
        Row(
            "Who is there",
            [
                Panel(
                    "Sessions",
                    [
                        (total("ntf_client_sessions", "instance"), "{{instance}}"),
                        (total("ntf_client_handshakes", "instance"), "{{instance}} handshakes"),
                    ],
                    "Of apps and whoever else connects.",
                ),
                Panel(
                    "Commands",
                    [(rate("ntf_commands_total", "command"), "{{command}}")],
                    "A second.",
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Answers",
                    [(rate("ntf_commands_total", "answer"), "{{answer}}")],
                    "OK, or the error's first word.",
                    unit="reqps",
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Budgets used up",
            [
                Panel(
                    "Delayed",
                    [(rate("ntf_limits_delayed_total", "what"), "{{what}}")],
                    "Sessions, codes and connects that had to wait, a second.",
                    unit="reqps",
                ),
                Panel(
                    "Closed",
                    [(rate("ntf_limits_closed_total", "what"), "{{what}}")],
                    "Connections that were closed, or not taken.",
                    unit="reqps",
                ),
                Panel(
                    "Refused",
                    [(rate("ntf_limits_refused_total", "what"), "{{what}}")],
                    "ERR QUOTA: no honest client gives so many.",
                    unit="reqps",
                ),
            ],
        ),
        Row(
            "Registrations",
            [
                Panel(
                    "Tokens",
                    [(rate("ntf_token_events_total", "kind"), "{{kind}}")],
                    "Many created and few verified: somebody registers what is not his.",
                    unit="reqps",
                ),
                Panel(
                    "Codes pushed",
                    [
                        (rate("ntf_pushes_delivered_total", "provider", 'kind="verification"'), "{{provider}} taken"),
                        (rate("ntf_pushes_failed_total", "provider", 'kind="verification"'), "{{provider}} dead"),
                    ],
                    "Dead ones were never a device's.",
                    unit="reqps",
                ),
                Panel(
                    "Not verified",
                    [(total("ntf_tokens", "status", 'status=~"NEW|REGISTERED|CONFIRMED"'), "{{status}}")],
                    "They are forgotten after a day.",
                    stacked=True,
                ),
            ],
        ),
        Row(
            "What they have us connect to",
            [
                Panel(
                    "Subscriptions",
                    [
                        (rate("ntf_subscription_events_total", "kind"), "{{kind}}"),
                        (rate("ntf_snew_refused_total", "kind"), "refused: {{kind}}"),
                    ],
                    "A second.",
                    unit="reqps",
                ),
                Panel(
                    "Connects to new servers",
                    [
                        (total("ntf_smp_connecting_new"), "under way or waiting"),
                        (rate("ntf_smp_connect_failed_total", more='kind="wrong_address"'), "wrong addresses a second"),
                        (rate("ntf_smp_connect_failed_total", more='kind="not_allowed"'), "forbidden ones a second"),
                    ],
                    "Servers that never confirmed a subscription.",
                ),
                Panel(
                    "Push services of Web Push",
                    [(total("ntf_push_origins", "state"), "{{state}}")],
                    "That were pushed to of late.",
                    stacked=True,
                ),
            ],
        ),
    ],
)

NODES: Final = Dashboard(
    "nodes",
    "nodes",
    "The relays as processes, and what each has of a shared store.",
    [
        Row(
            "Relays",
            [
                Panel(
                    "Builds",
                    [(of("ntf_build_info"), "runs")],
                    "Release, kind of store, libcurl.",
                    kind="table",
                    width=12,
                    height=6,
                ),
                Panel(
                    "Running for",
                    [(f"time() - {of('process_start_time_seconds')}", "{{instance}}")],
                    "Since the last start.",
                    unit="s",
                    kind="stat",
                    width=6,
                    height=6,
                ),
                Panel(
                    "Answers Prometheus",
                    [(f"up{{{_OF}}}", "{{instance}}")],
                    "1: it does.",
                    kind="stat",
                    width=6,
                    height=6,
                ),
            ],
        ),
        Row(
            "Processes",
            [
                Panel(
                    "Processor",
                    [(f"rate({of('process_cpu_seconds_total')}{_AGAIN})", "{{instance}}")],
                    "Cores; a relay uses one, and a little of a second.",
                    decimals=2,
                ),
                Panel("Memory", [(of("process_resident_memory_bytes"), "{{instance}}")], "Resident.", unit="bytes"),
                Panel(
                    "Event loop late",
                    quantiles("ntf_loop_lag_seconds", 0.99, by="instance"),
                    "One look in a hundred, or more.",
                    unit="s",
                    steps=[(0.5, RED)],
                ),
                Panel(
                    "Open files",
                    [(of("process_open_fds"), "{{instance}}"), (of("process_max_fds"), "{{instance}} at most")],
                    "A session is one, with apps and with SMP servers.",
                ),
                Panel(
                    "Clock",
                    [(f"{of('ntf_time_seconds')} - timestamp({of('ntf_time_seconds')})", "{{instance}}")],
                    "Ahead of Prometheus's.",
                    unit="s",
                ),
                Panel(
                    "Faults of the program",
                    [(within("ntf_part_failures_total", "instance, part") + " > 0", "times")],
                    "Parts that failed and were started again, within the time that is shown.",
                    kind="table",
                ),
            ],
        ),
        Row(
            "Shared store",
            [
                Panel(
                    "Shards held",
                    [(of("ntf_store_shards_held"), "{{instance}}")],
                    "Of the device tokens; all together have all of them.",
                    stacked=True,
                ),
                Panel("Nodes", [(of("ntf_store_nodes"), "seen by {{instance}}")], "That live on the store."),
                Panel(
                    "Shards out of reach",
                    [
                        (of("ntf_store_shards_silent"), "{{instance}}"),
                        (f"max({of('ntf_store_shards')}) - {total('ntf_store_shards_held')}", "nobody's"),
                    ],
                    "Their primary is away, or no relay holds them.",
                ),
            ],
        ),
        Row(
            "Certificates",
            [
                Panel(
                    "End in",
                    [
                        (
                            f"min by (certificate, instance) ({of('ntf_certificate_end_time_seconds')}) - time()",
                            "{{instance}} {{certificate}}",
                        )
                    ],
                    "Renew them 30 days before.",
                    unit="s",
                    kind="stat",
                    width=24,
                    height=5,
                )
            ],
        ),
    ],
)

DASHBOARDS: Final = (OVERVIEW, PROVIDER, SMP, STORE, STRANGERS, NODES)


def texts() -> dict[str, str]:
    """What stands in the files, by name."""
    return {f"{d.name}.json": json.dumps(d.made(), indent=2, ensure_ascii=False) + "\n" for d in DASHBOARDS}


if __name__ == "__main__":
    for name, text in texts().items():
        (FOLDER / name).write_text(text)
    sys.stdout.write(f"{len(DASHBOARDS)} dashboards in {FOLDER}\n")
