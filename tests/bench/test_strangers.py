import asyncio
import json
import math
import re
import socket
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from attacks import ATTACKS
from attacks.base import Attack
from attacks.connections import key_updates
from attacks.registrations import DeviceSpam, TnewFlood, TnewFloodOfMany
from control import Child, child
from from_address import many_addresses
from lines import Line, lines
from siege import Figures

BENCH = Path(__file__).parents[2] / "bench"
CALM = Figures(1.5, 0.01, 0.01, check=0.005, new_phone=0.05, neighbour=0.02, owner=1.0)


async def strangers(*options: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(BENCH / "strangers.py"), *options, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


def missed(kind: type[Attack], with_: Figures) -> list[str]:
    return [line.row.name for line in lines(kind, CALM, with_) if not line.row.met]


# --- the whole


@pytest.mark.long
async def test_a_quick_run() -> None:
    code, output = await strangers("--quick", "--attack", "tarpit")
    assert code == 0
    assert "answered IDSUB 80" in output
    assert re.search(r"NMSGs without a push +0 +0 +<= 0 +ok", output)


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - {"tarpit"}))
async def test_each_attack_attacks(name: str) -> None:
    code, output = await strangers("--quick", "--attack", name)
    assert code == 0
    assert "nothing to be told" not in output
    assert "inf" not in output


async def test_all_attacks_are_listed() -> None:
    code, output = await strangers("--list")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == list(ATTACKS)


# --- the lines


def test_nothing_is_missed_where_all_is_as_without() -> None:
    assert missed(TnewFlood, CALM) == []
    assert missed(DeviceSpam, CALM) == []


@pytest.mark.parametrize(
    ("figures", "line"),
    [
        ({"reconnect": 4.6}, "all servers dropped: all subscribed again"),
        ({"reconnect": math.inf}, "all servers dropped: all subscribed again"),
        ({"push": 0.031}, "NMSG to push, p99"),
        ({"web_push": 0.031}, "the same by Web Push"),
        ({"lost": 1}, "NMSGs without a push"),
        ({"check": 0.026}, "TCHK of a phone elsewhere, p99"),
        ({"refused": 1}, "phones elsewhere that were refused"),
        ({"new_phone": 5.1}, "a new phone elsewhere is registered, longest"),
        ({"neighbour": 30.1}, "a neighbour is served, longest"),
        ({"memory": 65 * 2**20}, "memory (RssAnon)"),
        ({"descriptors": 2101}, "descriptors"),
        ({"lines": 301.0}, "lines of the log in a minute"),
    ],
)
def test_what_is_missed(figures: dict[str, float], line: str) -> None:
    assert missed(TnewFlood, replace(CALM, **figures)) == [line]


def test_of_a_device_that_others_register() -> None:
    assert missed(DeviceSpam, replace(CALM, owner=76.0)) == ["the owner of the device is ACTIVE"]
    assert missed(DeviceSpam, replace(CALM, pushed=4)) == ["codes pushed to the device"]


def test_many_addresses_have_no_goal_for_memory() -> None:
    assert missed(TnewFloodOfMany, replace(CALM, memory=2**30)) == []


def test_a_line_shows_both_figures() -> None:
    [line] = [x for x in lines(TnewFlood, CALM, replace(CALM, reconnect=9.0)) if "dropped" in x.row.name]
    assert isinstance(line, Line)
    assert line.cells() == ("all servers dropped: all subscribed again", "1.5 s", "9 s", "<= 4.5 s", "MISSED")


# --- parts


def test_addresses_are_different_ones_of_loopback() -> None:
    address = many_addresses(10_000)
    assert len({address(i) for i in range(10_000)}) == 10_000
    assert all(socket.inet_aton(address(i))[:2] == bytes([127, 66]) for i in range(10_000))
    assert address(10_000) == address(0)


def test_a_key_update_is_a_record_under_the_key_of_the_one_before() -> None:
    records = key_updates(bytes(48), 3)
    each = [records[i : i + 27] for i in range(0, len(records), 27)]
    assert len(each) == 3
    assert len(set(each)) == 3
    assert all(record.startswith(b"\x17\x03\x03\x00\x16") for record in each)


def ask(dns: Child, name: str) -> list[str] | None:
    """Addresses; None if nothing comes."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.3)
        sock.connect(("127.0.0.1", dns.ready["port"]))
        sock.send(struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1")
        try:
            answer = sock.recv(4096)
        except TimeoutError:
            return None
    [count] = struct.unpack_from("!H", answer, 6)
    return [socket.inet_ntoa(answer[len(answer) - 16 * i :][12:16]) for i in range(count, 0, -1)]


async def test_the_dns_knows_domains_and_is_silent_where_it_is_told() -> None:
    zone = {"evil.example": ["127.0.66.6"], "two.example": ["127.0.0.2", "127.0.0.3"], "silent.example": None}
    async with child("dns_load.py", json.dumps(zone)) as dns:
        assert ask(dns, "two.example") == ["127.0.0.2", "127.0.0.3"]
        assert ask(dns, "a.b.EVIL.example") == ["127.0.66.6"]
        assert ask(dns, "example") == []
        assert ask(dns, "a.silent.example") is None
