"""The services that the in-memory SMP server knows. No I/O."""

import os
from collections.abc import Iterable

from smp_bridge.handshake import ServiceHello, service_hash
from smp_bridge.testing.queues import ID_SIZE, Notifier, ServiceRecord


class Services:
    """All services, found by the hash of their identity certificate. They outlive sessions."""

    def __init__(self) -> None:
        self._by_certificate: dict[bytes, ServiceRecord] = {}

    def register(self, hello: ServiceHello) -> bytes:
        """The id of a service that showed itself, a new one if it is not known."""
        certificate_hash = service_hash(hello.chain)
        if certificate_hash not in self._by_certificate:
            self._by_certificate[certificate_hash] = ServiceRecord(os.urandom(ID_SIZE))
        return self._by_certificate[certificate_hash].service_id

    def find(self, certificate_hash: bytes) -> ServiceRecord | None:
        """The service with this identity certificate."""
        return self._by_certificate.get(certificate_hash)

    def forget(self) -> None:
        """Lose all of them, with their associations."""
        for record in self._by_certificate.values():
            record.known = False
            dissociate(record.notifiers)
        self._by_certificate.clear()

    def change_ids(self) -> None:
        """Give each another id; associations stay."""
        for record in self._by_certificate.values():
            record.service_id = os.urandom(ID_SIZE)


def dissociate(notifiers: Iterable[Notifier]) -> None:
    """Lose these associations, and the subscriptions that rest on them, and tell nobody."""
    for notifier in list(notifiers):
        if notifier.service is not None:
            notifier.associate(None)
            notifier.subscriber = None
