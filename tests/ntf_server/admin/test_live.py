"""The live page of a relay: where it is switched on, and what a reload changes of it."""

import asyncio
from collections.abc import Callable

import aiohttp
import pytest
from redis_servers import free_port

from ntf_server.admin.socket import AdminError, ask
from ntf_server.app import Relay
from ntf_server.config.files import Config


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


async def test_it_is_off(make_config: Callable[..., Config]) -> None:
    config = make_config(admin__bind="127.0.0.1")
    assert config.page is None
    async with Relay(config) as relay:
        assert "live page" not in {task.get_name() for task in asyncio.all_tasks()}
        assert not relay.condition().failing_parts
