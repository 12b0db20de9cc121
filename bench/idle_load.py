"""Clients of a notification server that do nothing: `idle_load.py ntf://... N` keeps N connections until it is ended.

It is ready when all have done their handshakes.
"""

import asyncio
import resource
import sys
from typing import Final

from control import obey

from smp_bridge.address import ServerAddress
from smp_bridge.connecting import connect
from smp_bridge.tls import client_context
from smp_bridge.transport import BlockConnection, Scratch

_AT_ONCE: Final = 16


async def _main(address: ServerAddress, count: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context, scratch, turn = client_context("ntf"), Scratch(), asyncio.Semaphore(_AT_ONCE)

    async def one() -> BlockConnection:
        async with turn:
            return (await connect(address, context=context, scratch=scratch))[0]

    connections = await asyncio.gather(*(one() for _ in range(count)))
    await obey({}, {"connections": len(connections)})
    for connection in connections:
        connection.abort()


if __name__ == "__main__":
    asyncio.run(_main(ServerAddress.from_text(sys.argv[1]), int(sys.argv[2])))
