"""`ntf-server` whose names are resolved by the DNS of a bench: `named_relay.py start --path DIR`, BENCH_DNS=IP:PORT.

The machine's own settings cannot be changed for one process. So c-ares is given this server, wherever the relay uses
it, and the C library's resolver is played: as that does, it holds its thread for 10 seconds when nobody answers.
"""

import ipaddress
import os
import random
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))  # this tree's relay, whatever is installed

import pycares

from ntf_server.cli.main import main

ENVIRONMENT: Final = "BENCH_DNS"
_TIMEOUT: Final = 5.0  # seconds; of resolv.conf(5)
_ATTEMPTS: Final = 2  # the same
_HEAD: Final = 12
_A: Final = 1


def use(server: str) -> None:
    """From now on names are asked of `IP:PORT` only."""
    plain_channel, plain_lookup = pycares.Channel, socket.getaddrinfo
    host, _, port = server.partition(":")

    def channel(*arguments: Any, **options: Any) -> Any:
        return plain_channel(*arguments, **(options | {"servers": [server]}))

    def look_up(name: Any, *rest: Any, **options: Any) -> Any:
        if not isinstance(name, str) or name == "localhost" or _is_address(name):
            return plain_lookup(name, *rest, **options)
        found = [plain_lookup(a, *rest, **options) for a in _ask(name, (host, int(port)))]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [info for infos in found for info in infos]

    vars(pycares).update(Channel=channel)
    vars(socket).update(getaddrinfo=look_up)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _ask(name: str, server: tuple[str, int]) -> list[str]:
    """The IPv4 addresses of a name; none if there is no answer."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    question = struct.pack("!HHHHHH", random.randrange(2**16), 0x0100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_TIMEOUT)
        sock.connect(server)
        for _ in range(_ATTEMPTS):
            try:
                sock.send(question)
                return _addresses(sock.recv(4096), len(question))
            except OSError:
                continue
    return []


def _addresses(answer: bytes, at: int) -> list[str]:
    """Of an answer whose names are all pointers, as the bench's are."""
    [count] = struct.unpack_from("!H", answer, 6)
    out = []
    for _ in range(count):
        kind, size = struct.unpack_from("!2xH6xH", answer, at)
        if kind == _A:
            out.append(socket.inet_ntoa(answer[at + _HEAD : at + _HEAD + size]))
        at += _HEAD + size
    return out


if __name__ == "__main__":
    if server := os.environ.get(ENVIRONMENT):
        use(server)
    main()
