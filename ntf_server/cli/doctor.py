"""`ntf-server doctor`: is all of the set-up well, and what mends what is not?

It does what `check` does, and looks at what a start says nothing of: what ends soon, owners of files, limits, room, the
unit; with `--online` at what has to be reached. What fails, or cannot be looked at, keeps nothing else from being.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from ntf_server.cli import arguments as common
from ntf_server.cli.check import become, program_can_be_read, program_unreadable
from ntf_server.cli.errors import lines
from ntf_server.cli.service_user import ServiceUser, add_user, find_unit, is_of, service_user
from ntf_server.config.files import Config, look_over
from ntf_server.config.mistakes import Mistakes
from ntf_server.doctor.machine import clock, descriptors, owners, room
from ntf_server.doctor.online import online
from ntf_server.doctor.setup import of_backlog, of_certificates, of_keys, of_lines, of_running, of_start, text_and_cure
from ntf_server.doctor.unit import unit
from ntf_server.findings import Finding, Standing, exit_code, left_out, warning, well, wrong
from ntf_server.permissions import user_name
from ntf_server.preflight import Found, preflight, private_files
from ntf_server.store.glance import glance

_START: Final = 90.0  # seconds for what a start does; a master key's command may take most of it
_STORE: Final = 15.0
_ONLINE: Final = 120.0

Unit = tuple[Path, Mapping[str, str]]
Look = Callable[[], Iterable[Finding]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument(
        "--online",
        action="store_true",
        help="reach providers and SMP servers too; without it nothing leaves this machine",
    )
    add_user(parser)
    parser.add_argument("--json", action="store_true", help="as one line of JSON")


def run(arguments: argparse.Namespace) -> int:
    """1 if anything is wrong."""
    logging.getLogger().addHandler(logging.NullHandler())  # what is wrong is told below
    directory = common.directory(arguments)
    user, installed = service_user(arguments.user, directory), find_unit()
    before = become(user, directory) if user else None
    with program_can_be_read():
        config, mistakes = look_over(directory)
        findings = [*_whole(config, mistakes, user)]
        findings += asyncio.run(_all(arguments, config, before, installed, whole=not mistakes))
    code = exit_code(findings)
    if arguments.json:
        print(json.dumps({"exit_code": code, "findings": [dict(finding.fields()) for finding in findings]}))
        return code
    for finding in findings:
        print("\n".join(finding.lines()))
    print(_summary(findings))
    sys.stdout.flush()
    return code


def _whole(config: Config, mistakes: Mistakes, user: ServiceUser | None) -> Iterator[Finding]:
    yield well("user", f"seen as {user_name()}{f' ({user.why})' if user else ''}")
    if (unreadable := program_unreadable()) is not None:
        yield warning("user", *text_and_cure(unreadable))
    if mistakes:
        yield from of_lines("configuration", lines(mistakes.error))
    else:
        yield well("configuration", f"{config.directory}: every setting is known, and every file is read")


async def _all(
    arguments: argparse.Namespace, config: Config, before: Found | None, installed: Unit | None, *, whole: bool
) -> list[Finding]:
    """`whole`: the configuration has no mistakes."""
    found = Found()
    try:
        async with asyncio.timeout(_START):
            found = await preflight(config, ports=before is None)
    except TimeoutError:
        found.troubles.append(TimeoutError(f"it took more than {_START:g} s"))
    troubles = [*(before.troubles if before else ()), *found.troubles]
    told = [line for trouble in troubles for line in lines(trouble)]
    findings: list[Finding] = []
    looks: list[tuple[str, Look]] = [
        ("start", partial(of_start, config, found, told, whole=whole)),
        ("server", partial(of_running, found.running)),
        ("keys", partial(of_keys, config)),
        ("certificate", partial(of_certificates, config)),
        ("owner", partial(owners, config.directory, [*private_files(config)])),
        ("descriptors", partial(_descriptors, config, installed)),
        ("clock", _clock),
        ("disk", partial(_room, config)),
        ("unit", partial(_unit, config, installed)),
    ]
    for name, look in looks:
        findings += _looked(name, look)
    findings += await _backlog(config, found)
    if not arguments.online:
        return [*findings, left_out("online", "nothing left this machine: --online reaches providers and SMP servers")]
    try:
        async with asyncio.timeout(_ONLINE):
            return [*findings, *await online(config)]
    except TimeoutError:
        return [*findings, wrong("online", f"took more than {_ONLINE:g} s", "try it again; is DNS slow?")]


def _looked(name: str, look: Look) -> list[Finding]:
    """What cannot be looked at keeps nothing else from being."""
    try:
        return [*look()]
    except OSError as e:
        return [wrong(name, f"{e.filename or 'it'}: {e.strerror or e}", "run it as root, or as the server's user")]


def _descriptors(config: Config, installed: Unit | None) -> Iterable[Finding]:
    ours = installed[1] if installed is not None and is_of(installed[1], config.directory) else {}
    return [descriptors(config.settings.limits.sessions, ours.get("LimitNOFILE"))]


def _clock() -> Iterable[Finding]:
    return [clock()]


def _room(config: Config) -> Iterable[Finding]:
    return room(config.store) if isinstance(config.store, Path) else []


def _unit(config: Config, installed: Unit | None) -> Iterable[Finding]:
    mine = installed is not None and is_of(installed[1], config.directory)
    return unit(installed, port=config.settings.transport.port, is_of_this=mine)


async def _backlog(config: Config, found: Found) -> list[Finding]:
    if found.running is not None or not config.store or found.troubles:
        return []
    if isinstance(config.store, Path) and not config.store.exists():
        return []
    try:
        async with asyncio.timeout(_STORE):
            seen = await asyncio.to_thread(glance, config.store)
    except Exception as e:  # of two engines: the start's own findings have said what is wrong with it
        return [left_out("backlog", f"the store could not be asked ({type(e).__name__})")]
    return [*of_backlog(seen, running=False)]


def _summary(findings: Iterable[Finding]) -> str:
    counts = dict.fromkeys(Standing, 0)
    for finding in findings:
        counts[finding.standing] += 1
    return ", ".join(f"{count} {standing}" for standing, count in counts.items() if count)
