"""`ntf-server push-test`, as operators run it. What it says of what is wrong: tests/test_wrong_pushes.py."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import wrong_pushes
from command_line import run
from wrong_pushes import DEVICE, World


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
