"""`ntf-server import`: what the reference has, into a store of ours."""

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ntf_server.cli import arguments as common
from ntf_server.cli.errors import FAILED, UsageError
from ntf_server.cli.migrate import KINDS, Progress
from ntf_server.config import files as config
from ntf_server.config.reference_ini import CONNECTION, REFERENCE_INI, SCHEMA, connection, read_ini
from ntf_server.config.source import CONFIG_FILE, load_settings
from ntf_server.store.contract import StoreUnavailableError
from ntf_server.store.migrate import Migrated, fill, survey
from ntf_server.store.open import Shared, inspect_store
from ntf_server.store.portable import Source
from ntf_server.store.reference.rows import ASKED, SKIPPED, LeftOut
from ntf_server.store.reference.store_log import StoreLogSource
from smp_bridge.encoding import ParseError, un_b64url

_NO_DRIVER: Final = "psycopg, which talks to PostgreSQL, is not installed: {} -m pip install 'psycopg[binary]'"
_NO_SOURCE: Final = (
    "give what to import: --from postgresql://…, --from-store-log FILE, or --config of the reference, which names its"
    " database"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--from", dest="url", metavar="URL", help="the reference's PostgreSQL database")
    source.add_argument(
        "--from-store-log",
        dest="files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="its store log, and its log of last notifications",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"its {REFERENCE_INI}: names database and schema")
    parser.add_argument("--schema", metavar="NAME", help=f"of the database ({SCHEMA})")
    parser.add_argument("--dry-run", action="store_true", help="read everything and report; write nothing")
    parser.add_argument(
        "--skip-tokens", nargs="+", default=[], metavar="ID", help="registrations to leave out (base64url, also a,b,c)"
    )
    parser.add_argument("--json", action="store_true", help="the report as one line of JSON")
    parser.add_argument(
        "--accept-left-out", action="store_true", help="exit code 0 even if something could not be read"
    )


def run(arguments: argparse.Namespace) -> int:
    """While neither the reference nor a server of ours runs on what is read and written."""
    directory = common.directory(arguments)
    settings = load_settings(directory)
    target = config.load_store(directory)
    master_key = config.load_master_key(directory, settings)
    skip = _ids(arguments.skip_tokens)
    common.quiet_store()
    progress = Progress(sys.stderr)

    async def work() -> tuple[Migrated, Mapping[str, list[str]]]:
        source, left_out = await _open(arguments, skip, progress)
        try:
            if not arguments.dry_run:
                shared = Shared("", settings.store.wait_replicas, settings.store.wait_aof)
                done = await fill(source, target, master_key=master_key, tell=progress, shared=shared)
                return done, left_out.ids
            try:
                await source.check_idle()
            except StoreUnavailableError as e:
                print(f"ntf-server: {e}", file=sys.stderr)
            return await survey(source, progress), left_out.ids
        finally:
            await source.close()

    exists = ""
    try:
        if arguments.dry_run:
            exists = asyncio.run(inspect_store(target, master_key=master_key)).what
        done, ids = asyncio.run(work())
    finally:
        progress.end()
    if unknown := len(skip) - done.left_out.get(SKIPPED, 0):
        print(f"ntf-server: --skip-tokens: {unknown} of these ids are of no registration there", file=sys.stderr)
    lost = [reason for reason in done.left_out if reason not in ASKED]
    code = FAILED if lost and not arguments.accept_left_out else 0
    if arguments.json:
        print(json.dumps({"exit_code": code, "dry_run": arguments.dry_run} | _facts(done, ids)))
    elif arguments.dry_run:
        print(f"Nothing is written. The store would be {target}, which {exists}.")
        print(told(done, ids, "Would import"))
    else:
        print(told(done, ids, "Imported, read back and found the same"))
        print(
            f"Never start the reference again on what this came from, now that {directory / CONFIG_FILE} has it: what"
            " devices do meanwhile would be lost."
        )
    return code


def _facts(done: Migrated, ids: Mapping[str, list[str]]) -> dict[str, Any]:
    """The report: what is there, and what is left out, of each kind how many, why, and some ids."""
    left_out = []
    for reason, count in sorted(done.left_out.items()):
        kind, _, why = reason.partition(": ")
        left_out.append(
            {"kind": kind, "why": why, "count": count, "ids": ids.get(reason, []), "asked": reason in ASKED}
        )
    return {"counts": {kind: done.counts.get(kind, 0) for kind in KINDS}, "left_out": left_out}


def told(done: Migrated, ids: Mapping[str, list[str]], what: str) -> str:
    """The report."""
    facts = _facts(done, ids)
    lines = [f"{what}: {', '.join(f'{count} {kind}' for kind, count in facts['counts'].items())}."]
    if facts["left_out"]:
        lines.append("Left out:")
    for one in facts["left_out"]:
        shown = f"{', '.join(one['ids'])}{', …' if len(one['ids']) < one['count'] else ''}"
        lines.append(f"  {one['count']} {one['kind']}: {one['why']} ({shown})")
    return "\n".join(lines)


async def _open(arguments: argparse.Namespace, skip: frozenset[bytes], progress: Progress) -> tuple[Source, LeftOut]:
    if arguments.files:
        if arguments.schema:
            raise UsageError("--schema: is of a database; leave it away with --from-store-log")
        log = await StoreLogSource.open(
            arguments.files, skip, lambda done, total: progress("looked at", done >> 10, total >> 10, "KiB")
        )
        return log, log.left_out
    url, schema, names_none = CONNECTION, SCHEMA, False
    if arguments.config:
        ini = read_ini(arguments.config)
        url, schema = connection(ini)
        names_none = ("STORE_LOG", "db_connection") not in ini and not arguments.url
    elif not arguments.url:
        raise UsageError(_NO_SOURCE)
    try:
        from ntf_server.store.reference.postgres import PostgresSource  # noqa: PLC0415  loads psycopg
    except ImportError as e:
        raise UsageError(_NO_DRIVER.format(sys.executable)) from e
    try:
        database = await PostgresSource.open(arguments.url or url, arguments.schema or schema, skip)
    except StoreUnavailableError as e:
        if not names_none:
            raise
        raise StoreUnavailableError(
            f"{e} ({arguments.config} names no database, so {CONNECTION} was tried; of a server that keeps a store log"
            " give --from-store-log)"
        ) from e
    return database, database.left_out


def _ids(given: list[str]) -> frozenset[bytes]:
    out = set()
    for text in (one for some in given for one in some.split(",") if one):
        try:
            out.add(un_b64url(text))
        except ParseError as e:
            raise UsageError(f"--skip-tokens: {text[:40]!r} is no id of a registration (base64url)") from e
    return frozenset(out)
