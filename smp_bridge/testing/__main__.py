"""Run the in-memory SMP server: `python -m smp_bridge.testing --port 5223`."""

import argparse
import asyncio
import signal
import sys

from smp_bridge.testing.server import SmpServer


def main() -> int:
    """Serve until SIGINT or SIGTERM (exit 0); print the address once it accepts connections. No port: exit 2."""
    parser = argparse.ArgumentParser(
        prog="python -m smp_bridge.testing", description="An in-memory SMP server for tests: nothing is kept."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=5223, help="default %(default)s; 0 picks a free one")
    arguments = parser.parse_args()
    try:
        asyncio.run(_serve(arguments.host, arguments.port))
    except (OSError, OverflowError) as e:
        print(f"cannot listen on {arguments.host} port {arguments.port}: {e}", file=sys.stderr)
        return 2
    return 0


async def _serve(host: str, port: int) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with SmpServer(host=host, port=port) as server:
        print(server.address, flush=True)
        await stopped.wait()


if __name__ == "__main__":
    sys.exit(main())
