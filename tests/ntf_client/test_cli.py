"""The command `ntf-client`, run as users run it: what it does, prints, and exits with."""

import asyncio
import json
import os
import re
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ntf_client import Device, state
from ntf_client.state import DeviceState, Subscription
from ntf_server.testing import FcmMessage, MockApns, MockFcm, MockWebPush, webpush
from ntf_server.testing.relay import RunningRelay, running_relay
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url
from smp_bridge.messages import MessageMeta
from smp_bridge.testing import Recipient, SmpServer
from smp_bridge.transmission import Err

TOKEN = "00ff" * 16
SMP = ServerAddress("smp", ("localhost",), "", bytes(32))
NTF = ServerAddress("ntf", ("localhost",), "", bytes(32))
Registered = Callable[..., Awaitable[Device]]


@dataclass
class Result:
    code: int | None
    out: str
    err: str

    def fails(self, code: int, text: str) -> bool:
        """One line that says this, and nothing else."""
        one_line = self.err.startswith("ntf-client: ") and self.err.count("\n") == 1
        assert (self.code, self.out, one_line, text in self.err) == (code, "", True, True), self
        return True


@dataclass
class Cli:
    path: Path

    async def __call__(self, *argv: str, given: bytes = b"", environment: dict[str, str] | None = None) -> Result:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ntf_client", *argv),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "NTF_CLIENT_STATE": str(self.path), **(environment or {})},
        )
        out, err = await process.communicate(given)
        result = Result(process.returncode, out.decode(), err.decode())
        assert "Traceback" not in result.err, result.err
        return result

    async def ok(self, *argv: str, given: bytes = b"") -> str:
        result = await self(*argv, given=given)
        assert (result.code, result.err) == (0, ""), result
        return result.out


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path / "device.json")


@pytest.fixture
def offline(cli: Cli) -> DeviceState:
    """The state of a registered device that has one queue, without any server."""
    new = DeviceState.new(NTF, ntf.DeviceToken(ntf.Provider.APNS_TEST, TOKEN.encode()))
    subscription = Subscription(b"subscription", SMP, b"notifier", bytes(range(32)))
    saved = DeviceState(new.server, new.token, new.verify_key, new.dh_key, bytes(24), bytes(32), (subscription,))
    state.save(cli.path, saved)
    return saved


def payload(kind: str, plain: bytes, secret: bytes = bytes(32)) -> bytes:
    nonce = os.urandom(24)
    data = {"nonce": b64url(nonce), kind: b64url(crypto.box(secret, nonce, crypto.pad(plain, 2000)))}
    return json.dumps({"aps": {}, "notificationData": data}).encode()


def entry(notifier_id: bytes, secret: bytes, server: str = str(SMP), at: int = 1_700_000_000) -> bytes:
    nonce = os.urandom(24)
    return ntf.Entry(server, notifier_id, at, nonce, MessageMeta(b"message", at - 1).seal(secret, nonce)).encode()


async def test_from_register_to_delete(
    *,
    cli: Cli,
    relay: ServerAddress,
    mock_apns: MockApns,
    smp_server: SmpServer,
    recipient: Recipient,
    tmp_path: Path,
    secret_texts: Callable[[Path], list[str]],
    until: Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]],
) -> None:
    queue = await recipient.queue()
    said = await cli.ok("register", str(relay), "--provider", "AT", "--token", TOKEN)
    assert str(relay) in said
    assert stat.S_IMODE(cli.path.stat().st_mode) == 0o600
    push = await mock_apns.next(TOKEN)
    said += await cli.ok("verify", "--payload", "-", given=json.dumps(push.body).encode())

    key, secret = tmp_path / "notifier.key", b64url(queue.notifier_secret)
    key.write_bytes(crypto.encode_private(queue.notifier_key))
    subscribe = ("subscribe", str(smp_server.address), "--notifier-id", b64url(queue.notifier_id))
    said += await cli.ok(*subscribe, "--notifier-key", str(key), "--secret", secret)
    await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
    said += await cli.ok("periodic", "30")

    shown: dict[str, Any] = {}

    async def active() -> bool:
        shown.update(json.loads(await cli.ok("status", "--json")))
        return bool(shown["subscriptions"][0]["status"] == "ACTIVE")

    await until(active)
    [subscription] = shown["subscriptions"]
    assert shown["server"] == str(relay)
    assert (shown["token"]["provider"], shown["token"]["status"], shown["token"]["reason"]) == ("AT", "ACTIVE", None)
    assert subscription["server"] == str(smp_server.address)
    assert subscription["notifier_id"] == b64url(queue.notifier_id)
    assert subscription["id"] in said
    text = await cli.ok("status")
    assert re.search(r"token +AT ACTIVE\n", text)
    assert f"{subscription['id']}  ACTIVE" in text

    await queue.send("hello")
    push = await mock_apns.next(TOKEN)
    opened = json.loads(await cli.ok("decrypt", "--json", given=json.dumps(push.body).encode()))
    received = await queue.receive()
    [notification] = opened["notifications"]
    assert opened["kind"] == "messages"
    assert notification["message_id"] == b64url(received.message_id)
    assert (notification["timestamp"], notification["error"]) == (received.timestamp, None)

    assert not any(secret in said + text for secret in secret_texts(cli.path))
    assert TOKEN not in said + text

    await cli.ok("replace", "--provider", "AT", "--token", "aa" * 32)
    code = json.loads(
        await cli.ok("decrypt", "--json", given=json.dumps((await mock_apns.next("aa" * 32)).body).encode())
    )
    assert "Not verified" in await cli.ok("status")
    await cli.ok("verify", code["code"])
    await cli.ok("unsubscribe", subscription["id"])
    assert json.loads(await cli.ok("status", "--json"))["subscriptions"] == []
    await cli.ok("delete")
    assert not cli.path.exists()


