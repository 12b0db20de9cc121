"""The live page of a relay: where it is switched on, and what a reload changes of it."""

import asyncio
import logging
from collections.abc import Callable

import aiohttp
import pytest
from harness import Phone
from redis_servers import free_port

from ntf_server.admin.page import site
from ntf_server.admin.page.view import View
from ntf_server.admin.socket import AdminError, ask
from ntf_server.app import Relay
from ntf_server.config.files import Config
from ntf_server.testing import MockApns
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client


async def status(config: Config, token: str) -> int:
    assert config.page is not None
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as client,
        client.get(config.page.url) as answer,
    ):
        return answer.status


async def test_a_reload_takes_another_token_and_a_bad_one_changes_nothing(make_config: Callable[..., Config]) -> None:
    token = make_config().directory / "page.token"
    token.write_text("one" * 10)
    config = make_config(admin__port=free_port(), admin__token_file=token)
    async with Relay(config):
        assert [await status(config, word * 10) for word in ("one", "two")] == [200, 401]
        token.write_text("two" * 10)
        answer = await asyncio.to_thread(ask, config.admin_socket, "reload")
        assert answer["swapped"] == ["[admin] token_file"]
        assert [await status(config, word * 10) for word in ("one", "two")] == [401, 200]
        token.write_text("short")
        with pytest.raises(AdminError, match=r"\[admin\] token_file: .*page\.token: is no token"):
            await asyncio.to_thread(ask, config.admin_socket, "reload")
        assert [await status(config, word * 10) for word in ("short", "two")] == [401, 200]


async def test_its_failure_touches_nothing_else(
    make_config: Callable[..., Config],
    phone: Callable[[], Phone],
    address_of: Callable[..., ServerAddress],
    monkeypatch: pytest.MonkeyPatch,
    logged: list[logging.LogRecord],
) -> None:
    """It is told, and started again."""
    monkeypatch.setattr(site, "STEP", 0.05)
    config = make_config(admin__port=free_port())
    assert config.page is not None
    async with Relay(config) as relay, await Client.connect(address_of(relay)) as client:
        with monkeypatch.context() as broken:
            broken.setattr(View, "look", lambda _: 1 / 0)
            async with asyncio.timeout(20):
                while relay.condition().failing_parts != ("live page",):
                    await asyncio.sleep(0.02)
            device = phone()
            await device.register(client)
            await device.verify(client)
            async with aiohttp.ClientSession() as session, session.get(config.page.url) as answer:
                assert answer.status == 200
        assert any(r.getMessage().startswith("live page failed") for r in logged)
        async with asyncio.timeout(20):
            while relay.condition().failing_parts:
                await asyncio.sleep(0.02)


async def test_who_looks_sees_it_drain_and_is_told_of_the_end(
    make_config: Callable[..., Config],
    mock_apns: MockApns,
    phone: Callable[[], Phone],
    address_of: Callable[..., ServerAddress],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(site, "STEP", 0.05)
    mock_apns.latency = 1.5
    config = make_config(admin__port=free_port())
    assert config.page is not None
    async with aiohttp.ClientSession() as session, Relay(config) as relay:
        async with await Client.connect(address_of(relay)) as client:
            await phone().register(client)
        draining = asyncio.create_task(asyncio.to_thread(ask, config.admin_socket, "drain", seconds=10))
        async with session.get(f"{config.page.url}api/stream") as stream, asyncio.timeout(20):
            while b'"phase":"draining"' not in await stream.content.readline():
                pass
            await draining
            await relay.__aexit__(None, None, None)
            assert (await stream.content.read()).endswith(b"event: end\ndata: {}\n\n")


async def test_it_is_off(make_config: Callable[..., Config]) -> None:
    config = make_config(admin__bind="127.0.0.1")
    assert config.page is None
    async with Relay(config) as relay:
        assert "live page" not in {task.get_name() for task in asyncio.all_tasks()}
        assert not relay.condition().failing_parts
