"""What is asked of a running server, or of its store: which of the two, and what stands in the way."""

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from command_line import store_of

from ntf_server.admin.socket import AdminError
from ntf_server.cli.asking import ask_either, ask_pages, ask_store
from ntf_server.cli.errors import UsageError
from ntf_server.store.contract import Store, StoreUnavailableError


async def count(store: Store) -> dict[str, Any]:
    return {"subscriptions": await store.subscription_count()}


async def page(store: Store, after: Any) -> dict[str, Any]:
    return {"page": after or 0, "next": (after or 0) + 1 if (after or 0) < 2 else None}


@pytest.fixture
def listening(made: Path) -> Iterator[list[dict[str, Any]]]:
    """Somebody at the socket, who tells what he is asked and gives pages; what he was asked."""
    asked: list[dict[str, Any]] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(made / "ntf-server.sock"))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection, connection.makefile("rb") as file:
                    request = msgspec.json.decode(file.readline())
                    asked.append(request)
                    after = request.get("after", 0)
                    answer = {"ok": after < 9, "error": "no", "page": after, "next": after + 1 if after < 2 else None}
                    connection.sendall(msgspec.json.encode(answer) + b"\n")

        threading.Thread(target=serve, daemon=True).start()
        yield asked
        server.shutdown(socket.SHUT_RDWR)


def test_who_runs_is_asked_and_the_store_left_alone(made: Path, listening: list[dict[str, Any]]) -> None:
    assert ask_either(made, "count", count, of="x")["page"] == 0
    assert [found["page"] for found in ask_pages(made, "pages", page, of="y")] == [0, 1, 2]
    assert listening[0] == {"command": "count", "of": "x"}
    assert listening[1:] == [{"command": "pages", "of": "y"}] + [
        {"command": "pages", "of": "y", "after": n} for n in (1, 2)
    ]
    with pytest.raises(AdminError, match=r"^no$"):
        ask_either(made, "count", count, after=9)
    assert not (made / "ntf-server.db").exists()


async def test_what_a_server_would_log_is_not_said(made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def told(_: Store) -> None:
        logging.getLogger("ntf_server.store").warning("a warning")

    await (await store_of(made)).close()
    await asyncio.to_thread(ask_store, made, told)
    assert capfd.readouterr() == ("", "")


async def test_without_one_the_store_is(made: Path) -> None:
    await (await store_of(made)).close()
    assert await asyncio.to_thread(ask_either, made, "count", count) == {"subscriptions": 0}
    found = await asyncio.to_thread(ask_pages, made, "pages", page)
    assert [one["page"] for one in found] == [0, 1, 2]


async def test_a_store_that_another_process_has(made: Path) -> None:
    store = await store_of(made)
    with pytest.raises(StoreUnavailableError, match="another ntf-server uses this database"):
        await asyncio.to_thread(ask_store, made, count)
    await store.close()


def test_without_a_store(made: Path) -> None:
    with pytest.raises(UsageError, match=r"ntf-server\.db: not found; start the server first$"):
        ask_either(made, "count", count)
    assert not (made / "ntf-server.db").exists()
