"""`ntf-server check`."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from ntf_server.cli import arguments as common
from ntf_server.config import files as config
from ntf_server.config import identity_files
from ntf_server.push.apns.settings import SECTIONS
from ntf_server.push.webpush.vapid import Vapid


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)


def run(arguments: argparse.Namespace) -> int:
    """Load all that `start` loads, and show it."""
    for name, value in _lines(config.load(common.directory(arguments))):
        print(f"{name:<11} {value}")
    return 0


def _lines(loaded: config.Config) -> Iterator[tuple[str, object]]:
    settings = loaded.settings
    transport = settings.transport
    yield (
        "address",
        common.server_address(transport.host or "localhost", transport.port, loaded.credentials.key_hash),
    )
    yield "listen on", f"{transport.bind or '*'}:{transport.port}"
    if isinstance(loaded.store, Path):
        yield "database", f"{loaded.store} ({'exists' if loaded.store.exists() else 'will be created'})"
    else:
        yield "store", f"{loaded.store}, keys {loaded.store.prefix}:…"
    hosts = config.apns_hosts(settings)
    for section, host in hosts.items():
        yield "push", f"{SECTIONS[section]} through {host.host}:{host.port}"
    if certificate := loaded.client_certificate:
        yield "certificate", f"{certificate.name}, good until {certificate.not_after:%Y-%m-%d}"
        if warning := certificate.warning():
            yield "warning", warning
    if loaded.service_account:
        project = loaded.service_account.project_id
        yield "push", f"FC through {settings.fcm.host}:{settings.fcm.port}, project {project}"
    if loaded.vapid_key:
        key = Vapid(loaded.vapid_key, settings.web_push.contact).public_key
        yield "push", f"WP; apps subscribe with the application server key {key}"
    if not hosts:
        yield "push", "no Apple devices: set [apns] key_file, key_id and team_id"
    if (loaded.directory / identity_files.CA_KEY).exists():
        yield "warning", f"{loaded.directory / identity_files.CA_KEY} should be offline"
