"""What happened, as a running relay tells it."""

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from harness import Phone
from store_world import MASTER

from ntf_server.admin.socket import AdminError, ask
from ntf_server.admin.stats import STATS, on_stats, stats
from ntf_server.config.files import Config
from ntf_server.observe.moments import day_of
from ntf_server.observe.totals import Total
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.sqlite.engine import SqliteStore
from ntf_server.testing import MockApns
from smp_bridge.client import Client

pytestmark = pytest.mark.usefixtures("quiet")


async def test_of_a_relay_up_to_this_moment(
    make_config: Callable[..., Config], client: Client, mock_apns: MockApns
) -> None:
    phone = Phone(mock_apns)
    await phone.register(client)
    await phone.verify(client)
    answer = await asyncio.to_thread(ask, make_config().admin_socket, STATS)
    wanted = {Total.TOKENS_CREATED: 1, Total.TOKENS_VERIFIED: 1, Total.VERIFICATIONS_DELIVERED: 1}
    days = list(answer["days"].values())
    for counts in (answer["since_start"], {name: sum(day[name] for day in days) for name in Total}):
        assert {name: count for name, count in counts.items() if count} == wanted | {Total.VERIFICATIONS_ASKED: 1}
    assert max(answer["days"]) >= day_of(answer["started"]) and answer["next"] is None


@pytest.fixture
async def store() -> SqliteStore:
    return await SqliteStore.open(sqlite3.connect(":memory:", isolation_level=None), master_key=MASTER)


async def test_many_days_come_in_several_answers(store: SqliteStore) -> None:
    days = [day_of(1_700_000_000 + n * 86_400) for n in range(120)]
    for n, day in enumerate(days):
        await store.statistics.keep(f"{day}:", {"one": n})
    found: dict[str, Any] = {}
    sizes, after = [], ""
    while True:
        answer = await stats(store, None, after)
        found |= answer["days"]
        sizes.append(len(answer["days"]))
        if answer["next"] is None:
            break
        after = answer["next"]
    assert sizes == [50, 50, 20]
    assert found == {day: {"one": n} for n, day in enumerate(days)}
    assert (answer["started"], answer["since_start"]) == (None, None)
    await store.close()


class Idle:
    """A relay that counts nothing."""

    started = 0.0

    def since_start(self) -> dict[str, int]:
        return {}

    async def keep(self) -> None:
        raise StoreUnavailableError("locked")


async def test_what_is_refused(store: SqliteStore) -> None:
    with pytest.raises(AdminError, match=r"^after: must be a day$"):
        await on_stats(store, Idle(), {"after": 1})
    with pytest.raises(AdminError, match=r"^locked$"):
        await on_stats(store, Idle(), {})
    await store.close()
