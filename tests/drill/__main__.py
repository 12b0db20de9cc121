"""`scripts/drill`: faults of all kinds, each on a relay of its own, and what its operator sees of them, where, and
after how long. All at once: they mostly wait.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from watching import Prometheus, prometheus

from drill.faults import FAULTS, Drill, Fault, Sign
from drill.site import LOOK, Site

LIMIT = 60.0  # seconds until a fault, and its end, are told everywhere
NO_END = "–"  # noqa: RUF001 - of what is not told to be over
QUIET = 15.0  # seconds before a fault, for what is well to be well
INTERVAL = "10s"  # at which Prometheus looks, as in the project's own file


@dataclass
class Seen:
    """Seconds until each sign was there, and gone; None: not within the limit."""

    fault: Fault
    told: dict[Sign, float | None] = field(default_factory=dict)
    over: dict[Sign, float | None] = field(default_factory=dict)
    unwanted: set[str] = field(default_factory=set)  # alerts, and what status said, of one that is harmless

    @property
    def missed(self) -> list[str]:
        """In words."""
        out = [f"{self.fault.name}: {words}" for words in sorted(self.unwanted)]
        for what, found in (("not told", self.told), ("not over", self.over)):
            for sign, seconds in found.items():
                if seconds is None or seconds > LIMIT:
                    out.append(f"{self.fault.name}: {sign.place}: {what} within {LIMIT:.0f} s: {sign.words}")
        return out

    def rows(self) -> list[str]:
        """Of a table in Markdown."""
        head = ["| where | what it says | after | gone after |", "| --- | --- | --- | --- |"]
        over = {sign: _seconds(seconds) for sign, seconds in self.over.items()}
        return head + [
            f"| {sign.place} | `{sign.words}` | {_seconds(told)} | {over.get(sign, NO_END)} |"
            for sign, told in self.told.items()
        ]


def _seconds(found: float | None) -> str:
    return "never" if found is None else f"{found:.1f} s"


async def _says(drill: Drill, sign: Sign, events: int, before: float) -> bool:
    """`events`: how many the log had told before; `before`: what the metric was."""
    site = drill.site
    match sign.place:
        case "alert":
            return sign.words in await site.prometheus.firing(drill.away or site.metrics)
        case "log":
            return any(told.startswith(sign.words) for told in site.events()[events:])
        case "status":
            return sign.words in await site.command("status")
        case "metrics":
            return _value(await site.get("/metrics"), sign) > before
        case "page":
            return sign.words in await site.state()
        case path:
            return sign.words in await site.get(path)


def _value(page: str, sign: Sign) -> float:
    """Of a metric: what it is; of one with its value: whether it is that."""
    for line in page.splitlines():
        if line == sign.words:
            return 1.0
        if line.startswith(f"{sign.words} "):
            return float(line.rpartition(" ")[2])
    return 0.0


async def _until(drill: Drill, sign: Sign, events: int, before: float, *, said: bool) -> float | None:
    start = time.monotonic()
    while time.monotonic() - start < 2 * LIMIT:
        if await _says(drill, sign, events, before) is said:
            return time.monotonic() - start
        await asyncio.sleep(4 * LOOK if sign.place == "status" else LOOK)
    return None


async def _watch(site: Site, seconds: float) -> AsyncIterator[str]:
    """What alerts and status say, of which nothing is wanted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for alert in await site.prometheus.firing(site.metrics):
            yield alert
        status = await site.command("status")
        if not status.startswith("ntf-server is well."):
            yield status
        await asyncio.sleep(4 * LOOK)


async def _try(fault: Fault, directory: Path, watching: Prometheus, starting: asyncio.Lock) -> Seen:
    seen = Seen(fault)
    async with contextlib.AsyncExitStack() as stack:
        async with starting:  # one after another: a start computes more than it waits
            drill = await stack.enter_async_context(fault.run(directory, watching))
        site = drill.site
        await asyncio.sleep(QUIET)
        events = len(site.events())
        page = await site.get("/metrics")
        before = {sign: _value(page, sign) for sign in fault.signs}
        begun = time.monotonic()
        await drill.begin()
        told = [_until(drill, sign, events, before[sign], said=True) for sign in fault.signs]
        seen.told = dict(zip(fault.signs, await asyncio.gather(*told), strict=True))
        lasts = max(0.0, begun + fault.lasts - time.monotonic())
        if fault.harmless:
            seen.unwanted = {words async for words in _watch(site, lasts)}
        else:
            await asyncio.sleep(lasts)
        events = len(site.events())
        await drill.end()
        waits = {}
        for sign in fault.signs:
            if sign.place == "log":
                if fault.over:
                    waits[sign] = _until(drill, Sign("log", fault.over), events, 0.0, said=True)
            elif not (sign.place == "metrics" and not sign.words[-1].isdigit()):  # a counter has no end
                waits[sign] = _until(drill, sign, events, before[sign], said=False)
        seen.over = dict(zip(waits, await asyncio.gather(*waits.values()), strict=True))
        (directory / "status.txt").write_text(await site.command("status"))
    return seen


async def run(faults: Sequence[Fault], directory: Path) -> list[Seen]:
    """All of them, at once."""
    starting = asyncio.Lock()
    async with prometheus(directory / "prometheus", INTERVAL) as watching:
        tries = (_try(fault, directory / f"fault{n}", watching, starting) for n, fault in enumerate(faults))
        return await asyncio.gather(*tries)


def written(page: str, seen: Sequence[Seen]) -> str:
    """A page with what was seen in the tables below the faults' names. Raises ValueError if it has none of one."""
    for found in seen:
        before, headline, rest = page.partition(f"\n## {found.fault.name}\n")
        text, table, after = rest.partition("\n| where |")
        if not headline or not table:
            raise ValueError(f"the page has no table of {found.fault.name}")
        page = f"{before}{headline}{text}\n" + "\n".join(found.rows()) + "\n\n" + after.partition("\n\n")[2]
    return page


def main(arguments: Sequence[str] | None = None) -> int:
    """0: all is told in time."""
    parser = argparse.ArgumentParser(prog="scripts/drill", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="those with this in their name")
    parser.add_argument("--keep", metavar="DIR", help="where the relays' folders and logs are left")
    parser.add_argument("--write", metavar="FILE", type=Path, help="a page that gets these tables, below its headlines")
    options = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if options.only in fault.name]
    with tempfile.TemporaryDirectory() as scratch:
        seen = asyncio.run(run(faults, Path(options.keep or scratch)))
    for found in seen:
        print(f"\n## {found.fault.name}\n", *found.rows(), sep="\n")
    if options.write:
        options.write.write_text(written(options.write.read_text(), seen))
    missed = [line for found in seen for line in found.missed]
    print("", *missed, sep="\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
