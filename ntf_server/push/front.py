"""What commands ask of a provider before a device token is taken: they know no provider by name."""

from enum import StrEnum
from typing import Protocol

from smp_bridge.ntf import DeviceToken


class Refusal(StrEnum):
    """Why a device token is not taken."""

    SYNTAX = "syntax"  # it is none
    HOST = "host"  # it leads where strangers must not send us


class Front(Protocol):
    """A provider, as far as registrations are concerned."""

    @property
    def key_id(self) -> bytes:
        """Id of the key that devices have subscribed for (VAPID), empty where there is none."""
        ...

    def refusal(self, device: DeviceToken) -> Refusal | None:
        """Whether a device token is not taken, and why."""
        ...

    def origin(self, device: DeviceToken) -> str:
        """Scheme, host and port of its push service; empty where all are one provider's."""
        ...


class OneProvider:
    """The front of a provider that takes any device token, and decides about it when it is pushed to."""

    key_id = b""

    def refusal(self, device: DeviceToken) -> Refusal | None:
        """See `Front`."""
        return None

    def origin(self, device: DeviceToken) -> str:
        """See `Front`."""
        return ""
