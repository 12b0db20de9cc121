"""`ntf-server drain`."""

import argparse
import os
import select
import sys
from pathlib import Path
from typing import Any, Final

from ntf_server.admin.drain import DRAIN, LONGEST, told
from ntf_server.admin.socket import AdminError, ask
from ntf_server.cli import arguments as common
from ntf_server.config.files import load_admin_socket

_TIMEOUT: Final = 30.0
_END: Final = 30.0  # seconds that the process gets to end; a stop takes 20 at most


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=_TIMEOUT,
        metavar="SECONDS",
        help="how long answers and pushes under way are waited for (%(default)g); what is left then is given back",
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"is not from 0 to {LONGEST:g}")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """Until the server has ended. 1 if none runs, or if it does not end."""
    path = load_admin_socket(common.directory(arguments))
    answer = ask(path, DRAIN, seconds=arguments.timeout)
    try:
        process = os.pidfd_open(answer["pid"])
    except ProcessLookupError:  # it was over at once
        return _ended(answer)
    try:
        answer = _follow(path, arguments.timeout, answer)
        ended, _, _ = select.select([process], [], [], _END)
    finally:
        os.close(process)
    if not ended:
        raise AdminError(f"the server has drained, but its process {answer['pid']} has not ended")
    return _ended(answer)


def _follow(path: Path, seconds: float, answer: dict[str, Any]) -> dict[str, Any]:
    """Tell how far it is until it is over: the last answer. On a terminal in one line, else in one for each change."""
    begin, end = ("\r\033[K", "") if sys.stdout.isatty() else ("", "\n")
    last = ""
    while not answer["over"]:
        line = f"still held: {told(answer)}"
        if line != last:
            print(f"{begin}{line}", end=end, flush=True)
            last = line
        try:
            answer = ask(path, DRAIN, seconds=seconds)
        except AdminError:  # it ends, and this was asked too late
            break
    print(begin, end="", flush=True)
    return answer


def _ended(answer: dict[str, Any]) -> int:
    if not answer["over"]:
        print("Stopped.")  # by a signal
    elif answer["pushes"]:
        print(f"Drained, and stopped. Not finished in time, and given back: {told(answer)}.")
    else:
        print("Drained, and stopped.")
    return 0
