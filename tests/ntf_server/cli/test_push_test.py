"""`ntf-server push-test`, as operators run it. What it says of what is wrong: tests/test_wrong_pushes.py."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import wrong_pushes
from command_line import run
from wrong_pushes import DEVICE, World

from ntf_server.cli.main import COMMANDS


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with wrong_pushes.world(tmp_path) as made:
        yield made


async def test_a_push_and_a_second_opinion(world: World) -> None:
    command = ["push-test", "--path", world.folder, "--provider", "apns", "--token", "-", "--second-opinion"]
    done = await asyncio.to_thread(run, *command, stdin=f"{DEVICE}\n", **world.variables)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["credentials", "JWT", "connection", "request", "answer", "2nd"]
    assert all(line.startswith("well ") for line in lines)
    assert [push.token for push in world.apns.pushes] == [DEVICE, DEVICE]
    assert DEVICE not in done.stdout


async def test_json_is_one_line(world: World) -> None:
    world.apns.reject_token(DEVICE)
    said = await world.push("--provider", "apns", "--token", DEVICE, "--json")
    assert (said.code, said.err, said.out.count("\n")) == (1, "", 1)
    told = json.loads(said.out)
    assert told["exit_code"] == 1
    assert [step["name"] for step in told["steps"]] == [
        "credentials",
        "JWT",
        "connection",
        "clock",
        "request",
        "answer",
    ]
    assert told["steps"][-1]["standing"] == "wrong" and told["steps"][-1]["cure"]


async def test_where_a_device_token_and_a_subscription_may_come_from(world: World) -> None:
    (world.folder / "token").write_text(f"{DEVICE}\n")
    said = await world.push("--provider", "apns", "--token-file", str(world.folder / "token"))
    assert (said.code, len(world.apns.pushes)) == (0, 1)
    subscription = world.subscription
    keys = subscription.to_json()["keys"]
    assert isinstance(keys, dict)
    text = f"webpush {subscription.endpoint} {keys['auth']} {keys['p256dh']}"
    (world.folder / "subscription").write_text(text)
    for given in (text, world.text(), str(world.folder / "subscription")):
        assert (await world.push("--provider", "webpush", "--subscription", given)).code == 0
    world.stdin = world.text()
    assert (await world.push("--provider", "webpush", "--subscription", "-")).code == 0
    assert len(world.web_push.pushes) == 4


async def test_what_the_page_says(world: World) -> None:
    """Its commands as they stand there, while no server runs."""
    page = (Path(__file__).parents[3] / "docs/how-to/find-a-lost-push.md").read_text()
    commands = re.findall(r"^ +ntf-server (.+)$", page, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["status", "trace", "push-test", "doctor"]
    assert set(re.findall(r"`ntf-server ([a-z-]+)", page)) <= COMMANDS.keys()
    (world.folder / "device-token.txt").write_text(DEVICE)
    sandbox = {"HOST": "127.0.0.1", "PORT": str(world.apns.port), "CA_FILE": str(world.apns.ca_file)}
    world.set(**{f"APNS__SANDBOX__{key}": value for key, value in sandbox.items()}, TRANSPORT__PORT="0")
    codes = []
    for command in commands:
        name, *words = command.replace("device-token.txt", str(world.folder / "device-token.txt")).split()
        said = await world.command(name, *words)
        assert said.code in {0, 1, 2} and "usage:" not in said.err
        codes.append(said.code)
    assert codes == [1, 2, 0, 0]  # none runs, and there is no store yet
    assert len(world.apns.pushes) == 1
