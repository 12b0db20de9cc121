"""What `ntf-server doctor` says of set-ups where something is not well: with real files, ports and peers."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import wrong_pushes
from wrong_places import PAGE, WRONG_PLACES, WrongPlace, page
from wrong_pushes import World, told


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with wrong_pushes.world(tmp_path) as made:
        made.set(APNS__SANDBOX__HOST="127.0.0.1", APNS__SANDBOX__PORT=str(made.apns.port), TRANSPORT__PORT="0")
        made.set(APNS__SANDBOX__CA_FILE=str(made.apns.ca_file), TRANSPORT__BIND="127.0.0.1")
        yield made


@pytest.mark.parametrize("row", WRONG_PLACES, ids=lambda row: row.what)
async def test_a_place_that_is_not_well(world: World, row: WrongPlace) -> None:
    if (spoiling := row.spoil(world)) is not None and hasattr(spoiling, "__await__"):
        await spoiling
    said = await world.command("doctor", *(["--online"] if row.online else []))
    assert said.code == row.code, said
    words = told(row.words, world)
    if row.code == 2:
        assert re.fullmatch(rf"ntf-server: {words}.*\n", said.err)
        return
    lines = said.out.splitlines()
    [at, *_] = [i for i, line in enumerate(lines) if line.startswith(row.standing) and re.search(words, line)]
    assert row.standing == "well" or lines[at + 1].strip().startswith("cure: "), lines
    assert said.err == ""
    assert sum(line.startswith("wrong ") for line in lines) == row.code  # and nothing else is
    assert re.search(r"\d+ well", lines[-1])


async def test_a_place_that_is_well_and_that_nothing_is_changed_there(world: World) -> None:
    before = {path: (path.stat().st_mode, path.read_bytes()) for path in world.folder.iterdir()}
    for arguments in ([], ["--online"], ["--json"]):
        said = await world.command("doctor", *arguments)
        assert (said.code, said.err) == (0, ""), said
    assert {path: (path.stat().st_mode, path.read_bytes()) for path in world.folder.iterdir()} == before
    assert (world.apns.pushes, world.fcm.grants) == ([], 0)


async def test_without_online_nothing_leaves_the_machine(world: World) -> None:
    said = await world.command("doctor")
    assert "left out online        nothing left this machine" in said.out
    assert (world.apns.counters.opened, world.fcm.counters.opened, world.dns.asked) == (0, 0, [])


def test_enough_of_them() -> None:
    assert len(WRONG_PLACES) >= 20
    assert len({row.what for row in WRONG_PLACES}) == len(WRONG_PLACES)


def test_the_page_lists_them() -> None:
    assert PAGE.read_text() == page(), "the page is out of date: run scripts/wrong-set-ups"
