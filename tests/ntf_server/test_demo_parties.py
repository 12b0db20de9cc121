"""The demo's relay can be killed and started again; its parties see what real ones would. See also test_demo.py."""

import asyncio
import signal
from pathlib import Path

import pytest

from ntf_server import demo_parties as parties
from smp_bridge.address import ServerAddress


def test_what_is_no_fact_ends_the_story() -> None:
    parties.check(True, "the sun rises")
    with pytest.raises(parties.DemoError, match=r"^the sun sets$"):
        parties.check(False, "the sun sets")


def test_long_texts_are_cut() -> None:
    assert parties.cut("abc", 3) == "abc"
    assert parties.cut("abcd", 3) == "abc…"


async def test_a_command_that_fails_ends_the_story() -> None:
    assert (await parties.run("ntf_server", ["--version"])).startswith("ntf-server ")
    with pytest.raises(parties.DemoError, match=r"^ntf_server failed$"):
        await parties.run("ntf_server", ["check", "--path", "/nonexistent"], stderr=asyncio.subprocess.DEVNULL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_relay_that_ended_is_the_same_when_it_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("NTF_SERVER__STORE__URL", "postgres://real")  # a real server's settings reach no demo
    relay = parties.RelayProcess(tmp_path)
    await relay.init()
    apple = parties.Apple(tmp_path)
    async with apple.server:
        relay.configure(apple.settings(tmp_path))
        await relay.start()
        first = relay.address
        assert ServerAddress.from_text(first).hosts == ("localhost",)
        assert await relay.stop(number) == (-number if number is signal.SIGKILL else 0)
        await relay.start()
        try:
            assert relay.address == first
        finally:
            assert await relay.stop(signal.SIGTERM) == 0