@pytest.fixture
async def every_provider(tmp_path: Path, mock_apns: MockApns) -> AsyncIterator[RunningRelay]:
    """A relay that pushes through every mock."""
    directory = tmp_path / "every"
    directory.mkdir()
    async with (
        MockFcm() as fcm,
        MockWebPush() as web_push,
        running_relay(directory, mock_apns, fcm, web_push) as running,
    ):
        yield running


async def test_fcm_and_web_push(
    cli: Cli, every_provider: RunningRelay, smp_server: SmpServer, recipient: Recipient, tmp_path: Path
) -> None:
    fcm, web_push, file = every_provider.fcm, every_provider.web_push, tmp_path / "subscription.json"
    first, second = (web_push.subscribe(every_provider.application_server_key) for _ in range(2))
    queue = await recipient.queue()

    async def verify(received: FcmMessage | bytes | None) -> None:
        data = json.dumps(dict(received.data)).encode() if isinstance(received, FcmMessage) else received
        assert data is not None
        await cli.ok("verify", "--payload", "-", given=data)
        assert json.loads(await cli.ok("status", "--json"))["token"]["status"] == "ACTIVE"

    async def check(data: bytes | None) -> None:
        assert data is not None
        [opened] = json.loads(await cli.ok("decrypt", "--json", given=data))["notifications"]
        assert opened["message_id"] == b64url((await queue.receive()).message_id)

    file.write_text(json.dumps(first.to_json()))
    said = await cli.ok("register", str(every_provider.address), "--provider", "WP", "--subscription", str(file))
    await verify((await web_push.next(first)).data)
    subscribe = ("subscribe", str(smp_server.address), "--notifier-id", b64url(queue.notifier_id), "--notifier-key")
    key = b64url(crypto.encode_private(queue.notifier_key))
    await cli.ok(*subscribe, key, "--secret", b64url(queue.notifier_secret))
    await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
    await queue.send("to a browser")
    await check((await web_push.next(first)).data)

    said += await cli.ok("replace", "--provider", "FC", "--token", "a:registration_token")
    await verify(await fcm.next("a:registration_token"))
    await queue.send("to Android")
    await check(json.dumps(dict((await fcm.next()).data)).encode())

    other = json.dumps(second.to_json()).encode()
    said += await cli.ok("replace", "--provider", "WP", "--subscription", "-", given=other)
    await verify((await web_push.next(second)).data)
    await queue.send("to another browser")
    await check((await web_push.next(second)).data)
    assert b64url(second.auth).rstrip("=") not in said + await cli.ok("status")
    assert second.path not in said + await cli.ok("status", "--json")
    text = f"webpush {second.endpoint} {b64url(second.auth)} {b64url(second.p256dh)}"
    assert f"device token  {text}\n" in await cli.ok("status", "--show-token")
    assert json.loads(await cli.ok("status", "--show-token", "--json"))["device_token"] == text


