"""The parties of the demo: the relay as an operator runs it, and the push services with what each of them sees."""

import asyncio
import base64
import contextlib
import json
import os
import secrets
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ntf_server.config.identity_files import VAPID_KEY, write_file
from ntf_server.push.jose import generate_key, key_pem, load_key
from ntf_server.testing import MockApns, MockFcm, MockWebPush, Subscription

_KEY_ID: Final = "DEMO123456"
_TEAM_ID: Final = "TEAM123456"
_START_TIMEOUT: Final = 20.0
_PREFIX: Final = "NTF_SERVER_"
_ECE_HEADER: Final = 86  # bytes before the ciphertext of a Web Push message (RFC 8188, section 2.1)


class DemoError(Exception):
    """Something that the story tells did not happen."""


def check(fact: bool, what: str) -> None:
    """Raise DemoError if it is not a fact."""
    if not fact:
        raise DemoError(what)


def cut(text: str, size: int = 24) -> str:
    """The beginning of a text."""
    return text if len(text) <= size else text[:size] + "…"


async def run(module: str, arguments: Sequence[str], given: bytes = b"", stderr: int | None = None) -> str:
    """Run one of the project's commands; gives what it printed. Raises DemoError if it fails."""
    process = await asyncio.create_subprocess_exec(
        *_command(module, arguments), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=stderr
    )
    out, _ = await process.communicate(given)
    check(process.returncode == 0, f"{module} failed")
    return out.decode().strip()


