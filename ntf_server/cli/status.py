"""`ntf-server status`: one screen, from the running server, or from its store when it does not run.

0: it is well. 1: it is not, or does not run. 2: that cannot be told.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from ntf_server.admin.socket import AdminError, NotRunningError, ask
from ntf_server.cli import arguments as common
from ntf_server.cli.errors import UsageError
from ntf_server.config.files import load_admin_socket, load_store
from ntf_server.observe.condition import Condition, Phase, State, WayCondition, duration, service
from ntf_server.observe.moments import moment
from ntf_server.store.contract import StoreCorruptError, StoreError
from ntf_server.store.glance import glance
from ntf_server.store.records import Glance
from ntf_server.store.redis.url import RedisUrl
from ntf_server.store.sqlite.file import is_locked

TIMEOUT: Final = 10.0  # seconds for an answer
WELL: Final = 0
NOT_WELL: Final = 1


class Answer(Condition, frozen=True):
    """What the running server says."""

    version: str
    pid: int
    port: int
    address: str
    url: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this command."""
    common.add_path(parser)
    parser.add_argument("--json", action="store_true", help="as one line of JSON")
    parser.add_argument(
        "--ready", action="store_true", help="say only whether clients may be sent to it, and end with 1 if not"
    )


def run(arguments: argparse.Namespace) -> int:
    """Raises UsageError where it cannot tell."""
    directory = common.directory(arguments)
    socket, place = load_admin_socket(directory), load_store(directory)
    try:
        answer = ask(socket, "status", timeout=TIMEOUT)
    except NotRunningError as e:
        return _stopped(arguments, str(e), socket, place)
    except AdminError as e:
        raise UsageError(f"{e}; how it is cannot be told") from None
    try:
        status = msgspec.convert(answer, Answer)
    except msgspec.ValidationError:
        version = answer.get("version", "another version")
        raise UsageError(f"{socket}: the server that runs is {version}, whose answer is another; restart it") from None
    if arguments.ready:
        print(status.unready or "ready")
        return NOT_WELL if status.unready else WELL
    print(json.dumps(answer) if arguments.json else "\n".join(screen(status)))
    return WELL if status.well else NOT_WELL


def _stopped(arguments: argparse.Namespace, why: str, socket: Path, place: Path | RedisUrl) -> int:
    """No server has the socket."""
    _check_unused(socket, place)
    if arguments.ready:
        print(f"ntf-server: {why}", file=sys.stderr)
        return NOT_WELL
    told: Glance | None = None
    error = ""
    try:
        told = glance(place)
    except (StoreError, StoreCorruptError) as e:
        error = str(e)
    if arguments.json:
        found = {} if told is None else msgspec.to_builtins(told)
        troubles = [why, *([error] if error else [])]
        print(json.dumps({"well": False, "phase": Phase.STOPPED, "troubles": troubles, "url": str(place), **found}))
    else:
        print("\n".join([f"ntf-server does not run: {why}", "", *_rows(stopped_rows(place, told, error))]))
    return NOT_WELL


def _check_unused(socket: Path, place: Path | RedisUrl) -> None:
    """Raises UsageError if a server runs all the same."""
    if isinstance(place, RedisUrl):
        return
    try:
        used = is_locked(place)
    except OSError as e:
        raise UsageError(
            f"{e.filename}: {e.strerror}; whether a server runs cannot be told; be its user, or root"
        ) from None
    if used:
        raise UsageError(
            f"{place}: a process uses the database, but nobody listens at {socket}: it is starting or stopping, or has"
            " another [admin] socket"
        )


# --- the screen


def screen(status: Answer) -> Iterator[str]:
    """Lines."""
    phase = "" if status.phase is Phase.RUNNING else f"{status.phase.value}, and "
    if status.well:
        yield f"ntf-server is {phase}well."
    else:
        yield f"ntf-server is {phase}not well:"
        yield from (f"- {trouble}" for trouble in status.troubles)
    if status.warnings:
        yield "Soon it will not be:" if status.well else "And soon:"
        yield from (f"- {warning}" for warning in status.warnings)
    yield ""
    yield from _rows(_status_rows(status))


def _rows(rows: Iterator[tuple[str, object]]) -> Iterator[str]:
    before = ""
    for name, value in rows:
        yield f"{'' if name == before else name:<11} {value}"
        before = name


def _status_rows(s: Answer) -> Iterator[tuple[str, object]]:
    yield "version", s.version
    yield "process", f"{s.pid}, up for {duration(s.now - s.started)} (since {moment(s.started)})"
    yield "address", s.address
    yield "listens on", s.port
    yield "store", f"{s.url}: {_since(s.store.state.value, s.store.since, s.now)}"
    for way in s.providers:
        yield "pushes to", f"{service(way.name)}: {'; '.join(_way(way, s.now))}"
    yield "SMP servers", ", ".join(_servers(s))
    yield "clients", f"{s.clients} sessions"
    oldest, in_flight = s.oldest_due_since, sum(way.in_flight for way in s.providers)
    yield "due", f"{_due(s.due, None if oldest is None else s.now - oldest)}, {in_flight} pushes under way"
    if (v := s.vapid) is not None:
        counts = f"{v.in_force} registrations for the key in force, {v.old} for older ones, {v.unknown} not known"
        yield "VAPID keys", f"{counts}; counted {duration(s.now - v.counted_at)} ago"
    if (leases := s.leases) is not None:
        shards = f"{leases.shards} of {leases.all_shards} shards of tokens"
        yield "leases", f"{shards}, {leases.servers} SMP servers; {leases.nodes} nodes live"


def _way(way: WayCondition, now: float) -> Iterator[str]:
    yield _since(way.state.value, way.since if way.state is not State.WELL else None, now)
    if way.paused_until is not None:
        yield f"next try in {duration(way.paused_until - now)}"
    yield "nothing accepted yet" if way.accepted_at is None else f"accepted {duration(now - way.accepted_at)} ago"
    if way.reason and way.state is not State.WELL:
        yield way.reason
    elif way.reason:
        yield f"last trouble: {way.reason}"
    if way.services:
        yield f"{way.services} push services, {way.services_in_trouble} in trouble"


def _servers(s: Answer) -> Iterator[str]:
    servers = s.smp_servers
    yield f"{servers.wanted} wanted"
    yield f"{servers.connected} connected"
    if servers.away and servers.away_since is not None:
        yield f"{servers.away} away for up to {duration(s.now - servers.away_since)}"
    if servers.never:
        yield f"{servers.never} that never confirmed anything"


def _since(state: str, since: float | None, now: float) -> str:
    return state if since is None else f"{state} for {duration(now - since)}"


def _due(count: int, oldest: float | None) -> str:
    return f"{count} tokens" if oldest is None else f"{count} tokens, the oldest for {duration(oldest)}"


def stopped_rows(place: Path | RedisUrl, told: Glance | None, error: str) -> Iterator[tuple[str, object]]:
    """What a store tells without a server."""
    if told is None:
        yield "store", error
        return
    yield "store", place
    yield "tokens", ", ".join(f"{count} {status}" for status, count in told.registrations.items()) or "none"
    if told.subscriptions is not None:
        yield "queues", told.subscriptions
    providers = ", ".join(f"{service(name)} {count}" for name, count in told.due.items())
    yield "due", _due(sum(told.due.values()), told.oldest_due) + (f": {providers}" if providers else "")
    if told.nodes is not None:
        yield "nodes", f"{told.nodes} live"
