"""All budgets together, as listener and commands ask for them.

A budget of a rate delays, and refuses nothing: agents take `QUOTA` for final. What is counted here is counted by each
node for itself, but for registrations, replacements and codes, if nodes share a store (`share`).
"""

import logging
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Final

from ntf_server.admission.addresses import keys, network, share
from ntf_server.admission.budgets import MAX_DELAY, Buckets, Budgets, Rate
from ntf_server.admission.sessions import Closed, Connections, Peer
from ntf_server.admission.shared_codes import SharedCodes
from ntf_server.admission.verifications import Asked, Codes, LocalCodes, PutOff, remember
from ntf_server.observe.metrics import Metrics
from ntf_server.observe.names import Gauge, KindCounter
from ntf_server.store.ledger import Charge, Delays, Ledger
from ntf_server.store.records import Ref, Token
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.transmission import Message

log = logging.getLogger(__name__)

_CASED: Final = (ntf.Provider.FCM, ntf.Provider.WEB_PUSH)
_TOGETHER: Final[dict[type[Message], str]] = {ntf.TNew: "registrations", ntf.TRpl: "replacements"}
_REPEAT_LOG: Final = 60.0  # seconds
_ALL: Final = b""
_RATES: Final = ("commands", "registrations", "replacements", "new_servers", "connects", "handshakes")
_MODEST: Final = 50  # the part of its budget below which an address is in the group of those who ask for little
_LONGEST: Final = 3600.0  # seconds that a connect may have to wait: nobody waits for it


def _whatever_its_case(device: ntf.DeviceToken) -> bytes:
    """What a device token is. That of APNs is hex: upper or lower case, it is the same."""
    return device.provider.encode() + (device.token if device.provider in _CASED else device.token.lower())


def _source(peer: Peer, known: Token | None) -> tuple[bytes, bytes]:
    """Who asks, and the network that he is of."""
    if known is not None and known.proven:
        return (token := b"token" + known.token_id), token
    if not peer.keys:
        return peer.mark, peer.mark
    return b"address" + peer.keys[-1], b"network" + network(peer.keys[-1])


def is_counted_together(command: Message) -> bool:
    """Whether it has budgets that nodes count together, if they share a store."""
    return type(command) in _TOGETHER


def _counted_together(commands: Sequence[Message]) -> dict[str, int]:
    """How many there are of each such kind."""
    return dict(Counter(_TOGETHER[type(command)] for command in commands if is_counted_together(command)))


def _spread(wait: float) -> float:
    """Who waits longest does not wait for all that came before him: a crowd of such must not have its turn together."""
    return random.uniform(MAX_DELAY / 2, MAX_DELAY) if wait >= MAX_DELAY else wait  # noqa: S311  no secret


