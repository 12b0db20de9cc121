"""What each NTF command means (wire.md, section 6). A command is parsed once, by `parse`."""

import os
from collections.abc import Mapping
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from ntf_server.admission.gate import Admission
from ntf_server.admission.sessions import Peer
from ntf_server.config.server_list import ANY_SERVER, ServerList
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import KindCounter, PairCounter
from ntf_server.push.front import Front, Refusal
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.contract import DamagedRecordError, Store
from ntf_server.store.records import (
    NO_LIMITS,
    SUBSCRIBABLE,
    LimitReached,
    Limits,
    NewSubscription,
    NewToken,
    Replacement,
    Token,
)
from smp_bridge import crypto, ntf
from smp_bridge.encoding import ParseError
from smp_bridge.network import is_public_host
from smp_bridge.transmission import (
    ERR_AUTH,
    ERR_HAS_AUTH,
    ERR_NO_AUTH,
    ERR_PROHIBITED,
    ERR_QUOTA,
    ERR_SYNTAX,
    ERR_UNKNOWN,
    Err,
    Message,
    Session,
    Transmission,
    UnknownTagError,
    nobodys_key,
    verify_transmission,
)

Kinds: TypeAlias = tuple[type[Message], ...]

# Groups of commands of one client that need not wait for each other: they change nothing, or nothing that others of the
# group look at in more than one step (the store does its steps in the order in which they are asked for).
_TOGETHER: Final[tuple[Kinds, ...]] = (
    (ntf.TChk, ntf.SChk, ntf.Ping, ntf.TNew, ntf.SNew, Err),
    (ntf.TVfy,),
)
_NO_ENTITY: Final = (ntf.TNew, ntf.SNew)
_REFUSALS: Final = {Refusal.SYNTAX: ERR_SYNTAX, Refusal.HOST: ERR_AUTH}


def parse(session: Session, t: Transmission) -> Message:
    """The command, or the error that its syntax or its credentials deserve."""
    try:
        command = ntf.parse_command(t.command, session.version)
    except UnknownTagError:
        return ERR_UNKNOWN
    except ParseError:
        return ERR_SYNTAX
    if isinstance(command, ntf.Ping):
        return ERR_HAS_AUTH if t.authenticator or t.entity_id else command
    if isinstance(command, _NO_ENTITY):
        if not t.authenticator:
            return ERR_NO_AUTH
        return ERR_HAS_AUTH if t.entity_id else command
    return command if t.authenticator and t.entity_id else ERR_NO_AUTH


def company(command: Message) -> object:
    """Equal for commands that may be done together."""
    return next((kinds for kinds in _TOGETHER if isinstance(command, kinds)), object())


