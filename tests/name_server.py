"""A small DNS server (RFC 1035, A and AAAA over UDP): names that it does not know are never answered for."""

import asyncio
import ipaddress
import struct
from typing import Any, Self


class Dns(asyncio.DatagramProtocol):
    """For `async with`. `names`: addresses by name; `asked`: what was asked for, each name once a question."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.refused: set[str] = set()
        self.asked: list[str] = []
        self.port = 0
        self._transport: Any = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port = self._transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer a question."""
        name, labels, at = "", [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        name = ".".join(labels)
        question, kind = data[12 : at + 5], struct.unpack("!H", data[at + 1 : at + 3])[0]
        self.asked.append(name)
        if name in self.refused:  # NXDOMAIN
            self._transport.sendto(data[:2] + struct.pack("!HHHHH", 0x8183, 1, 0, 0, 0) + question, addr)
        if name not in self.names:
            return
        ips = [ipaddress.ip_address(a) for a in self.names[name]]
        packed = [ip.packed for ip in ips if {4: 1, 6: 28}[ip.version] == kind]
        head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, len(packed), 0, 0)
        answers = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, 1, len(p)) + p for p in packed)
        self._transport.sendto(head + question + answers, addr)
