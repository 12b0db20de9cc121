"""A device: its registration with one notification server and its queues, over restarts and lost answers."""

import dataclasses
import hashlib
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from ntf_client import state as state_file
from ntf_client.client import NtfClient, SubscriptionCheck, TokenCheck
from ntf_client.push import NotificationInfo, PushContent, open_push
from ntf_client.state import DeviceState, Subscription
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import REQUEST_TIMEOUT, ServerError
from smp_bridge.messages import MessageMeta
from smp_bridge.ntf import DeviceToken, Provider
from smp_bridge.transmission import ERR_AUTH

_MAX_ENDPOINT: Final = 283  # bytes of host, port and path that TRPL has room for; TNEW, which brings two keys, 216


class NotRegisteredError(Exception):
    """The device has no registration: it was never made, its answer was lost, or it was deleted."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What a notification server is given of a queue, and the `secret` that it is not.

    `secret`: DH secret of the queue's notification keys (32 bytes); without it notifications of the queue can be told
    apart but not opened.
    """

    server: ServerAddress
    notifier_id: bytes = field(repr=False)
    notifier_key: crypto.AuthPrivateKey = field(repr=False)
    secret: bytes | None = field(default=None, repr=False)


class Device:
    """A device of one notification server. Commands take a client of that server: see `connect`.

    With a `path`, every change is saved there before the method returns, and the keys before they are first used. All
    commands can be repeated when an answer was lost. They raise what `NtfClient` raises, StateError, and
    NotRegisteredError, except `register`.
    """

    def __init__(self, state: DeviceState, path: Path | None = None) -> None:
        self._state = state
        self._path = path

    @classmethod
    def create(cls, server: ServerAddress, token: DeviceToken, path: Path | None = None) -> Self:
        """A device with new keys; neither registered nor saved yet. Raises ValueError for an `smp://` address."""
        if server.scheme != "ntf":
            raise ValueError("not the address of a notification server")
        return cls(DeviceState.new(server, token), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The device that was saved there. Raises StateError, StateNotFoundError."""
        return cls(state_file.load(path), path)

    def save(self, path: Path | None = None) -> None:
        """Save it, at `path` from now on if one is given. Raises StateError."""
        self._path = path or self._path
        if self._path is None:
            raise state_file.StateError("the device has no file to be saved in")
        state_file.save(self._path, self._state)

    def __repr__(self) -> str:
        return f"Device({self._state!r})"

    @property
    def server(self) -> ServerAddress:
        """The notification server."""
        return self._state.server

    @property
    def token(self) -> DeviceToken:
        """The device token that the server pushes to."""
        return self._state.token

    @property
    def token_id(self) -> bytes | None:
        """The registration's id, None if there is no registration."""
        return self._state.token_id

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The subscribed queues."""
        return self._state.subscriptions

    def connect(self, *, timeout: float = REQUEST_TIMEOUT) -> AbstractAsyncContextManager[NtfClient]:
        """`async with device.connect() as client`: see `NtfClient.connect`."""
        return NtfClient.connect(self._state.server, timeout=timeout)

    # --- the token

    async def register(self, client: NtfClient) -> None:
        """TNEW: the server pushes a code to the device; see `open_push` and `verify`.

        Again: the same registration and another push of the code; also what revives an INVALID token. If the server
        has forgotten the device, it is a new registration, without subscriptions. A token that is too long for TNEW, as
        those of Mozilla's Web Push are, is brought by TRPL, to a registration that is made with a null token; again, it
        has to be verified again. Raises ValueError if it is too long for that too.
        """
        s = self._state
        fits = client.fits(ntf.TNew(s.token, s.verify_key.public_key(), s.dh_key.public_key()), key=s.verify_key)
        if not fits:
            self._check_size(client, s.token)
        if self._path is not None:
            self.save()  # first: with these keys the same TNEW repairs a lost answer
        if fits:
            await self._register(client, s.token)
        else:
            await self._register_long(client)

    async def _register(self, client: NtfClient, token: DeviceToken) -> None:
        s = self._state
        registration = await client.register(token, s.verify_key, s.dh_key)
        kept = s.subscriptions if registration.token_id == s.token_id else ()
        self._change(token_id=registration.token_id, secret=registration.secret, subscriptions=kept)

    async def _register_long(self, client: NtfClient) -> None:
        s = self._state
        if s.token_id is None or not await self._is_known(client):
            null = hashlib.sha256(s.verify_key.public_key().public_bytes_raw()).hexdigest()  # the same each time
            await self._register(client, DeviceToken(Provider.APNS_NULL, null.encode()))
        await client.replace(self._registered(), s.verify_key, s.token)

    async def _is_known(self, client: NtfClient) -> bool:
        """Whether the server still has the registration."""
        try:
            await self.check(client)
        except ServerError as e:
            if e.error != ERR_AUTH:
                raise
            return False
        return True

    def _check_size(self, client: NtfClient, token: DeviceToken) -> None:
        if not client.fits(ntf.TRpl(token), bytes(ntf.ENTITY_ID_SIZE), self._state.verify_key):
            raise ValueError(
                f"a device token of {len(token.token)} bytes is too long for the protocol: of Web Push,"
                f" host, port and path of the endpoint may have {_MAX_ENDPOINT} bytes together"
            )

    async def verify(self, client: NtfClient, code: bytes) -> None:
        """TVFY: with the code that was pushed the token becomes ACTIVE."""
        await client.verify(self._registered(), self._state.verify_key, code)

    async def check(self, client: NtfClient) -> TokenCheck:
        """TCHK: the token's status."""
        return await client.check(self._registered(), self._state.verify_key)

    async def replace(self, client: NtfClient, token: DeviceToken) -> None:
        """TRPL: the device's provider gave it a new token, which has to be verified; subscriptions stay.

        Raises ValueError if the token is too long.
        """
        token_id = self._registered()
        self._check_size(client, token)
        await client.replace(token_id, self._state.verify_key, token)
        self._change(token=token)

    async def set_period(self, client: NtfClient, minutes: int) -> None:
        """TCRN: a `CheckMessages` push every so many minutes, 20 to 65535; 0 turns them off."""
        await client.set_period(self._registered(), self._state.verify_key, minutes)

    async def delete(self, client: NtfClient) -> None:
        """TDEL: delete the registration and its subscriptions, and forget them."""
        await client.delete(self._registered(), self._state.verify_key)
        self.forget()

    def forget(self) -> None:
        """Delete the file, and take new keys, whatever the server still has."""
        self._state = DeviceState.new(self._state.server, self._state.token)
        if self._path is not None:
            state_file.remove(self._path)

    # --- its queues

    async def subscribe(self, client: NtfClient, queue: Queue) -> Subscription:
        """SNEW: be notified of a queue's messages. Again: the same subscription."""
        if queue.secret is not None and len(queue.secret) != state_file.SECRET_SIZE:
            raise ValueError("a secret has 32 bytes")
        subscription_id = await client.subscribe(
            self._registered(), self._state.verify_key, queue.server, queue.notifier_id, queue.notifier_key
        )
        known = self.find(queue.server.key_hash, queue.notifier_id)
        secret = queue.secret or (known.secret if known else None)
        out = Subscription(subscription_id, queue.server, queue.notifier_id, secret)
        self._change(subscriptions=(*(s for s in self._state.subscriptions if s != known), out))
        return out

    async def check_subscription(self, client: NtfClient, subscription: Subscription) -> SubscriptionCheck:
        """SCHK: the subscription's status."""
        self._registered()
        return await client.check_subscription(subscription.subscription_id, self._state.verify_key)

    async def unsubscribe(self, client: NtfClient, subscription: Subscription) -> None:
        """SDEL: no more notifications of this queue."""
        self._registered()
        await client.unsubscribe(subscription.subscription_id, self._state.verify_key)
        self._change(subscriptions=tuple(s for s in self._state.subscriptions if s != subscription))

    def find(self, key_hash: bytes | None, notifier_id: bytes) -> Subscription | None:
        """The subscription of a queue: its server's identity and notifier id."""
        for s in self._state.subscriptions:
            if s.server.key_hash == key_hash and s.notifier_id == notifier_id:
                return s
        return None

    # --- pushes, without any connection

    def open_push(self, payload: bytes | str | Mapping[str, Any]) -> PushContent:
        """Open a push to this device: see `push.open_push`. Raises PushError, NotRegisteredError."""
        self._registered()
        assert self._state.secret is not None
        return open_push(payload, self._state.secret)

    def open_notification(self, info: NotificationInfo) -> MessageMeta | None:
        """The message's id and time; None if its queue, or the queue's secret, is not known. Raises PushError."""
        subscription = self.find(info.key_hash, info.notifier_id)
        if subscription is None or subscription.secret is None:
            return None
        return info.open(subscription.secret)

    # ---

    def _registered(self) -> bytes:
        if self._state.token_id is None:
            raise NotRegisteredError("the device is not registered; register it (again, if an answer was lost)")
        return self._state.token_id

    def _change(self, **changes: Any) -> None:
        self._state = dataclasses.replace(self._state, **changes)
        if self._path is not None:
            self.save()
