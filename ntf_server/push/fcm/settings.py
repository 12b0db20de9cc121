"""What pushing through FCM is configured with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import rsa

from ntf_server.push.exchange import Endpoint
from ntf_server.store.records import PushKind

STREAMS: Final = 100  # that Google allows on a connection


class ServiceAccountError(ValueError):
    """The file is not a Google service account's key."""


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """What the JSON file from Google holds."""

    project_id: str
    client_email: str
    key_id: str
    token_uri: str
    key: rsa.RSAPrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class FcmSettings:
    """`push_to`: FCM's host; `token_endpoint`: where access tokens are granted, the account's token_uri.

    `ttl`: seconds from when a push became due that Google keeps it, of each kind.
    """

    account: ServiceAccount
    push_to: Endpoint
    token_endpoint: Endpoint
    ttl: Mapping[PushKind, int]
