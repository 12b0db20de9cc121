"""Arguments that several commands take, questions that they ask, and what else they begin with."""

import argparse
import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ntf_server.config import identity_files
from ntf_server.config.files import DEFAULT_DIR, config_dir
from smp_bridge.address import parse_host
from smp_bridge.encoding import ParseError
from smp_bridge.identity import SignAlgorithm

_MOST: Final = 1_000_000_000
_DIGITS: Final = 11  # of a number that is looked at
ALGORITHMS: Final[dict[str, SignAlgorithm]] = {"ED448": "ED448", "ED25519": "ED25519"}


def add_path(parser: argparse.ArgumentParser) -> None:
    """`--path`."""
    parser.add_argument(
        "--path", metavar="DIR", help=f"configuration folder ($NTF_SERVER_CFG_PATH, else {DEFAULT_DIR})"
    )


def directory(arguments: argparse.Namespace) -> Path:
    """What `--path` says."""
    return config_dir(arguments.path)


def confirmed(word: str, to: str) -> bool:
    """Whether the operator types this word to do what cannot be undone."""
    try:
        return input(f"Type {word} to {to}: ") == word
    except EOFError:  # nobody is there to answer
        print()
        return False


def quiet_store() -> None:
    """A Redis that is away is not told of by the log: the error that ends the command says it."""
    logging.getLogger("ntf_server.store.redis.database").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit, as SIGINT raises KeyboardInterrupt: what was begun is undone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def host(text: str) -> str:
    """The argument type of host names and addresses that become a certificate's common name."""
    if len(text) > identity_files.MAX_NAME:
        raise argparse.ArgumentTypeError(f"is longer than the {identity_files.MAX_NAME} characters of a common name")
    try:
        return parse_host(text)
    except ParseError as e:
        raise argparse.ArgumentTypeError(str(e)) from e


def count(text: str) -> int:
    """The argument type of numbers from 1 on."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:_DIGITS]) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from 1 to {_MOST}")
    return int(text)


def days(text: str) -> float:
    """The argument type of a number of days from 0 on, with decimals or without."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number of days, from 0 on")
    return found


def printable(text: str) -> str:
    """What others chose, as it may be shown: it does not control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)
