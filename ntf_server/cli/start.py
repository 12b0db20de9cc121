"""`ntf-server start`."""

import argparse
import asyncio

from ntf_server import app
from ntf_server.cli import arguments as common
from ntf_server.config import files as config
from ntf_server.event_loop import EventLoop
from ntf_server.memory import keep_private
from ntf_server.push.jose import b64, public_point


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)


def run(arguments: argparse.Namespace) -> int:
    """Until SIGTERM or SIGINT."""
    keep_private()
    loaded = config.load(common.directory(arguments))
    app.set_up_log(loaded)
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        runner.run(app.run(loaded, lambda relay: _ready(loaded, relay), arguments.signals))
    return 0


def _ready(loaded: config.Config, relay: app.Relay) -> None:
    transport = loaded.settings.transport
    lines = [f"listening on {transport.bind or transport.host or '*'}:{relay.port}"]
    if loaded.vapid_key:  # as the reference tells it
        lines.append(f"VAPID: {b64(public_point(loaded.vapid_key))}")
    print("\n".join(lines), flush=True)
