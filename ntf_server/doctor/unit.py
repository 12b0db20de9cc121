"""The systemd unit that is installed, beside ours (`deploy/ntf-server.service`)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ntf_server.findings import Finding, left_out, warning, well, wrong

_STOP: Final = 30.0  # seconds that a stop may take
_LONG: Final = 600.0  # seconds that it may stand still
_YES: Final = frozenset(["yes", "true", "on", "1"])


@dataclass(frozen=True)
class Expected:
    """A setting as ours has it. `good`: whether a value does as well; `why`: what goes wrong with another."""

    key: str
    value: str
    why: str
    good: Callable[[str], bool]


def _is(*values: str) -> Callable[[str], bool]:
    return lambda value: value.lower() in values


def _seconds(text: str) -> float:
    """As systemd.time(7) has them, without the rarer forms; those are good enough."""
    units = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "ms": 0.001, "us": 0.000001}
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyz ") or "0"
    try:
        return float(digits) * units[text[len(digits) :].strip()]
    except (ValueError, KeyError):
        return float("inf")


EXPECTED: Final = (
    Expected(
        "Type", "notify", "systemd takes it for started, or reloaded, before it is", _is("notify", "notify-reload")
    ),
    Expected(
        "Restart",
        "on-failure",
        "it stays down after whatever ends it",
        _is("on-failure", "always", "on-abnormal", "on-abort"),
    ),
    Expected(
        "RestartPreventExitStatus",
        "2",
        "it is started again and again with a configuration that cannot work",
        lambda value: "2" in value.split(),
    ),
    Expected(
        "TimeoutStopSec", "30", "it is killed before it has handed over and recorded", lambda v: _seconds(v) >= _STOP
    ),
    Expected(
        "WatchdogSec",
        "60",
        "one that stands still is not started again",
        lambda value: 0 < _seconds(value) <= _LONG,
    ),
    Expected("User", "ntf", "it runs as root", lambda value: bool(value) and value not in {"root", "0"}),
    Expected("NoNewPrivileges", "yes", "what breaks into it may gain rights", _is(*_YES)),
    Expected("ProtectSystem", "strict", "what breaks into it may write to the system", _is("strict")),
    Expected("UMask", "0077", "files that it makes may be read by others", _is("0077", "077", "0177", "177")),
)


def unit(found: tuple[Path, Mapping[str, str]] | None, *, port: int, is_of_this: bool) -> Iterator[Finding]:
    """`found`: the unit's file and its last values; `is_of_this`: it starts the server of this folder."""
    if found is None:
        yield left_out("unit", "no ntf-server.service is installed: is the server started in another way?")
        return
    file, values = found
    if not is_of_this:
        yield left_out("unit", f"{file}: starts a server in another folder")
        return
    bad = False
    for expected in EXPECTED:
        value = values.get(expected.key, "")
        if not expected.good(value):
            bad = True
            text = f"{file}: {expected.key}={value or '(not set)'}: {expected.why}"
            cure = f"set {expected.key}={expected.value}, then `systemctl daemon-reload`"
            yield warning("unit", text, cure)
    if 0 < port < 1024 and "CAP_NET_BIND_SERVICE" not in values.get("AmbientCapabilities", ""):
        bad = True
        text = f"{file}: port {port} is kept for the privileged, and AmbientCapabilities does not give the right"
        yield wrong("unit", text, "set AmbientCapabilities=CAP_NET_BIND_SERVICE, then `systemctl daemon-reload`")
    if values.get("MemoryDenyWriteExecute", "").lower() in _YES and "ProcSubset" in values:
        bad = True
        yield warning("unit", f"{file}: ProcSubset hides what metrics of the process are read from", "remove it")
    if not bad:
        yield well("unit", f"{file}: is as ours in all that matters")
