"""`ntf-server stats`, of a running server and of the store of one that is stopped."""

import asyncio
import csv
import io
import json
import signal
import time
from pathlib import Path

import pytest
from command_line import in_process, one_line, run, store_of
from harness import Phone, RelayProcess

from ntf_server.observe.totals import REFERENCE, Active, Total
from ntf_server.testing import MockApns
from smp_bridge.client import Client


async def kept(made: Path, rows: dict[str, dict[str, int]]) -> None:
    store = await store_of(made)
    for row, counts in rows.items():
        await store.statistics.keep(row, counts)
    await store.close()


async def test_of_a_running_server_and_after_restarts(relay_process: RelayProcess, mock_apns: MockApns) -> None:
    """What happened before a restart is there after it, in the day's row."""
    name = ["stats", f"--path={relay_process.directory}"]
    for number in (1, 2):
        async with await Client.connect(relay_process.address) as client:
            phone = Phone(mock_apns)
            await phone.register(client)
            await phone.verify(client)
        answer = json.loads((await asyncio.to_thread(run, *name, "--json")).stdout)
        assert answer["since_start"][Total.TOKENS_CREATED] == 1
        assert sum(day[Total.TOKENS_CREATED] for day in answer["days"].values()) == number
        if number == 1:
            await relay_process.stop(signal.SIGKILL)
            await relay_process.start()
    screen = (await asyncio.to_thread(run, *name)).stdout
    [line] = [line for line in screen.splitlines() if line.startswith(Total.TOKENS_CREATED.text)]
    assert line.split()[-2:] == ["1", "2"]
    assert await relay_process.stop() == 0
    done = await asyncio.to_thread(run, *name, "--csv")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [len(row) for row in rows] == [22] * len(rows)
    assert sum(int(row["tknCreated"]) for row in rows) == sum(int(row["tknVerified"]) for row in rows) == 2
    assert rows[-1]["fromTime"] in {time.strftime("%Y-%m-%d", time.gmtime(time.time() - late)) for late in (0, 60)}


async def test_forms_of_the_store(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    day = time.strftime("%Y-%m-%d", time.gmtime())
    await kept(
        made,
        {
            "2026-01-02:": {Total.TOKENS_CREATED: 3, Total.MESSAGES_DEAD: 1, Total.MESSAGES_FAILED: 2},
            "2026-01-02": {Active.DAY: 9},
            f"{day}:": {Total.TOKENS_CREATED: 4},
        },
    )
    code, out, err = await asyncio.to_thread(in_process, capsys, "stats", "--path", made, "--csv")
    first = ["2026-01-02", "3", *[""] * 6, "9", *[""] * 6, "3", *[""] * 6]
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        ",".join(["fromTime", *REFERENCE]), ",".join(first), f"{day},4{',' * 20}"
    ]  # fmt: skip
    _, bare, _ = await asyncio.to_thread(in_process, capsys, "stats", "--path", made, "--csv", "--no-header")
    assert bare.splitlines() == out.splitlines()[1:]
    _, out, _ = await asyncio.to_thread(in_process, capsys, "stats", "--path", made, "--json")
    answer = json.loads(out)
    assert (answer["today"], answer["since_start"], list(answer["days"])) == (day, None, ["2026-01-02", day])
    _, out, _ = await asyncio.to_thread(in_process, capsys, "stats", "--path", made)
    names, dates, created, *_ = out.splitlines()
    assert names.split() == ["today", "all", "days"] and dates.split() == [day, "since", "2026-01-02"]
    assert created.split()[-2:] == ["4", "7"]
    assert "The server does not run" in out


def test_bad_usage(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = in_process(capsys, "stats", "--path", made, "--no-header")
    assert (code, out, one_line(err)) == (2, "", "ntf-server: --no-header goes with --csv")
    code, out, err = in_process(capsys, "stats", "--path", made)
    assert (code, out) == (2, "")
    assert one_line(err) == f"ntf-server: {made}/ntf-server.db: not found; start the server first"
    assert not (made / "ntf-server.db").exists()
