"""The DNS of a bench (RFC 1035, A and AAAA over UDP), in a process of its own.

`dns_load.py ZONE` with a JSON object: addresses by domain, which stands for the names below it too; null: no answer
ever comes. All else does not exist. Controlled as `control` says:

    add name=... addresses=[...]    one more
    asked                           how many questions came
"""

import asyncio
import ipaddress
import json
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

from control import obey

_HEAD: Final = 12
_QUESTION: Final = 4  # type and class
_NO_SUCH_NAME: Final = 0x8183
_FOUND: Final = 0x8180
_KINDS: Final = {4: 1, 6: 28}


class Dns(asyncio.DatagramProtocol):
    """Answers at once."""

    def __init__(self, zone: dict[str, list[str] | None]) -> None:
        self._zone = zone
        self._asked = 0
        self._transport: Any = None  # no DatagramTransport by its class

    def add(self, name: str, addresses: list[str] | None) -> None:
        """See the module's docstring."""
        self._zone[name] = addresses

    def asked(self) -> int:
        """See the module's docstring."""
        return self._asked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is bound."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer a question, if there is an answer."""
        self._asked += 1
        labels, at = [], _HEAD
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1").lower())
            at += 1 + data[at]
        question = data[_HEAD : at + 1 + _QUESTION]
        domain = next((d for i in range(len(labels)) if (d := ".".join(labels[i:])) in self._zone), None)
        if domain is None:
            self._transport.sendto(data[:2] + struct.pack("!HHHHH", _NO_SUCH_NAME, 1, 0, 0, 0) + question, addr)
        elif (addresses := self._zone[domain]) is not None:
            [kind] = struct.unpack_from("!H", data, at + 1)
            self._transport.sendto(data[:2] + _answer(question, kind, addresses), addr)


def _answer(question: bytes, kind: int, addresses: Sequence[str]) -> bytes:
    ips = [ip for a in addresses if _KINDS[(ip := ipaddress.ip_address(a)).version] == kind]
    answers = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 60, len(ip.packed)) + ip.packed for ip in ips)
    return struct.pack("!HHHHH", _FOUND, 1, len(ips), 0, 0) + question + answers


async def _main(zone: dict[str, list[str] | None]) -> None:
    dns = Dns(zone)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: dns, local_addr=("127.0.0.1", 0))
    await obey({"add": dns.add, "asked": dns.asked}, {"port": transport.get_extra_info("sockname")[1]})


if __name__ == "__main__":
    asyncio.run(_main(json.loads(sys.argv[1])))
