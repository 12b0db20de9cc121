"""The command `ntf-server`: which commands there are, and what their exit codes mean. Each is a module of this package.

0: done. 1: failed while running, or there was nothing to be done. 2: no retry mends it (usage, configuration, a missing
file, a wrong master key, a corrupt or newer database). 75 (EX_TEMPFAIL of sysexits.h): it may pass by itself.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

from ntf_server.signals import Signals
from ntf_server.version import VERSION

COMMANDS: Final = {
    "init": "Make a new server identity and configuration.",
    "start": "Run the server.",
    "status": "Say how the running server is.",
    "reload": "Have the running server read its configuration again, as SIGHUP does.",
    "drain": "Have the running server hand over what it has, finish what is under way, and stop.",
    "cert": "Make a new online certificate of the same identity.",
    "check": "Check configuration and credentials; say what start would do.",
    "doctor": "Look whether all of the set-up is well, and say what mends it.",
    "push-test": "Push to one device with this server's credentials, and explain each step and every answer.",
    "backup": "Write all that the server needs into one sealed file, while it runs or not.",
    "restore": "Restore a backup into a new folder.",
    "rekey": "Change the key that seals the database; the server must be stopped.",
    "migrate": "Move a store into another one, between SQLite and Redis; no server may run.",
    "import": "Take over what simplexmq's ntf-server has; neither may run.",
    "trace": "Say what became of a device's pushes, while the server runs or not.",
    "tokens": "List, show, delete registrations or make them invalid, while the server runs or not.",
    "subs": "Show a subscription, or check all against what is subscribed.",
    "servers": "List SMP servers, or show one.",
    "stats": "Say what happened today, since the start, and on each day.",
    "vapid": "Print the public key that apps subscribe to Web Push with.",
    "delete": "Delete the server's identity, configuration and database.",
    "completions": "Print a script that has bash, zsh or fish complete this command.",
    "demo": "Show a wake-up from end to end, on this machine alone.",
}
INTERRUPTED: Final = 130
_MODULES: Final = {"import": "importing"}  # whose own name is a keyword of Python


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    argv = sys.argv[1:] if argv is None else argv
    chosen = next((a for a in argv if not a.startswith("-")), "")
    signals = Signals()
    if chosen == "start":  # before anything else is imported, so that no signal finds nobody
        signals.install()
    try:
        sys.exit(_run(argv, chosen, signals))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        signals.restore()


def _run(argv: Sequence[str], chosen: str, signals: Signals) -> int:
    arguments = parser_of(chosen).parse_args(argv)
    arguments.signals = signals
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who read it has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 1
    except Exception as e:
        from ntf_server.cli.errors import exit_code, lines  # noqa: PLC0415  takes all that can fail

        found = exit_code(e)
        if found is None:
            raise
        for line in lines(e):
            print(f"ntf-server: {line}", file=sys.stderr)
        return found
    return code


def parser_of(*chosen: str) -> argparse.ArgumentParser:
    """Only the chosen commands are imported: `status` needs no push engine."""
    parser = argparse.ArgumentParser(prog="ntf-server", description="SimpleX push notification server.")
    version = f"ntf-server {VERSION}"
    parser.add_argument("--version", action="version", version=version, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in chosen:
            module = importlib.import_module(f"ntf_server.cli.{_MODULES.get(name, name.replace('-', '_'))}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser
