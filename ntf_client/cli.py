"""The command `ntf-client`. Exit codes: 0 done, 1 refused, not reached or not opened, 2 bad usage or state file."""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ntf_client import arguments as args
from ntf_client.arguments import Run, UsageError
from ntf_client.client import NtfClient, TokenCheck
from ntf_client.device import Device, NotRegisteredError
from ntf_client.push import CheckMessages, NotificationInfo, Notifications, PushContent, PushError, VerificationCode
from ntf_client.state import StateError, StateNotFoundError, Subscription
from ntf_client.webpush import subscription_text
from smp_bridge.client import REQUEST_TIMEOUT, ServerError, UnexpectedAnswerError
from smp_bridge.encoding import b64url
from smp_bridge.handshake import HandshakeError, IdentityMismatchError
from smp_bridge.ntf import DeviceToken, Provider, TokenStatus

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: parse, run, exit."""
    logging.basicConfig(handlers=[logging.NullHandler()])  # what went wrong is told in one line
    arguments = args.parse(sys.argv[1:] if argv is None else argv, _COMMANDS)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
        code = 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        code = 1
    except KeyboardInterrupt:
        code = 130
    except (UsageError, StateError, NotRegisteredError) as e:
        code = _fail(str(e), 2)
    except (ServerError, UnexpectedAnswerError, HandshakeError, OSError, PushError) as e:
        code = _fail(_explain(e), 1)
    except ValueError as e:  # too large for the wire
        code = _fail(str(e), 2)
    sys.exit(code)


def _fail(text: str, code: int) -> int:
    print(f"ntf-client: {_printable(text)}", file=sys.stderr)
    return code


def _explain(e: Exception) -> str:
    match e:
        case ServerError():
            hint = " (not known there, not ours, or not allowed in this status)" if e.error.code == "AUTH" else ""
            return f"the server refused: {e}{hint}"
        case IdentityMismatchError():
            return f"this is not the server that the address names: {e}"
        case UnexpectedAnswerError() | HandshakeError():
            return f"the server does not follow the protocol: {e}"
        case TimeoutError():
            return "the server did not answer in time"
        case OSError():
            return f"the server cannot be reached: {e.strerror or e or type(e).__name__}"
    return str(e)


def _printable(text: str) -> str:
    """Some texts are chosen by servers: they must not control the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _say(*lines: str) -> None:
    for line in lines:
        print(_printable(line))


# --- what commands have in common


def _path(arguments: argparse.Namespace) -> Path:
    if "state" in arguments:
        path: Path = arguments.state
        return path
    if os.environ.get("NTF_CLIENT_STATE"):
        return Path(os.environ["NTF_CLIENT_STATE"])
    try:
        return Path.home() / ".config" / "ntf-client" / "device.json"
    except RuntimeError as e:
        raise UsageError("there is no home folder: give --state, or set NTF_CLIENT_STATE") from e


def _timeout(arguments: argparse.Namespace) -> float:
    timeout: float = getattr(arguments, "timeout", REQUEST_TIMEOUT)
    return timeout


def _connected(arguments: argparse.Namespace, device: Device, do: Callable[[NtfClient], Awaitable[T]]) -> T:
    """Do something on a connection to the device's server."""

    async def connected() -> T:
        async with device.connect(timeout=_timeout(arguments)) as client:
            return await do(client)

    return asyncio.run(connected())


def _load(arguments: argparse.Namespace) -> Device:
    """The device, which must be registered."""
    path = _path(arguments)
    device = Device.load(path)
    if device.token_id is None:
        raise UsageError(f"{path}: the registration was not answered; run `ntf-client register` again")
    return device


# --- the commands


def _test(arguments: argparse.Namespace) -> None:
    asyncio.run(_test_server(arguments))


