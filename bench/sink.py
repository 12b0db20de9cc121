"""A notification server that does nothing: what an attack costs this machine without the relay being its target.

It speaks TLS, handshake and blocks, and says yes to every command. Controlled as `control` says: `done` tells how many
commands that were.
"""

import asyncio
import os
import resource
from typing import Final

from control import obey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from smp_bridge import ntf
from smp_bridge.handshake import HandshakeError
from smp_bridge.identity import Credentials
from smp_bridge.transmission import Invalid, Message, Transmission, encode_blocks, encode_transmission, parse_block
from smp_bridge.transport import BlockConnection, ConnectionClosedError, accept, serve

_KEY: Final = X25519PrivateKey.generate().public_key()


class Sink:
    """Says yes."""

    def __init__(self) -> None:
        self._credentials = Credentials.generate("ED25519", "localhost")[0]
        self._tasks: set[asyncio.Task[None]] = set()
        self._done = 0

    async def start(self) -> tuple[int, str]:
        """Listen: port, and the hash of its key."""
        server = await serve("ntf", self._credentials, self._connected, "127.0.0.1", 0)
        self._server = server
        return server.sockets[0].getsockname()[1], self._credentials.key_hash.hex()

    def done(self) -> int:
        """See the module's docstring."""
        return self._done

    def _connected(self, connection: BlockConnection) -> None:
        task = asyncio.create_task(self._run(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, connection: BlockConnection) -> None:
        try:
            session = await accept(connection, self._credentials)
            while True:
                asked = parse_block(session, await connection.receive())
                self._done += len(asked)
                answers = [
                    encode_transmission(session, t.corr_id, b"", _answer(t).encode(session.version)) for t in asked
                ]
                for block in encode_blocks(session, answers):
                    connection.send(block)
                await connection.drain()
        except (HandshakeError, ConnectionClosedError, TimeoutError):
            pass  # the stranger left
        finally:
            connection.abort()


def _answer(t: Transmission | Invalid) -> Message:
    if isinstance(t, Invalid):
        return t.error
    match t.command.partition(b" ")[0]:
        case b"TNEW":
            return ntf.IdTkn(os.urandom(ntf.ENTITY_ID_SIZE), _KEY)
        case b"SNEW":
            return ntf.IdSub(os.urandom(ntf.ENTITY_ID_SIZE))
        case b"TCHK":
            return ntf.Tkn(ntf.TokenStatus.ACTIVE)
        case b"PING":
            return ntf.Pong()
    return ntf.Ok()


async def _main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sink = Sink()
    port, key_hash = await sink.start()
    await obey({"done": sink.done}, {"port": port, "key_hash": key_hash})


if __name__ == "__main__":
    asyncio.run(_main())
