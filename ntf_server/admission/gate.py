"""All budgets together, as listener and commands ask for them.

A budget of a rate delays, and refuses nothing: agents take `QUOTA` for final.
"""

import hashlib
import logging
import os
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from ntf_server.admission.addresses import keys, network, share
from ntf_server.admission.budgets import MAX_DELAY, MAX_KEYS, Buckets, Budgets, Rate
from ntf_server.admission.sessions import Closed, Connections, Peer
from ntf_server.admission.verifications import SPACING, Turn, Verifications
from ntf_server.observe.metrics import Gauge, KindCounter, Metrics
from ntf_server.store.records import Ref, Token
from smp_bridge import ntf
from smp_bridge.address import ServerAddress
from smp_bridge.transmission import Message

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_REPLACEMENTS: Final = 2  # of a token that is not verified
_CASED: Final = (ntf.Provider.FCM, ntf.Provider.WEB_PUSH)
_REPEAT_LOG: Final = 60.0  # seconds
_ALL: Final = b""
_RATES: Final = ("commands", "registrations", "replacements", "new_servers", "connects", "handshakes")
_MODEST: Final = 50  # the part of its budget below which an address is in the group of those who ask for little
_LONGEST: Final = 3600.0  # seconds that a connect may have to wait: nobody waits for it


class Asked(msgspec.Struct, frozen=True):
    """What came of asking for a turn: seconds to wait for it; None as `turn`: nobody else is concerned."""

    wait: float
    device: bytes = b""
    turn: Turn | None = None


def _remember(kept: OrderedDict[K, V], key: K, value: V) -> None:
    """The newest MAX_KEYS of them."""
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > MAX_KEYS:
        kept.popitem(last=False)


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
        self._verifications = Verifications()
        self._own: OrderedDict[Ref, float] = OrderedDict()  # when an ACTIVE token may have its code pushed again
        self._replaced: OrderedDict[Ref, int] = OrderedDict()  # times since a token was verified
        self._held: OrderedDict[Hashable, float] = OrderedDict()  # new servers: not to be connected to before
        self._salt = os.urandom(16)
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
        """These came in its session: how many seconds it has to wait before they are done, MAX_DELAY at most."""
        now, budgets = self._clock(), self._budgets
        self._connections.asked(peer, now)
        if budgets is None:
            return 0.0
        kinds = Counter(type(command) for command in commands)
        numbers = {"commands": len(commands), "registrations": kinds[ntf.TNew], "replacements": kinds[ntf.TRpl]}
        own, peer.paid = budgets.commands_per_session.spend(peer.paid, len(commands), now)
        waits = [self._counted(own, "commands_per_session")]
        waits += [self._spend(what, peer, n, now) for what, n in numbers.items() if n]
        return _spread(max(waits))

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
            _remember(self._held, server, now + wait)

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

    def turn_of_registration(self, peer: Peer, device: ntf.DeviceToken, known: Token | None) -> Asked | None:
        """TNEW has a code pushed to this device: when. None: too many wait there.

        `known`: this registration, if there is one. If it is ACTIVE, nobody else can have asked for that: it waits for
        none, but has a push a minute.
        """
        if known is None or known.status is not ntf.TokenStatus.ACTIVE or self._budgets is None:
            return self._turn(peer, device, known)
        now = self._clock()
        at = max(now, self._own.get(known.ref, now))
        _remember(self._own, known.ref, at + SPACING if at == now else at)
        return Asked(self._counted(at - now, "verifications"))

    def turn_of_replacement(self, peer: Peer, device: ntf.DeviceToken, token: Token) -> Asked | None:
        """TRPL does so too. None: too many wait there, or this token, not verified since, did it too often."""
        if self._budgets is not None:
            count = 0 if token.status is ntf.TokenStatus.ACTIVE else self._replaced.get(token.ref, 0) + 1
            if count > MAX_REPLACEMENTS:
                self._metrics.count_kind(KindCounter.LIMITS_REFUSED, "replacements_unverified")
                return None
            _remember(self._replaced, token.ref, count)
        return self._turn(peer, device, token)

    def _turn(self, peer: Peer, device: ntf.DeviceToken, known: Token | None) -> Asked | None:
        if self._budgets is None:
            return Asked(0.0)
        now, key = self._clock(), self._device_key(device)
        source: Hashable = peer.keys[-1] if peer.keys else peer
        around: Hashable = network(peer.keys[-1]) if peer.keys else peer
        if known is not None and known.proven:
            source = around = "token", known.ref
        turn = self._verifications.ask(key, source, around, known.ref if known else None, now)
        if turn is None:
            self._metrics.count_kind(KindCounter.LIMITS_REFUSED, "registrations_per_device")
            return None
        return Asked(self._counted(turn.at - now, "verifications"), key, turn)

    def made(self, asked: Asked, token: Ref) -> Mapping[Ref, float | None]:
        """It is registered, or replaced. Gives what `Store.put_off` has to be told of others."""
        if asked.turn is None:
            return {}
        self._verifications.made(asked.device, asked.turn, token)
        return self._verifications.moved(asked.device, self._clock())

    def verified(self, token: Ref) -> None:
        """It is ACTIVE."""
        self._replaced.pop(token, None)
        self._verifications.forget(token)

    def _device_key(self, device: ntf.DeviceToken) -> bytes:
        """What stands for a device token here. That of APNs is hex: upper or lower case, it is the same."""
        token = device.token if device.provider in _CASED else device.token.lower()
        return hashlib.blake2b(device.provider.encode() + token, key=self._salt, digest_size=16).digest()

    # --- what is counted

    def _spend(self, what: str, peer: Peer, n: int, now: float) -> float:
        """By address, and in all: what its own budget holds up anyway costs others nothing."""
        buckets, (each, modest, total) = self._spent[what], self._rates[what]
        by_address = max((buckets.spend(key, n, each, now, share(key)) for key in peer.keys), default=0.0)
        if wait := self._counted(by_address, f"{what}_per_address"):
            return wait
        # Few who ask for much hold up none of those who ask for little.
        group = self._modest[what].spend_if_there(peer.keys[-1], n, modest, now) if peer.keys else None
        return self._counted(buckets.spend((_ALL, group), n, total, now), what)

    def _counted(self, wait: float, what: str) -> float:
        if wait > 0:
            self._metrics.count_kind(KindCounter.LIMITS_DELAYED, what)
        return max(0.0, wait)

    def _on_closed(self, why: Closed) -> None:
        self._metrics.count_kind(KindCounter.LIMITS_CLOSED, why)
