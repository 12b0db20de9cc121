"""`ntf-server reload`."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import one_line, run

from ntf_server.config.files import CONFIG_FILE

Start = Callable[..., Any]


def configure(made: Path, old: str, new: str) -> None:
    file = made / CONFIG_FILE
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


async def test_what_it_tells(made: Path, start: Start) -> None:
    await start()

    async def reload() -> tuple[int, str]:
        done = await asyncio.to_thread(run, "reload", "--path", made)
        return done.returncode, done.stdout + done.stderr

    assert await reload() == (0, "Nothing differs.\n")
    configure(made, 'level = "info"', 'level = "debug"')
    configure(made, "ttl = 43200", "ttl = 60")
    restart = "needs a restart [inactive_clients] ttl\n"
    assert await reload() == (0, f"in use now      [log] level\n{restart}")
    assert await reload() == (0, restart)
    configure(made, "ttl = 60", "ttl = 43200")
    assert await reload() == (0, "Nothing differs.\n")


async def test_a_bad_configuration(made: Path, start: Start) -> None:
    await start()
    configure(made, "[log]", "[loog]")  # which this command cannot read either
    done = await asyncio.to_thread(run, "reload", "--path", made)
    assert (done.returncode, done.stdout) == (2, "")
    configure(made, "[loog]", "[log]")
    (made / "server.key").write_text("rubbish")
    done = await asyncio.to_thread(run, "reload", "--path", made)
    assert (done.returncode, done.stdout) == (2, "")
    assert one_line(done.stderr).startswith("ntf-server: not changed: ")
    assert "server.key" in done.stderr
