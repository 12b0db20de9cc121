"""The command `ntf-server`. Exit codes: 0 done, 1 failed while running, 2 bad usage or configuration."""

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ntf_server import app
from ntf_server.config import files as config
from ntf_server.config import identity_files
from ntf_server.config.files import ConfigError
from ntf_server.config.identity_files import IdentityFileError
from ntf_server.config.settings import Log
from ntf_server.listener import ListenError
from ntf_server.providers import APNS_SECTIONS
from ntf_server.push.apns.request import generate_key, key_pem
from ntf_server.push.http import default_ca_file
from ntf_server.push.webpush.request import Vapid
from ntf_server.store.records import StoreCorruptError, StoreError
from ntf_server.store.sealing import MasterKey, SealingError, generate_key_text
from ntf_server.store.sqlite.database import lock_file
from ntf_server.store.sqlite.rekey import rekey
from smp_bridge.address import DEFAULT_PORT, ServerAddress, parse_host
from smp_bridge.encoding import ParseError
from smp_bridge.identity import SignAlgorithm

log = logging.getLogger(__name__)

_ALGORITHMS: Final[dict[str, SignAlgorithm]] = {"ED448": "ED448", "ED25519": "ED25519"}

_DEMO_PROVIDERS: Final = ("apns", "fcm", "webpush")

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

[subscriber]
use_service_credentials = false   # true: one command subscribes all queues of an SMP server that takes services
allow_private_hosts = false       # SMP servers on private and loopback addresses
# own_server_domains = ["smp.example.org"]   # told apart in the metrics
# socks_proxy = "localhost:9050"             # Tor, for servers with onion hosts

# [metrics]
# port = 9100          # Prometheus and health checks, on the loopback interface

[inactive_clients]
ttl = 43200            # seconds

