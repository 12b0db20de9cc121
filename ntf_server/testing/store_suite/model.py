"""Deliveries against a plain model of them: random walks, each from its seed."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Final

from ntf_server.store.contract import Store
from ntf_server.store.records import MAX_ENTRIES, Claim, Ended, Outcome, PushKind, Session, Token
from ntf_server.testing.store_suite.medium import (
    ROOM,
    Bench,
    acquire,
    activate,
    known,
    new_token,
    stamp,
    subscribe,
)
from smp_bridge.ntf import InvalidReason, Provider, TokenStatus

_SEEDS: Final = 6
_STEPS: Final = 150
_AFTER: Final = (0.0, 1.0, 30.0, 300.0)


@dataclass
class _Queue:
    """Its newest notification, 0: none."""

    seq: int = 0
    sent: bool = True


@dataclass
class _Device:
    """A token, as it should be."""

    number: int
    token: Token
    status: TokenStatus = TokenStatus.ACTIVE
    code_due: bool = False
    check_due: bool = False
    queues: dict[bytes, _Queue] = field(default_factory=dict)
    claim: Claim | None = None
    not_before: float = 0.0  # steady seconds: it must not be handed out earlier
    ready_at: float = 0.0  # it must be handed out from then on
    attempts: int = 0

    @property
    def unsent(self) -> list[bytes]:
        """Oldest first."""
        return sorted((n for n, q in self.queues.items() if not q.sent), key=lambda n: self.queues[n].seq)

    @property
    def kind(self) -> PushKind | None:
        """What is to be pushed next."""
        if self.code_due:
            return PushKind.VERIFICATION
        if self.status is not TokenStatus.ACTIVE:
            return None
        return PushKind.MESSAGES if self.unsent else PushKind.CHECK if self.check_due else None

    def content(self) -> list[tuple[bytes, int, bool]]:
        """Entries of a push of messages: the oldest unsent, then the newest that were sent, all by their number."""
        chosen = self.unsent[:MAX_ENTRIES]
        sent = sorted((n for n, q in self.queues.items() if q.sent and q.seq), key=lambda n: -self.queues[n].seq)
        chosen += sent[: MAX_ENTRIES - len(chosen)]
        entries = [(n, self.queues[n].seq, self.queues[n].sent) for n in chosen]
        return sorted(entries, key=lambda e: e[1])


class _Walk:
    """One node, its tokens, and what it was told of when to look."""

    def __init__(self, bench: Bench, store: Store, rng: random.Random, seed: int) -> None:
        self.bench, self.store, self.rng, self.seed = bench, store, rng, seed
        self.devices: list[_Device] = []
        self.ended: list[Claim] = []
        self.look_at: float | None = None
        self.session: Session
        self.made = 0

    @property
    def now(self) -> float:
        return self.bench.clock.steady()

    async def begin(self) -> None:
        self.look_at = self.now  # whoever begins looks
        self.store.watch(self._on_due)
        self.session = await acquire(self.store)

    def _on_due(self, provider: Provider, seconds: float) -> None:
        if provider is Provider.APNS:
            self._expect(seconds)

    def _expect(self, seconds: float | None) -> None:
        if seconds is not None:
            at = self.now + seconds
            self.look_at = at if self.look_at is None else min(self.look_at, at)

    async def add(self) -> None:
        """A device with queues."""
        number = self.seed * 1000 + self.made
        self.made += 1
        device = _Device(number, await activate(self.store, number))
        names = [b"%d.%d" % (number, n) for n in range(self.rng.choice((1, 2, 9)))]
        await subscribe(self.store, device.token, *names)
        device.queues = {name: _Queue() for name in names}
        self.devices.append(device)

    async def notify(self) -> None:
        names = [n for d in self.devices for n in d.queues]
        chosen = [self.rng.choice(names) for _ in range(self.rng.choice((1, 2, 10)))]
        room = self.rng.choice((0, 1, 3, 100))
        block = stamp(self.store, self.session, *chosen)
        places = {Provider.APNS: ROOM._replace(total=room)} if room else {}
        notified = await self.store.notify(self.session, block, places)
        assert notified.unknown == 0
        for nmsg in block:
            device = next(d for d in self.devices if nmsg.notifier_id in d.queues)
            device.queues[nmsg.notifier_id] = _Queue(nmsg.seq, sent=False)
        assert len(notified.claims) <= room
        self._handed(notified.claims)

    async def take(self, room: int | None = None) -> None:
        room = self.rng.choice((1, 2, 100)) if room is None else room
        self.look_at = None
        taken = await self.store.take(Provider.APNS, ROOM._replace(total=room))
        assert len(taken.claims) <= room
        self._expect(taken.next_in)
        self._handed(taken.claims)
        if len(taken.claims) < room:
            late = [d.number for d in self._due()]
            assert not late or taken.next_in == 0, (self.seed, late)

    def _due(self) -> list[_Device]:
        return [d for d in self.devices if d.kind is not None and d.claim is None and d.ready_at <= self.now]

    def _handed(self, claims: list[Claim]) -> None:
        for claim in claims:
            device = next(d for d in self.devices if d.token.ref == claim.token)
            where = self.seed, device.number
            assert device.claim is None, where
            assert device.not_before <= self.now + 0.002, where
            assert claim.kind is device.kind, where
            assert claim.attempts == device.attempts, where
            if claim.kind is PushKind.MESSAGES:
                held = [(e.notifier_id, e.seq, e.sent) for e in claim.entries]
                assert held == device.content(), where
            device.claim = claim

    async def record(self) -> None:
        """Some of what is held ends; now and then something that has ended already ends once more."""
        outcomes, over = [], 0
        for device in self.devices:
            if device.claim is not None and self.rng.random() < 0.6:
                outcomes.append(self._end(device, device.claim))
        if self.ended and self.rng.random() < 0.3:
            outcomes.append(Outcome(self.rng.choice(self.ended), Ended.DELIVERED))
            over = 1
        self.rng.shuffle(outcomes)
        assert await self.store.record(outcomes) == over, self.seed
        self.ended += [o.claim for o in outcomes]

    def _end(self, device: _Device, claim: Claim) -> Outcome:
        device.claim = None
        weights = {Ended.DELIVERED: 8, Ended.AGAIN: 3, Ended.OURS: 1, Ended.UNTRIED: 2, Ended.DEAD: 1}
        ended = self.rng.choices(list(weights), list(weights.values()))[0]
        after = self.rng.choice(_AFTER)
        held = claim.entries
        if ended is Ended.DELIVERED and len(held) > 1 and self.rng.random() < 0.2:
            held = held[:-1]
        if ended is Ended.DELIVERED:
            self._settle(device, claim, held)
            device.attempts = 0
            device.not_before = device.ready_at = self.now + self.bench.times.spacing
        elif ended is Ended.DEAD:
            device.status, device.code_due, device.check_due = TokenStatus.INVALID, False, False
        else:
            device.attempts += ended is not Ended.UNTRIED
            device.not_before, device.ready_at = self.now + after, self.now + max(after, self.bench.times.spacing)
        reason = InvalidReason.UNREGISTERED if ended is Ended.DEAD else None
        return Outcome(claim, ended, "reason", reason, after, held if ended is Ended.DELIVERED else ())

    @staticmethod
    def _settle(device: _Device, claim: Claim, held: tuple[object, ...]) -> None:
        if claim.kind is PushKind.VERIFICATION:
            device.code_due = False
        elif claim.kind is PushKind.CHECK:
            device.check_due = False
        for entry in claim.entries:
            queue = device.queues[entry.notifier_id]
            if entry in held and queue.seq == entry.seq:
                queue.sent = True

    async def revive(self) -> None:
        """TNEW, and sometimes TVFY at once."""
        device = self.rng.choice([d for d in self.devices if d.claim is None])
        new = new_token(device.number)
        assert await self.store.register(new) is not None
        if device.status is TokenStatus.INVALID:
            device.status = TokenStatus.REGISTERED
        device.code_due = True
        device.not_before = 0.0
        device.ready_at = self.now + self.bench.times.spacing
        device.attempts = 0

    async def verify(self) -> None:
        """TVFY with the right code, which is pushed or not."""
        for device in self.devices:
            if device.claim and device.claim.kind is PushKind.VERIFICATION and self.rng.random() < 0.5:
                claim = device.claim
                assert await self.store.verify(device.token.ref, claim.code)
                device.status, device.code_due = TokenStatus.ACTIVE, False
                assert await self.store.record([Outcome(claim, Ended.UNTRIED)]) == 0
                device.claim = None
                device.not_before, device.ready_at = 0.0, self.now + self.bench.times.spacing
                self.ended.append(claim)

    async def kill(self) -> None:
        """Claims are lost, nothing else is."""
        self.ended += [d.claim for d in self.devices if d.claim]
        self.store = await self.bench.reopen(self.store, kill=self.rng.random() < 0.7)
        for device in self.devices:
            device.token = await known(self.store, device.token)
            if device.claim is not None or device.not_before <= self.now + self.bench.times.spacing:
                device.not_before, device.ready_at = 0.0, self.now
            device.claim = None
        await self.begin()

    async def look(self) -> None:
        """Whoever is due, somebody was told of; the store may count those that it has to look at, too."""
        due = self._due()
        for _ in range(200):
            if not due or (self.look_at is not None and self.look_at <= self.now + 0.002):
                break
            await asyncio.sleep(0.005)
        else:
            raise AssertionError(f"seed {self.seed}: nobody was told of {[d.number for d in due]}")
        waiting = sum(d.kind is not None and d.claim is None for d in self.devices)
        assert waiting <= (await self.store.backlog(Provider.APNS)).tokens <= len(self.devices), self.seed

    async def finish(self) -> None:
        """Everything that is left reaches its device."""
        for _ in range(1000):
            left = [d for d in self.devices if d.kind is not None or d.claim is not None]
            if not left:
                assert (await self.store.backlog(Provider.APNS)).tokens == 0, self.seed
                return
            held = [d for d in self.devices if d.claim is not None]
            outcomes = [Outcome(d.claim, Ended.DELIVERED, held=d.claim.entries) for d in held if d.claim is not None]
            for device in held:
                assert device.claim is not None
                self._settle(device, device.claim, device.claim.entries)
                device.claim, device.attempts = None, 0
                device.not_before = 0.0
                device.ready_at = self.now + self.bench.times.spacing
            assert await self.store.record(outcomes) == 0
            self.bench.clock.pass_(20)
            await self.take(100)
        raise AssertionError(f"seed {self.seed}: {[d.number for d in left]} are never pushed to")


async def deliveries_are_as_their_model(bench: Bench) -> None:
    """Claims, their content and order, retries, restarts and kills: thousands of random steps."""
    for seed in range(_SEEDS):
        rng = random.Random(seed)
        walk = _Walk(bench, await bench.open(), rng, seed)
        await walk.begin()
        for _ in range(4):
            await walk.add()
        for _ in range(_STEPS):
            what = rng.choices(range(8), (1, 8, 8, 8, 1.5, 4, 0.5, 5))[0]
            if what == 0 and len(walk.devices) < 12:
                await walk.add()
            elif what == 1:
                await walk.notify()
            elif what == 2:
                await walk.take()
            elif what == 3:
                await walk.record()
            elif what == 4 and any(d.claim is None for d in walk.devices):
                await walk.revive()
            elif what == 5:
                await walk.verify()
            elif what == 6:
                await walk.kill()
            elif what == 7:
                bench.clock.pass_(rng.choice((0.001, 0.03, 1.0, 20.0)))
            await walk.look()
        await walk.finish()
        bench.nodes.remove(walk.store)
        await walk.store.close()
