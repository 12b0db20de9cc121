"""The certificates with which the relay is a service on SMP servers."""

import datetime

from ntf_server.store.records import ServiceCertificate
from smp_bridge import crypto
from smp_bridge.identity import Credentials


def new_service_certificate(now: float) -> ServiceCertificate:
    """A new identity and its leaf. They say nothing that those for other servers say too, but for the day."""
    day = datetime.datetime.fromtimestamp(now, datetime.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    credentials, _ = Credentials.generate("ED25519", "ntf", day)
    return ServiceCertificate(credentials.chain_pem, crypto.encode_private(credentials.key))
