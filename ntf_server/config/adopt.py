"""What the reference's `ntf-server.ini` means in `ntf-server.toml`, and what of it has no place there."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ntf_server.config.edit import Value, toml
from ntf_server.config.mistakes import ConfigError, Mistakes, nearest, shown
from ntf_server.config.reference_ini import Ini, is_on
from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError
from smp_bridge.socks import SocksProxy

Changes = Mapping[tuple[str, str], Value]  # by section and key of ours

_PORT: Final = 443
_OFF: Final = {"", "off"}
_TTL: Final = 31_536_000
# What has another place here, or none.
_ELSEWHERE: Final = {
    ("STORE_LOG", "enable"): "",
    ("STORE_LOG", "restore_last_notifications"): "",
    ("STORE_LOG", "db_connection"): "",  # import reads them
    ("STORE_LOG", "db_schema"): "",
    ("STORE_LOG", "db_pool_size"): "",
    ("STORE_LOG", "db_deleted_ttl"): "",
    ("STORE_LOG", "log_stats"): "`ntf-server stats --csv` gives the daily numbers",
    ("STORE_LOG", "prometheus_interval"): "set [metrics] port, and let Prometheus ask there",
    ("AUTH", "control_port_admin_password"): "there is no control port; `ntf-server status` and others use a socket",
    ("AUTH", "control_port_user_password"): "there is no control port; `ntf-server status` and others use a socket",
    ("TRANSPORT", "control_port"): "there is no control port; `ntf-server status` and others use a socket",
    ("TRANSPORT", "websockets"): "WebSockets are not served; no app uses them",
    ("TRANSPORT", "log_tls_errors"): "clients that fail are counted in the metrics",
    ("INACTIVE_CLIENTS", "check_interval"): "",
}
_TAKEN: Final = frozenset(
    [
        ("TRANSPORT", "host"),
        ("TRANSPORT", "port"),
        ("INACTIVE_CLIENTS", "disconnect"),
        ("INACTIVE_CLIENTS", "ttl"),
        *(
            ("SUBSCRIBER", key)
            for key in (
                *("host_mode", "required_host_mode", "socks_proxy", "socks_mode"),
                *("own_server_domains", "use_service_credentials"),
            )
        ),
    ]
)


@dataclass(frozen=True)
class Adopted:
    """`host`: empty: it says none. `notes`: what an operator has to know, a line each."""

    host: str
    port: int
    changes: Changes
    notes: tuple[str, ...]


def adopt(path: Path, ini: Ini) -> Adopted:
    """Raises ConfigError, with all that is wrong."""
    mistakes, notes = Mistakes(), list[str]()
    host = mistakes.find(lambda: _host(path, ini, notes))
    port = mistakes.find(lambda: _first_port(path, ini, notes))
    changes: dict[tuple[str, str], Value] = {}
    for key, read in _SUBSCRIBER.items():
        if ini.get(("SUBSCRIBER", key), ""):
            value = mistakes.find(lambda key=key, read=read: read(path, ini, key))  # type: ignore[misc]
            changes["subscriber", key] = value
    ttl = mistakes.find(lambda: _ttl(path, ini))
    changes["inactive_clients", "ttl"] = ttl
    mistakes.end()
    notes += _left(path, ini)
    return Adopted(host, port, changes, tuple(notes))


def _host(path: Path, ini: Ini, notes: list[str]) -> str:
    text = ini.get(("TRANSPORT", "host"), "")
    first, *others = (part.strip() for part in text.split(","))
    if not first or first.startswith("<"):
        return ""
    if others:
        notes.append(f"{path}: [TRANSPORT] host: of several, {first} is taken; --fqdn gives another")
    try:
        return parse_host(first)
    except ParseError as e:
        raise ConfigError(f"{path}: [TRANSPORT] host: {shown(first)!r}: {e}; mend it") from e


def _first_port(path: Path, ini: Ini, notes: list[str]) -> int:
    """443 if it is one of them: what apps use where an address has none."""
    text = ini.get(("TRANSPORT", "port"), str(_PORT))
    ports = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536 for port in ports):
        raise ConfigError(f"{path}: [TRANSPORT] port: {shown(text)!r} is no port; give one from 1 to 65535")
    numbers = [int(port) for port in ports]
    port = _PORT if _PORT in numbers else numbers[0]
    if others := [str(n) for n in numbers if n != port]:
        notes.append(
            f"{path}: [TRANSPORT] port: one is served, {port}; have a balancer or the firewall lead {', '.join(others)}"
            " there if apps use that"
        )
    return port


def _switch(path: Path, ini: Ini, key: str) -> bool:
    return is_on(path, ini, "SUBSCRIBER", key)


def _one_of(*words: str) -> Callable[[Path, Ini, str], str]:
    def read(path: Path, ini: Ini, key: str) -> str:
        value = ini["SUBSCRIBER", key]
        if value not in words:
            hint = f" did you mean {meant}?" if (meant := nearest(value, words)) else ""
            raise ConfigError(
                f"{path}: [SUBSCRIBER] {key}: unknown value {shown(value)!r};{hint} give {' or '.join(words)}"
            )
        return value

    return read


def _proxy(path: Path, ini: Ini, key: str) -> str:
    value = ini["SUBSCRIBER", key]
    try:
        SocksProxy.parse(value)
    except ParseError as e:
        raise ConfigError(f"{path}: [SUBSCRIBER] {key}: {e}; mend it") from None
    return value


def _words(_path: Path, ini: Ini, key: str) -> list[str]:
    return ini["SUBSCRIBER", key].split()


_SUBSCRIBER: Final[Mapping[str, Callable[[Path, Ini, str], Value]]] = {
    "use_service_credentials": _switch,
    "host_mode": _one_of("public", "onion"),
    "required_host_mode": _switch,
    "socks_proxy": _proxy,
    "socks_mode": _one_of("onion", "always"),
    "own_server_domains": _words,
}


def _ttl(path: Path, ini: Ini) -> int:
    """0: clients may be silent for ever."""
    if not is_on(path, ini, "INACTIVE_CLIENTS", "disconnect"):
        return 0
    text = ini.get(("INACTIVE_CLIENTS", "ttl"), "43200")
    if not (re.fullmatch(r"[0-9]{1,9}", text) and 0 < int(text) <= _TTL):
        raise ConfigError(f"{path}: [INACTIVE_CLIENTS] ttl: {shown(text)!r} is no number of seconds; mend it")
    return int(text)


def _left(path: Path, ini: Ini) -> Iterator[str]:
    """What was not taken over; never a value, which may be a password."""
    seen = set()
    for (section, key), value in ini.items():
        if (section, key) in _TAKEN:
            continue
        why = _ELSEWHERE.get((section, key), "is not known, and not taken over")
        if why and value not in _OFF and why not in seen:
            seen.add(why)
            yield f"{path}: [{shown(section)}] {shown(key)}: {why}"


def changed(template: str, changes: Changes) -> str:
    """A configuration file in which these are set: in the line that has the key, perhaps as a comment, else in a new
    one after its section's first.
    """
    left = dict(changes)
    out: list[str] = []
    section, heads = "", dict[str, int]()
    for line in template.splitlines():
        if found := re.fullmatch(r"\[([a-z_.]+)\]", line):
            section = found[1]
        elif (found := re.match(r"(?:# )?([a-z_]+) = ", line)) and (section, found[1]) in left:
            line = _line(found[1], left.pop((section, found[1])), line)  # noqa: PLW2901
        out.append(line)
        if section not in heads:
            heads[section] = len(out)
    for (name, key), value in reversed(left.items()):
        out.insert(heads[name], _line(key, value, ""))
    return "\n".join(out) + "\n"


def _line(key: str, value: Value, before: str) -> str:
    """What was said of it stays."""
    comment = re.search(r" {2,}(# .*)", before)
    said = f"   {comment[1]}" if comment else ""
    return f"{key} = {toml(value)}{said}"
