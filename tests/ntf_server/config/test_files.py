"""Settings by file and by environment, and one line for each mistake that says where it is and how to mend it."""

import base64
import json
import os
import re
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from certificates import client_certificate
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ntf_server.cli import init as cli
from ntf_server.config import files as config
from ntf_server.config import identity_files
from ntf_server.config.files import Config, ConfigError, NotNowError
from ntf_server.config.server_list import ANY_SERVER, ServerList
from ntf_server.config.settings import ApnsHost, Settings
from ntf_server.observe.names import CERTIFICATES
from ntf_server.store.redis.url import RedisUrl
from ntf_server.store.sealing import generate_key_text
from smp_bridge.network import Network
from smp_bridge.socks import SocksProxy

Load = Callable[..., Config]


def pem(key: Any) -> bytes:
    out: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return out


@pytest.fixture(scope="module")
def identity_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an identity and what settings may name, but without a configuration."""
    directory = tmp_path_factory.mktemp("relay")
    identity_files.create_identity(directory, "ED25519", "localhost")
    (directory / "apns.p8").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    (directory / "p384.p8").write_bytes(pem(ec.generate_private_key(ec.SECP384R1())))
    (directory / "ed25519.p8").write_bytes(pem(Ed25519PrivateKey.generate()))
    (directory / "rubbish.p8").write_bytes(b"\x00\xff rubbish")
    (directory / "master.key").write_text(generate_key_text())
    client_certificate(directory)
    (directory / "ca.pem").write_bytes((directory / "ca.crt").read_bytes())
    return directory


@pytest.fixture
def load(identity_dir: Path) -> Load:
    """Loads this text, with these variables."""

    def load_text(text: str | bytes = "", **environ: str) -> Config:
        file = identity_dir / config.CONFIG_FILE
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return config.load(identity_dir, {f"NTF_SERVER__{k}": v for k, v in environ.items()})

    return load_text


def look_up(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = getattr(value, name)
    return value


APNS = 'key_file = "apns.p8"\nkey_id = "ABC123DEFG"\nteam_id = "5NN7GUYB6T"\n'
TEST_HOST = '[apns.test]\nhost = "localhost"\nca_file = "ca.pem"\n'
CERTIFICATE = "[apns]\ncertificate_file = 'push.pem'\ncertificate_key_file = 'push.key'\n"
WEB_PUSH = "[web_push]\nkey_file = 'apns.p8'\ncontact = 'mailto:a@ntf.example.org'\nca_file = 'ca.pem'\n"
KEY = base64.b64encode(bytes(range(32))).decode()
CONNECTS = (
    "handshakes",
    "commands",
    "new_servers_per_token",
    "new_servers_per_address",
    "connects",
    "connects_per_destination",
    "log_lines",
)
SETTINGS = [  # section, key, as TOML, as a variable, value
    ("transport", "host", '"ntf.example.org"', "ntf.example.org", "ntf.example.org"),
    ("transport", "port", "5443", "5443", 5443),
    ("transport", "port", "0", "0", 0),
    ("transport", "bind", '"127.0.0.1"', "127.0.0.1", "127.0.0.1"),
    ("store", "url", '"sqlite:///other.db"', "sqlite:///other.db", "sqlite:///other.db"),
    ("store", "node", '"left"', "left", "left"),
    ("store", "wait_replicas", "1", "1", 1),
    ("store", "wait_aof", "2", "2", 2),
    ("store", "master_key", f'"{KEY}"', KEY, KEY),
    ("store", "master_key_command", f'"echo {KEY}"', f"echo {KEY}", f"echo {KEY}"),
    ("apns", "proxy", '"socks5h://localhost:9050"', "socks5h://localhost:9050", "socks5h://localhost:9050"),
    ("apns", "in_flight", "10", "10", 10),
    ("fcm", "in_flight", "10", "10", 10),
    ("web_push", "in_flight", "10", "10", 10),
    ("fcm", "host", '"localhost"', "localhost", "localhost"),
    ("fcm", "port", "8443", "8443", 8443),
    ("fcm", "ca_file", '"ca.pem"', "ca.pem", "ca.pem"),
    ("fcm", "proxy", '"http://u:p@localhost:3128"', "http://u:p@localhost:3128", "http://u:p@localhost:3128"),
    ("web_push", "old_key_files", '["a.key", "b.key"]', "a.key, b.key", ("a.key", "b.key")),
    ("web_push", "contact", '"mailto:a@example.org"', "mailto:a@example.org", "mailto:a@example.org"),
    ("web_push", "allow_hosts", '["a.lan", "10.0.0.0/8"]', "a.lan, 10.0.0.0/8", ("a.lan", "10.0.0.0/8")),
    ("web_push", "ca_file", '"ca.pem"', "ca.pem", "ca.pem"),
    ("web_push", "proxy", '"https://localhost:3128"', "https://localhost:3128", "https://localhost:3128"),
    ("apns", "key_id", '"ABC123DEFG"', "ABC123DEFG", "ABC123DEFG"),
    ("apns", "team_id", '"5NN7GUYB6T"', "5NN7GUYB6T", "5NN7GUYB6T"),
    ("apns", "topic", '"org.example.app"', "org.example.app", "org.example.app"),
    ("apns.production", "host", '"localhost"', "localhost", "localhost"),
    ("apns.sandbox", "host", '"::1"', "::1", "::1"),
    ("apns.test", "host", '"localhost"', "localhost", "localhost"),
    ("store", "node", '"relay-1"', "relay-1", "relay-1"),
    ("store", "wait_replicas", "1", "1", 1),
    ("store", "wait_aof", "2", "2", 2),
    ("store", "token_ttl", "604800", "604800", 604800),
    ("delivery", "message_ttl", "3600", "3600", 3600),
    ("delivery", "provider_ttl", "60", "60", 60),
    ("delivery", "verification_ttl", "60", "60", 60),
    ("delivery", "in_flight", "10", "10", 10),
    ("delivery", "timeout", "5", "5", 5.0),
    ("delivery", "timeout", "0.5", "0.5", 0.5),
    ("delivery", "min_backoff", "0.1", "0.1", 0.1),
    ("delivery", "max_backoff", "60", "60", 60.0),
    ("delivery", "checks", '"always"', "always", "always"),
    ("subscriber", "use_service_credentials", "true", "true", True),
    ("subscriber", "host_mode", '"onion"', "onion", "onion"),
    ("subscriber", "required_host_mode", "true", "true", True),
    ("subscriber", "socks_proxy", '"u:p@localhost:9050"', "u:p@localhost:9050", "u:p@localhost:9050"),
    ("subscriber", "socks_mode", '"onion"', "onion", "onion"),
    ("subscriber", "own_server_domains", '["a.org", ".b.org"]', "a.org, .b.org", ("a.org", ".b.org")),
    ("subscriber", "own_server_domains", "[]", "", ()),
    ("subscriber", "allow_servers", '["a.org", "8.8.8.0/24"]', "a.org 8.8.8.0/24", ("a.org", "8.8.8.0/24")),
    ("subscriber", "deny_servers", '["a.org"]', "a.org", ("a.org",)),
    ("subscriber", "max_subscriptions_per_token", "0", "0", 0),
    ("subscriber", "max_subscriptions_per_server", "100000", "100000", 100_000),
    ("subscriber", "audit_period", "0.5", "0.5", 0.5),
    ("subscriber", "audit_period", "0", "0", 0.0),
    ("subscriber", "connecting", "8", "8", 8),
    ("subscriber", "allow_private_hosts", "true", "true", True),
    ("transport", "proxies", '["10.0.0.1", "::1"]', "10.0.0.1, ::1", ("10.0.0.1", "::1")),
    ("transport", "name_servers", '["10.0.0.1:53", "::1"]', "10.0.0.1:53, ::1", ("10.0.0.1:53", "::1")),
    *(("limits", key, '"3 + 0.5/s"', "3 + 0.5/s", "3 + 0.5/s") for key in CONNECTS),
    ("limits", "enabled", "false", "false", False),
    ("limits", "shared", '["172.17.0.0/16", "::1"]', "172.17.0.0/16, ::1", ("172.17.0.0/16", "::1")),
    ("limits", "sessions", "10", "10", 10),
    ("limits", "sessions_per_address", "10", "10", 10),
    ("limits", "half_open", "10", "10", 10),
    ("limits", "half_open_per_address", "10", "10", 10),
    ("limits", "handshakes_per_address", '"10 + 1/s"', "10 + 1/s", "10 + 1/s"),
    ("limits", "commands_per_session", '"10 + 0.5/s"', "10 + 0.5/s", "10 + 0.5/s"),
    ("limits", "commands_per_address", '"10 + 1/s"', "10 + 1/s", "10 + 1/s"),
    ("limits", "registrations", '"10 + 1/s"', "10 + 1/s", "10 + 1/s"),
    ("limits", "registrations_per_address", '"10 + 1/s"', "10 + 1/s", "10 + 1/s"),
    ("limits", "replacements", '"10 + 1/s"', "10 + 1/s", "10 + 1/s"),
    ("limits", "replacements_per_address", '"10 + 1/s"', "10 + 1/s", "10 + 1/s"),
    ("inactive_clients", "ttl", "60", "60", 60.0),
    ("inactive_clients", "ttl", "0", "0", 0.0),
    ("metrics", "port", "9100", "9100", 9100),
    ("metrics", "bind", '"::1"', "::1", "::1"),
    ("admin", "socket", '"a.sock"', "a.sock", "a.sock"),
    ("admin", "port", "9090", "9090", 9090),
    ("admin", "bind", '"::1"', "::1", "::1"),
    ("admin", "page_socket", '""', "", ""),
    ("admin", "token_file", '"page.token"', "page.token", "page.token"),
    ("admin", "hosts", '["a.org", "b.org"]', "a.org,b.org", ("a.org", "b.org")),
    ("log", "level", '"debug"', "debug", "debug"),
    ("log", "format", '"json"', "json", "json"),
]


@pytest.mark.parametrize(("section", "key", "toml", "variable", "value"), SETTINGS, ids=lambda v: str(v)[:20])
def test_every_key(*, load: Load, section: str, key: str, toml: str, variable: str, value: Any) -> None:
    path = f"{section}.{key}"
    needed = {"SUBSCRIBER__SOCKS_PROXY": "localhost:9050"} if key == "host_mode" else {}
    by_file = look_up(load(f"[{section}]\n{key} = {toml}\n", **needed).settings, path)
    by_variable = look_up(load(**{path.upper().replace(".", "__"): variable}, **needed).settings, path)
    assert by_file == by_variable == value
    assert type(by_file) is type(by_variable) is type(value)


def test_every_key_is_in_this_test() -> None:
    defaults = Settings()
    keys = {f"{s}.{k}" for s in defaults.__struct_fields__ for k in getattr(defaults, s).__struct_fields__}
    elsewhere = {"apns.key_file", "apns.production", "apns.sandbox", "apns.test", "apns.certificate_file"}
    elsewhere |= {"apns.certificate_key_file", "fcm.service_account_file", "web_push.key_file", "store.master_key_file"}
    assert keys - elsewhere <= {f"{section}.{key}" for section, key, *_ in SETTINGS}


@pytest.mark.parametrize("section", ["production", "sandbox", "test"])
def test_apns_hosts(load: Load, section: str) -> None:
    text = f"[apns]\n{APNS}[apns.{section}]\nhost = 'localhost'\nport = 2197\nca_file = 'ca.pem'\n"
    host = look_up(load(text).settings, f"apns.{section}")
    variable = f"APNS__{section.upper()}__"
    values = {f"{variable}HOST": "localhost", f"{variable}PORT": "2197", f"{variable}CA_FILE": "ca.pem"}
    assert host == look_up(load(f"[apns]\n{APNS}", **values).settings, f"apns.{section}")
    assert (host.host, host.port, host.ca_file) == ("localhost", 2197, "ca.pem")


def test_variables_win(load: Load) -> None:
    loaded = load("[transport]\nport = 1\nhost = 'a'\n", TRANSPORT__PORT="2")
    assert (loaded.settings.transport.port, loaded.settings.transport.host) == (2, "a")


def test_a_variable_that_is_no_text(load: Load) -> None:
    for name in ("TRANSPORT__PORT", "TRANSPORT__\udcff"):
        with pytest.raises(ConfigError, match=r"is not UTF-8|unknown key"):
            load(**{name: "\udcff"})


def test_other_variables_are_nobodys_business(identity_dir: Path, load: Load) -> None:
    load()
    environ = {"NTF_SERVER_CFG_PATH": "x", "NTF_SERVER": "x", "PATH": "x", "ntf_server__x__y": "x"}
    assert config.load(identity_dir, environ).settings == Settings()


def test_an_empty_file_gives_the_defaults(load: Load, identity_dir: Path) -> None:
    loaded = load()
    assert loaded.settings == Settings()
    assert loaded.store == identity_dir / "ntf-server.db"
    assert config.apns_hosts(loaded.settings) == {}


def test_which_hosts_are_in_use(load: Load) -> None:
    assert set(config.apns_hosts(load(TEST_HOST).settings)) == {"test"}
    ca = "".join(f"[apns.{s}]\nhost='localhost'\nca_file = 'ca.pem'\n" for s in ("production", "sandbox"))
    assert set(config.apns_hosts(load(f"[apns]\n{APNS}{ca}").settings)) == {"production", "sandbox"}
    assert set(config.apns_hosts(load(f"[apns]\n{APNS}{ca}{TEST_HOST}").settings)) == {"production", "sandbox", "test"}


@pytest.mark.parametrize(
    ("url", "path"),
    [("", "ntf-server.db"), ("sqlite:///a.db", "a.db"), ("sqlite:////tmp/a.db", "/tmp/a.db")],
)
def test_where_the_database_is(load: Load, identity_dir: Path, url: str, path: str) -> None:
    assert load(STORE__URL=url).store == identity_dir / path


def test_where_a_redis_is(load: Load, identity_dir: Path) -> None:
    """Its files are beside the configuration; what people are shown has no password in it."""
    url = "rediss://relay:s3cret@redis.example.org/2?prefix=a&ca_file=ca.pem"
    for loaded in (load(f"[store]\nurl = '{url}'\n"), load(STORE__URL=url)):
        store = loaded.store
        assert isinstance(store, RedisUrl)
        assert (store.prefix, store.database, store.login.password) == ("a", 2, "s3cret")
        assert store.tls is not None and store.tls.ca_file == identity_dir / "ca.pem"
        assert str(store) == "rediss://redis.example.org:6379/2"
        assert "s3cret" not in repr(store)


@pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster"])
def test_every_way_to_a_redis(load: Load, scheme: str) -> None:
    path = "/service" if "sentinel" in scheme else ""
    assert isinstance(load(STORE__URL=f"{scheme}://:s3cret@localhost{path}").store, RedisUrl)
    assert isinstance(load(STORE__URL="unix:///run/redis.sock").store, RedisUrl)


@pytest.mark.parametrize(
    ("rest", "what"),
    [
        ("localhost:x", "has a port that is no number up to 65535; mend it"),
        ("localhost/x", "has a database that is no number up to 1000000; mend it"),
        ("localhost?db=1", "has an option other than prefix; mend it"),
        ("localhost?prefix={a}", "has a prefix with other characters than letters, digits and _.:-, or more than 64"),
        ("one,two", "names more than one host"),
        ("", "has to name its hosts as HOST, HOST:PORT or [IPV6]:PORT, with commas between them; mend it"),
        ("#", "has a # that is not written as %23; mend it"),
    ],
)
def test_a_mistake_in_the_url_of_a_redis_shows_no_password(
    load: Load, identity_dir: Path, rest: str, what: str
) -> None:
    with pytest.raises(ConfigError) as e:
        load(f"[store]\nurl = 'redis://relay:s3cret@{rest}'\n")
    line = str(e.value)
    assert line.startswith(f"{identity_dir / config.CONFIG_FILE}: [store] url: {what}")
    assert "\n" not in line and "s3cret" not in line


def test_what_is_for_a_file_is_not_for_a_redis(load: Load, identity_dir: Path) -> None:
    load("[store]\nurl = 'redis://relay:s3cret@localhost'\n")
    with pytest.raises(ConfigError) as e:
        config.load_database_path(identity_dir, {})
    file = identity_dir / config.CONFIG_FILE
    assert str(e.value) == f"{file}: [store] url: redis://localhost:6379: is a Redis; this is for a database's file"


MISTAKES: list[tuple[str, str, str]] = [  # text, the key that is named, what is said
    ("[transport]\nprot = 1\n", "[transport] prot", "unknown key; did you mean port?"),
    ("[transprot]\nport = 1\n", "transprot", "unknown section; did you mean transport?"),
    ("port = 1\n", "port", "is no key here; put it under [transport] or [apns.production] or"),
    (
        "[apns.staging]\nhost = 'a'\n",
        "[apns] staging",
        "unknown section; remove it, or give one of production, sandbox, test",
    ),
    ("[apns.test]\nport = 1\n", "[apns.test] host", "is missing; set it"),
    ("transport = 1\n", "transport", "is a number; give it as a section, [transport]"),
    ("[transport]\nport = 'x'\n", "[transport] port", "is text; give a whole number from 0 to 65535"),
    ("[transport]\nport = true\n", "[transport] port", "is true; give a whole number"),
    ("[transport]\nport = 1.5\n", "[transport] port", "is 1.5; give a whole number"),
    ("[transport]\nhost = 1\n", "[transport] host", "is a number; give text in quotes"),
    ("[transport]\nhost = []\n", "[transport] host", "is an array; give text in quotes"),
    ("[transport]\nport = 65536\n", "[transport] port", "is 65536; give a whole number from 0 to 65535"),
    ("[transport]\nport = -1\n", "[transport] port", "is -1; give a whole number from 0 to 65535"),
    ("[transport]\nhost = 'a b'\n", "[transport] host", "bad host name; give a host name or an IP address"),
    ("[transport]\nhost = 'a,b'\n", "[transport] host", "bad host name; give a host name or an IP address"),
    ("[transport]\nhost = 'a:1'\n", "[transport] host", "bad IPv6 address; give a host name or an IP address"),
    ("[store]\nurl = 'postgres://u:p@localhost'\n", "[store] url", "postgres: must be sqlite:///PATH"),
    ("[store]\nurl = 'redis://localhost/x'\n", "[store] url", "has a database that is no number up to 1000000; mend"),
    ("[store]\nwait_replicas = -1\n", "[store] wait_replicas", "is -1; give a whole number from 0 to 16"),
    ("[store]\nwait_aof = 17\n", "[store] wait_aof", "is 17; give a whole number from 0 to 16"),
    ("[store]\nurl = 'ntf.db'\n", "[store] url", "must be sqlite:///PATH"),
    ("[store]\nurl = 'sqlite:///'\n", "[store] url", "must be sqlite:///PATH"),
    ("[store]\nurl = 'sqlite:////'\n", "[store] url", "is a folder; give a file"),
    ("[store]\nurl = 'sqlite:///.'\n", "[store] url", "is a folder; give a file"),
    ("[store]\nurl = 'sqlite:///missing/ntf.db'\n", "[store] url", "no such folder; create it"),
    (
        "[apns]\nkey_file = 'missing.p8'\nkey_id='ABC123DEFG'\nteam_id='5NN7GUYB6T'\n",
        "[apns] key_file",
        "No such file or directory",
    ),
    ("[apns]\nkey_file = '.'\nkey_id='ABC123DEFG'\nteam_id='5NN7GUYB6T'\n", "[apns] key_file", "Is a directory"),
    (
        "[apns]\nkey_file = 'rubbish.p8'\nkey_id='ABC123DEFG'\nteam_id='5NN7GUYB6T'\n",
        "[apns] key_file",
        "PEM private key",
    ),
    ("[apns]\nkey_file = 'ca.crt'\nkey_id='ABC123DEFG'\nteam_id='5NN7GUYB6T'\n", "[apns] key_file", "PEM private key"),
    ("[apns]\nkey_file = 'p384.p8'\nkey_id='ABC123DEFG'\nteam_id='5NN7GUYB6T'\n", "[apns] key_file", "not a P-256 key"),
    (
        "[apns]\nkey_file = 'ed25519.p8'\nkey_id='ABC123DEFG'\nteam_id='5NN7GUYB6T'\n",
        "[apns] key_file",
        "not a P-256 key",
    ),
    ("[apns]\nkey_file = 'apns.p8'\nteam_id='5NN7GUYB6T'\n", "[apns] key_id", "goes with key_file; set it"),
    ("[apns]\nkey_file = 'apns.p8'\nkey_id='ABC123DEFG'\n", "[apns] team_id", "goes with key_file; set it"),
    (f"[apns]\n{APNS}topic = ''\n", "[apns] topic", "set it"),
    (f"[apns]\n{APNS}topic = 'a b'\n", "[apns] topic", "set it"),
    (f'[apns]\ntopic = "a\\nb: c"\n{TEST_HOST}', "[apns] topic", "set it"),
    ("[apns.test]\nhost = ''\nca_file='ca.pem'\n", "[apns.test] host", "bad host name"),
    ("[apns.test]\nhost = 'a/b'\nca_file='ca.pem'\n", "[apns.test] host", "bad host name"),
    ("[apns.test]\nhost = 'a'\nport = 0\n", "[apns.test] port", "is 0; give a whole number from 1 to 65535"),
    ("[apns.test]\nhost = 'a'\nport = 99999\n", "[apns.test] port", "is 99999; give a whole number from 1 to 65535"),
    (
        "[apns.test]\nhost = 'a'\nca_file='missing.pem'\n",
        "[apns.test] ca_file",
        "No such file or directory; give a PEM",
    ),
    ("[apns.test]\nhost = 'a'\nca_file='.'\n", "[apns.test] ca_file", "Is a directory; give a PEM bundle"),
    ("[apns]\ncertificate_file = 'push.pem'\n", "[apns] certificate_key_file", "is missing; give both files, in PEM"),
    ("[apns]\ncertificate_key_file = 'push.key'\n", "[apns] certificate_file", "is missing; give both files, in PEM"),
    (CERTIFICATE.replace("push.pem", "no.pem"), "[apns] certificate_file", "No such file or directory; give a file"),
    (CERTIFICATE.replace("push.pem", "apns.p8"), "[apns] certificate_file", "holds no certificate in PEM; give"),
    (CERTIFICATE.replace("push.key", "apns.p8"), "[apns] certificate_key_file", "is not the key of certificate_file"),
    ("[fcm]\nservice_account_file = 'apns.p8'\n", "[fcm] service_account_file", "is not JSON; give the JSON key"),
    (
        f"{WEB_PUSH}old_key_files = ['apns.p8', 'no.key']\n",
        "[web_push] old_key_files",
        "no.key: No such file or directory",
    ),
    (f"{WEB_PUSH}old_key_files = ['rubbish.p8']\n", "[web_push] old_key_files", "rubbish.p8: not an unencrypted PEM"),
    (f"{WEB_PUSH}old_key_files = ['p384.p8']\n", "[web_push] old_key_files", "p384.p8: not a P-256 key; give files"),
    (f"{WEB_PUSH}old_key_files = 'apns.p8'\n", "[web_push] old_key_files", "is text; give an array of texts"),
    (WEB_PUSH.replace("@ntf.example.org", "@localhost"), "[web_push] contact", "localhost is no public DNS name"),
    (WEB_PUSH.replace("mailto:a@", "a@"), "[web_push] contact", "give a mailto: or https: URL; give one"),
    ("[admin]\nsocket = '" + "s" * 200 + "'\n", "[admin] socket", "bytes are too long for a socket's path; set"),
    ("[admin]\nsocket = 'missing/a.sock'\n", "[admin] socket", "missing: no such folder; create it"),
    ("[store]\nmaster_key_command = ' '\n", "[store] master_key_command", "is empty; give a program"),
    ("[store]\nmaster_key_command = 'x \"'\n", "[store] master_key_command", "no closing quotation; mend it"),
    ("[store]\nmaster_key_command = '/nonexistent'\n", "[store] master_key_command", "No such file or directory; give"),
    ("[delivery]\nmessage_ttl = 0\n", "[delivery] message_ttl", "is 0; give a whole number from 1 to 31536000"),
    (
        "[delivery]\nmessage_ttl = 99999999999999999999\n",
        "[delivery] message_ttl",
        "is 99999999999999999999; give a whole",
    ),
    ("[delivery]\nverification_ttl = -1\n", "[delivery] verification_ttl", "is -1; give a whole number"),
    ("[delivery]\nin_flight = 0\n", "[delivery] in_flight", "is 0; give a whole number from 1 to 100000"),
    ("[delivery]\nin_flight = 1000000\n", "[delivery] in_flight", "is 1000000; give a whole number from 1 to 100000"),
    ("[delivery]\ntimeout = 0\n", "[delivery] timeout", "is 0; give a number from 0.001 to 86400"),
    ("[delivery]\ntimeout = 0.0001\n", "[delivery] timeout", "is 0.0001; give a number from 0.001 to 86400"),
    ("[delivery]\ntimeout = nan\n", "[delivery] timeout", "is nan; give a number from 0.001 to 86400"),
    ("[delivery]\ntimeout = inf\n", "[delivery] timeout", "is inf; give a number from 0.001 to 86400"),
    ("[delivery]\nmin_backoff = -1\n", "[delivery] min_backoff", "is -1; give a number from 0.001 to 86400"),
    ("[delivery]\nmax_backoff = 'x'\n", "[delivery] max_backoff", "is text; give a number from 0.001 to 86400"),
    ("[delivery]\nmin_backoff = 9\nmax_backoff = 8\n", "[delivery] min_backoff", "is more than max_backoff"),
    ("[web_push]\nallow_hosts = ['10.0.0.1/8']\n", "[web_push] allow_hosts", "'10.0.0.1/8' is no host, domain or"),
    ("[limits]\nshared = ['10.0.0.1/8']\n", "[limits] shared", "10.0.0.1/8 has host bits set"),
    ("[transport]\nproxies = ['balancer']\n", "[transport] proxies", "give IP addresses or networks"),
    ("[transport]\nname_servers = ['dns']\n", "[transport] name_servers", "give addresses of DNS servers"),
    ("[transport]\nname_servers = ['::1:x', '[::1:53']\n", "[transport] name_servers", "'::1:x' is no IP address"),
    ("[limits]\nsessions = 0\n", "[limits] sessions", "is 0; give a whole number from 1 to 10000000"),
    ("[limits]\nregistrations = '0 + 1/s'\n", "[limits] registrations", "0 would let nobody through"),
    (
        "[limits]\nregistrations = 'many'\n",
        "[limits] registrations",
        'is text that is no rate; give one as in "300 + 5/s"',
    ),
    (
        "[subscriber]\nallow_private_hosts = 'perhaps'\n",
        "[subscriber] allow_private_hosts",
        "is text; give true or false",
    ),
    ("[subscriber]\nhost_mode = 'tor'\n", "[subscriber] host_mode", "unknown value 'tor'; give one of public, onion"),
    (
        "[subscriber]\nsocks_mode = 'never'\n",
        "[subscriber] socks_mode",
        "unknown value 'never'; give one of onion, always",
    ),
    ("[subscriber]\nsocks_mode = 'always'\n", "[subscriber] socks_mode", "needs socks_proxy; set it"),
    ("[subscriber]\nhost_mode='onion'\nrequired_host_mode=true", "[subscriber] host_mode", "needs socks_proxy; set it"),
    ("[subscriber]\nsocks_proxy = 'localhost:x'\n", "[subscriber] socks_proxy", "give HOST:PORT"),
    ("[subscriber]\nsocks_proxy = 'u:@tor'\n", "[subscriber] socks_proxy", "a user and a password go together"),
    ("[subscriber]\nallow_servers = 'a.org'\n", "[subscriber] allow_servers", "is text; give an array of texts"),
    ("[subscriber]\nallow_servers = [1]\n", "[subscriber] allow_servers", "holds what is no text; give an array"),
    ("[subscriber]\nallow_servers = ['']\n", "[subscriber] allow_servers", "give hosts, domains"),
    ("[subscriber]\nallow_servers = ['a.org:5223']\n", "[subscriber] allow_servers", "'a.org:5223' is no host"),
    ("[subscriber]\ndeny_servers = ['8.8.8.8/24']\n", "[subscriber] deny_servers", "'8.8.8.8/24' is no host"),
    ("[subscriber]\nown_server_domains = ['a,b']\n", "[subscriber] own_server_domains", "give domains"),
    ("[subscriber]\nmax_subscriptions_per_token = -1", "[subscriber] max_subscriptions_per_token", "is -1; give"),
    ("[subscriber]\nmax_subscriptions_per_server = 1.5", "[subscriber] max_subscriptions_per_server", "is 1.5; give"),
    ("[subscriber]\naudit_period = -1\n", "[subscriber] audit_period", "is -1; give a number from 0 to 8760"),
    ("[subscriber]\naudit_period = nan\n", "[subscriber] audit_period", "is nan; give a number from 0 to 8760"),
    ("[subscriber]\nconnecting = 0\n", "[subscriber] connecting", "is 0; give a whole number from 1 to 10000"),
    ("[inactive_clients]\nttl = -1\n", "[inactive_clients] ttl", "is -1; give a number from 0 to 31536000"),
    ("[inactive_clients]\nttl = nan\n", "[inactive_clients] ttl", "is nan; give a number from 0 to 31536000"),
    ("[log]\nlevel = 'verbose'\n", "[log] level", "unknown value 'verbose'; give one of debug, info, warning, error"),
    ("[log]\nformat = 'xml'\n", "[log] format", "unknown value 'xml'; give one of text, json"),
]


@pytest.mark.parametrize(("text", "key", "what"), MISTAKES, ids=[m[1] + str(i) for i, m in enumerate(MISTAKES)])
def test_a_mistake_is_one_line_with_file_key_and_mend(
    *, load: Load, identity_dir: Path, text: str, key: str, what: str
) -> None:
    with pytest.raises(ConfigError) as e:
        load(text)
    line = str(e.value)
    assert line.startswith(f"{identity_dir / config.CONFIG_FILE}: {key}: "), line
    assert what in line
    assert "\n" not in line
    assert re.search(r"; (set|give|create|remove|mend|put|did you mean)|must be", line), line


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"[transport\n", "Expected ']'"),
        (b"port == 1\n", "Invalid value"),
        (b"port = 1\nport = 2\n", "Cannot overwrite a value"),
        (b"\xff\xfe", "can't decode byte"),
        (b"\x00", "Invalid statement"),
        (b"a = " + b"[" * 10_000, "recursion depth"),
    ],
)
def test_what_is_not_toml(load: Load, identity_dir: Path, text: bytes, what: str) -> None:
    with pytest.raises(ConfigError) as e:
        load(text)
    assert str(e.value).startswith(f"{identity_dir / config.CONFIG_FILE}: cannot be read: ")
    assert what in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("TRANSPORT__PORT", "many", "[transport] port: is text; give a whole number from 0 to 65535"),
        ("TRANSPORT__PROT", "1", "[transport] prot: unknown key; did you mean port?"),
        ("TRANSPROT__PORT", "1", "transprot: unknown section; did you mean transport?"),
        ("SUBSCRIBER__ALLOW_PRIVATE_HOSTS", "maybe", "[subscriber] allow_private_hosts: is text; give true or false"),
        ("DELIVERY__TIMEOUT", "nan", "[delivery] timeout: is text; give a number from 0.001 to 86400"),
    ],
)
def test_a_mistake_in_a_variable(load: Load, name: str, value: str, what: str) -> None:
    with pytest.raises(ConfigError) as e:
        load(**{name: value})
    assert str(e.value).startswith(f"NTF_SERVER__{name}: {what}")


@pytest.mark.parametrize("name", ["TRANSPORT", "TRANSPORT__", "__PORT", "", "TRANSPORT____PORT"])
def test_a_variable_that_names_no_key(load: Load, name: str) -> None:
    with pytest.raises(ConfigError, match=f"^NTF_SERVER__{name}: names no setting; give NTF_SERVER__SECTION__KEY"):
        load(**{name: "1"})


@pytest.mark.parametrize("text", ["[transport]\nport = 443\n", "transport = 1\n"])
def test_a_variable_below_what_is_no_section(load: Load, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^NTF_SERVER__TRANSPORT__PORT__X: (port|transport) is not a section; give"):
        load(text, TRANSPORT__PORT__X="1")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ntf-server\.toml: not found; run `ntf-server init --path"):
        config.load(tmp_path, {})


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / config.CONFIG_FILE).mkdir()
    with pytest.raises(ConfigError, match="Is a directory"):
        config.load(tmp_path, {})


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / config.CONFIG_FILE
    file.touch(mode=0)
    if os.access(file, os.R_OK):  # root may read everything

        def refuse(*_: Any) -> bytes:
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(
        ConfigError, match=r"\.toml: Permission denied; let user .* read it: .*, or be the server's user$"
    ):
        config.load(tmp_path, {})


def test_no_identity(tmp_path: Path) -> None:
    (tmp_path / config.CONFIG_FILE).touch()
    with pytest.raises(
        ConfigError, match=r"has no server\.crt, ca\.crt, server\.key; restore them, or run `ntf-server init` in a new"
    ):
        config.load(tmp_path, {})


@pytest.mark.parametrize(
    ("path", "environ", "expected"),
    [
        ("given", {"NTF_SERVER_CFG_PATH": "from-environment"}, "given"),
        (None, {"NTF_SERVER_CFG_PATH": "from-environment"}, "from-environment"),
        ("", {"NTF_SERVER_CFG_PATH": ""}, config.DEFAULT_DIR),
        (None, {}, config.DEFAULT_DIR),
    ],
)
def test_which_folder(path: str | None, environ: dict[str, str], expected: str) -> None:
    assert config.config_dir(path, environ) == Path(expected)


def template(host: str = "ntf.example.org") -> str:
    return cli.config_text(host, 5443, web_push=False)


def test_the_template_loads(load: Load) -> None:
    settings = load(template()).settings
    assert (settings.transport.host, settings.transport.port) == ("ntf.example.org", 5443)
    defaults = Settings()
    for section in ("apns", "delivery", "subscriber", "limits", "inactive_clients", "log"):
        assert getattr(settings, section) == getattr(defaults, section)


def test_what_the_template_has_commented_out_loads_too(load: Load, identity_dir: Path) -> None:
    text = re.sub(r"^# (\[?[a-z_.]+(\]| =).*)$", r"\1", template(), flags=re.MULTILINE)
    assert "[apns.test]\n" in re.sub(r" +#.*", "", text)
    text = text.replace("AuthKey_ABC123DEFG.p8", "apns.p8").replace("mock-apns-ca.crt", "ca.pem")
    text = text.replace("vapid.key", "apns.p8")
    account = {
        "project_id": "p",
        "client_email": "a@b",
        "private_key": pem(rsa.generate_private_key(65537, 2048)).decode(),
    }
    (identity_dir / "service-account.json").write_text(json.dumps(account))
    settings = load(text).settings
    assert settings.apns.test == ApnsHost(host="localhost", port=2197, ca_file="ca.pem")
    assert settings.apns.key_id == "ABC123DEFG"


def test_secrets_are_not_shown(load: Load, identity_dir: Path) -> None:
    shown = repr(load(f"[apns]\n{APNS}"))
    secrets = [(identity_dir / "server.key").read_text(), (identity_dir / "apns.p8").read_text()]
    assert not any(line in shown for secret in secrets for line in secret.splitlines() if len(line) > 20)


PROXY = "somebody:something@tor:9050"


def test_how_smp_servers_are_reached(load: Load, identity_dir: Path) -> None:
    defaults = load().network
    assert defaults == Network()
    text = """
        allow_private_hosts = true
        host_mode = "onion"
        required_host_mode = true
        socks_mode = "always"
        deny_servers = ["a.org", "8.8.8.8", "2a00::/16"]
    """
    loaded = load(f"[subscriber]\n{text}\nsocks_proxy = '{PROXY}'\n")
    assert loaded.network == Network(
        "onion",
        required_host_mode=True,
        socks_proxy=SocksProxy.parse(PROXY),
        socks_mode="always",
        allow_private=True,
        denied=(ip_network("8.8.8.8"), ip_network("2a00::/16")),
    )


def test_which_smp_servers(load: Load, identity_dir: Path) -> None:
    assert load().servers == ANY_SERVER
    loaded = load(SUBSCRIBER__ALLOW_SERVERS="a.org,8.8.8.0/24", SUBSCRIBER__DENY_SERVERS="b.a.org c.a.org")
    servers = loaded.servers
    assert servers == ServerList(("a.org", ip_network("8.8.8.0/24")), ("b.a.org", "c.a.org"))


def test_the_proxys_credentials_are_not_shown(load: Load, identity_dir: Path) -> None:
    loaded = load(SUBSCRIBER__SOCKS_PROXY=PROXY)
    network = loaded.network
    for bad in (f"{PROXY}:x", "somebody:something@", "somebody@tor", "ftp://somebody:something@tor:1"):
        with pytest.raises(ConfigError) as e:
            load(SUBSCRIBER__SOCKS_PROXY=bad)
        assert "some" not in str(e.value)
        assert e.value.__cause__ is None
    assert "some" not in repr(loaded) + repr(network)


# --- all of it is parsed, once


def test_everything_that_was_parsed(load: Load, identity_dir: Path) -> None:
    account = {
        "project_id": "p",
        "client_email": "a@b",
        "private_key": pem(rsa.generate_private_key(65537, 2048)).decode(),
    }
    (identity_dir / "account.json").write_text(json.dumps(account))
    fcm = "[fcm]\nservice_account_file = 'account.json'\nca_file = 'ca.pem'\n"
    loaded = load(f"[apns]\n{APNS}{TEST_HOST}{fcm}{WEB_PUSH}", SUBSCRIBER__MAX_SUBSCRIPTIONS_PER_TOKEN="7")
    key = (identity_dir / "apns.p8").read_bytes()
    assert loaded.apns_key is not None
    assert loaded.vapid_key is not None
    assert pem(loaded.apns_key) == pem(loaded.vapid_key) == key
    assert loaded.service_account is not None
    assert loaded.service_account.project_id == "p"
    assert loaded.ca_files["apns.test"] == loaded.ca_files["fcm"] == loaded.ca_files["web_push"]
    assert loaded.client_certificate is None
    assert loaded.limits.per_token == 7
    assert loaded.admin_socket == identity_dir / "ntf-server.sock"
    assert set(loaded.environ) == {"NTF_SERVER__SUBSCRIBER__MAX_SUBSCRIPTIONS_PER_TOKEN"}


def test_older_vapid_keys_in_the_order_of_the_setting(load: Load, identity_dir: Path) -> None:
    names = ("old-1.key", "old-2.key")
    for name in names:
        (identity_dir / name).write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    keys = [(identity_dir / name).read_bytes() for name in names]
    by_file = load(f"{WEB_PUSH}old_key_files = ['old-2.key', 'old-1.key']\n")
    assert list(map(pem, by_file.old_vapid_keys)) == keys[::-1]
    assert list(map(pem, load(WEB_PUSH, WEB_PUSH__OLD_KEY_FILES="old-1.key old-2.key").old_vapid_keys)) == keys
    assert load(WEB_PUSH).old_vapid_keys == ()


@pytest.mark.parametrize(
    "parameters", [b"", b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"]
)
def test_the_vapid_key_of_the_reference(
    load: Load, identity_dir: Path, parameters: bytes, request: pytest.FixtureRequest
) -> None:
    """As `openssl ecparam -genkey` writes it, with the curve before the key or without."""
    key = ec.generate_private_key(ec.SECP256R1())
    sec1 = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    file = identity_dir / "vapid.privkey"
    request.addfinalizer(file.unlink)
    file.write_bytes(parameters + sec1)
    loaded = load("[web_push]\ncontact = 'mailto:a@ntf.example.org'\nca_file = 'ca.pem'\n")
    assert loaded.vapid_key is not None
    assert loaded.vapid_key.private_numbers() == key.private_numbers()
    assert "web_push" in loaded.ca_files
    by_setting = load(WEB_PUSH).vapid_key
    assert by_setting is not None
    assert by_setting.private_numbers() != key.private_numbers()
    with pytest.raises(ConfigError, match=r"\[web_push\] contact: "):
        load()
    file.write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match=r"\[web_push\] key_file: .*vapid\.privkey: not an unencrypted PEM"):
        load("[web_push]\ncontact = 'mailto:a@ntf.example.org'\nca_file = 'ca.pem'\n")


def test_a_client_certificate(load: Load, identity_dir: Path) -> None:
    loaded = load(CERTIFICATE)
    assert loaded.client_certificate is not None
    assert loaded.client_certificate.key == (identity_dir / "push.key").read_bytes()
    assert set(loaded.ca_files) == {"apns.production", "apns.sandbox"}
    ends = loaded.certificates_end()
    assert ends["apns"] == loaded.client_certificate.not_after.timestamp()
    client_certificate(identity_dir, name="redis")
    loaded = load("[store]\nurl = 'rediss://a?cert_file=push.pem&key_file=push.key'\n")
    assert set(ends | loaded.certificates_end()) == set(CERTIFICATES)
    assert loaded.store_files is not None
    assert loaded.store_files.not_after is not None
    assert loaded.certificates_end()["redis"] == loaded.store_files.not_after.timestamp()


def test_when_certificates_end(load: Load, identity_dir: Path) -> None:
    ends = load().certificates_end()
    for name, file in (("online", "server.crt"), ("identity", "ca.crt")):
        [certificate, *_] = x509.load_pem_x509_certificates((identity_dir / file).read_bytes())
        assert ends.pop(name) == certificate.not_valid_after_utc.timestamp()
    assert not ends


def test_what_is_off_is_none(load: Load) -> None:
    loaded = load()
    off = (loaded.apns_key, loaded.client_certificate, loaded.service_account, loaded.vapid_key)
    assert off == (None, None, None, None)
    assert load("[web_push]\nold_key_files = ['missing.key']\n").old_vapid_keys == ()
    assert loaded.ca_files == {}


def test_no_file_is_read_twice(load: Load, identity_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        read.append(path)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    load(f"{CERTIFICATE}{TEST_HOST}{WEB_PUSH}")
    names = [path.name for path in read]
    assert len(names) == len(set(names))
    assert {"ntf-server.toml", "push.pem", "push.key", "apns.p8", "server.key"} <= set(names)


def test_a_byte_order_mark(load: Load) -> None:
    assert load(b"\xef\xbb\xbf[transport]\nport = 5443\n").settings.transport.port == 5443


@pytest.mark.parametrize("command", ["false", "sh -c 'kill -9 $$'", "echo rubbish"])
def test_a_master_key_s_command_that_failed_may_do_better_later(load: Load, command: str) -> None:
    with pytest.raises(NotNowError, match=r"\[store\] master_key_command: "):
        load(STORE__MASTER_KEY_COMMAND=command)


def test_a_running_relay_s_command_is_not_asked_again(load: Load, identity_dir: Path, tmp_path: Path) -> None:
    script = tmp_path / "kms"
    script.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/log\necho {KEY}\n")
    script.chmod(0o755)
    running = load(STORE__MASTER_KEY_COMMAND=str(script))
    again = config.load(identity_dir, running.environ, running=running)
    assert again.master_key is running.master_key
    assert (tmp_path / "log").read_text() == "asked\n"
    other = config.load(identity_dir, {"NTF_SERVER__STORE__MASTER_KEY_COMMAND": f"{script} --other"}, running=running)
    assert other.master_key is not running.master_key
