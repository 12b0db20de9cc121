"""Pushes that come to nothing, what `ntf-server push-test` says of each, and the page of the documentation that lists
them with the meanings of all answers (`scripts/wrong-set-ups` writes it).
"""

import asyncio
import contextlib
import email.utils
import io
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from name_server import Dns
from redis_servers import free_port

from ntf_server.cli import main as cli
from ntf_server.config.identity_files import create_identity, write_file
from ntf_server.config.source import CONFIG_FILE
from ntf_server.push import cures
from ntf_server.push.jose import generate_key, key_pem, public_point
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing import (
    Answer,
    MockApns,
    MockFcm,
    MockWebPush,
    Silence,
    Subscription,
    fcm_error,
    grant_error,
)
from ntf_server.testing.google import api_error

PAGE: Final = Path(__file__).parents[1] / "docs/reference/push-test.md"
DEVICE: Final = "0123456789abcdef" * 4
REGISTRATION: Final = "dQw4w9WgXcQ:APA91b-registration"
TOPIC: Final = "chat.simplex.app"
KEY_ID: Final = "ABC123DEFG"
TEAM_ID: Final = "5NN7GUYB6T"


@dataclass
class Said:
    """What a command said."""

    code: int
    out: str
    err: str


class World:
    """Push services that check what theirs check, and a relay's folder with credentials for them."""

    def __init__(self, folder: Path, apns: MockApns, fcm: MockFcm, web_push: MockWebPush, dns: Dns) -> None:
        self.folder, self.apns, self.fcm, self.web_push, self.dns = folder, apns, fcm, web_push, dns
        self.vapid = generate_key()
        self.stack = contextlib.AsyncExitStack()
        self.stdin = ""
        self.arguments: list[str] = []
        folder.mkdir()
        create_identity(folder, "ED25519", "localhost")
        write_file(folder / "master.key", f"{generate_key_text()}\n".encode())
        write_file(folder / "vapid.key", key_pem(self.vapid))
        write_file(folder / CONFIG_FILE, b"")
        fcm.service_account(folder / "account.json")
        self.environ = {
            "TRANSPORT__NAME_SERVERS": f"127.0.0.1:{dns.port}",
            "APNS__KEY_FILE": f"AuthKey_{KEY_ID}.p8",
            "APNS__KEY_ID": KEY_ID,
            "APNS__TEAM_ID": TEAM_ID,
            "APNS__TOPIC": TOPIC,
            "APNS__PRODUCTION__HOST": "127.0.0.1",
            "APNS__PRODUCTION__PORT": str(apns.port),
            "APNS__PRODUCTION__CA_FILE": str(apns.ca_file),
            "FCM__SERVICE_ACCOUNT_FILE": "account.json",
            "FCM__HOST": "127.0.0.1",
            "FCM__PORT": str(fcm.port),
            "FCM__CA_FILE": str(fcm.ca_file),
            "WEB_PUSH__KEY_FILE": "vapid.key",
            "WEB_PUSH__CONTACT": "mailto:push@relay.example",
            "WEB_PUSH__CA_FILE": str(web_push.ca_file),
            "WEB_PUSH__ALLOW_HOSTS": "localhost",
            "DELIVERY__TIMEOUT": "5",
        }
        self.subscription = web_push.subscribe(public_point(self.vapid))

    def set(self, **values: str) -> None:
        """Variables, by SECTION__KEY."""
        self.environ |= values

    def text(self, subscription: Subscription | None = None) -> str:
        return json.dumps((subscription or self.subscription).to_json())

    @property
    def variables(self) -> dict[str, str]:
        return {f"NTF_SERVER__{key}": value for key, value in self.environ.items()}

    async def push(self, *arguments: str) -> Said:
        """By the command, in a thread of this process."""
        return await self.command("push-test", *arguments)

    async def command(self, name: str, *arguments: str) -> Said:
        """Any command of this folder."""
        return await asyncio.to_thread(self._run, name, arguments)

    def _run(self, name: str, arguments: tuple[str, ...]) -> Said:
        out, err, code = io.StringIO(), io.StringIO(), -1
        stdin = io.TextIOWrapper(io.BytesIO(self.stdin.encode()))
        with (
            patch.dict(os.environ, self.variables),
            patch.object(sys, "stdin", stdin),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                cli.main([name, "--path", str(self.folder), *arguments])
            except SystemExit as e:
                code = int(e.code or 0)
        return Said(code, out.getvalue(), err.getvalue())


@contextlib.asynccontextmanager
async def world(tmp_path: Path) -> AsyncIterator[World]:
    key = generate_key()
    async with (
        MockApns(public_key=key.public_key(), key_id=KEY_ID, team_id=TEAM_ID, topics=[TOPIC, "org.other"]) as apns,
        MockFcm() as fcm,
        MockWebPush() as web_push,
        Dns() as dns,
    ):
        made = World(tmp_path / "relay", apns, fcm, web_push, dns)
        write_file(made.folder / f"AuthKey_{KEY_ID}.p8", key_pem(key))
        async with made.stack:
            yield made


# --- what is wrong

Spoil = Callable[[World], Any]


@dataclass(frozen=True)
class WrongPush:
    """`spoil`: what is done to a world that is right; `words`: what is said of it, in one line."""

    what: str
    provider: str
    spoil: Spoil
    words: str
    code: int = 1


def told(words: str, world: World) -> str:
    """A pattern of words as they are in this world."""
    return re.escape(words.replace("DIR", str(world.folder))).replace("PORT", r"\d+")


def _nothing(_: World) -> None:
    pass


def setting(**values: str) -> Spoil:
    return lambda world: world.set(**values)


def _apns(*answers: Any) -> Spoil:
    return lambda world: world.apns.script(*answers)


def _fcm(*answers: Any) -> Spoil:
    return lambda world: world.fcm.script(*answers)


def _web_push(*answers: Any) -> Spoil:
    return lambda world: world.web_push.script(*answers)


def _arguments(*arguments: str) -> Spoil:
    def spoil(world: World) -> None:
        world.arguments = list(arguments)

    return spoil


def _hours_off(world: World) -> None:
    date = email.utils.formatdate(time.time() + 7200, usegmt=True)
    world.apns.script(*[Answer(403, "ExpiredProviderToken", headers=(("date", date),))] * 2)


def _another_key(world: World) -> None:
    write_file(world.folder / f"AuthKey_{KEY_ID}.p8", key_pem(generate_key()))


def _unresolved(world: World) -> None:
    world.dns.refused.add("push.example")
    world.set(APNS__PRODUCTION__HOST="push.example")


async def _no_tls(world: World) -> None:
    """Somebody who speaks first, and no TLS."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()
        await writer.wait_closed()

    server = await world.stack.enter_async_context(await asyncio.start_server(greet, "127.0.0.1", 0))
    world.set(APNS__PRODUCTION__PORT=str(server.sockets[0].getsockname()[1]))


def silent_grants(world: World) -> None:
    world.fcm.script_grants(Silence())
    world.set(DELIVERY__TIMEOUT="0.3")


def _silent(world: World) -> None:
    world.apns.script(Silence())
    world.set(DELIVERY__TIMEOUT="0.3")


def _silent_web_push(world: World) -> None:
    world.web_push.script(Silence())
    world.set(DELIVERY__TIMEOUT="0.3")


def _subscription(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    def spoil(world: World) -> None:
        given = json.loads(world.text())
        change(given)
        world.arguments = ["--subscription", json.dumps(given)]

    return spoil


def _dead_proxy(section: str) -> Spoil:
    return lambda world: world.set(**{f"{section}__PROXY": f"http://127.0.0.1:{free_port()}"})


WRONG_PUSHES: Final = [
    WrongPush(
        "Apple knows no such device token",
        "apns",
        lambda world: world.apns.reject_token(DEVICE),
        "answer        400 BadDeviceToken",
    ),
    WrongPush(
        "a device token of another app",
        "apns",
        lambda world: world.apns.bind_token(DEVICE, "org.other"),
        "the device token is of another app than the topic",
    ),
    WrongPush("a topic of another team", "apns", setting(APNS__TOPIC="org.third"), "400 TopicDisallowed"),
    WrongPush("another team's id", "apns", setting(APNS__TEAM_ID="AAAAAAAAAA"), "403 InvalidProviderToken"),
    WrongPush(
        "a key that Apple revoked, or never gave out",
        "apns",
        _another_key,
        "Apple takes no JWT of this key with these ids: one of them is not the key's, or the key was revoked",
    ),
    WrongPush(
        "this machine's clock is two hours behind",
        "apns",
        _hours_off,
        " s behind Apple's",
    ),
    WrongPush(
        "the app was removed",
        "apns",
        lambda world: world.apns.unregister(DEVICE, 1_700_000_000_000),
        "answer        410 Unregistered (since 2023-11-14 22:13:20 UTC)",
    ),
    WrongPush("too many pushes to one device", "apns", _apns(Answer(429, "TooManyRequests")), "429 TooManyRequests"),
    WrongPush("Apple is in trouble", "apns", _apns(Answer(503, "ServiceUnavailable")), "the provider is in trouble"),
    WrongPush("an error without a body", "apns", _apns(Answer(418)), "answer        418 after"),
    WrongPush("Apple says nothing", "apns", _silent, "timed out after"),
    WrongPush(
        "a CA bundle that is not Apple's",
        "apns",
        setting(APNS__PRODUCTION__CA_FILE="ca.crt"),
        "TLS           127.0.0.1:PORT: its certificate is not trusted",
    ),
    WrongPush(
        "nobody listens at that port",
        "apns",
        lambda world: world.set(APNS__PRODUCTION__PORT=str(free_port())),
        "connection    127.0.0.1:PORT: Connection refused",
    ),
    WrongPush("a name that nobody knows", "apns", _unresolved, "push.example: no address is known for it"),
    WrongPush(
        "no route to the provider",
        "apns",
        setting(APNS__PRODUCTION__HOST="2001:db8::1"),
        "connection    [2001:db8::1]:",
    ),
    WrongPush("a mail server instead of Apple's", "apns", _no_tls, "TLS           127.0.0.1:PORT:"),
    WrongPush("a proxy that is down", "apns", _dead_proxy("APNS"), "by way of the proxy: connection refused"),
    WrongPush(
        "a device token that is no hex",
        "apns",
        _arguments("--token", "x" * 64),
        "64 characters: Apple's have 64 hex digits or more",
    ),
    WrongPush(
        "the app is gone from the phone", "fcm", lambda world: world.fcm.unregister(REGISTRATION), "404 UNREGISTERED"
    ),
    WrongPush(
        "a device token of another Firebase project",
        "fcm",
        lambda world: world.fcm.mismatch_sender(REGISTRATION),
        "the device token is of another Firebase project than the service account",
    ),
    WrongPush(
        "a device token that is none of FCM's",
        "fcm",
        lambda world: world.fcm.reject_token(REGISTRATION),
        "400 INVALID_ARGUMENT (The registration token is not a valid FCM registration token)",
    ),
    WrongPush(
        "a service account that was deleted",
        "fcm",
        lambda world: world.fcm.script_grants(grant_error("invalid_grant", "Invalid grant: account not found")),
        "access token  400 invalid_grant (Invalid grant: account not found)",
    ),
    WrongPush(
        "a service account without the right to send",
        "fcm",
        _fcm(api_error(403, "PERMISSION_DENIED", "No.")),
        "the service account may not send messages of this project",
    ),
    WrongPush(
        "a project that is not there", "fcm", _fcm(api_error(404, "NOT_FOUND", "No.")), "there is no such project"
    ),
    WrongPush(
        "an access token that Google does not take",
        "fcm",
        _fcm(*[api_error(401, "UNAUTHENTICATED", "No.")] * 2),
        "401 UNAUTHENTICATED",
    ),
    WrongPush("Google has enough of it", "fcm", _fcm(fcm_error("QUOTA_EXCEEDED")), "429 QUOTA_EXCEEDED"),
    WrongPush("Google says nothing", "fcm", silent_grants, "access token  timed out after"),
    WrongPush(
        "nobody listens where messages go",
        "fcm",
        lambda world: world.set(FCM__PORT=str(free_port())),
        "connection    127.0.0.1:PORT: Connection refused",
    ),
    WrongPush(
        "the browser unsubscribed",
        "webpush",
        lambda world: world.web_push.unsubscribe(world.subscription),
        "answer        410",
    ),
    WrongPush(
        "a subscription that is over",
        "webpush",
        lambda world: world.web_push.unsubscribe(world.subscription, 404),
        "answer        404",
    ),
    WrongPush(
        "a subscription for another VAPID key",
        "webpush",
        lambda world: write_file(world.folder / "vapid.key", key_pem(generate_key())),
        "403",
    ),
    WrongPush("a push service that is busy", "webpush", _web_push(Answer(429)), "answer        429 after"),
    WrongPush("a push service that takes less", "webpush", _web_push(Answer(413)), "too large for this push service"),
    WrongPush("a push service that has moved", "webpush", _web_push(Answer(301)), "it leads elsewhere"),
    WrongPush("a push service that says nothing", "webpush", _silent_web_push, "timed out after"),
    WrongPush(
        "a push service at home that was not allowed",
        "webpush",
        setting(WEB_PUSH__ALLOW_HOSTS=""),
        "its host is not on the public internet",
    ),
    WrongPush(
        "the endpoint of a subscription is no https URL",
        "webpush",
        _subscription(lambda given: given.update(endpoint="http://push.example/p")),
        "--subscription: the endpoint of a push subscription is an https URL in ASCII",
        2,
    ),
    WrongPush(
        "a subscription without its keys",
        "webpush",
        _subscription(lambda given: given.pop("keys")),
        "--subscription: neither the JSON of a push subscription (endpoint, keys.p256dh, keys.auth) nor",
        2,
    ),
    WrongPush(
        "a subscription whose key is no point",
        "webpush",
        _subscription(lambda given: given["keys"].update(p256dh="BA" + "A" * 85)),
        "--subscription: bad Web Push subscription",
        2,
    ),
    WrongPush(
        "a file that is not there",
        "webpush",
        _arguments("--subscription", "absent.json"),
        "--subscription absent.json: No such file or directory; give a file",
        2,
    ),
    WrongPush(
        "a token file that is not there",
        "fcm",
        _arguments("--token-file", "absent"),
        "--token-file absent: No such file or directory; give a file",
        2,
    ),
    WrongPush(
        "a token file without a name",
        "fcm",
        _arguments("--token-file", ""),
        "--token-file : Is a directory; give a file",
        2,
    ),
    WrongPush("nothing on standard input", "fcm", _arguments("--token", "-"), "is not one word of 1 to 255", 2),
    WrongPush(
        "two words for a device token", "fcm", _arguments("--token", "one two"), "is not one word of 1 to 255", 2
    ),
    WrongPush(
        "a device token for Web Push",
        "webpush",
        _arguments("--token", DEVICE),
        "give --subscription for --provider webpush, and --token or --token-file for the others",
        2,
    ),
    WrongPush(
        "a second opinion of nobody",
        "webpush",
        lambda world: _arguments("--second-opinion", "--subscription", world.text())(world),
        "--second-opinion: there is none for Web Push",
        2,
    ),
    WrongPush(
        "a provider that is off",
        "apns-test",
        _nothing,
        "DIR/ntf-server.toml: there is no way to devices of AT: set [apns.test] host",
        2,
    ),
    WrongPush(
        "a mistake in the configuration",
        "fcm",
        setting(FCM__PROT="1"),
        "NTF_SERVER__FCM__PROT: [fcm] prot: unknown key; did you mean port?",
        2,
    ),
    WrongPush(
        "a folder without a configuration",
        "fcm",
        lambda world: (world.folder / CONFIG_FILE).unlink(),
        "DIR/ntf-server.toml: not found",
        2,
    ),
]


def given(row: WrongPush, world: World) -> list[str]:
    """The arguments of a push that is right but for what was spoiled."""
    if world.arguments:
        return world.arguments
    if row.provider == "webpush":
        return ["--subscription", world.text()]
    return ["--token", REGISTRATION if row.provider == "fcm" else DEVICE]


# --- the page

_HEAD: Final = """# What `ntf-server push-test` says

`ntf-server push-test --provider PROVIDER --token TOKEN` pushes to one device with the credentials that `start` would
read, and says each step and every answer: credentials, JWT or access token, name, connection, request, answer, and what
this machine's clock is to the provider's. The push is of the kind of the relay's periodic ones: it has the app check
for messages, and shows nothing. 0: the provider took it; 1: it did not; 2: it could not be asked.

`--dry-run` wakes nobody. FCM judges the push and does not pass it on (`validate_only`). APNs and push services of Web
Push have nothing of the kind: to them all is done but the last step. `--second-opinion` asks once more by another
implementation, aioapns or pyfcm, and says whether the answer is another one. For Web Push there is none: the hosts are
strangers', and pywebpush reads answers of whatever length. Each run makes a JWT of its own; Apple
wants few of one key, with 20 minutes between two, and may say `TooManyProviderTokenUpdates` to many runs in a row.

A device token in a command line can be seen by all who may list processes, and stays in the history of the shell: give
`--token -` (standard input) or `--token-file FILE`, and `--subscription FILE` or `-`. No device token, key or JWT is
printed.

## Answers, and what to do

"""


def _tables() -> Iterator[str]:
    tables = (("Apple", cures.APNS), ("Google: messages", cures.FCM), ("Google: access tokens", cures.OAUTH))
    for title, words in (*tables, ("Web Push", cures.WEB_PUSH)):
        yield f"### {title}\n\n| answer | means | cure |\n| --- | --- | --- |\n"
        yield from (f"| `{word}` | {meaning} | {cure} |\n" for word, (meaning, cure) in words.items())
        yield "\n"


_WRONG: Final = """## Pushes that come to nothing

`tests/test_wrong_pushes.py` makes these, and has the command say this; `scripts/wrong-set-ups` writes
this page. `DIR` is the folder of the configuration, `PORT` a port.

| what is wrong | `--provider` | what is said of it, or the part that matters | exit code |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The whole page."""
    rows = [f"| {row.what} | {row.provider} | `` {row.words} `` | {row.code} |\n" for row in WRONG_PUSHES]
    return _HEAD + "".join(_tables()) + _WRONG + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
