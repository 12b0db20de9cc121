"""One connection to a Redis: commands go out together, and their answers come in their order.

It is redis-py's connection, without its clients and pools. A client takes a connection from a pool for each command:
so ASKING may travel on another one than what it is for, a pool that is empty is an error, and a command in a pipeline
costs more than twice as much. What a client would add, repeating and routing, is in `database`.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from redis.asyncio import Connection as TcpConnection
from redis.asyncio import SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.redis.call import Word, packed
from ntf_server.store.redis.remedy import NotPrimaryError
from ntf_server.store.redis.tls import Tls
from ntf_server.store.redis.url import Endpoint, Login

# What a server cannot do for us now, or does not let us; `remedy` knows each of them.
TROUBLE: Final = (RedisError, OSError, NotPrimaryError, StoreConflictError)


def info_fields(text: bytes) -> dict[str, str]:
    """An answer to INFO: lines `name:value`, between those that begin with #."""
    pairs = (line.partition(":") for line in text.decode(errors="replace").splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


class _Wire(Protocol):
    """What we use of redis-py's connections, which annotate a part of it only."""

    async def connect(self) -> None: ...

    async def can_read(self) -> bool: ...

    async def send_packed_command(self, command: Iterable[bytes], check_health: bool = True) -> None: ...

    async def read_response(self) -> Any: ...

    async def disconnect(self, nowait: bool = False) -> None: ...


@dataclass(frozen=True)
class Dialer:
    """How to come in. `timeout`: seconds for a connection, and as long again to ask for its role.

    `sentinels`: those are dialled, which have no data.
    """

    login: Login
    tls: Tls | None
    database: int
    timeout: float
    check_role: bool = True  # in a cluster a replica tells by itself that it is none
    sentinels: bool = False

    async def dial(self, endpoint: Endpoint) -> "Connection":
        """Raises one of TROUBLE."""
        wire = self._wire(endpoint)
        connection = Connection(wire)
        try:
            async with asyncio.timeout(self.timeout):
                await wire.connect()
            if not self.sentinels:
                await self._get_to_know(connection, endpoint)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _get_to_know(self, connection: "Connection", endpoint: Endpoint) -> None:
        told: bytes = await connection.command(b"INFO", b"replication", timeout=self.timeout)
        fields = info_fields(told)
        if self.check_role and "role" not in fields:
            raise StoreConflictError(f"{endpoint} is a Sentinel: the store's url has to be redis+sentinel://")
        if self.check_role and fields["role"] != "master":
            raise NotPrimaryError
        connection.history = fields.get("master_replid", "")

    def _wire(self, endpoint: Endpoint) -> _Wire:
        options: dict[str, Any] = {
            "db": self.database,
            "username": self.login.user or None,
            "password": self.login.password or None,
            "protocol": 2,  # answers have the same types with all servers
            "driver_info": None,  # one right less to ask for
            "socket_timeout": None,  # ours are for pipelines, not for each answer in them
            "socket_connect_timeout": self.timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        if endpoint.port == 0:
            return UnixDomainSocketConnection(path=endpoint.host, **options)
        if self.tls is None:
            return TcpConnection(host=endpoint.host, port=endpoint.port, **options)
        secured = SSLConnection(host=endpoint.host, port=endpoint.port, **options)
        secured.ssl_context.context = self.tls.context
        return secured


class Connection:
    """After an error, or a cancellation, it is of no use but to be closed.

    `history`: of the server's data. It is another one once the server was started again, or made primary.
    """

    def __init__(self, wire: _Wire) -> None:
        self.history = ""
        self._wire = wire

    async def exchange(self, commands: Iterable[bytes], answers: list[Any], count: int, timeout: float) -> None:
        """Send packed commands; append `count` answers as they come, ResponseErrors among them, within `timeout`
        seconds. Raises one of TROUBLE: those that came are in `answers` by then.
        """
        read = self._wire.read_response
        async with asyncio.timeout(timeout):
            await self._wire.send_packed_command(commands)
            for _ in range(count):
                try:
                    answers.append(await read())
                except ResponseError as e:
                    answers.append(e)

    async def command(self, *words: Word, timeout: float) -> Any:
        """One alone. Raises one of TROUBLE, of which a ResponseError leaves the connection as it is."""
        answers: list[Any] = []
        await self.exchange([packed(words)], answers, 1, timeout)
        if isinstance(answers[0], ResponseError):
            raise answers[0]
        return answers[0]

    async def is_idle(self) -> bool:
        """Whether nothing came since the last answer: neither its end, nor what nobody asked for."""
        try:
            return not await self._wire.can_read()
        except RedisError:
            return False

    async def close(self, *, wait: bool = False) -> None:
        """At once, or after a TLS peer has agreed. What was sent may still be done by the server."""
        with suppress(RedisError):  # it does not agree
            await self._wire.disconnect(nowait=not wait)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
