"""The arguments of `ntf-client`, checked. Values that are secret appear in no error."""

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from ntf_client.device import Queue
from ntf_client.state import parse_id, parse_secret
from ntf_client.version import VERSION
from ntf_client.webpush import subscription_token
from smp_bridge import crypto
from smp_bridge.address import Scheme, ServerAddress
from smp_bridge.client import REQUEST_TIMEOUT
from smp_bridge.encoding import ParseError, b64url, un_b64url
from smp_bridge.ntf import DeviceToken, Provider

T = TypeVar("T")
Run = Callable[[argparse.Namespace], None]

_PROVIDERS: Final = ("AT", "AP", "AD", "AN", "FC", "WP")
_HEX_PROVIDERS: Final = frozenset([Provider.APNS, Provider.APNS_SANDBOX, Provider.APNS_TEST])
_LIKE_AN_OPTION: Final = re.compile(r"-[A-Za-z0-9_:-]{31,}={0,2}")


class UsageError(Exception):
    """One line for the user; exit code 2."""


def parse(argv: Sequence[str], commands: Mapping[str, Run]) -> argparse.Namespace:
    """Parse a command line; exits with 2 if it is wrong. `run` in the result is one of `commands`."""
    # base64url may begin with a dash: a space before it, stripped later, tells argparse that it is a value
    return _parser(commands).parse_args([f" {a}" if _LIKE_AN_OPTION.fullmatch(a) else a for a in argv])


