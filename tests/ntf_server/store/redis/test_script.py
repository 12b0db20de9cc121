"""Lua files: what is sent of them, and what their heads say."""

import asyncio
import hashlib
import itertools
import re
from pathlib import Path

import pytest
from redis_servers import Server
from redis_stores import Nodes, measured

from ntf_server.store.records import Confirmed
from ntf_server.store.redis.script import FOLDER, PRELUDE, Script, scripts
from ntf_server.testing.store_suite.medium import (
    ROOM,
    Bench,
    acquire,
    activate,
    delivered,
    new_queue,
    notify,
    pages,
    record,
    take,
    tend,
)
from smp_bridge.ntf import Provider, SubscriptionStatus

LUA = sorted(FOLDER.glob("*.lua"))


def head(path: Path) -> list[str]:
    """The comments that a file begins with, behind its flags."""
    lines = path.read_text().splitlines()
    if lines and re.fullmatch(r"#!lua flags=[a-z,-]+", lines[0]):
        lines.pop(0)
    return list(itertools.takewhile(lambda line: line.startswith("--"), lines))


def test_each_file_names_its_keys_and_arguments() -> None:
    for path in LUA:
        text = "\n".join(head(path))
        assert text, f"{path.name} does not say what it is for"
        if path.stem != PRELUDE:
            assert "KEYS" in text and "ARGV" in text, f"{path.name} does not name what it takes"


def test_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    text = "-- It uses no other keys.\nreturn 1\n"
    (tmp_path / "one.lua").write_text(text)
    script = Script.load("one", tmp_path)
    assert (script.name, script.text) == ("one", text)
    assert script.sha1 == hashlib.sha1(text.encode()).hexdigest()
    assert script.flags == () and script.writes


def test_the_prelude_goes_in_front_of_each_and_behind_the_flags(tmp_path: Path) -> None:
    (tmp_path / "prelude.lua").write_text("local one = 1")
    (tmp_path / "plain.lua").write_text("-- It uses no other keys.\nreturn one\n")
    (tmp_path / "flagged.lua").write_text("#!lua flags=no-writes,allow-oom\n-- KEYS: one\nreturn one\n")
    assert Script.load("plain", tmp_path).text == "local one = 1\n-- It uses no other keys.\nreturn one\n"
    flagged = Script.load("flagged", tmp_path)
    begin = "#!lua flags=no-writes,allow-oom\nredis.call('EXISTS', KEYS[1] .. ':')\n"  # see `test_topology`
    assert flagged.text == f"{begin}local one = 1\n-- KEYS: one\nreturn one\n"
    assert flagged.flags == ("no-writes", "allow-oom")
    assert not flagged.writes


def test_it_has_no_more_of_the_prelude_than_it_needs(tmp_path: Path) -> None:
    paragraphs = (
        "-- what all need\nlocal call = redis.call",
        "-- why\nlocal A, B = 1, 2\nlocal function two() return A end",
        "local function three()\n    return two()\nend",
        "local function four() return call('three') end -- not two()",
    )
    (tmp_path / "prelude.lua").write_text("\n\n".join(paragraphs) + "\n")
    for name, needed in {"three": (1, 2), "four": (0, 3), "B": (1,), "'two' -- call": ()}.items():
        text = f"-- It uses no other keys.\nreturn {name}\n"
        (tmp_path / "one.lua").write_text(text)
        assert Script.load("one", tmp_path).text == "".join(f"{paragraphs[n]}\n" for n in needed) + text


@pytest.mark.parametrize("first", ["#!lua\n", "#!lua flags=allow-oom\n", "-- no-writes\n", ""])
def test_one_writes_unless_it_says_that_it_does_not(first: str) -> None:
    assert Script("x", f"{first}return 1").writes


def test_no_file() -> None:
    with pytest.raises(OSError, match="absent"):
        Script.load("absent")


def test_a_script_is_told_by_its_name() -> None:
    assert repr(Script("claim", "return 1")) == "Script('claim')"


# --- all of them


