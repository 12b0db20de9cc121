"""`ntf-server push-test`."""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config.files import Config, load
from ntf_server.findings import Finding, exit_code
from ntf_server.push.webpush.subscription import subscription_token
from ntf_server.second_opinion import OF, second_opinion
from ntf_server.trial import OffError, Trial
from smp_bridge.encoding import ParseError
from smp_bridge.ntf import DeviceToken, Provider

PROVIDERS: Final = {
    "apns": Provider.APNS,
    "apns-sandbox": Provider.APNS_SANDBOX,
    "apns-test": Provider.APNS_TEST,
    "fcm": Provider.FCM,
    "webpush": Provider.WEB_PUSH,
}
_LONGEST: Final = 255  # bytes of a device token that a relay takes
_SHOWN: Final = 60  # characters of what was given as a file's name
_MOST: Final = 64 * 1024  # bytes of a file that holds one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("--provider", required=True, choices=list(PROVIDERS), help="whose device it is")
    token = parser.add_mutually_exclusive_group(required=True)
    seen = "others see command lines: better give - for standard input"
    token.add_argument("--token", metavar="TOKEN|-", help=f"device token of Apple's or FCM's; {seen}, or --token-file")
    token.add_argument("--token-file", metavar="FILE", help="file that holds the device token")
    token.add_argument(
        "--subscription",
        metavar="FILE|-",
        help="Web Push: the JSON of a PushSubscription, or `webpush ENDPOINT AUTH P256DH`, in a file or from standard"
        f" input (-); the text itself does too, but {seen}",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="wake nobody: FCM judges the push and does not pass it on; to others nothing is sent, as they have nothing"
        " of the kind",
    )
    parser.add_argument(
        "--second-opinion", action="store_true", help="push once more by aioapns or pyfcm, and say whether that differs"
    )
    parser.add_argument("--json", action="store_true", help="as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """1 if the device would not be woken."""
    logging.getLogger().addHandler(logging.NullHandler())  # what is to be said is said below
    provider = PROVIDERS[arguments.provider]
    device = DeviceToken(provider, _device_token(arguments, provider))
    if arguments.second_opinion and provider not in OF:
        raise UsageError("--second-opinion: there is none for Web Push; leave it out")
    config = load(common.directory(arguments))
    try:
        trial = Trial(config, device, dry=arguments.dry_run)
    except OffError as e:
        raise UsageError(str(e)) from None
    findings = asyncio.run(_show(arguments, trial, config, device))
    code = exit_code(findings)
    if arguments.json:
        print(json.dumps({"exit_code": code, "steps": [dict(finding.fields()) for finding in findings]}))
    return code


async def _show(arguments: argparse.Namespace, trial: Trial, config: Config, device: DeviceToken) -> list[Finding]:
    findings = []
    async for finding in _all(arguments, trial, config, device):
        findings.append(finding)
        if not arguments.json:
            print("\n".join(finding.lines()), flush=True)
    return findings


async def _all(
    arguments: argparse.Namespace, trial: Trial, config: Config, device: DeviceToken
) -> AsyncIterator[Finding]:
    async for finding in trial.steps():
        yield finding
    if arguments.second_opinion:
        yield await second_opinion(config, device, trial.said, dry=arguments.dry_run)


def _device_token(arguments: argparse.Namespace, provider: Provider) -> bytes:
    """Raises UsageError, which shows no part of it."""
    if (arguments.subscription is not None) is not (provider is Provider.WEB_PUSH):
        raise UsageError("give --subscription for --provider webpush, and --token or --token-file for the others")
    if arguments.subscription is not None:
        text = arguments.subscription.strip()
        if not text.startswith(("{", "webpush ")):
            text = _read("--subscription", text)
        try:
            return subscription_token(text)
        except ParseError as e:
            raise UsageError(f"--subscription: {e}; give what the app gave to the relay") from None
    if arguments.token_file is not None or arguments.token.strip() == "-":
        of_file = arguments.token_file is not None
        given = _read("--token-file" if of_file else "--token", arguments.token_file if of_file else "-").strip()
    else:
        given = str(arguments.token).strip()
    if not given or not given.isascii() or not given.isprintable() or " " in given or len(given) > _LONGEST:
        what = f"the device token is not one word of 1 to {_LONGEST} printable characters"
        raise UsageError(f"{what}; give it as the app has it")
    return given.encode()


def _read(option: str, name: str) -> str:
    """Of a file, or of standard input. Raises UsageError."""
    try:
        if name == "-":
            data = sys.stdin.buffer.read(_MOST)
        else:
            with Path(name).open("rb") as file:
                data = file.read(_MOST)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) else "is no file's name"
        shown = name if len(name) < _SHOWN else "FILE"  # maybe it is what should be in one
        raise UsageError(f"{option} {shown}: {why}; give a file, or - for standard input") from None
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{option}: what it gives is no text; give the device token as the app has it") from None
