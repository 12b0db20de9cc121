"""`ntf-server start`."""

import argparse
import asyncio

from ntf_server import app
from ntf_server.cli import arguments as common
from ntf_server.config import files as config
from ntf_server.observe.logs import set_up_logging


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)


def run(arguments: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT."""
    loaded = config.load(common.directory(arguments))
    set_up_logging(loaded.settings.log.level, loaded.settings.log.format)
    asyncio.run(app.run(loaded, lambda relay: _ready(loaded, relay), arguments.signals))
    return 0


def _ready(loaded: config.Config, relay: app.Relay) -> None:
    transport = loaded.settings.transport
    print(f"listening on {transport.bind or transport.host or '*'}:{relay.port}", flush=True)
