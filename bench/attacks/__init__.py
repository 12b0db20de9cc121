"""What strangers do to a relay: see `ATTACKS`."""

from collections.abc import Mapping
from typing import Final

from attacks import smp_servers
from attacks.base import Attack

ATTACKS: Final[Mapping[str, type[Attack]]] = {
    "tarpit": smp_servers.TarpitServers,
    "refusing": smp_servers.RefusingPorts,
    "hang": smp_servers.ConfirmThenHang,
    "silent-smp": smp_servers.SilentNames,
    "spellings": smp_servers.SpellingsOfOne,
}
