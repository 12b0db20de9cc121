"""VAPID keys as a running relay tells them."""

import asyncio
from collections.abc import Callable

import pytest

from ntf_server.admin.socket import ask
from ntf_server.admin.vapid import VAPID, told
from ntf_server.config.files import Config
from ntf_server.push.jose import b64, generate_key, public_point
from smp_bridge.client import Client

pytestmark = pytest.mark.usefixtures("quiet")


def test_public_keys_alone_are_told() -> None:
    key, older = generate_key(), generate_key()
    assert told(key, [older]) == {"key": b64(public_point(key)), "older": [b64(public_point(older))]}
    assert told(None, []) == {"key": None, "older": []}


async def test_of_a_relay(make_config: Callable[..., Config], client: Client) -> None:
    config = make_config()
    answer = await asyncio.to_thread(ask, config.admin_socket, VAPID)
    assert answer == told(config.vapid_key, config.old_vapid_keys)