async def _test_server(arguments: argparse.Namespace) -> None:
    # a token of its own each time, so that no two tests meet
    token = DeviceToken(Provider.APNS_NULL, secrets.token_hex(32).encode())
    key, dh_key = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    at = time.perf_counter()

    def step(text: str) -> None:
        nonlocal at
        now = time.perf_counter()
        print(f"{text:<28} {(now - at) * 1000:8.1f} ms", flush=True)
        at = now

    async with NtfClient.connect(arguments.address, timeout=_timeout(arguments)) as client:
        step(f"connected, NTF version {client.version}")
        registration = await client.register(token, key, dh_key)
        step("registered a null token")
        await client.delete(registration.token_id, key)
        step("deleted it")
    _say(f"{arguments.address} works")


def _register(arguments: argparse.Namespace) -> None:
    token, path = args.device_token(arguments), _path(arguments)
    device = new = Device.create(arguments.address, token, path)
    with contextlib.suppress(StateNotFoundError):
        device = Device.load(path)
    same = (device.server, device.token) == (new.server, new.token)
    if not same and device.token_id is None:
        device = new  # that registration was never answered
    elif not same:
        raise UsageError(f"{path}: holds another registration; `replace` its token, `delete` it, or give --state")
    _connected(arguments, device, device.register)
    _say(f"Registered with {device.server}.")
    print("A code was pushed to the device: run `ntf-client verify` with it.")


def _verify(arguments: argparse.Namespace) -> None:
    device, code = _load(arguments), arguments.code
    if arguments.payload is not None:
        content = device.open_push(args.payload(arguments.payload))
        if not isinstance(content, VerificationCode):
            raise PushError("this push holds no verification code")
        code = content.code
    _connected(arguments, device, lambda client: device.verify(client, code))
    print("Verified: the token is active.")


def _subscribe(arguments: argparse.Namespace) -> None:
    device, queue = _load(arguments), args.queue(arguments)
    subscription = _connected(arguments, device, lambda client: device.subscribe(client, queue))
    print(f"Subscribed: {b64url(subscription.subscription_id)}")


def _unsubscribe(arguments: argparse.Namespace) -> None:
    device = _load(arguments)
    found = [s for s in device.subscriptions if arguments.id in (s.subscription_id, s.notifier_id)]
    if len(found) != 1:
        raise UsageError(
            f"{_path(arguments)}: {len(found) or 'no'} subscriptions with this id; see `ntf-client status`"
        )
    _connected(arguments, device, lambda client: device.unsubscribe(client, found[0]))
    print("Unsubscribed.")


def _periodic(arguments: argparse.Namespace) -> None:
    device = _load(arguments)
    _connected(arguments, device, lambda client: device.set_period(client, arguments.minutes))
    print(f"A push every {arguments.minutes} minutes." if arguments.minutes else "No periodic pushes.")


def _replace(arguments: argparse.Namespace) -> None:
    device, token = _load(arguments), args.device_token(arguments)
    _connected(arguments, device, lambda client: device.replace(client, token))
    print("Replaced. A code was pushed to the new token: run `ntf-client verify` with it.")


def _delete(arguments: argparse.Namespace) -> None:
    path = _path(arguments)
    device = Device.load(path)
    try:
        _connected(arguments, device, device.delete)
    except (NotRegisteredError, ServerError, UnexpectedAnswerError, HandshakeError, OSError):
        if not arguments.force:
            raise
        device.forget()
        _say(f"The server did not delete it; {path} is deleted.")
    else:
        _say(f"Deleted, with {path}.")


# --- status


class _Checked(NamedTuple):
    """A subscription's status; None, with the server's error, if it refused to tell."""

    status: str | None
    error: str