class Commands:
    """Carries out commands; each answer is a Message."""

    def __init__(
        self,
        store: Store,
        subscriber: Subscriber,
        fronts: Mapping[ntf.Provider, Front],
        *,
        allow_private_hosts: bool = False,
        servers: ServerList = ANY_SERVER,
        limits: Limits = NO_LIMITS,
        metrics: Metrics | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._store = store
        self._subscriber = subscriber
        self._fronts = fronts
        self._allow_private_hosts = allow_private_hosts
        self._servers = servers
        self._limits = limits
        self._metrics = metrics or Metrics()
        self._admission = admission or Admission()

    def use(self, servers: ServerList, limits: Limits) -> None:
        """From the next command on."""
        self._servers, self._limits = servers, limits

    def answered(self, command: Message, answer: Message) -> None:
        """Count it."""
        kind = "invalid" if isinstance(command, Err) else command.tag.decode()
        self._metrics.count_pair(PairCounter.COMMANDS, kind, answer.code if isinstance(answer, Err) else "OK")

    async def handle(self, session: Session, t: Transmission, command: Message, peer: Peer) -> Message:
        """Authorize and do one command, which `parse` gave. Raises StoreError, StoreCorruptError.

        A damaged record is as good as none: the device that is told so registers anew, which mends it.
        """
        try:
            return await self._handle(session, t, command, peer)
        except DamagedRecordError:
            self._is_authorized(session, t, None)
            return ERR_AUTH

    async def _handle(self, session: Session, t: Transmission, command: Message, peer: Peer) -> Message:
        match command:
            case ntf.Ping():
                return ntf.Pong()
            case ntf.TNew():
                return await self._register(session, t, command, peer)
            case ntf.SNew():
                return await self._subscribe(session, t, command, peer)
            case ntf.SChk() | ntf.SDel():
                return await self._on_subscription(session, t, command)
            case Err():
                return command
            case _:
                return await self._on_token(session, t, command, peer)

    # --- tokens

    async def _register(self, session: Session, t: Transmission, command: ntf.TNew, peer: Peer) -> Message:
        if not verify_transmission(session, t, command.verify_key):
            return ERR_AUTH
        front = self._front(command.token)
        if isinstance(front, Err):
            return front
        verify_key = crypto.encode_public(command.verify_key)
        private, public = crypto.x25519_keypair()
        try:
            secret = crypto.dh_box_key(private, command.dh_key)
        except crypto.CryptoError:
            return ERR_AUTH
        known = None
        if self._admission.takes_turns:
            known = await self._store.find_registration(command.token, verify_key)
        asked = await self._admission.turn_of_registration(peer, command.token, known)
        if asked is None:
            return ERR_QUOTA
        new = NewToken(
            os.urandom(ntf.ENTITY_ID_SIZE),
            command.token,
            verify_key,
            command.dh_key.public_bytes_raw(),
            public,
            secret,
            os.urandom(ntf.CODE_SIZE),
            front.origin(command.token),
            vapid_key=front.key_id,
        )
        token = await self._store.register(new, asked.wait)
        if token is None:
            return ERR_AUTH
        if token.token_id == new.token_id:  # else it was there before
            self._metrics.count_kind(KindCounter.TOKEN_EVENTS, "created")
        await self._admission.made(asked, token.ref, self._store.put_off)
        return ntf.IdTkn(token.token_id, X25519PublicKey.from_public_bytes(token.server_dh))

    async def _on_token(self, session: Session, t: Transmission, command: Message, peer: Peer) -> Message:
        token = await self._store.find_token(t.entity_id)
        if not self._is_authorized(session, t, token) or token is None:
            return ERR_AUTH
        match command:
            case ntf.TChk():
                return ntf.Tkn(token.status, token.reason)
            case ntf.TVfy(code):
                if not await self._store.verify(token.ref, code):
                    return ERR_AUTH
                self._metrics.count_kind(KindCounter.TOKEN_EVENTS, "verified")
                await self._admission.verified(token.ref)
            case ntf.TRpl(device):
                return await self._replace(token, device, peer)
            case ntf.TDel():
                await self._store.delete_token(token.ref)
                self._metrics.count_kind(KindCounter.TOKEN_EVENTS, "deleted")
            case ntf.TCrn(minutes):
                if 0 < minutes < ntf.MIN_PERIOD:
                    return ERR_QUOTA
                await self._store.set_period(token.ref, minutes)
            case _:
                return ERR_PROHIBITED
        return ntf.Ok()

    async def _replace(self, token: Token, device: ntf.DeviceToken, peer: Peer) -> Message:
        front = self._front(device)
        if isinstance(front, Err):
            return front
        asked = await self._admission.turn_of_replacement(peer, device, token)
        if asked is None:
            return ERR_QUOTA
        new = Replacement(device, os.urandom(ntf.CODE_SIZE), front.origin(device), vapid_key=front.key_id)
        if not await self._store.replace(token.ref, new, asked.wait):
            return ERR_AUTH
        self._metrics.count_kind(KindCounter.TOKEN_EVENTS, "replaced")
        await self._admission.made(asked, token.ref, self._store.put_off)
        return ntf.Ok()

    def _front(self, device: ntf.DeviceToken) -> Front | Err:
        front = self._fronts.get(device.provider)
        if front is None:
            return ERR_PROHIBITED
        refusal = front.refusal(device)
        return _REFUSALS[refusal] if refusal else front

    # --- subscriptions

    async def _subscribe(self, session: Session, t: Transmission, command: ntf.SNew, peer: Peer) -> Message:
        token = await self._store.find_token(command.token_id)
        if not self._is_authorized(session, t, token) or token is None or token.status not in SUBSCRIBABLE:
            return ERR_AUTH
        if not token.proven:
            return self._refuse_subscription("never_active", ERR_AUTH)
        if not self._allow_private_hosts and not all(map(is_public_host, command.server.hosts)):
            return self._refuse_subscription("host", ERR_AUTH)
        if not self._servers.permits(command.server):
            return self._refuse_subscription("server_list", ERR_AUTH)
        assert isinstance(command.notifier_key, bytes)
        new = NewSubscription(os.urandom(ntf.ENTITY_ID_SIZE), command.server, command.notifier_id, command.notifier_key)
        if not self._subscriber.knows(command.server):
            self._admission.new_server(peer, token.ref, command.server)
        added = await self._store.subscribe(token.ref, new, self._limits)
        if added is None:
            return ERR_AUTH
        if isinstance(added, LimitReached):
            return self._refuse_subscription(f"{added.value}_limit", ERR_QUOTA)
        if added.created:
            self._metrics.count_kind(KindCounter.SUBSCRIPTION_EVENTS, "created")
        return ntf.IdSub(added.subscription_id)

    def _refuse_subscription(self, why: str, error: Err) -> Err:
        self._metrics.count_kind(KindCounter.SNEW_REFUSED, why)
        return error

    async def _on_subscription(self, session: Session, t: Transmission, command: ntf.SChk | ntf.SDel) -> Message:
        found = await self._store.find_subscription(t.entity_id)
        token, subscription = found or (None, None)
        if not self._is_authorized(session, t, token) or token is None or token.status not in SUBSCRIBABLE:
            return ERR_AUTH
        assert subscription is not None
        if isinstance(command, ntf.SChk):
            return self._subscriber.status(subscription)
        await self._store.unsubscribe(subscription.ref)
        self._metrics.count_kind(KindCounter.SUBSCRIPTION_EVENTS, "deleted")
        return ntf.Ok()

    def _is_authorized(self, session: Session, t: Transmission, token: Token | None) -> bool:
        """Whether the token's owner did it. Where there is no token the same work is done for nobody's."""
        der = nobodys_key(t) if token is None else token.verify_key
        if not verify_transmission(session, t, crypto.parse_auth_public(der)) or token is None:
            return False
        self._store.seen(token)
        return True
