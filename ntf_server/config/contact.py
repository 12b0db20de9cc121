"""The contact that push services are given (RFC 8292, section 2.1): Apple's refuses one that is not public."""

import re
import urllib.parse
from typing import Final

from smp_bridge.network import is_onion, is_public_host, is_public_ip

_LABEL: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_NEVER: Final = ("invalid", "test")  # RFC 2606: these resolve nowhere


class ContactError(ValueError):
    """What is wrong with the contact."""


def is_public_name(host: str) -> bool:
    """Whether a DNS name may exist on the public internet: no IP address, no local name, two labels at least."""
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        return False
    try:
        is_public_ip(name)
    except ValueError:
        return is_public_host(name) and not is_onion(name) and labels[-1] not in _NEVER
    return False


def check_contact(contact: str) -> None:
    """A `mailto:` URL with one address, or an `https:` URL. Raises ContactError."""
    if not re.fullmatch(r"[!-~]+", contact):
        raise ContactError("give a mailto: or https: URL")
    scheme, _, rest = contact.partition(":")
    if scheme == "mailto":
        address = rest.partition("?")[0]
        local, at, host = address.partition("@")
        if "," in address or ";" in address or "@" in host:
            raise ContactError("give one address")
        if not local or not at:
            raise ContactError("is no mail address")
    elif scheme == "https":
        try:
            host = urllib.parse.urlsplit(contact).hostname or ""
        except ValueError:
            host = ""
    else:
        raise ContactError("give a mailto: or https: URL")
    if not is_public_name(host):
        raise ContactError(f"{host or 'no host'} is no public DNS name, so push services refuse it")