def _parser(runs: Mapping[str, Run]) -> argparse.ArgumentParser:
    common = _common()
    parser = argparse.ArgumentParser(
        prog="ntf-client",
        description="A device of a SimpleX push notification server.",
        epilog="Exit codes: 0 done; 1 the server refused or cannot be reached, or a push does not open; 2 bad usage.",
        parents=[common],
        allow_abbrev=False,
    )
    text = f"ntf-client {VERSION}"
    parser.add_argument("--version", action="version", version=text, help="show the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        sub.set_defaults(run=runs[name])
        return sub

    test = command("test", "Connect to a server, register a null token, delete it; tell how long it took.")
    test.add_argument("address", metavar="ADDRESS", type=_address("ntf"), help="ntf://KEYHASH@host[:port]")
    register = command("register", "Register a device; again: have its code pushed again.")
    register.add_argument("address", metavar="ADDRESS", type=_address("ntf"), help="ntf://KEYHASH@host[:port]")
    _add_token(register)
    verify = command("verify", "Prove that the device gets its pushes, by the code of the first one.")
    code = verify.add_mutually_exclusive_group(required=True)
    code.add_argument("code", metavar="CODE", type=_code, nargs="?", help="the code as base64url")
    code.add_argument("--payload", metavar="FILE", help="the push with the code; - is standard input")
    subscribe = command("subscribe", "Be notified of a queue's messages.")
    _add_queue(subscribe)
    unsubscribe = command("unsubscribe", "No more notifications of a queue.")
    unsubscribe.add_argument("id", metavar="ID", type=_checked(parse_id), help="subscription or notifier id")
    status = command("status", "Ask for the status of the token and of all subscriptions.")
    status.add_argument("--json", action="store_true", help="for scripts")
    status.add_argument(
        "--show-token", action="store_true", help="the device token too; of Web Push who has it can push to the device"
    )
    periodic = command("periodic", "Ask for a push every so many minutes.")
    periodic.add_argument("minutes", metavar="MINUTES", type=_minutes, help="20 or more; 0: none")
    decrypt = command("decrypt", "Open a push; needs no server.")
    decrypt.add_argument("file", metavar="FILE", nargs="?", default="-", help="the payload; - is standard input")
    decrypt.add_argument("--json", action="store_true", help="for scripts")
    _add_token(command("replace", "Give the server a new device token; it has to be verified."))
    delete = command("delete", "Delete the registration, its subscriptions and the state file.")
    delete.add_argument(
        "--force", action="store_true", help="delete the state file even if the server refuses or is gone"
    )
    return parser


def _common() -> argparse.ArgumentParser:
    """Options that may stand before and after the command."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--state",
        metavar="FILE",
        type=Path,
        default=argparse.SUPPRESS,
        help="the device ($NTF_CLIENT_STATE, else ~/.config/ntf-client/device.json)",
    )
    common.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=argparse.SUPPRESS,
        help=f"for connecting, and for each answer ({REQUEST_TIMEOUT:.0f})",
    )
    return common


def _add_token(parser: argparse.ArgumentParser) -> None:
    text = "AT: APNs test; AP: APNs; AD: APNs sandbox; AN: APNs null; FC: FCM; WP: Web Push"
    parser.add_argument("--provider", required=True, choices=_PROVIDERS, help=text)
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", metavar="HEX", help="the device token; of AN and FC any text; of WP `webpush …`")
    token.add_argument(
        "--subscription", metavar="FILE", help="of WP: the push subscription, JSON or `webpush …`; - is standard input"
    )


def _add_queue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="SMP_ADDRESS", type=_address("smp"), help="smp://KEYHASH@host[:port]")
    parser.add_argument("--notifier-id", required=True, metavar="B64", type=_checked(parse_id), help="of the queue")
    parser.add_argument(
        "--notifier-key",
        required=True,
        metavar="FILE-or-B64",
        help="the notifier's private key, PKCS#8 DER, as base64url or in a file (better: others see command lines)",
    )
    parser.add_argument("--secret", metavar="FILE-or-B64", help="DH secret that opens the queue's notifications")


def _checked(take: Callable[[str], T]) -> Callable[[str], T]:
    """For argparse, which would show the value with any other error than its own."""

    def checked(text: str) -> T:
        try:
            return take(text.strip())
        except ParseError as e:
            raise argparse.ArgumentTypeError(str(e)) from None

    return checked


def _address(scheme: Scheme) -> Callable[[str], ServerAddress]:
    def take(text: str) -> ServerAddress:
        address = ServerAddress.from_text(text)
        if address.scheme != scheme:
            raise ParseError(f"not an {scheme}:// address")
        return address

    return _checked(take)


@_checked
def _code(text: str) -> bytes:
    code = un_b64url(text)
    if not 0 < len(code) <= 255:
        raise ParseError("a code has 1 to 255 bytes")
    return code


def _minutes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError("must be 0 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError("must be more than 0, and 86400 at most")
    return seconds


def device_token(arguments: argparse.Namespace) -> DeviceToken:
    """From --provider and --token or --subscription; APNs tokens are hex text on the wire too. Raises UsageError."""
    provider = Provider(arguments.provider)
    if provider is Provider.WEB_PUSH:
        option = "--token" if arguments.subscription is None else "--subscription"
        try:
            return subscription_token(arguments.token or payload(arguments.subscription))
        except ParseError as e:
            raise UsageError(f"{option}: {e}") from None
    if arguments.token is None:
        raise UsageError("--subscription: goes with --provider WP, --token with the others")
    text = arguments.token.strip()
    if not 0 < len(text) <= 255 or not text.isascii() or not text.isprintable():
        raise UsageError("--token: must be 1 to 255 printable ASCII characters")
    if provider in _HEX_PROVIDERS and not re.fullmatch(r"([0-9a-fA-F]{2})+", text):
        raise UsageError(f"--token: a token of {provider} is hexadecimal, two digits a byte")
    return DeviceToken(provider, text.encode())


def queue(arguments: argparse.Namespace) -> Queue:
    """From the arguments of `subscribe`. Raises UsageError."""
    key = _material("--notifier-key", arguments.notifier_key, crypto.parse_auth_private)
    secret = None
    if arguments.secret is not None:
        secret = _material("--secret", arguments.secret, lambda raw: parse_secret(b64url(raw)))
    return Queue(arguments.address, arguments.notifier_id, key, secret)


def _material(option: str, text: str, take: Callable[[bytes], T]) -> T:
    """Key material: base64url, or a file that holds it as base64url or as it is."""
    try:
        try:
            data = Path(text).read_bytes()
        except (OSError, ValueError):  # no file, or not even a name for one: the value itself
            return take(un_b64url(text.strip()))
        try:
            return take(un_b64url(data.strip()))
        except ParseError:
            return take(data)
    except ParseError as e:
        raise UsageError(f"{option}: neither a readable file nor base64url: {e}") from e


def payload(file: str) -> bytes:
    """Content of a file, or of standard input for `-`. Raises UsageError."""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except (OSError, ValueError) as e:
        raise UsageError(f"{file}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
