"""The page of the wire agrees with the code, and what cites it finds it."""

import re
from pathlib import Path

from smp_bridge import ntf, smp
from smp_bridge.encoding import int64, maybe, short, word16

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reference/wire.md").read_text()
SECTIONS = {int(number): text for number, text in re.findall(r"^## (\d)\. [^\n]+\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)}


def tags(section: int, *heads: str) -> set[str]:
    """What the first columns of its tables with these heads name."""
    found: set[str] = set()
    for table in re.findall(r"(?:^\|[^\n]*\n)+", SECTIONS[section], re.M):
        rows = table.splitlines()
        if rows[0].strip("| ").split(" | ")[0] in heads:
            found |= {tag for row in rows[2:] for tag in re.findall(r"`([A-Z]+) ?`", row.split("|")[1])}
    return found


def test_examples_are_what_the_code_writes() -> None:
    token = ntf.DeviceToken(ntf.Provider.APNS, b"abcd")
    written = [
        [short(b"OK")],
        [maybe(None), maybe(word16(20))],
        [int64(1_800_000_000)],
        [ntf.TCrn(20).encode(3)],
        [token.encode()],
    ]
    rows = re.findall(r"^\| .*? \| ((?:`[0-9a-f]+`(?:; )?)+) \|$", SECTIONS[1], re.M)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == [[b.hex() for b in each] for each in written]


def test_commands_of_ntf_are_those_of_the_code() -> None:
    known = {t.tag.decode() for t in ntf.COMMANDS.values()}
    assert tags(6, "command") == known
    codes = set(re.findall(r"`([A-Z]{2})`", "".join(re.findall(r"^\| `[A-Z]{2}`[^|]*\|", SECTIONS[6], re.M))))
    assert codes == {provider.value for provider in ntf.Provider}


def test_commands_of_smp_are_those_of_the_code() -> None:
    known = {t.tag.decode() for t in smp.COMMANDS.values()}
    assert tags(7, "command") == known
    assert tags(7, "event") == {t.tag.decode() for t in (smp.NMsg, smp.End, smp.Deld, smp.Ends)}
    versions = re.findall(r"^\| (SMP|NTF) (\d+) \|", SECTIONS[4], re.M)
    assert max(int(n) for name, n in versions if name == "SMP") == smp.VERSIONS[1]
    assert max(int(n) for name, n in versions if name == "NTF") == ntf.VERSIONS[1]


def test_sections_that_are_cited_are_there() -> None:
    cited = [
        each
        for package in ("smp_bridge", "ntf_server", "ntf_client")
        for module in (ROOT / package).rglob("*.py")
        for each in re.findall(r"wire\.md(?:,\s+sections? (\d)(?: to (\d))?)?", module.read_text())
    ]
    assert len(cited) > 30
    assert all(first and int(first) in SECTIONS and int(last or first) in SECTIONS for first, last in cited)
