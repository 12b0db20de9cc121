"""`[limits]`: text to budgets; and other lists of networks."""

import ipaddress
from collections.abc import Sequence
from typing import Final

from ntf_server.admission.addresses import Network
from ntf_server.admission.budgets import Budgets, Rate
from ntf_server.config.settings import Limits

_ELSEWHERE: Final = ("enabled", "shared")


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and networks. Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


class LimitsError(ValueError):
    """`KEY: what is wrong; what to do`."""


def parse_limits(limits: Limits) -> Budgets | None:
    """None: they are switched off. Raises LimitsError."""
    key = "shared"
    try:
        shared = parse_networks(limits.shared)
        rates: dict[str, Rate | int] = {}
        for key in limits.__struct_fields__:
            value = getattr(limits, key)
            if key not in _ELSEWHERE:
                rates[key] = Rate.parse(value) if isinstance(value, str) else value
    except ValueError as e:
        cure = "give IP addresses or networks" if key == "shared" else "give a rate as in 300 + 5/s"
        raise LimitsError(f"{key}: {e}; {cure}") from None
    return Budgets(shared, **rates) if limits.enabled else None  # type: ignore[arg-type]  # settings and fields agree
