"""What Web Push is configured with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.push.exchange import Endpoint
from ntf_server.store.records import PushKind
from smp_bridge.network import IPNetwork

STREAMS: Final = 100  # on one connection, what RFC 9113, section 6.5.2, asks of every peer


@dataclass(frozen=True, slots=True)
class WebPushSettings:
    """`keys`: VAPID keys, the one in force first, then older ones that subscriptions may still be for.

    `contact`: mailto: or https: URL, for push services; `endpoint`: of every push service, but for its URL; `ttl`:
    seconds from when a push became due that they keep it, of each kind; `allow_hosts`: domains (which stand for their
    subdomains too) and networks that are pushed to though they are not public; `own_host`: of this relay's address.
    """

    keys: tuple[ec.EllipticCurvePrivateKey, ...] = field(repr=False)
    contact: str
    endpoint: Endpoint
    ttl: Mapping[PushKind, int]
    allow_hosts: tuple[str | IPNetwork, ...] = ()
    own_host: str = ""
