"""What operators ask of the running server, or of its store while none runs."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ntf_server.admin.socket import NotRunningError, ask
from ntf_server.cli.errors import UsageError
from ntf_server.config import files as config
from ntf_server.config.source import load_settings
from ntf_server.store.contract import Store
from ntf_server.store.open import open_store
from ntf_server.store.redis.url import RedisUrl

T = TypeVar("T")

Page = dict[str, Any]


def ask_either(
    directory: Path, command: str, of_the_store: Callable[[Store], Awaitable[T]], **arguments: Any
) -> dict[str, Any] | T:
    """The running server's answer; without one, what is found in its store, which is open meanwhile.

    Raises AdminError, UsageError (there is no store yet), ConfigError, StoreError.
    """
    try:
        return ask(config.load_admin_socket(directory), command, **arguments)
    except NotRunningError:
        return ask_store(directory, of_the_store)


def ask_store(directory: Path, of_the_store: Callable[[Store], Awaitable[T]]) -> T:
    """Of the store of a server that does not run. Raises UsageError, ConfigError, StoreError."""
    place = config.load_store(directory)
    if isinstance(place, Path) and not place.exists():
        raise UsageError(f"{place}: not found; start the server first")
    return asyncio.run(_ask_store(directory, place, of_the_store))


def ask_pages(
    directory: Path,
    command: str,
    page: Callable[[Store, Any], Awaitable[Page]],
    *,
    enough: Callable[[list[Page]], bool] = lambda _: False,
    **arguments: Any,
) -> list[Page]:
    """As `ask_either`, for what comes in several answers: `page` gives those of the store."""
    try:
        return ask_running(directory, command, enough=enough, **arguments)
    except NotRunningError:
        return ask_store(directory, lambda store: _pages(store, page, enough))


def ask_running(
    directory: Path, command: str, *, enough: Callable[[list[Page]], bool] = lambda _: False, **arguments: Any
) -> list[Page]:
    """The running server's answers: each but the first is asked for by the `next` of the one before, as `after`.

    `enough`: no more are asked for. Raises AdminError, ConfigError.
    """
    socket = config.load_admin_socket(directory)
    pages = [ask(socket, command, **arguments)]
    while not enough(pages) and (after := pages[-1]["next"]) is not None:
        pages.append(ask(socket, command, **arguments, after=after))
    return pages


async def _pages(
    store: Store, page: Callable[[Store, Any], Awaitable[Page]], enough: Callable[[list[Page]], bool]
) -> list[Page]:
    pages = [await page(store, None)]
    while not enough(pages) and (after := pages[-1]["next"]) is not None:
        pages.append(await page(store, after))
    return pages


async def _ask_store(directory: Path, place: Path | RedisUrl, of_the_store: Callable[[Store], Awaitable[T]]) -> T:
    master_key = config.load_master_key(directory, load_settings(directory))
    with _quiet():
        store = await open_store(place, directory=directory, master_key=master_key)
        try:
            return await of_the_store(store)
        finally:
            await store.close()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What a server would log goes nowhere: what fails is told by its error, what is done by the command."""
    log, nowhere = logging.getLogger("ntf_server"), logging.NullHandler()
    log.addHandler(nowhere)
    try:
        yield
    finally:
        log.removeHandler(nowhere)
