import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from control import Child, child

from ntf_server.testing.tls import TlsFiles, throwaway_tls

STREAMS = 500
HEADERS = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", "/3/device/00")]


@pytest.fixture
def tls() -> Iterator[TlsFiles]:
    with throwaway_tls() as files:
        yield files


@pytest.fixture
async def mock(tls: TlsFiles) -> AsyncIterator[Child]:
    options = ("--cert", str(tls.cert_file), "--key", str(tls.key_file), "--streams", str(STREAMS))
    async with child("apns_load.py", *options) as out:
        yield out


class Client:
    """An HTTP/2 connection; blocking, since only one thing happens at a time."""

    def __init__(self, mock: Child, tls: TlsFiles) -> None:
        context = tls.client_context(["h2"])
        self._socket = context.wrap_socket(
            socket.create_connection(("127.0.0.1", mock.ready["port"]), timeout=10), server_hostname="localhost"
        )
        self.h2 = h2.connection.H2Connection()
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self._socket.sendall(self.h2.data_to_send())

    def until(self, done: Callable[[list[h2.events.Event]], bool]) -> list[h2.events.Event]:
        """What came, as soon as that is enough, or the peer has closed."""
        out: list[h2.events.Event] = []
        while not done(out):
            data = self._socket.recv(65536)
            if not data:
                break
            out += self.h2.receive_data(data)
        return out

    def streams(self) -> int:
        return self.h2.remote_settings.max_concurrent_streams

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
async def connect(mock: Child, tls: TlsFiles) -> AsyncIterator[Callable[[], Client]]:
    clients: list[Client] = []

    def new() -> Client:
        clients.append(Client(mock, tls))
        return clients[-1]

    yield new
    for client in clients:
        client.close()


def kinds(events: list[h2.events.Event], kind: type[h2.events.Event]) -> int:
    return sum(isinstance(e, kind) for e in events)


def exchange(client: Client) -> tuple[list[int], list[tuple[int, int]]]:
    """Three requests at once: the streams answered with 200, and those that were reset, with the reason."""
    client.until(lambda events: kinds(events, h2.events.RemoteSettingsChanged) > 0)
    client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 100  # as if they had not come
    client.h2.remote_settings.acknowledge()
    for stream in (1, 3, 5):
        client.h2.send_headers(stream, HEADERS, end_stream=True)
    client.flush()

    def ended(events: list[h2.events.Event]) -> bool:
        return kinds(events, h2.events.StreamEnded) + kinds(events, h2.events.StreamReset) == 3

    events = client.until(ended)
    answered = [e.stream_id for e in events if isinstance(e, h2.events.StreamEnded)]
    return answered, [(e.stream_id, e.error_code) for e in events if isinstance(e, h2.events.StreamReset)]


async def test_all_streams_are_allowed_at_once_unless_told_otherwise(connect: Callable[[], Client]) -> None:
    assert await asyncio.to_thread(lambda: exchange(connect())) == ([1, 3, 5], [])


async def test_streams_above_the_first_are_refused_until_an_answer(mock: Child, connect: Callable[[], Client]) -> None:
    await mock.call("first_streams", count=1)
    await mock.call("set", latency=0.05)

    def talk() -> None:
        client = connect()
        client.until(lambda events: kinds(events, h2.events.RemoteSettingsChanged) > 0)
        assert client.streams() == 1

    await asyncio.to_thread(talk)
    refused = h2.errors.ErrorCodes.REFUSED_STREAM
    client = connect()
    assert await asyncio.to_thread(exchange, client) == ([1], [(3, refused), (5, refused)])
    assert (await mock.call("stats"))["refused_streams"] == 2

    def again() -> int:
        client.h2.send_headers(7, HEADERS, end_stream=True)
        client.flush()
        return kinds(client.until(lambda events: kinds(events, h2.events.StreamEnded) == 1), h2.events.StreamEnded)

    assert await asyncio.to_thread(again) == 1  # the limit is gone with the first answer
    assert client.streams() == STREAMS


async def test_drop_says_goaway_and_closes(mock: Child, connect: Callable[[], Client]) -> None:
    client = connect()
    await asyncio.to_thread(exchange, client)
    assert await mock.call("drop") == 1
    events = await asyncio.to_thread(client.until, lambda _: False)
    [goaway] = [e for e in events if isinstance(e, h2.events.ConnectionTerminated)]
    assert (goaway.last_stream_id, goaway.error_code) == (5, 0)
    assert await mock.call("drop") == 0
