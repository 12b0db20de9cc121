"""`ntf-server init`."""

import argparse
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import identity_files
from ntf_server.config.adopt import adopt, changed
from ntf_server.config.ca import default_ca_file
from ntf_server.config.contact import is_public_name
from ntf_server.config.edit import Value, named
from ntf_server.config.files import REFERENCE_VAPID_KEY, look_over
from ntf_server.config.reference_ini import REFERENCE_INI, read_ini
from ntf_server.config.source import CONFIG_FILE
from ntf_server.permissions import unreadable
from ntf_server.push.jose import KeyFileError, generate_key, key_pem, load_key
from ntf_server.store.sealing import generate_key_text
from smp_bridge.address import ServerAddress, parse_host
from smp_bridge.network import is_public_host

REFERENCE_TEAM: Final = "5NN7GUYB6T"  # that of the apps in Apple's store
_IDENTITY: Final = (
    identity_files.CA_CRT,
    identity_files.SERVER_CRT,
    identity_files.SERVER_KEY,
    identity_files.FINGERPRINT,
)

_CONFIG_TEMPLATE: Final = """\
# ntf-relay: settings of the notification server. Every one can also be given as an environment
# variable NTF_SERVER__SECTION__KEY. Reference: docs/reference/configuration.md

[transport]
host = {host}          # the name or IP address in the server's address
port = {port}
# bind = ""            # the interface to listen on; all of them if empty

[store]
url = "sqlite:///ntf-server.db"   # relative to this folder; sqlite:////var/lib/… is absolute
master_key_file = "master.key"    # seals the database; or master_key_command = "…", which prints it

[apns]
# key_file = "AuthKey_ABC123DEFG.p8"   # from Apple; without it no token of Apple's devices is accepted
# key_id = "ABC123DEFG"
# team_id = "5NN7GUYB6T"
topic = "chat.simplex.app"

# [apns.test]          # a mock APNs, for testing: turns provider AT on
# host = "localhost"
# port = 2197
# ca_file = "mock-apns-ca.crt"

[fcm]
# service_account_file = "service-account.json"   # from Google; turns provider FC on

[web_push]
{web_push}key_file = "vapid.key"   # turns provider WP on
contact = {contact}   # for push services that want to reach you
# allow_hosts = ["ntfy.lan"]   # push services that are not on the public internet

[subscriber]
use_service_credentials = false   # true: one command subscribes all queues of an SMP server that takes services
allow_private_hosts = false       # SMP servers on private and loopback addresses
# own_server_domains = ["smp.example.org"]   # told apart in the metrics
# socks_proxy = "localhost:9050"             # Tor, for servers with onion hosts

[limits]
enabled = true         # budgets of strangers; their defaults: docs/reference/limits.md
# shared = ["172.17.0.0/16", "127.0.0.1"]   # addresses that stand for many clients each: a container's gateway, Tor

# [metrics]
# port = 9100          # Prometheus and health checks, on the loopback interface

# [admin]
# port = 9090          # a live page for browsers, on the loopback interface

[inactive_clients]
ttl = 43200            # seconds

[log]
level = "info"         # debug, info, warning, error
format = "text"        # text, json
"""