class Admission:
    """`budgets` None: they are switched off. `clock`: seconds that nobody sets."""

    def __init__(
        self,
        budgets: Budgets | None = None,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._connections = Connections(self._on_closed)
        self._spent = {what: Buckets() for what in _RATES}
        self._modest = {what: Buckets() for what in _RATES}
        self._rates: dict[str, tuple[Rate, Rate, Rate]] = {}  # by address, of a modest one, and in all
        self._ledger: Ledger | None = None
        self._codes: Codes = LocalCodes(clock)
        self._held: OrderedDict[Hashable, float] = OrderedDict()  # new servers: not to be connected to before
        self._said_at: float | None = None
        self._metrics.gauge(Gauge.CLIENT_SESSIONS, lambda: self._connections.sessions)
        self._metrics.gauge(Gauge.CLIENT_HANDSHAKES, lambda: self._connections.half_open)
        self.use(budgets)

    def use(self, budgets: Budgets | None) -> None:
        """From now on; what is open stays."""
        self._budgets = budgets
        if budgets is not None:
            by_address = {
                "handshakes": (budgets.handshakes_per_address, budgets.handshakes),
                "commands": (budgets.commands_per_address, budgets.commands),
                "registrations": (budgets.registrations_per_address, budgets.registrations),
                "replacements": (budgets.replacements_per_address, budgets.replacements),
            }
            self._rates = {what: (each, each.part(_MODEST), total) for what, (each, total) in by_address.items()}

    def share(self, ledger: Ledger) -> None:
        """Count with all who share it what has to hold over all of them. Once, before anybody comes."""
        self._ledger = ledger
        self._codes = SharedCodes(ledger)

    # --- connections

    def open(self, host: str, close: Callable[[], None]) -> Peer | None:
        """A connection from this address; None: close it at once. `close`: called if it has to make room later."""
        budgets = self._budgets
        charged = keys(host, budgets.shared) if budgets is not None else ()
        return self._connections.open(charged, close, self._clock(), budgets)

    def handshake_wait(self, peer: Peer) -> float:
        """It said what its handshake begins with: seconds until it may begin, MAX_DELAY at most."""
        now = self._clock()
        wait = _spread(self._spend("handshakes", peer, 1, now)) if self._budgets is not None else 0.0
        self._connections.shaking(peer, now + wait)
        return wait

    def established(self, peer: Peer) -> None:
        """Its handshake is done."""
        now = self._clock()
        self._connections.established(peer, now, self._budgets)
        if self._said_at is not None and now - self._said_at < _REPEAT_LOG:
            return
        if (majority := self._connections.majority(peer)) is not None:
            self._said_at = now
            address, count = majority
            log.warning(
                "%s holds %d of %d client sessions; if it stands for many clients, as a proxy does, put it into"
                " [limits] shared",
                *(address, count, self._connections.sessions),
            )

    def closed(self, peer: Peer) -> None:
        """It is gone."""
        self._connections.closed(peer)

    def end_half_open(self) -> None:
        """See `Connections.end_half_open`."""
        self._connections.end_half_open()

    # --- commands

    def delay(self, peer: Peer, commands: Sequence[Message]) -> float:
        """These came in its session: how many seconds it has to wait before they are done, MAX_DELAY at most.

        That is all, unless nodes share a store: see `shared_delay`.
        """
        now, budgets = self._clock(), self._budgets
        self._connections.asked(peer, now)
        if budgets is None:
            return 0.0
        numbers = {"commands": len(commands)}
        if self._ledger is None:
            numbers |= _counted_together(commands)
        own, peer.paid = budgets.commands_per_session.spend(peer.paid, len(commands), now)
        waits = [self._counted(own, "commands_per_session")]
        waits += [self._spend(what, peer, n, now) for what, n in numbers.items()]
        return _spread(max(waits))

    async def shared_delay(self, peer: Peer, commands: Sequence[Message]) -> float:
        """What `delay` leaves to what nodes count together; at once if that is nothing. Raises StoreError."""
        if self._ledger is None or self._budgets is None or not (numbers := _counted_together(commands)):
            return 0.0
        charges = [self._charge(what, peer, n) for what, n in numbers.items()]
        found = await self._ledger.spend(charges, MAX_DELAY)
        return _spread(max(self._waited(charge.kind, delays) for charge, delays in zip(charges, found, strict=True)))

    def _charge(self, what: str, peer: Peer, n: int) -> Charge:
        each, modest, total = (rate.plain for rate in self._rates[what])
        return Charge(what, n, tuple((key, share(key)) for key in peer.keys), each, modest, total)

    # --- SMP servers

    def new_server(self, peer: Peer, token: Ref, server: ServerAddress) -> None:
        """It is to be subscribed on a server that nobody has subscriptions on: a connect that may have to wait."""
        budgets = self._budgets
        if budgets is None:
            return
        now, spent, by_token = self._clock(), self._spent["new_servers"], budgets.new_servers_per_token
        wait = self._counted(spent.spend(("token", token), 1, by_token, now, longest=_LONGEST), "new_servers_per_token")
        for key in peer.keys:
            rate = budgets.new_servers_per_address
            by_address = spent.spend(key, 1, rate, now, share(key), longest=_LONGEST)
            wait = max(wait, self._counted(by_address, "new_servers_per_address"))
        if wait:
            remember(self._held, server, now + wait)

    def connect_wait(self, server: ServerAddress, destinations: Sequence[str], proven: bool, /) -> float:
        """See `Subscriptions.connect_wait`. What is spent for servers that nobody knows costs no proven one there."""
        budgets, now = self._budgets, self._clock()
        held = max(0.0, self._held.pop(server, now) - now)
        if budgets is None:
            return held
        spent, rate = self._spent["connects"], budgets.connects_per_destination
        waits = [spent.spend((d, proven), 1, rate, now, longest=_LONGEST) for d in destinations]
        wait = self._counted(max(waits, default=0.0), "connects_per_destination")
        if not proven and not wait:
            in_all = spent.spend(_ALL, 1, budgets.connects, now, longest=_LONGEST)
            wait = self._counted(in_all, "connects")
        return max(held, wait)

    # --- codes

    @property
    def takes_turns(self) -> bool:
        """Whether codes may have to wait at all."""
        return self._budgets is not None

    async def turn_of_registration(self, peer: Peer, device: ntf.DeviceToken, known: Token | None) -> Asked | None:
        """TNEW has a code pushed to this device: when. None: too many wait there.

        `known`: this registration, if there is one. If it is ACTIVE, nobody else can have asked for that: it waits for
        none, but has a push a minute.
        """
        if known is None or known.status is not ntf.TokenStatus.ACTIVE or self._budgets is None:
            return await self._turn(peer, device, known)
        return Asked(self._counted(await self._codes.again(known.ref), "verifications"))

    async def turn_of_replacement(self, peer: Peer, device: ntf.DeviceToken, token: Token) -> Asked | None:
        """TRPL does so too. None: too many wait there, or this token, not verified since, did it too often."""
        if self._budgets is not None:
            verified = token.status is ntf.TokenStatus.ACTIVE
            if not await self._codes.replace(token.ref, verified=verified):
                self._metrics.count_kind(KindCounter.LIMITS_REFUSED, "replacements_unverified")
                return None
        return await self._turn(peer, device, token)

    async def _turn(self, peer: Peer, device: ntf.DeviceToken, known: Token | None) -> Asked | None:
        if self._budgets is None:
            return Asked(0.0)
        source, around = _source(peer, known)
        ref = known.ref if known is not None else None
        asked = await self._codes.ask(_whatever_its_case(device), source, around, ref)
        if asked is None:
            self._metrics.count_kind(KindCounter.LIMITS_REFUSED, "registrations_per_device")
            return None
        self._counted(asked.wait, "verifications")
        return asked

    async def made(self, asked: Asked, token: Ref, put_off: PutOff) -> None:
        """It is registered, or replaced. The store (`Store.put_off`) is told of others, whose turns have moved."""
        await self._codes.made(asked, token, put_off)

    async def verified(self, token: Ref) -> None:
        """It is ACTIVE."""
        if self._budgets is not None:
            await self._codes.verified(token)

    # --- what is counted

    def _spend(self, what: str, peer: Peer, n: int, now: float) -> float:
        """By address, and in all: what its own budget holds up anyway costs others nothing."""
        buckets, (each, modest, total) = self._spent[what], self._rates[what]
        by_address = max((buckets.spend(key, n, each, now, share(key)) for key in peer.keys), default=0.0)
        if by_address > 0:
            return self._waited(what, Delays(by_address, 0.0))
        # Few who ask for much hold up none of those who ask for little.
        group = self._modest[what].spend_if_there(peer.keys[-1], n, modest, now) if peer.keys else None
        return self._waited(what, Delays(0.0, buckets.spend((_ALL, group), n, total, now)))

    def _waited(self, what: str, delays: Delays) -> float:
        return self._counted(delays.own, f"{what}_per_address") or self._counted(delays.total, what)

    def _counted(self, wait: float, what: str) -> float:
        if wait > 0:
            self._metrics.count_kind(KindCounter.LIMITS_DELAYED, what)
        return max(0.0, wait)

    def _on_closed(self, why: Closed) -> None:
        self._metrics.count_kind(KindCounter.LIMITS_CLOSED, why)