class _Status(NamedTuple):
    device: Device
    token: TokenCheck
    subscriptions: list[tuple[Subscription, _Checked]]
    show_token: bool

    def json(self) -> dict[str, Any]:
        assert self.device.token_id is not None
        shown = {"device_token": _token_text(self.device.token)} if self.show_token else {}
        return {
            "server": str(self.device.server),
            **shown,
            "token": {
                "id": b64url(self.device.token_id),
                "provider": self.device.token.provider,
                "status": self.token.status,
                "reason": self.token.reason,
            },
            "subscriptions": [
                {
                    "id": b64url(s.subscription_id),
                    "server": str(s.server),
                    "notifier_id": b64url(s.notifier_id),
                    "status": checked.status,
                    "error": checked.error,
                }
                for s, checked in self.subscriptions
            ],
        }

    def lines(self) -> list[str]:
        reason = f" ({self.token.reason})" if self.token.reason else ""
        out = [
            f"server        {self.device.server}",
            f"token         {self.device.token.provider} {self.token.status}{reason}",
        ]
        if self.show_token:
            out.append(f"device token  {_token_text(self.device.token)}")
        for s, checked in self.subscriptions:
            what = f"{checked.status or 'refused'} {checked.error}".rstrip()
            out.append(f"subscription  {b64url(s.subscription_id)}  {what}")
            out.append(f"              {s.server}/{b64url(s.notifier_id)}")
        if self.token.status not in (TokenStatus.ACTIVE, TokenStatus.INVALID):
            out.append("Not verified: run `ntf-client verify` with the code that was pushed.")
        return out


def _status(arguments: argparse.Namespace) -> None:
    device = _load(arguments)

    async def check(client: NtfClient) -> _Status:
        token = await device.check(client)
        checked = await asyncio.gather(*(_check(device, client, s) for s in device.subscriptions))
        return _Status(device, token, list(zip(device.subscriptions, checked, strict=True)), arguments.show_token)

    status = _connected(arguments, device, check)
    if arguments.json:
        print(json.dumps(status.json(), indent=2))
    else:
        _say(*status.lines())


def _token_text(token: DeviceToken) -> str:
    """As `register` takes it."""
    return subscription_text(token) if token.provider is Provider.WEB_PUSH else token.token.decode()


async def _check(device: Device, client: NtfClient, subscription: Subscription) -> _Checked:
    try:
        return _Checked(*await device.check_subscription(client, subscription))
    except ServerError as e:
        return _Checked(None, str(e))


# --- decrypt


def _decrypt(arguments: argparse.Namespace) -> None:
    device = _load(arguments)
    content = device.open_push(args.payload(arguments.file))
    if arguments.json:
        print(json.dumps(_push_json(device, content), indent=2))
    else:
        _say(*_push_lines(device, content))


def _push_json(device: Device, content: PushContent) -> dict[str, Any]:
    match content:
        case VerificationCode(code):
            return {"kind": "verification", "code": b64url(code)}
        case CheckMessages():
            return {"kind": "check"}
        case Notifications(infos):
            return {"kind": "messages", "notifications": [_info_json(device, info) for info in infos]}


def _info_json(device: Device, info: NotificationInfo) -> dict[str, Any]:
    """`message_id` and `timestamp` (Unix seconds) are None where `error` says why."""
    out = {"server": info.server, "notifier_id": b64url(info.notifier_id), "received_at": info.received_at}
    try:
        meta = device.open_notification(info)
    except PushError as e:
        return {**out, "message_id": None, "timestamp": None, "error": str(e)}
    if meta is None:
        return {**out, "message_id": None, "timestamp": None, "error": "the queue's secret is not known"}
    return {**out, "message_id": b64url(meta.message_id), "timestamp": meta.timestamp, "error": None}


def _push_lines(device: Device, content: PushContent) -> list[str]:
    match content:
        case VerificationCode(code):
            return [f"verification code {b64url(code)}"]
        case CheckMessages():
            return ["check messages"]
        case Notifications(infos):
            return [line for info in infos for line in _info_lines(_info_json(device, info))]


def _info_lines(info: Mapping[str, Any]) -> list[str]:
    if info["error"]:
        message = f"          {info['error']}"
    else:
        message = f"          message {info['message_id']} of {_time(info['timestamp'])}"
    return [f"{_time(info['received_at'])}  {info['server']}/{info['notifier_id']}", message]


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):  # a year that the calendar does not have
        return f"{seconds} s"


_COMMANDS: Final[Mapping[str, Run]] = {
    "test": _test,
    "register": _register,
    "verify": _verify,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "status": _status,
    "periodic": _periodic,
    "decrypt": _decrypt,
    "replace": _replace,
    "delete": _delete,
}
