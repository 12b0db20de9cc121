"""`ntf-server completions`: a script that has a shell complete the command, made from the parsers of all commands."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ntf_server.cli.main import COMMANDS, parser_of

SHELLS: Final = ("bash", "zsh", "fish")
_FILES: Final = frozenset(["FILE", "FILE|-", "FROM", "TARGET"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    parser.add_argument("shell", choices=SHELLS, help="which shell the script is for")


def run(arguments: argparse.Namespace) -> int:
    """To stdout: where it goes is the operator's to say."""
    import shtab  # noqa: PLC0415  this command alone needs it

    parser = parser_of(*COMMANDS)
    for action in _actions(parser):
        if action.metavar == "DIR":
            _complete_by(action, shtab.DIRECTORY)
        elif action.metavar in _FILES:
            _complete_by(action, shtab.FILE)
    print(shtab.complete(parser, arguments.shell))
    return 0


def _complete_by(action: Any, how: Mapping[str, Any]) -> None:
    """As shtab finds it."""
    action.complete = how


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser and of those inside it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
