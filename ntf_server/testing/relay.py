"""A relay in this process, for tests of what talks to it. Not imported with the mocks: they need no relay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ntf_server.app import Relay
from ntf_server.config import files as config
from ntf_server.config import identity_files
from ntf_server.config.source import CONFIG_FILE
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.store.sealing import generate_key_text
from ntf_server.testing.apns import MockApns
from ntf_server.testing.fcm import MockFcm
from ntf_server.testing.webpush import MockWebPush
from smp_bridge.address import ServerAddress


@dataclass(frozen=True, eq=False)
class RunningRelay:
    """A relay that pushes through mocks: provider AT through `apns`, FC through `fcm`, WP through `web_push`.

    `application_server_key`: 65 bytes, what browsers subscribe with (`MockWebPush.subscribe` takes it).
    """

    address: ServerAddress
    apns: MockApns
    fcm: MockFcm
    web_push: MockWebPush
    application_server_key: bytes


@asynccontextmanager
async def running_relay(
    directory: Path, apns: MockApns, fcm: MockFcm, web_push: MockWebPush
) -> AsyncIterator[RunningRelay]:
    """Make a new relay in an empty folder and run it on loopback; it retries soon, takes private hosts, and has no
    budgets of clients."""
    key_hash = identity_files.create_identity(directory, "ED25519", "localhost")
    vapid_key = generate_key()
    identity_files.write_file(directory / identity_files.VAPID_KEY, key_pem(vapid_key))
    identity_files.write_file(directory / identity_files.MASTER_KEY, f"{generate_key_text()}\n".encode())
    (directory / CONFIG_FILE).touch()
    settings = {
        "TRANSPORT__HOST": "localhost",
        "TRANSPORT__BIND": "127.0.0.1",
        "TRANSPORT__PORT": "0",
        "APNS__TEST__HOST": "localhost",
        "APNS__TEST__PORT": str(apns.port),
        "APNS__TEST__CA_FILE": str(apns.ca_file),
        "FCM__SERVICE_ACCOUNT_FILE": str(fcm.service_account(directory / "service-account.json")),
        "FCM__HOST": "localhost",
        "FCM__PORT": str(fcm.port),
        "FCM__CA_FILE": str(fcm.ca_file),
        "WEB_PUSH__KEY_FILE": identity_files.VAPID_KEY,
        "WEB_PUSH__CONTACT": "mailto:push@relay.example",
        "WEB_PUSH__CA_FILE": str(web_push.ca_file),
        "WEB_PUSH__ALLOW_HOSTS": "localhost",
        "DELIVERY__MIN_BACKOFF": "0.05",
        "DELIVERY__MAX_BACKOFF": "0.5",
        "SUBSCRIBER__ALLOW_PRIVATE_HOSTS": "true",
        "LIMITS__ENABLED": "false",
    }
    loaded = config.load(directory, {f"NTF_SERVER__{name}": value for name, value in settings.items()})
    async with Relay(loaded) as relay:
        yield RunningRelay(
            ServerAddress("ntf", ("127.0.0.1",), str(relay.port), key_hash),
            apns,
            fcm,
            web_push,
            vapid_key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint),
        )
