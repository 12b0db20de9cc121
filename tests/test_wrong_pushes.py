"""What `ntf-server push-test` says of pushes that come to nothing: with real TLS, HTTP/2 and refusals."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import wrong_pushes
from wrong_pushes import DEVICE, PAGE, REGISTRATION, WRONG_PUSHES, World, WrongPush, given, page, told


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with wrong_pushes.world(tmp_path) as made:
        yield made


@pytest.mark.parametrize("row", WRONG_PUSHES, ids=lambda row: row.what)
async def test_a_push_that_comes_to_nothing(world: World, row: WrongPush) -> None:
    if (spoiling := row.spoil(world)) is not None:
        await spoiling
    said = await world.push("--provider", row.provider, *given(row, world))
    assert said.code == row.code, said
    lines = (said.err if row.code == 2 else said.out).splitlines()
    words = told(row.words, world)
    assert [line for line in lines if re.search(words, line)], said
    assert said.err == "" if row.code == 1 else said.out == ""
    if row.code == 1:
        wrong = [i for i, line in enumerate(lines) if line.startswith("wrong ")]
        assert wrong and all(lines[i + 1].strip().startswith("cure: ") for i in wrong)
    else:
        assert all(line.startswith("ntf-server: ") for line in lines)
    for secret in (DEVICE, REGISTRATION, world.subscription.path.rpartition("/")[2], "eyJ", "BEGIN"):
        assert secret not in said.out + said.err


def test_enough_of_them() -> None:
    assert len(WRONG_PUSHES) >= 40
    assert len({row.what for row in WRONG_PUSHES}) == len(WRONG_PUSHES)


def test_the_page_lists_them() -> None:
    assert PAGE.read_text() == page(), "the page is out of date: run scripts/wrong-set-ups"
