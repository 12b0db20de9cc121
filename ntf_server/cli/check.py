"""`ntf-server check`."""

import argparse
import asyncio
import contextlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ntf_server.cli import arguments as common
from ntf_server.cli.errors import FINAL, UsageError, exit_code, lines
from ntf_server.cli.service_user import ServiceUser, add_user, service_user
from ntf_server.config.contradictions import apns_hosts
from ntf_server.config.files import Config, load_admin_socket, look_over
from ntf_server.config.mistakes import ConfigError
from ntf_server.config.source import read_settings
from ntf_server.permissions import may, user_name
from ntf_server.preflight import Found, preflight, running_relay, try_ports
from ntf_server.push.apns.settings import SECTIONS
from ntf_server.push.webpush.vapid import Vapid
from smp_bridge.address import ServerAddress

_LATE: Final = (  # what is imported where it is needed, and may be out of reach of the service's user
    *("concurrent.futures.thread", "difflib", "encodings.idna", "encodings.utf_8_sig", "msgspec.inspect", "traceback"),
    *("ntf_server.store.redis.engine", "ntf_server.store.redis.glance", "pycares", "python_socks.async_.asyncio"),
)
_NOT_ITS: Final = "{}: user {} may not read the program: install it where that user may"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("--json", action="store_true", help="as one line of JSON")
    add_user(parser)


def run(arguments: argparse.Namespace) -> int:
    """Do what `start` does, short of serving, and show it: all that is in its way is told at once."""
    logging.getLogger().addHandler(logging.NullHandler())  # what is in the way is told below
    directory = common.directory(arguments)
    user = service_user(arguments.user, directory)
    before = become(user, directory) if user else None
    with program_can_be_read():
        config, mistakes = look_over(directory)
        found = asyncio.run(preflight(config, ports=before is None))
    troubles = [*([mistakes.error] if mistakes else []), *(before.troubles if before else ()), *found.troubles]
    codes = {exit_code(trouble) or FINAL for trouble in troubles}
    code = FINAL if FINAL in codes else max(codes, default=0)
    shown = [] if mistakes else [(name, str(value)) for name, value in _lines(config, found, user)]
    wrong = [line for trouble in troubles for line in lines(trouble)]
    if arguments.json:
        print(json.dumps({"exit_code": code, "wrong": wrong, "found": shown}))
        return code
    for name, text in shown:
        print(f"{name:<11} {text}")
    sys.stdout.flush()
    for line in wrong:
        print(f"ntf-server: {line}", file=sys.stderr)
    return code


def become(user: ServiceUser, directory: Path) -> Found | None:
    """From now on this is the service's user. What its unit lets it listen on is tried before: what was found."""
    found = asyncio.run(_try_low_ports(directory)) if user.low_ports else None
    for name in _LATE:
        importlib.import_module(name)
    user.become()
    return found


async def _try_low_ports(directory: Path) -> Found:
    found = Found()
    with contextlib.suppress(ConfigError):  # which is told later
        found.running = await running_relay(load_admin_socket(directory))
    await try_ports(directory, read_settings(directory)[0], found)
    return found


def _lines(config: Config, found: Found, user: ServiceUser | None) -> Iterator[tuple[str, object]]:
    settings = config.settings
    transport = settings.transport
    yield "address", ServerAddress.ntf(transport.host or "localhost", transport.port, config.credentials.key_hash)
    yield "listen on", f"{transport.bind or '*'}:{transport.port}"
    yield "user", f"{user_name()}{f' ({user.why})' if user else ''}"
    if found.running is not None:
        yield (
            "running",
            f"process {found.running.get('pid', 'of another user')}, with this configuration or an older one",
        )
    if settings.metrics.port:
        yield "metrics", f"{settings.metrics.bind or '*'}:{settings.metrics.port}"
    if config.page:
        yield "live page", config.page.url
    kind, where = ("database", "") if isinstance(config.store, Path) else ("store", f", keys {config.store.prefix}:…")
    yield kind, f"{config.store}{where}{f' ({found.store})' if found.store else ''}"
    yield "SMP hosts", _way(config)
    yield from _pushes(config)
    yield from (("warning", warning) for warning in found.warnings)
    if (unreadable := program_unreadable()) is not None:
        yield "warning", unreadable


def program_unreadable() -> str | None:
    """That the service's user may not read the program, and the cure; None if it may."""
    return None if may(Path(os.__file__), os.R_OK) else _NOT_ITS.format(sys.prefix, user_name())


@contextlib.contextmanager
def program_can_be_read() -> Iterator[None]:
    """Raises UsageError if what was not imported yet cannot be by the service's user."""
    try:
        yield
    except (ImportError, LookupError) as e:
        if (unreadable := program_unreadable()) is None:
            raise
        raise UsageError(unreadable) from e


def _way(config: Config) -> str:
    """How SMP servers are reached."""
    network = config.network
    hosts = f"{network.host_mode} ones {'only' if network.required_host_mode else 'first'}"
    if network.socks_proxy is None:
        return f"{hosts}, without a proxy"
    through = "all" if network.socks_mode == "always" else "onion ones"
    return f"{hosts}, {through} through {network.socks_proxy.host}:{network.socks_proxy.port}"


def _pushes(config: Config) -> Iterator[tuple[str, str]]:
    """Each way to devices."""
    settings = config.settings
    hosts = apns_hosts(settings)
    by = {"apns": settings.apns.proxy, "fcm": settings.fcm.proxy, "web_push": settings.web_push.proxy}
    proxy = {section: ", by way of a proxy" if url else "" for section, url in by.items()}
    for section, host in hosts.items():
        yield "push", f"{SECTIONS[section]} through {host.host}:{host.port}{proxy['apns']}"
    if certificate := config.client_certificate:
        yield "certificate", f"{certificate.name}, good until {certificate.not_after:%Y-%m-%d}"
    if config.service_account:
        project = config.service_account.project_id
        yield "push", f"FC through {settings.fcm.host}:{settings.fcm.port}, project {project}{proxy['fcm']}"
    if config.vapid_key:
        key = Vapid(config.vapid_key, settings.web_push.contact).public_key
        yield "push", f"WP; apps subscribe with the application server key {key}{proxy['web_push']}"
    if not hosts:
        yield "push", "no Apple devices: set [apns] key_file, key_id and team_id"
