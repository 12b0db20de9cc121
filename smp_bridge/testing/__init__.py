"""A small, correct, in-memory SMP server, and a recipient to go with it, for tests, demonstrations and load."""

from smp_bridge.testing.recipient import Queue, Received, Recipient
from smp_bridge.testing.server import SmpServer

__all__ = ["Queue", "Received", "Recipient", "SmpServer"]