@pytest.mark.parametrize("path", LUA, ids=lambda path: path.stem)
def test_each_key_is_one_of_its_keys_or_is_named_after_one(path: Path) -> None:
    """So it is in the slot of that: in a cluster no script reaches into another one."""
    text = re.sub(r"--.*", "", path.read_text())
    roots = {"shard", "server", "bucket"}  # parameters of functions, and what a loop over KEYS gives
    assert not re.search(r"^ *(local )?(shard|server|bucket)\b[^\n=]*=(?!=)(?!.*KEYS)", text, re.MULTILINE)
    derived = set(roots)
    key = r"(?:KEYS\[\d\]|(?:%s)\b)(?: \.\. [^,)]+(?:\([^)]*\))?)?"
    for _ in range(3):
        for names, values in re.findall(r"local ([\w, ]+) = ([^\n]+)", text):
            for name, value in zip(names.split(", "), values.split(", "), strict=False):
                if re.match(key % "|".join(derived), value):
                    derived.add(name)
    derived |= {"key"} if "function keep(key, id, score)" in text or "each(shard .." in text else set()
    filled = dict(re.findall(r"(\w+)\[\w+\] = ([^\n]+)", text))
    lists = [f"unpack({name})" for name, value in filled.items() if re.match(key % "|".join(derived), value)]
    keys = re.findall(r"call\('(?!TIME)[A-Z]+', ([^\n]+)", text)
    assert keys or path.stem in {"service_state", "page", "load"}
    for words in keys:
        assert words.startswith(tuple(lists)) or re.match(key % "|".join(derived), words), f"{path.name}: {words}"


def test_each_is_loaded_by_its_name() -> None:
    assert {path.stem for path in LUA} == {*scripts(), PRELUDE}
    assert len({Script.load(name).sha1 for name in scripts()}) == len(scripts())


def test_none_says_what_only_some_servers_understand() -> None:
    """Redis 7.0 and Valkey have these commands."""
    commands = {word for path in LUA for word in re.findall(r"call\('([A-Z]+)'", path.read_text())}
    assert commands <= {
        "DEL", "EXISTS", "GET", "HDEL", "HEXISTS", "HGET", "HGETALL", "HINCRBY", "HLEN", "HMGET", "HRANDFIELD", "HSCAN",
        "HSET", "HSETNX", "INCRBY", "PEXPIRE", "PTTL", "SADD", "SET", "SCARD", "SISMEMBER", "SMEMBERS", "SREM", "TIME",
        "XADD", "ZADD",
        "ZCARD", "ZCOUNT", "ZRANGE", "ZRANGEBYLEX", "ZRANGEBYSCORE", "ZREM",
        "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE", "ZREVRANGE", "ZSCORE",
    }  # fmt: skip


BIG = {  # that take or give many things at once
    "owners", "notify", "peek", "take", "record", "page", "confirm", "finish", "lost", "expire", "forgotten",
}  # fmt: skip


MOST = 6000  # commands of a script, of about a microsecond each: none is to take 10 ms on a machine of half the speed


async def test_none_holds_the_server_for_long(server: Server, nodes: Nodes) -> None:
    """A thousand tokens, what a session may have waiting, and all that is due at once."""
    store = await nodes.open(shards=64)
    session = await acquire(store)
    tokens = await asyncio.gather(*(activate(store, n) for n in range(1000)))
    await asyncio.gather(*(store.subscribe(token.ref, new_queue(b"%d" % n)) for n, token in enumerate(tokens)))
    await take(store)
    queues = [b"%d" % n for n in range(1000)]
    with measured(server, store._node.database, BIG) as costs:
        for first in range(0, 1000, 100):
            await notify(store, session, *queues[first : first + 100], places=dict.fromkeys(Provider, ROOM))
        claims = list(store._state.claims.values())
        await record(store, *(delivered(held.claim) for held in claims))
        nodes.clock.pass_(1)
        await notify(store, session, *queues)
        await record(store, *map(delivered, await take(store)))
        wanted = await pages(store, session, 134)
        await store.begin(session, b"service")
        active = SubscriptionStatus.ACTIVE
        await store.confirm(session, [Confirmed(w.ref, active, associated=True) for w in wanted[:512]])
        await store.end(session, [w.notifier_id for w in wanted[:512]], SubscriptionStatus.END)
        await store.to_audit(None, 500, 60)
        nodes.clock.pass_(100_000)
        await store.mark_lost(session, None, 500, 60)
        await tend(Bench(None, nodes.clock), store)  # type: ignore[arg-type]
    assert costs.keys() == BIG
    assert {name: max(found) for name, found in costs.items() if max(found) > MOST} == {}


def test_one_makes_keys_unless_it_says_that_it_does_not() -> None:
    assert Script("x", "return 1").makes_keys
    told = {name for name in scripts() if not Script.load(name).makes_keys}
    assert "claim" in told
    for name in told:
        text = (FOLDER / f"{name}.lua").read_text()
        assert not re.search(r"\.\.\s*['\"]:", text)
        assert not re.search(r"\b(head|due|undue|waits|pending|index|expire|content|want|unwant|slice)\(", text)
