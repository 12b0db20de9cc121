"""sd_notify(3) and sd_watchdog_enabled(3), without libsystemd."""

import asyncio
import logging
import os
import socket
import time

log = logging.getLogger(__name__)


def ready() -> None:
    """Started, or reloaded."""
    _notify("READY=1")


def reloading() -> None:
    """To be followed by `ready`."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The end has begun."""
    _notify("STOPPING=1")


def watchdog() -> float | None:
    """Seconds after which this process is killed that said nothing; None: nobody wants to know."""
    given, process = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not given.isascii() or not given.isdigit() or int(given) == 0 or process not in {"", str(os.getpid())}:
        return None
    return int(given) / 1e6


async def watch(seconds: float) -> None:
    """Say, until cancelled, that the event loop goes on: three times in so many seconds."""
    while True:
        _notify("WATCHDOG=1")
        await asyncio.sleep(seconds / 3)


def _notify(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            s.connect("\0" + address[1:] if address[0] == "@" else address)
            s.sendall(state.encode())
    except OSError as e:
        log.warning("$NOTIFY_SOCKET cannot be written to: %s", e.strerror)
