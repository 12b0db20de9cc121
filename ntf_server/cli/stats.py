"""`ntf-server stats`: what happened today, since the start, and on each day."""

import argparse
import csv
import json
import sys
import time
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ntf_server.admin.stats import STATS, stats
from ntf_server.cli import arguments as common
from ntf_server.cli.asking import ask_pages
from ntf_server.cli.errors import UsageError
from ntf_server.observe.moments import day_of
from ntf_server.observe.totals import REFERENCE, REFERENCE_DAY, Active, Total, reference_row

_WIDTH: Final = 20  # characters of a number's column


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as one line of JSON, with each day")
    form.add_argument("--csv", action="store_true", help="a row for each day, in the columns of the reference's file")
    parser.add_argument("--no-header", action="store_true", help="with --csv: without the names of the columns")


def run(arguments: argparse.Namespace) -> int:
    """Of all nodes that share the store; since the start: of the one that runs here."""
    if arguments.no_header and not arguments.csv:
        raise UsageError("--no-header goes with --csv")
    answer = _ask(common.directory(arguments))
    if arguments.json:
        print(json.dumps(answer))
    elif arguments.csv:
        rows = csv.writer(sys.stdout, lineterminator="\n")
        if not arguments.no_header:
            rows.writerow([REFERENCE_DAY, *REFERENCE])
        rows.writerows(reference_row(day, counts) for day, counts in answer["days"].items())
    else:
        print("\n".join(_screen(answer)))
    return 0


def _ask(directory: Path) -> dict[str, Any]:
    first, *others = ask_pages(directory, STATS, lambda store, after: stats(store, None, after or ""))
    for other in others:
        first["days"].update(other["days"])
    answer = {name: first[name] for name in ("started", "since_start", "days")}
    return {"today": day_of(time.time()), **answer}


def _screen(answer: dict[str, Any]) -> Iterator[str]:
    days, started = answer["days"], answer["started"]
    today = days.get(answer["today"], {})
    heads = [("today", answer["today"])]
    columns = [today]
    if started is not None:
        heads.append(("since the start", time.strftime("%Y-%m-%d %H:%M", time.gmtime(started))))
        columns.append(answer["since_start"])
    if days:
        kept: Tally[str] = Tally()
        for counts in days.values():
            kept.update(counts)
        heads.append(("all days", f"since {min(days)}"))
        columns.append({name: kept[name] for name in kept if name in set(Total)})
    width = max(len(name.text) for name in (*Total, *Active))
    for line in zip(*heads, strict=True):
        yield " " * width + "".join(f"{head:>{_WIDTH}}" for head in line)
    for name in (*Total, *Active):
        yield f"{name.text:<{width}}" + "".join(f"{_cell(counts, name):>{_WIDTH}}" for counts in columns)
    if not any(name in counts for counts in columns for name in Active):
        yield "What is active is counted 5 minutes after a start, every 6 hours, and when a day ends."
    if started is None:
        yield "The server does not run. Days and times are UTC."
    else:
        yield "Times are UTC. Since the start: of this node; else of all nodes that share the store."


def _cell(counts: dict[str, int], name: str) -> str:
    return str(counts.get(name, "-"))