[log]
level = "info"         # debug, info, warning, error
format = "text"        # text, json
"""


def config_text(host: str, port: int, *, web_push: bool) -> str:
    """A new configuration file. Web Push needs a CA bundle: without one it is left off."""
    return _CONFIG_TEMPLATE.format(
        host=json.dumps(host),
        port=port,
        web_push="" if web_push else "# ",
        contact=json.dumps(f"mailto:postmaster@{host}"),
    )


class UsageError(Exception):
    """One line for the operator; exit code 2."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    arguments = _parser().parse_args(argv)
    try:
        code = arguments.run(arguments)
    except (UsageError, ConfigError, IdentityFileError, StoreCorruptError, StoreError, SealingError) as e:
        print(f"ntf-server: {e}", file=sys.stderr)
        code = 2
    except OSError as e:
        print(f"ntf-server: {e.filename or 'failed'}: {e.strerror or e}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ntf-server", description="SimpleX push notification server.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, help_: str, *, path: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(run=run)
        if path:
            sub.add_argument(
                "--path", metavar="DIR", help=f"configuration folder ($NTF_SERVER_CFG_PATH, else {config.DEFAULT_DIR})"
            )
        return sub

    init = command("init", _init, "Make a new server identity and configuration.")
    init.add_argument("--fqdn", type=_host, metavar="NAME", help="host name in the server's address")
    init.add_argument("--ip", type=_ip, metavar="IP", help="IP address in the server's address, without --fqdn")
    init.add_argument("--port", type=_port, default=443, metavar="N", help="port to listen on (443)")
    init.add_argument("--sign-algorithm", choices=list(_ALGORITHMS), default="ED448", help="of the certificates")
    command("start", _start, "Run the server.")
    cert = command("cert", _cert, "Make a new online certificate of the same identity.")
    cert.add_argument("--ca-key", metavar="FILE", help="the identity's private key (DIR/ca.key)")
    cert.add_argument("--sign-algorithm", choices=list(_ALGORITHMS), default="ED448", help="of the new certificate")
    cert.add_argument("--fqdn", type=_host, metavar="NAME", help="common name (that of the old certificate)")
    command("check", _check, "Check configuration and credentials; say what start would do.")
    rekey = command("rekey", _rekey, "Change the key that seals the database; the server must be stopped.")
    new = rekey.add_mutually_exclusive_group()
    new.add_argument("--new-key-file", metavar="FILE", help="new master key; made if the file does not exist")
    new.add_argument("--new-key-command", metavar="COMMAND", help="prints the new master key")
    rekey.add_argument("--reseal", action="store_true", help="seal every value anew too, with a new database key")
    delete = command("delete", _delete, "Delete the server's identity, configuration and database.")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    demo = command("demo", _demo, "Show a wake-up from end to end, on this machine alone.", path=False)
    demo.add_argument("--provider", choices=_DEMO_PROVIDERS, default="apns", help="who delivers the pushes (apns)")
    demo.add_argument("--keep", action="store_true", help="stay up afterwards, and print addresses to play with")
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError("must be 1 to 65535")
    return int(text)


def _host(text: str) -> str:
    if len(text) > identity_files.MAX_NAME:
        raise argparse.ArgumentTypeError(f"is longer than the {identity_files.MAX_NAME} characters of a common name")
    try:
        return parse_host(text)
    except ParseError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def _ip(text: str) -> str:
    try:
        return parse_host(str(ipaddress.ip_address(text)))
    except ValueError as e:
        raise argparse.ArgumentTypeError("must be an IP address") from e


def _local_name() -> str:
    try:
        return _host(socket.getfqdn())
    except argparse.ArgumentTypeError as e:
        raise UsageError(f"this machine's name cannot be the server's ({e}); give --fqdn or --ip") from e


def _directory(arguments: argparse.Namespace) -> Path:
    return config.config_dir(arguments.path)


def _address(host: str, port: int, key_hash: bytes) -> ServerAddress:
    return ServerAddress("ntf", (host,), "" if port == DEFAULT_PORT["ntf"] else str(port), key_hash)


def _init(arguments: argparse.Namespace) -> int:
    directory = _directory(arguments)
    host = arguments.fqdn or arguments.ip or _local_name()
    for name in (config.CONFIG_FILE, *identity_files.FILES):
        if os.path.lexists(directory / name):
            raise UsageError(f"{directory / name}: exists; choose another folder, or `ntf-server delete` this one")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        key_hash = identity_files.create_identity(directory, _ALGORITHMS[arguments.sign_algorithm], host)
        identity_files.write_file(directory / identity_files.MASTER_KEY, f"{generate_key_text()}\n".encode())
        identity_files.write_file(directory / identity_files.VAPID_KEY, key_pem(generate_key()))
        text = config_text(host, arguments.port, web_push=default_ca_file() is not None)
        identity_files.write_file(directory / config.CONFIG_FILE, text.encode(), 0o644)
    except OSError as e:
        raise UsageError(f"{e.filename or directory}: {e.strerror}; choose a folder that can be written") from e
    print(
        f"Move {directory / identity_files.CA_KEY} offline: it is the server's identity, and only"
        " `ntf-server cert` needs it.",
        file=sys.stderr,
    )
    print(_address(host, arguments.port, key_hash))
    return 0


def _start(arguments: argparse.Namespace) -> int:
    loaded = config.load(_directory(arguments))
    _set_up_logging(loaded.settings.log)
    try:
        asyncio.run(app.run(loaded, lambda relay: _ready(loaded, relay)))
    except ListenError as e:
        where = f"{loaded.directory / config.CONFIG_FILE}: [transport] bind, port"
        raise UsageError(f"{where}: {e}; choose another one, or stop what uses it") from e
    except ssl.SSLError as e:
        raise UsageError(f"{loaded.directory}: the server's certificate cannot be used: {e}") from e
    return 0


def _ready(loaded: config.Config, relay: app.Relay) -> None:
    transport = loaded.settings.transport
    print(f"listening on {transport.bind or transport.host or '*'}:{relay.port}", flush=True)
    _notify_systemd("READY=1")


def _notify_systemd(state: str) -> None:
    """sd_notify(3), without libsystemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            s.connect("\0" + address[1:] if address.startswith("@") else address)
            s.sendall(state.encode())
    except OSError as e:
        log.warning("$NOTIFY_SOCKET cannot be written to: %s", e.strerror or e)


def _cert(arguments: argparse.Namespace) -> int:
    directory = _directory(arguments)
    ca_key = Path(arguments.ca_key) if arguments.ca_key else directory / identity_files.CA_KEY
    identity_files.renew_certificate(directory, ca_key, _ALGORITHMS[arguments.sign_algorithm], arguments.fqdn)
    print(f"New {directory / identity_files.SERVER_CRT}: restart the server to use it.")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    loaded = config.load(_directory(arguments))
    settings = loaded.settings
    transport = settings.transport
    print(f"address     {_address(transport.host or 'localhost', transport.port, loaded.credentials.key_hash)}")
    print(f"listen on   {transport.bind or '*'}:{transport.port}")
    state = "exists" if loaded.database.exists() else "will be created"
    print(f"database    {loaded.database} ({state})")
    hosts = config.apns_hosts(settings)
    for section, host in hosts.items():
        print(f"push        {APNS_SECTIONS[section]} through {host.host}:{host.port}")
    if settings.fcm.service_account_file:
        print(f"push        FC through {settings.fcm.host}:{settings.fcm.port}")
    if settings.web_push.key_file:
        vapid = Vapid(config.vapid_key(loaded.directory, settings), settings.web_push.contact)
        print(f"push        WP; apps subscribe with the application server key {vapid.public_key}")
    if not hosts:
        print("push        no Apple devices: set [apns] key_file, key_id and team_id")
    if (loaded.directory / identity_files.CA_KEY).exists():
        print(f"warning     {loaded.directory / identity_files.CA_KEY} should be offline")
    return 0


def _rekey(arguments: argparse.Namespace) -> int:
    directory = _directory(arguments)
    settings = config.load_settings(directory)
    old = new = config.load_master_key(directory, settings)
    if arguments.new_key_file:
        path = Path(arguments.new_key_file)
        if not path.exists():
            identity_files.write_file(path, f"{generate_key_text()}\n".encode())
        new = MasterKey.from_file(path)
    elif arguments.new_key_command:
        new = MasterKey.from_command(arguments.new_key_command)
    elif not arguments.reseal:
        raise UsageError("rekey: give --new-key-file, --new-key-command or --reseal")
    done = asyncio.run(rekey(config.load_database_path(directory), old, new, reseal=arguments.reseal))
    if arguments.reseal:
        print(f"Sealed anew: {done.tokens} tokens, {done.subscriptions} subscriptions.")
    if new is not old:
        print(
            f"The database needs the new master key from now on: name it in {directory / config.CONFIG_FILE}, [store]."
        )
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    directory = _directory(arguments)
    file = directory / config.CONFIG_FILE
    if not file.exists():
        raise UsageError(f"{file}: not found; nothing was deleted")
    database = config.load_database_path(directory)
    print(
        f"The identity in {directory} and the database {database} will be gone: devices cannot use this server again."
    )
    if not arguments.yes and not _confirmed():
        print("Nothing was deleted.")
        return 1
    with lock_file(database):  # not under a running server
        for suffix in ("", "-wal", "-shm", ".lock"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
    for name in (config.CONFIG_FILE, *identity_files.FILES):
        (directory / name).unlink(missing_ok=True)
    if not any(directory.iterdir()):
        shutil.rmtree(directory)
    return 0


def _confirmed() -> bool:
    try:
        return input("Type DELETE to delete them: ") == "DELETE"
    except EOFError:  # nobody is there to answer
        print()
        return False


def _demo(arguments: argparse.Namespace) -> int:
    from ntf_server import demo  # noqa: PLC0415  the server itself does not need it

    return asyncio.run(demo.run(provider=arguments.provider, keep=arguments.keep))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        out = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            out["exception"] = self.formatException(record.exc_info)
        return json.dumps(out)


def _set_up_logging(settings: Log) -> None:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if settings.format == "json" else text)
    logging.basicConfig(level=settings.level.upper(), handlers=[handler])