def config_text(host: str, port: int, *, web_push: bool) -> str:
    """A new configuration file. Without a CA bundle, or a public name to be reached by, Web Push is left off."""
    public = is_public_name(host)
    return _CONFIG_TEMPLATE.format(
        host=json.dumps(host),
        port=port,
        web_push="" if web_push and public else "# ",
        contact=json.dumps(f"mailto:postmaster@{host}" if public else ""),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument(
        "--adopt", type=Path, metavar="DIR", help="be the server whose configuration simplexmq's ntf-server has there"
    )
    parser.add_argument("--apns-key-file", type=Path, metavar="FILE", help="with --adopt: Apple's key ($APNS_KEY_FILE)")
    parser.add_argument("--apns-key-id", metavar="ID", help="with --adopt: its id ($APNS_KEY_ID)")
    parser.add_argument(
        "--apns-team-id", metavar="ID", help=f"with --adopt: whose it is ({REFERENCE_TEAM}, as it stands in simplexmq)"
    )
    parser.add_argument("--fqdn", type=common.host, metavar="NAME", help="host name in the server's address")
    parser.add_argument("--ip", type=_ip, metavar="IP", help="IP address in the server's address, without --fqdn")
    parser.add_argument("--port", type=_port, metavar="N", help="port to listen on (443)")
    parser.add_argument("--sign-algorithm", choices=list(common.ALGORITHMS), help="of the certificates (ED448)")


def run(arguments: argparse.Namespace) -> int:
    """Never overwrites anything."""
    directory = common.directory(arguments)
    if arguments.adopt is not None:
        return _adopt(arguments, arguments.adopt, directory)
    for name in ("apns_key_file", "apns_key_id", "apns_team_id"):
        if getattr(arguments, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: goes with --adopt; else set it in [apns]")
    host, port = arguments.fqdn or arguments.ip or _local_name(), arguments.port or 443
    _refuse_used(directory, (CONFIG_FILE, *identity_files.FILES))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        algorithm = common.ALGORITHMS[arguments.sign_algorithm or "ED448"]
        key_hash = identity_files.create_identity(directory, algorithm, host)
        _write_keys(directory)
        text = config_text(host, port, web_push=default_ca_file() is not None)
        identity_files.write_file(directory / CONFIG_FILE, text.encode(), 0o644)
    except OSError as e:
        raise UsageError(f"{e.filename or directory}: {e.strerror}; choose a folder that can be written") from e
    _tell_of_ca_key(directory)
    _tell_address(host, port, key_hash)
    return 0


def _adopt(arguments: argparse.Namespace, old: Path, directory: Path) -> int:
    """What is there is read and checked before anything is written, and stays as it is."""
    if arguments.sign_algorithm is not None:
        raise UsageError("--sign-algorithm: the certificates are there; `ntf-server cert` makes others")
    ini = old / REFERENCE_INI
    adopted = adopt(ini, read_ini(ini))
    credentials = identity_files.load_credentials(old)
    host, port = arguments.fqdn or arguments.ip or adopted.host, arguments.port or adopted.port
    if not host:
        raise UsageError(f"{ini}: [TRANSPORT] host: names none; give the name in the server's address by --fqdn")
    changes, notes = dict(adopted.changes), list(adopted.notes)
    changes |= _apns(arguments, directory, notes)
    if (old / REFERENCE_VAPID_KEY).exists():
        notes.append(f"{old / REFERENCE_VAPID_KEY}: name it in [web_push] key_file, or its subscriptions are lost")
    taken = () if _same(old, directory) else _IDENTITY
    _refuse_used(directory, (CONFIG_FILE, identity_files.MASTER_KEY, identity_files.VAPID_KEY, *taken))
    text = changed(config_text(host, port, web_push=default_ca_file() is not None), changes)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in (name for name in taken if (old / name).exists()):
            mode = 0o600 if name == identity_files.SERVER_KEY else 0o644
            identity_files.write_file(directory / name, (old / name).read_bytes(), mode)
        _write_keys(directory)
        identity_files.write_file(directory / CONFIG_FILE, text.encode(), 0o644)
    except OSError as e:
        raise UsageError(f"{e.filename or directory}: {e.strerror}; choose a folder that can be written") from e
    if (old / identity_files.CA_KEY).exists():
        _tell_of_ca_key(old)
    _, mistakes = look_over(directory)  # what was wrong there too
    for note in (*notes, *(mistakes.error.mistakes if mistakes else ())):
        print(note, file=sys.stderr)
    print(f"Next: `ntf-server check --path {directory}`, then `ntf-server import --path {directory} --config {ini}`.",
          file=sys.stderr)  # fmt: skip
    _tell_address(host, port, credentials.key_hash)
    return 0


def _apns(arguments: argparse.Namespace, directory: Path, notes: list[str]) -> dict[tuple[str, str], Value]:
    """Apple's key, which the reference has from its environment."""
    given = arguments.apns_key_file or os.environ.get("APNS_KEY_FILE")
    key_id = arguments.apns_key_id or os.environ.get("APNS_KEY_ID")
    if not given or not key_id:
        missing = "--apns-key-id, or $APNS_KEY_ID" if given else "--apns-key-file, or $APNS_KEY_FILE"
        notes.append(
            f"No Apple device is pushed to: {missing} of the other server is not given; set [apns] key_file, key_id and"
            f" team_id in {directory / CONFIG_FILE}."
        )
        return {}
    path = Path(given)
    try:
        load_key(path.read_bytes())
    except OSError as e:
        raise UsageError(unreadable(path, e, "give the key from Apple by --apns-key-file")) from e
    except KeyFileError as e:
        raise UsageError(f"{path}: {e}; give the .p8 file from Apple by --apns-key-file") from e
    team = arguments.apns_team_id or REFERENCE_TEAM
    return {("apns", "key_file"): named(path, directory), ("apns", "key_id"): key_id, ("apns", "team_id"): team}


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _refuse_used(directory: Path, names: Iterable[str]) -> None:
    for name in names:
        if os.path.lexists(directory / name):
            of_reference = (directory / REFERENCE_INI).exists() and not (directory / CONFIG_FILE).exists()
            take = f", or take over simplexmq's server that is there: --adopt {directory}" if of_reference else ""
            raise UsageError(f"{directory / name}: is there already, and is kept; give a new folder by --path{take}")


def _write_keys(directory: Path) -> None:
    """Those that are nobody else's: of the store and of Web Push."""
    identity_files.write_file(directory / identity_files.MASTER_KEY, f"{generate_key_text()}\n".encode())
    identity_files.write_file(directory / identity_files.VAPID_KEY, key_pem(generate_key()))


def _tell_of_ca_key(directory: Path) -> None:
    print(
        f"Move {directory / identity_files.CA_KEY} offline: it is the server's identity, and only"
        " `ntf-server cert` needs it.",
        file=sys.stderr,
    )


def _tell_address(host: str, port: int, key_hash: bytes) -> None:
    if not is_public_host(host):
        print(f"Apps elsewhere do not reach {host}: give the server's name by --fqdn.", file=sys.stderr)
    print(ServerAddress.ntf(host, port, key_hash))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError("must be 1 to 65535")
    return int(text)


def _ip(text: str) -> str:
    try:
        return parse_host(str(ipaddress.ip_address(text)))
    except ValueError as e:
        raise argparse.ArgumentTypeError("must be an IP address") from e


def _local_name() -> str:
    try:
        return common.host(socket.getfqdn())
    except argparse.ArgumentTypeError as e:
        raise UsageError(f"this machine's name cannot be the server's ({e}); give --fqdn or --ip") from e
