"""`ntf-server init`."""

import argparse
import ipaddress
import json
import os
import socket
import sys
from typing import Final

from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config import identity_files
from ntf_server.config.ca import default_ca_file
from ntf_server.config.contact import is_public_name
from ntf_server.config.source import CONFIG_FILE
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.store.sealing import generate_key_text
from smp_bridge.address import ServerAddress, parse_host
from smp_bridge.network import is_public_host

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
    parser.add_argument("--fqdn", type=common.host, metavar="NAME", help="host name in the server's address")
    parser.add_argument("--ip", type=_ip, metavar="IP", help="IP address in the server's address, without --fqdn")
    parser.add_argument("--port", type=_port, default=443, metavar="N", help="port to listen on (443)")
    parser.add_argument(
        "--sign-algorithm", choices=list(common.ALGORITHMS), default="ED448", help="of the certificates"
    )


def run(arguments: argparse.Namespace) -> int:
    """Never overwrites anything."""
    directory = common.directory(arguments)
    host = arguments.fqdn or arguments.ip or _local_name()
    for name in (CONFIG_FILE, *identity_files.FILES):
        if os.path.lexists(directory / name):
            raise UsageError(f"{directory / name}: is there already, and is kept; give a new folder by --path")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        key_hash = identity_files.create_identity(directory, common.ALGORITHMS[arguments.sign_algorithm], host)
        identity_files.write_file(directory / identity_files.MASTER_KEY, f"{generate_key_text()}\n".encode())
        identity_files.write_file(directory / identity_files.VAPID_KEY, key_pem(generate_key()))
        text = config_text(host, arguments.port, web_push=default_ca_file() is not None)
        identity_files.write_file(directory / CONFIG_FILE, text.encode(), 0o644)
    except OSError as e:
        raise UsageError(f"{e.filename or directory}: {e.strerror}; choose a folder that can be written") from e
    print(
        f"Move {directory / identity_files.CA_KEY} offline: it is the server's identity, and only"
        " `ntf-server cert` needs it.",
        file=sys.stderr,
    )
    if not is_public_host(host):
        print(f"Apps elsewhere do not reach {host}: give the server's name by --fqdn.", file=sys.stderr)
    print(ServerAddress.ntf(host, arguments.port, key_hash))
    return 0


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
