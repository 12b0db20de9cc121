"""What pushing through APNs is configured with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from ntf_server.push.exchange import Endpoint
from ntf_server.store.records import PushKind
from smp_bridge.ntf import Provider

# The hosts of `[apns.NAME]`, by what their device tokens are registered as.
SECTIONS: Final = {"production": Provider.APNS, "sandbox": Provider.APNS_SANDBOX, "test": Provider.APNS_TEST}
STREAMS: Final = 1000  # that Apple allows on a connection
# Errors that are of the connection that they come on: on a new one no provider token was shown before.
CONNECTION_ENDS: Final = (b"IdleTimeout", b"Shutdown", b"TooManyProviderTokenUpdates")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The key from Apple, its id and the team's."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    key_id: str
    team_id: str


@dataclass(frozen=True, slots=True)
class ApnsSettings:
    """`hosts`: where device tokens of each provider are pushed to; `signing` None: the endpoints' client certificate
    authenticates. `ttl`: seconds from when a push became due that Apple keeps it, of each kind.
    """

    hosts: Mapping[Provider, Endpoint]
    topic: str
    signing: SigningKey | None
    ttl: Mapping[PushKind, int]