async def test_an_endpoint_as_long_as_those_of_mozilla(
    cli: Cli, every_provider: RunningRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    web_push = every_provider.web_push
    monkeypatch.setattr(webpush, "_PREFIX", "/wpush/v2/".ljust(180, "a"))
    subscription = web_push.subscribe(every_provider.application_server_key)
    text = f"webpush {subscription.endpoint} {b64url(subscription.auth)} {b64url(subscription.p256dh)}"
    register = ("register", str(every_provider.address), "--provider", "WP", "--token", text)
    for _ in range(2):
        await cli.ok(*register)
        data = (await web_push.next(subscription)).data
        assert data is not None
        await cli.ok("verify", "--payload", "-", given=data)
        assert json.loads(await cli.ok("status", "--json"))["token"]["status"] == "ACTIVE"
    long = text.replace("localhost", "a" * 60 + ".example")
    assert (await cli("replace", "--provider", "WP", "--token", long)).fails(2, "too long for the protocol")
    longer = text.replace("/wpush/v2/", "/wpush/v2/" + "a" * 90)
    assert (await cli("replace", "--provider", "WP", "--token", longer)).fails(2, "255 bytes each at most")


async def test_subscriptions_that_are_none(cli: Cli, tmp_path: Path) -> None:
    register = ("register", str(NTF), "--provider", "WP", "--subscription")
    assert (await cli(*register, str(tmp_path / "missing"))).fails(2, "cannot be read")
    given = json.dumps({"endpoint": "http://MARKER", "keys": {"auth": "MARKER", "p256dh": "MARKER"}}).encode()
    result = await cli(*register, "-", given=given)
    assert result.fails(2, "--subscription: p256dh")
    assert "MARKER" not in result.err


async def test_the_test_of_a_server(cli: Cli, relay: ServerAddress) -> None:
    lines = (await cli.ok("test", str(relay))).splitlines()
    steps = [re.fullmatch(r"(.*?) +\d+\.\d ms", line) for line in lines[:3]]
    assert [m and m[1] for m in steps] == ["connected, NTF version 3", "registered a null token", "deleted it"]
    assert lines[3:] == [f"{relay} works"]
    assert not cli.path.exists()


async def test_the_test_leaves_nothing_on_the_server(cli: Cli, scripted: Callable[..., Any]) -> None:
    server = await scripted(ntf.IdTkn(b"token", X25519PrivateKey.generate().public_key()), ntf.Ok())
    await cli.ok("test", str(server.address))
    new, delete = server.received
    assert isinstance(new, ntf.TNew)
    assert new.token.provider is ntf.Provider.APNS_NULL
    assert delete == ntf.TDel()


async def test_a_server_that_cannot_be_used(cli: Cli, scripted: Callable[..., Any]) -> None:
    server = await scripted(Err("INTERNAL"), ntf.Pong(), "close", None)
    address = server.address
    test = ("test", str(address))

    def lines(result: Result) -> str:
        assert result.code == 1
        assert result.err.count("\n") == 1
        assert re.fullmatch(r"connected, NTF version 3 +\d+\.\d ms\n", result.out)
        return result.err

    assert "refused: INTERNAL" in lines(await cli(*test))
    assert "TNEW was answered with PONG" in lines(await cli(*test))
    assert "cannot be reached: the connection was closed" in lines(await cli(*test))
    silent = await cli(*test, "--timeout", "1")
    assert (silent.code, "did not answer in time" in silent.err) == (1, True), silent
    stranger = ServerAddress("ntf", address.hosts, address.port, bytes(32))
    assert (await cli("test", str(stranger))).fails(1, "not the server that the address names")
    await server.stop()
    assert (await cli(*test)).fails(1, "cannot be reached")


async def test_register_again_and_register_another(cli: Cli, relay: ServerAddress, mock_apns: MockApns) -> None:
    register = ("register", str(relay), "--provider", "AT", "--token", TOKEN)
    nowhere = ServerAddress("ntf", ("localhost",), "1", relay.key_hash)
    assert (await cli("register", str(nowhere), *register[2:])).fails(1, "cannot be reached")
    await cli.ok(*register)
    first = cli.path.read_bytes()
    await cli.ok(*register)
    assert cli.path.read_bytes() == first
    assert (await mock_apns.next(TOKEN)).push_type == (await mock_apns.next(TOKEN)).push_type == "background"
    for other in (("register", str(nowhere), *register[2:]), (*register[:-1], "aa")):
        assert (await cli(*other)).fails(2, "holds another registration")
    assert cli.path.read_bytes() == first


async def test_a_registration_without_an_answer(cli: Cli, scripted: Callable[..., Any], relay: ServerAddress) -> None:
    server = await scripted("close")
    options = ("--provider", "AN", "--token", "any")
    assert (await cli("register", str(server.address), *options)).fails(1, "cannot be reached")
    kept = state.load(cli.path)
    assert kept.token_id is None
    assert (await cli("status")).fails(2, "register` again")
    await cli.ok("register", str(relay), *options)  # a mistyped address does not lock the file
    assert state.load(cli.path).server == relay


async def test_what_the_server_refuses(cli: Cli, registered: Registered, recipient: Recipient) -> None:
    device = await registered()
    assert (await cli("verify", b64url(bytes(32)))).fails(1, "refused: AUTH")
    assert (await cli("periodic", "5")).fails(1, "refused: QUOTA")
    async with device.connect() as client:
        await client.delete(device.token_id or b"", state.load(cli.path).verify_key)
    assert (await cli("status")).fails(1, "refused: AUTH")
    assert (await cli("delete")).fails(1, "refused: AUTH")
    assert cli.path.exists()
    await cli.ok("delete", "--force")
    assert not cli.path.exists()


async def test_status_shows_what_it_can(cli: Cli, scripted: Callable[..., Any], offline: DeviceState) -> None:
    answers = ntf.Tkn(ntf.TokenStatus.INVALID, ntf.InvalidReason.BAD), Err("AUTH")
    terminal = ntf.Sub(ntf.SubscriptionStatus.ERR, "\x1b[2J text")
    server = await scripted(*answers, *answers, ntf.Tkn(ntf.TokenStatus.ACTIVE), terminal)
    state.save(
        cli.path,
        DeviceState(
            server.address,
            offline.token,
            offline.verify_key,
            offline.dh_key,
            offline.token_id,
            offline.secret,
            offline.subscriptions,
        ),
    )
    text = await cli.ok("status")
    assert "AT INVALID (BAD)" in text
    assert f"{b64url(b'subscription')}  refused AUTH" in text
    shown = json.loads(await cli.ok("status", "--json"))
    assert (shown["token"]["status"], shown["token"]["reason"]) == ("INVALID", "BAD")
    assert (shown["subscriptions"][0]["status"], shown["subscriptions"][0]["error"]) == (None, "AUTH")
    assert f"{b64url(b'subscription')}  ERR ?[2J text" in await cli.ok("status")


async def test_decrypt(cli: Cli, offline: DeviceState, tmp_path: Path) -> None:
    known = offline.subscriptions[0].secret or b""
    entries = [
        entry(b"notifier", known),
        entry(b"stranger", known),
        entry(b"notifier", bytes(32)),
        entry(b"\x00", known, "\x1b[2J", 10**18),
    ]
    file = tmp_path / "push.json"
    file.write_bytes(payload("message", b";".join(entries)))
    lines = (await cli.ok("decrypt", str(file))).splitlines()
    assert lines == [
        f"2023-11-14T22:13:20Z  {SMP}/{b64url(b'notifier')}",
        f"          message {b64url(b'message')} of 2023-11-14T22:13:19Z",
        f"2023-11-14T22:13:20Z  {SMP}/{b64url(b'stranger')}",
        "          the queue's secret is not known",
        f"2023-11-14T22:13:20Z  {SMP}/{b64url(b'notifier')}",
        "          the queue's secret does not open this notification",
        f"{10**18} s  ?[2J/AA==",
        "          the queue's secret is not known",
    ]
    shown = json.loads(await cli.ok("decrypt", "--json", str(file)))["notifications"]
    assert [n["message_id"] for n in shown] == [b64url(b"message"), None, None, None]
    assert [n["timestamp"] for n in shown] == [1_699_999_999, None, None, None]
    assert [n["received_at"] for n in shown] == [1_700_000_000] * 3 + [10**18]

    code = payload("verification", bytes(32))
    assert await cli.ok("decrypt", "-", given=code) == f"verification code {b64url(bytes(32))}\n"
    assert json.loads(await cli.ok("decrypt", "--json", given=code)) == {
        "kind": "verification",
        "code": b64url(bytes(32)),
    }
    assert await cli.ok("decrypt", given=b'{"checkMessages":"true"}') == "check messages\n"
    assert json.loads(await cli.ok("decrypt", "--json", given=b'{"checkMessages":true}')) == {"kind": "check"}


async def test_pushes_that_do_not_open(cli: Cli, offline: DeviceState, tmp_path: Path) -> None:
    assert (await cli("decrypt", given=b"\xff")).fails(1, "not JSON")
    assert (await cli("decrypt", given=payload("message", b"", bytes(range(32))))).fails(1, "does not open")
    assert (await cli("verify", "--payload", "-", given=b'{"checkMessages":true}')).fails(1, "no verification code")
    assert (await cli("decrypt", str(tmp_path / "missing"))).fails(2, "cannot be read")


async def test_state_files_that_are_not_usable(cli: Cli, tmp_path: Path) -> None:
    assert (await cli("status")).fails(2, "register a device first")
    cli.path.write_text('{"format":"ntf-client device","version":99}')
    assert (await cli("delete", "--force")).fails(2, "newer")
    assert cli.path.exists()
    cli.path.write_text("{")
    broken = await cli("register", str(NTF), "--provider", "AN", "--token", "any")
    assert broken.fails(2, "is broken")
    assert (await cli("--state", str(tmp_path), "status")).fails(2, "cannot be read")


async def test_where_the_state_is(cli: Cli, relay: ServerAddress, tmp_path: Path) -> None:
    register = ("register", str(relay), "--provider", "AN", "--token", "any")
    before, after, home = tmp_path / "before.json", tmp_path / "after.json", tmp_path / "home"
    await cli.ok("--state", str(before), *register)
    await cli.ok(*register, "--state", str(after))
    assert before.exists()
    assert after.exists()
    assert not cli.path.exists()
    assert (await cli(*register, environment={"NTF_CLIENT_STATE": "", "HOME": str(home)})).code == 0
    assert (home / ".config" / "ntf-client" / "device.json").exists()


KEY = b64url(crypto.encode_private(Ed25519PrivateKey.generate()))
QUEUE = ("--notifier-id", "AAAA", "--notifier-key", KEY)
USAGE: list[tuple[str, ...]] = [
    (),
    ("nothing",),
    ("test",),
    ("test", "localhost"),
    ("test", str(SMP)),
    ("test", str(NTF), "--timeout", "0"),
    ("test", str(NTF), "--timeout", "nan"),
    ("test", str(NTF), "--timeout", "soon"),
    ("register", str(NTF), "--provider", "AT"),
    ("register", str(NTF), "--provider", "XX", "--token", "00"),
    ("register", str(NTF), "--provider", "AT", "--token", "0"),
    ("register", str(NTF), "--provider", "FC", "--token", ""),
    ("register", str(NTF), "--provider", "WP", "--token", "00"),
    ("register", str(NTF), "--provider", "AT", "--subscription", "missing"),
    ("register", str(NTF), "--provider", "WP", "--subscription", "missing", "--token", "00"),
    ("replace", "--provider", "WP"),
    ("verify",),
    ("verify", "%"),
    ("verify", "A" * 344),
    ("verify", "AAAA", "--payload", "-"),
    ("periodic", "65536"),
    ("periodic", "-1"),
    ("unsubscribe", ""),
    ("unsubscribe", "AAAA"),
    ("subscribe", str(NTF), *QUEUE),
    ("subscribe", str(SMP)),
    ("subscribe", str(SMP), *QUEUE[:3], "AAAA"),
    ("subscribe", str(SMP), *QUEUE[:3], "/nonexistent/" + KEY),
    ("subscribe", str(SMP), *QUEUE, "--secret", b64url(b"MARKER")),
]


@pytest.mark.parametrize("argv", USAGE, ids=" ".join)
def test_bad_usage(
    argv: tuple[str, ...], offline: DeviceState, cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """In this process: argparse and the checks need no other, and there are many."""
    from ntf_client.cli import main

    monkeypatch.setenv("NTF_CLIENT_STATE", str(cli.path))
    with pytest.raises(SystemExit) as caught:
        main(argv)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert KEY not in err
    assert b64url(b"MARKER") not in err
    assert "A" * 344 not in err
    assert re.fullmatch(r"ntf-client.*: .*", err.splitlines()[-1])


async def test_an_address_that_does_not_fit_a_block(
    cli: Cli, scripted: Callable[..., Any], offline: DeviceState
) -> None:
    server = await scripted()
    long = ServerAddress("smp", ("a" * 200, "b" * 200), "", bytes(32))
    device = DeviceState(server.address, offline.token, offline.verify_key, offline.dh_key, bytes(24), bytes(32))
    state.save(cli.path, device)
    assert (await cli("subscribe", str(long), *QUEUE)).fails(2, "too large")


async def test_output_that_nobody_reads(offline: DeviceState, cli: Cli) -> None:
    command = f"'{sys.executable}' -m ntf_client decrypt --json | true"
    process = await asyncio.create_subprocess_shell(
        command,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NTF_CLIENT_STATE": str(cli.path)},
    )
    _, err = await process.communicate(payload("verification", bytes(32)))
    assert err == b""
