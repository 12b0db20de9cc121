"""`ntf-server status`."""

import argparse
import json
import time

from ntf_server.admin.socket import ask
from ntf_server.cli import arguments as common
from ntf_server.config.files import load_admin_socket


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("--json", action="store_true", help="as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """1 if no server runs."""
    answer = ask(load_admin_socket(common.directory(arguments)), "status")
    if arguments.json:
        print(json.dumps(answer))
        return 0
    started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(answer["started"]))
    for name, value in (
        ("version", answer["version"]),
        ("process", answer["pid"]),
        ("started", started),
        ("listens on", answer["port"]),
        ("pushes to", ", ".join(answer["providers"])),
        ("failing", ", ".join(answer["waiting"]) or "nothing"),
    ):
        print(f"{name:<11} {value}")
    return 0
