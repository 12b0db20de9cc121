"""What the reference's `ntf-server.ini` means here."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from ntf_server.cli.init import config_text
from ntf_server.config.adopt import Adopted, adopt, changed
from ntf_server.config.mistakes import ConfigError
from ntf_server.config.reference_ini import read_ini

WHOLE = """\
[STORE_LOG]
enable = on
db_connection = postgresql://ntf:secret@/ntf_server_store
db_schema = ntf_server
log_stats = on
prometheus_interval = 60

[AUTH]
control_port_admin_password = secret

[TRANSPORT]
host = ntf.example.org
port = 5443,443
log_tls_errors = off
websockets = 443
control_port = 5227

[SUBSCRIBER]
host_mode = onion
required_host_mode = on
socks_proxy = localhost:9050
socks_mode = always
own_server_domains = example.org example.net
use_service_credentials = on
surprise = secret

[INACTIVE_CLIENTS]
disconnect = on
ttl = 3600
check_interval = 60
"""


def adopted(tmp_path: Path, text: str) -> Adopted:
    path = tmp_path / "ntf-server.ini"
    path.write_text(text)
    return adopt(path, read_ini(path))


def test_all_of_it(tmp_path: Path) -> None:
    found = adopted(tmp_path, WHOLE)
    assert (found.host, found.port) == ("ntf.example.org", 443)
    assert found.changes == {
        ("subscriber", "use_service_credentials"): True,
        ("subscriber", "host_mode"): "onion",
        ("subscriber", "required_host_mode"): True,
        ("subscriber", "socks_proxy"): "localhost:9050",
        ("subscriber", "socks_mode"): "always",
        ("subscriber", "own_server_domains"): ["example.org", "example.net"],
        ("inactive_clients", "ttl"): 3600,
    }
    ini = tmp_path / "ntf-server.ini"
    assert [note.removeprefix(f"{ini}: ") for note in found.notes] == [
        "[TRANSPORT] port: one is served, 443; have a balancer or the firewall lead 5443 there if apps use that",
        "[STORE_LOG] log_stats: `ntf-server stats --csv` gives the daily numbers",
        "[STORE_LOG] prometheus_interval: set [metrics] port, and let Prometheus ask there",
        "[AUTH] control_port_admin_password: there is no control port; `ntf-server status` and others use a socket",
        "[TRANSPORT] websockets: WebSockets are not served; no app uses them",
        "[SUBSCRIBER] surprise: is not known, and not taken over",
    ]
    assert not any("secret" in note for note in found.notes)


def test_what_the_reference_writes_by_itself(tmp_path: Path) -> None:
    text = """[STORE_LOG]
enable = on
restore_last_notifications = on
log_stats = off

[TRANSPORT]
# You can specify multiple server ports.
host = <hostnames>
port = 443
log_tls_errors = off
websockets = off
# control_port = 5227

[SUBSCRIBER]
own_server_domains =
# host_mode = public

[INACTIVE_CLIENTS]
disconnect = off
"""
    for written in (text, text.replace(" =", ":")):  # by newer ones, and by those before 6.4
        assert adopted(tmp_path, written) == Adopted("", 443, {("inactive_clients", "ttl"): 0}, ())


@pytest.mark.parametrize(
    ("ports", "port", "others"),
    [("443", 443, ""), ("5443", 5443, ""), ("5443, 6443", 5443, "6443"), ("443,5443,6443", 443, "5443, 6443")],
)
def test_ports(tmp_path: Path, ports: str, port: int, others: str) -> None:
    found = adopted(tmp_path, f"[TRANSPORT]\nhost = one.example,two.example\nport = {ports}\n")
    assert (found.host, found.port) == ("one.example", port)
    host, *rest = found.notes
    assert "of several, one.example is taken" in host
    assert [f"lead {others} there" in note for note in rest] == ([True] if others else [])


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    text = """[TRANSPORT]
host = no/host
port = 99999
[SUBSCRIBER]
host_mode = pubic
required_host_mode = yes
socks_proxy = http://localhost
socks_mode = never
use_service_credentials = maybe
[INACTIVE_CLIENTS]
disconnect = on
ttl = soon
"""
    with pytest.raises(ConfigError) as caught:
        adopted(tmp_path, text)
    ini = tmp_path / "ntf-server.ini"
    assert [line.removeprefix(f"{ini}: ") for line in caught.value.mistakes] == [
        "[TRANSPORT] host: 'no/host': bad host name; mend it",
        "[TRANSPORT] port: '99999' is no port; give one from 1 to 65535",
        "[SUBSCRIBER] use_service_credentials: unknown value 'maybe'; give on or off",
        "[SUBSCRIBER] host_mode: unknown value 'pubic'; did you mean public? give public or onion",
        "[SUBSCRIBER] required_host_mode: unknown value 'yes'; give on or off",
        "[SUBSCRIBER] socks_proxy: not a SOCKS5 proxy ([user:password@]host:port); mend it",
        "[SUBSCRIBER] socks_mode: unknown value 'never'; give onion or always",
        "[INACTIVE_CLIENTS] ttl: 'soon' is no number of seconds; mend it",
    ]


@pytest.mark.parametrize("web_push", [True, False])
def test_settings_are_set_where_they_stand_and_the_rest_stays(*, web_push: bool) -> None:
    template = config_text("ntf.example.org", 443, web_push=web_push)
    assert changed(template, {}) == template
    changes: dict[tuple[str, str], Any] = {
        ("apns", "key_file"): '/etc/Auth "Key"\x7f.p8',
        ("apns", "key_id"): "ABC123DEFG",
        ("subscriber", "socks_mode"): "always",
        ("subscriber", "host_mode"): "onion",
        ("subscriber", "own_server_domains"): ["bücher.example"],
        ("subscriber", "use_service_credentials"): True,
        ("inactive_clients", "ttl"): 0,
    }
    text = changed(template, changes)
    before, after = tomllib.loads(template), tomllib.loads(text)
    for (section, key), value in changes.items():
        assert after[section].pop(key) == value
        before[section].pop(key, None)
    assert after == before
    assert 'key_id = "ABC123DEFG"' in text
    assert "ttl = 0   # seconds" in text
    assert len(text.splitlines()) == len(template.splitlines()) + 2
