"""A notification server's client: typed commands, a device that survives restarts, and pushes opened."""

from ntf_client.client import NtfClient, Registration, SubscriptionCheck, TokenCheck
from ntf_client.device import Device, NotRegisteredError, Queue
from ntf_client.push import (
    CheckMessages,
    NotificationInfo,
    Notifications,
    PushContent,
    PushError,
    VerificationCode,
    open_push,
)
from ntf_client.state import StateError, StateNotFoundError, Subscription
from ntf_client.version import VERSION
from ntf_client.webpush import subscription_text, subscription_token

__version__ = VERSION

__all__ = [
    "CheckMessages",
    "Device",
    "NotRegisteredError",
    "NotificationInfo",
    "Notifications",
    "NtfClient",
    "PushContent",
    "PushError",
    "Queue",
    "Registration",
    "StateError",
    "StateNotFoundError",
    "Subscription",
    "SubscriptionCheck",
    "TokenCheck",
    "VerificationCode",
    "__version__",
    "open_push",
    "subscription_text",
    "subscription_token",
]
