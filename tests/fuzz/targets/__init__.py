"""All targets, by name."""

from fuzz.target import TARGETS
from fuzz.targets import admin, handshakes, keys, push, reference, sessions, texts, wire

__all__ = ["TARGETS", "admin", "handshakes", "keys", "push", "reference", "sessions", "texts", "wire"]