def _command(module: str, arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


class RelayProcess:
    """`ntf-server start` in a process of its own, so that it can really be killed.

    `identity`: its address without the port.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.identity = ""
        self.port = 0
        self._process: asyncio.subprocess.Process | None = None
        # Settings of a real server, in this shell, must not reach the demo's.
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith(_PREFIX)} | {
            "NTF_SERVER__SUBSCRIBER__ALLOW_PRIVATE_HOSTS": "true",
            "NTF_SERVER__LIMITS__ENABLED": "false",
            "NTF_SERVER__TRANSPORT__BIND": "127.0.0.1",
            "NTF_SERVER__LOG__LEVEL": "warning",
        }

    @property
    def address(self) -> str:
        """The address that a device needs."""
        return f"{self.identity}:{self.port}"

    async def init(self) -> None:
        """`ntf-server init`."""
        arguments = ["init", "--path", str(self.directory), "--fqdn", "localhost"]
        self.identity = await run("ntf_server", arguments, stderr=asyncio.subprocess.DEVNULL)

    def configure(self, settings: Mapping[str, str]) -> None:
        """More environment variables, for the next start."""
        self._environment |= settings

    async def start(self) -> None:
        """`ntf-server start`, and wait until it listens; a restart takes the same port."""
        self._process = await asyncio.create_subprocess_exec(
            *_command("ntf_server", ["start", "--path", str(self.directory)]),
            env=self._environment | {"NTF_SERVER__TRANSPORT__PORT": str(self.port)},
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(_START_TIMEOUT):
            line = (await self._process.stdout.readline()).decode().strip()
        check(line.startswith("listening on "), "the relay did not start")
        self.port = int(line.rpartition(":")[2])

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; gives the exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        return await process.wait()


@dataclass(frozen=True, slots=True)
class Seen:
    """A push: what its service sees of it, line by line, its size in bytes, and what reaches the device (JSON)."""

    lines: tuple[str, ...]
    size: int
    payload: bytes = field(repr=False)


class PushService(ABC):
    """A mock of a push service, and the device's registration with it. `server` is to be entered first."""

    who: str
    kind: str
    limit: int = 4096  # bytes of a push
    server: MockApns | MockFcm | MockWebPush

    @abstractmethod
    def settings(self, relay: Path) -> dict[str, str]:
        """Environment variables for the relay, whose folder is given and was initialized."""

    @abstractmethod
    def registration(self) -> tuple[str, list[str]]:
        """(how the device names its token, options of `ntf-client register`)."""

    @abstractmethod
    async def next(self) -> Seen:
        """The next push to the device. Raises TimeoutError."""


class Apple(PushService):
    """APNs; `directory` is for files."""

    who = "Apple"
    kind = "mock APNs"

    def __init__(self, directory: Path) -> None:
        key = generate_key()
        self._key_file = directory / "AuthKey.p8"
        write_file(self._key_file, key_pem(key))
        self._token = secrets.token_hex(32)
        self.server = self._apns = MockApns(public_key=key.public_key(), key_id=_KEY_ID, team_id=_TEAM_ID)

    def settings(self, relay: Path) -> dict[str, str]:
        """See `PushService`."""
        out = {
            "NTF_SERVER__APNS__KEY_FILE": str(self._key_file),
            "NTF_SERVER__APNS__KEY_ID": _KEY_ID,
            "NTF_SERVER__APNS__TEAM_ID": _TEAM_ID,
        }
        for section in ("TEST", "PRODUCTION", "SANDBOX"):  # nothing may leave this machine
            out |= _host(f"APNS__{section}", self.server)
        return out

    def registration(self) -> tuple[str, list[str]]:
        """See `PushService`."""
        return f"push token {cut(self._token, 12)}", ["--provider", "AT", "--token", self._token]

    async def next(self) -> Seen:
        """See `PushService`."""
        push = await self._apns.next(self._token)
        name, text = _sealed(push.body["notificationData"])
        head = f"A push of {push.size} bytes for {cut(push.token, 12)}: {push.push_type}, {name} ="
        return Seen((head, cut(text, 60)), push.size, json.dumps(push.body).encode())


class Google(PushService):
    """FCM; `directory` is for files."""

    who = "Google"
    kind = "mock FCM"

    def __init__(self, directory: Path) -> None:
        self._account = directory / "service-account.json"
        self._token = secrets.token_urlsafe(110)
        self.server = self._fcm = MockFcm()

    def settings(self, relay: Path) -> dict[str, str]:
        """See `PushService`."""
        account = str(self._fcm.service_account(self._account))
        return {"NTF_SERVER__FCM__SERVICE_ACCOUNT_FILE": account, **_host("FCM", self.server)}

    def registration(self) -> tuple[str, list[str]]:
        """See `PushService`."""
        return f"FCM token {cut(self._token, 12)}", ["--provider", "FC", f"--token={self._token}"]

    async def next(self) -> Seen:
        """See `PushService`."""
        message = await self._fcm.next(self._token)
        name, text = _sealed(message.data)
        head = f"Data of {message.size} bytes for {cut(message.token, 12)}: priority {message.priority}, {name} ="
        return Seen((head, cut(text, 60)), message.size, json.dumps(dict(message.data)).encode())


class WebPushService(PushService):
    """Web Push; `directory` is for files. The device is a browser, or an app with UnifiedPush."""

    who = "Push service"
    kind = "mock Web Push service"

    def __init__(self, directory: Path) -> None:
        self._file = directory / "subscription.json"
        self._subscription: Subscription | None = None
        self.server = self._web_push = MockWebPush()

    def settings(self, relay: Path) -> dict[str, str]:
        """See `PushService`. The browser subscribes with the relay's key: nobody else may push to it."""
        key = load_key((relay / VAPID_KEY).read_bytes()).public_key()
        self._subscription = self._web_push.subscribe(key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
        return {
            "NTF_SERVER__WEB_PUSH__KEY_FILE": VAPID_KEY,
            "NTF_SERVER__WEB_PUSH__CONTACT": "mailto:operator@relay.example",
            "NTF_SERVER__WEB_PUSH__CA_FILE": str(self.server.ca_file),
            "NTF_SERVER__WEB_PUSH__ALLOW_HOSTS": "localhost",
        }

    def registration(self) -> tuple[str, list[str]]:
        """See `PushService`."""
        assert self._subscription is not None
        write_file(self._file, json.dumps(self._subscription.to_json()).encode())
        return f"subscription {cut(self._subscription.path)}", ["--provider", "WP", "--subscription", str(self._file)]

    async def next(self) -> Seen:
        """See `PushService`. What reaches the device is what the browser's keys decrypt."""
        message = await self._web_push.next(self._subscription)
        head = (
            f"A message of {message.size} bytes for {cut(message.subscription.path)}: urgency {message.urgency}, body ="
        )
        text = base64.b64encode(message.body[_ECE_HEADER:]).decode()
        return Seen((head, cut(text, 60)), message.size, message.data or b"")


SERVICES: Final[Mapping[str, type[Apple | Google | WebPushService]]] = {
    "apns": Apple,
    "fcm": Google,
    "webpush": WebPushService,
}


def _host(section: str, server: MockApns | MockFcm | MockWebPush) -> dict[str, str]:
    name = f"NTF_SERVER__{section}"
    return {f"{name}__HOST": "localhost", f"{name}__PORT": str(server.port), f"{name}__CA_FILE": str(server.ca_file)}


def _sealed(data: Mapping[str, str]) -> tuple[str, str]:
    """(name, value) of what is sealed for the device."""
    [name] = set(data) - {"nonce"}
    return name, data[name]
