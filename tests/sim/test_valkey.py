"""The model of Redis is held to a real one: the conformance suite of the store asks both, and they answer the same."""

from typing import Any

import pytest
from redis_media import RedisMedium
from redis_servers import Server

from ntf_server.store.redis.script import scripts
from ntf_server.testing.store_suite import Check, checks, name, run
from sim.both import Both, dump
from sim.valkey.keyspace import COMMANDS

# Scripts of `migrate`, of what nodes count together, of notifications that are cut, of a server's own clock: no check
# of the suite needs these, and their own tests try them on a real server.
_OF_OTHERS = {"fill", "fill_on", "fill_own", "filled", "put_queues", "put_token", "read_tokens"}
_OF_OTHERS |= {"recall", "revise", "spend", "drop_notification", "hasten"}
_QUICK = {"nodes", "claims", "clocks", "standings"}  # modules of checks that are tried each time; --all tries all


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


async def try_both(server: Server, check: Check) -> Both:
    server.ask("FLUSHALL")
    server.ask("SCRIPT", "FLUSH")
    both = Both([server])
    async with both.serve() as url:
        await run(check, RedisMedium(url))
    assert both.differences == []
    assert both.modelled() == [dump(server)]
    return both


def is_quick(check: Check) -> bool:
    return name(check).partition("-")[0] in _QUICK


@pytest.mark.parametrize("check", [check for check in checks(shared=True) if is_quick(check)], ids=name)
async def test_the_model_answers_as_a_real_server_does(server: Server, check: Check) -> None:
    both = await try_both(server, check)
    assert {"hold", "make", "clock"} <= both.asked


@pytest.mark.long
async def test_the_model_answers_as_a_real_server_does_whatever_is_asked(server: Server) -> None:
    asked: set[str] = set()
    for check in checks(shared=True):
        asked |= (await try_both(server, check)).asked
    assert set(scripts()) - asked <= _OF_OTHERS


async def test_a_model_that_answers_otherwise_is_found(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, b"ZREM", lambda _keyspace, _key, *_members: 1)
    quick = [check for check in checks(shared=True) if name(check) == "claims-a_claim_ends_once"]
    with pytest.raises(AssertionError):
        await try_both(server, *quick)
