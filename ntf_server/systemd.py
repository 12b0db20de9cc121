"""sd_notify(3), without libsystemd."""

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
