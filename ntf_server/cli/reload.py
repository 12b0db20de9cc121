"""`ntf-server reload`."""

import argparse

from ntf_server.admin.socket import ask
from ntf_server.cli import arguments as common
from ntf_server.config.files import load_admin_socket


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)


def run(arguments: argparse.Namespace) -> int:
    """1 if no server runs, 2 if it kept its configuration."""
    answer = ask(load_admin_socket(common.directory(arguments)), "reload")
    for name in answer["swapped"]:
        print(f"in use now      {name}")
    for name in answer["needs_restart"]:
        print(f"needs a restart {name}")
    if not answer["swapped"] and not answer["needs_restart"]:
        print("Nothing differs.")
    return 0
