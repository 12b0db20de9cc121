"""What phones ask of the relay: commands, repeated until they are answered, as apps do."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from ntf_server.store.contract import StoreError, StoreUnavailableError
from ntf_server.store.records import NewSubscription, NewToken, Replacement
from sim.devices import SILENT, Device, new_address, web_key
from sim.relay import SimRelay
from sim.smp import SimQueue
from smp_bridge import crypto
from smp_bridge.ntf import Provider, TokenStatus

if TYPE_CHECKING:
    from sim.world import World

_AGAIN: Final = (2.0, 6.0)  # seconds after which a phone repeats a command that was not answered
_PATIENCE: Final = 30.0  # seconds that it waits for an answer
_NOT_VERIFIED: Final = 240.0  # seconds after which a phone without its code registers again
_VERIFY_KEY: Final = bytes(32)
_UNANSWERED: Final = object()


class Phones:
    """All of them."""

    def __init__(self, world: "World") -> None:
        self.world = world

    def command(
        self, name: str, make: Callable[[SimRelay], Awaitable[Any]], then: Callable[[Any], None] = lambda _: None
    ) -> None:
        """A command to the relay, repeated until it is answered. `then` gets the answer; never, if there is none."""
        relay, answered = self.world.relay, [False]

        def on_answer(result: Any) -> None:
            if answered[0]:
                return
            answered[0] = True
            self.world.trace.note("command", name, "is not answered" if result is _UNANSWERED else "is answered")
            if result is _UNANSWERED:
                self.world.loop.in_world(self.world.rng.uniform(*_AGAIN), self.command, name, make, then)
            else:
                then(result)

        async def run() -> None:
            try:
                result = await make(relay)
            except StoreUnavailableError:
                result = _UNANSWERED
            except StoreError as e:
                self.world.trace.note("command", name, "fails:", type(e).__name__)
                return
            self.world.loop.in_world(0.05, on_answer, result)

        if relay is None or not relay.ready:
            self.world.loop.in_world(self.world.rng.uniform(*_AGAIN), self.command, name, make, then)
            return
        self.world.loop.in_world(_PATIENCE, on_answer, _UNANSWERED)
        relay.life.context.run(relay.spawn, run(), name)

    def register(self, device: Device) -> None:
        """TNEW."""
        if not self.world.is_live(device):
            return
        device.verified = False
        self.world.excuses.begin(str(device), self.world.loop.time())
        address = device.address
        device.code = self.world.rng.randbytes(32)
        number = device.number.to_bytes(4, "big")

        async def make(relay: SimRelay) -> Any:
            front = relay.fronts[address.provider]
            new = NewToken(
                device.token_id, address.token, _VERIFY_KEY + number, number.rjust(32, b"c"), number.rjust(32, b"s"),
                crypto.box_key(device.secret), device.code, origin=front.origin(address.token),
                vapid_key=front.key_id,
            )  # fmt: skip
            return await relay.store.register(new)

        def then(token: Any) -> None:
            if token is None:
                self.world.trace.violated(device, "is refused")
                return
            device.ref, device.token_id = token.ref, token.token_id

        self.command(f"TNEW {device}", make, then)
        self.world.loop.in_world(_NOT_VERIFIED, self._look_for_code, device)

    def register_stranger(self) -> None:
        """TNEW of somebody who leads us to a push service that never answers."""
        stranger = Device(len(self.world.devices), bytes(32), web_key(0), self.world.rng.randbytes(16))
        token = new_address(stranger, Provider.WEB_PUSH, SILENT, self.world.rng).token
        random = self.world.rng.randbytes

        async def make(relay: SimRelay) -> Any:
            front = relay.fronts[Provider.WEB_PUSH]
            new = NewToken(
                random(24), token, random(44), random(32), random(32), random(32), random(32),
                origin=front.origin(token), vapid_key=front.key_id,
            )  # fmt: skip
            return await relay.store.register(new)

        self.command("TNEW of a stranger", make)

    def _look_for_code(self, device: Device) -> None:
        if not device.verified:
            self.register(device)

    def on_code(self, device: Device, code: bytes) -> None:
        if device.ref is None or not self.world.is_live(device):
            return

        def then(good: bool) -> None:
            if good and not device.verified:
                device.verified = True
                self.world.excuses.end(str(device), self.world.loop.time() + 5)
                self._on_verified(device)

        self.command(f"TVFY {device}", lambda relay: relay.store.verify(device.ref, code), then)

    def _on_verified(self, device: Device) -> None:
        for queue in device.queues.values():
            if not queue.wanted and not queue.deleted:
                self.subscribe(device, queue)
        if device.period:
            self.set_period(device)

    def set_period(self, device: Device) -> None:
        """TCRN."""
        period = device.period
        self.command(f"TCRN {device}", lambda relay: relay.store.set_period(device.ref, period))

    def subscribe(self, device: Device, queue: SimQueue) -> None:
        """SNEW."""
        subscription_id, address = self.world.rng.randbytes(24), queue.spell()

        async def make(relay: SimRelay) -> Any:
            new = NewSubscription(subscription_id, address, queue.notifier_id, queue.server.private_key(queue))
            return await relay.store.subscribe(device.ref, new)

        def then(added: Any) -> None:
            if not self.world.is_live(device):
                return
            if added is None:
                self.world.trace.violated(queue, "is refused")
                return
            queue.subscription_id, queue.wanted = added.subscription_id, True

        self.command(f"SNEW {queue}", make, then)

    def replace(self, device: Device) -> None:
        """The system gives the phone another device token: TRPL."""
        if not device.verified or not self.world.is_live(device):
            return
        old = device.address
        self.world.give_address(device, old.provider, old.origin)
        device.verified = False
        self.world.excuses.begin(str(device), self.world.loop.time())
        address, code = device.address, self.world.rng.randbytes(32)
        self.world.trace.fault("phone:TRPL", device)

        async def make(relay: SimRelay) -> Any:
            front = relay.fronts[address.provider]
            new = Replacement(address.token, code, origin=front.origin(address.token), vapid_key=front.key_id)
            return await relay.store.replace(device.ref, new)

        def then(_: Any) -> None:
            old.replaced, device.replaced_at = True, self.world.loop.time()

        self.command(f"TRPL {device}", make, then)
        self.world.loop.in_world(_NOT_VERIFIED, self._look_for_code, device)

    def delete(self, device: Device) -> None:
        """TDEL."""
        if device.ref is None or not self.world.is_live(device):
            return
        self.world.trace.fault("phone:TDEL", device)
        device.deleted = True
        self.forgive(device)
        for queue in device.queues.values():
            queue.wanted = False
        self.command(f"TDEL {device}", lambda relay: relay.store.delete_token(device.ref))

    def forgive(self, device: Device) -> None:
        """Nothing is owed to it any more."""
        for queue in device.queues.values():
            self.world.owed.pop(queue, None)

    def unsubscribe(self, device: Device, queue: SimQueue) -> None:
        """SDEL."""
        if not queue.wanted:
            return
        self.world.trace.fault("phone:SDEL", queue)
        queue.wanted = False
        self.world.owed.pop(queue, None)
        subscription_id = queue.subscription_id

        async def make(relay: SimRelay) -> None:
            found = await relay.store.find_subscription(subscription_id)
            if found is not None:
                await relay.store.unsubscribe(found[1].ref)

        self.command(f"SDEL {queue}", make)

    def look(self, device: Device) -> None:
        """The app is opened: TCHK, and SCHK of all its queues; what ended is subscribed again."""
        if device.ref is None or not device.verified or not self.world.is_live(device):
            return
        self.command(
            f"TCHK {device}",
            lambda relay: relay.store.find_token(device.token_id),
            lambda t: self._on_status(device, t),
        )
        for queue in [q for q in device.queues.values() if q.wanted and not q.deleted]:
            self.command(
                f"SCHK {queue}",
                lambda relay, queue=queue: relay.status(queue.subscription_id),
                lambda status, queue=queue: self._on_subscription_status(device, queue, status),
            )

    def _on_status(self, device: Device, token: Any) -> None:
        if not device.verified or not self.world.is_live(device):
            return
        if token is None:
            self.world.trace.violated(device, "is not known any more")
        elif token.status is TokenStatus.INVALID:
            self.world.trace.violated(device, "is INVALID for no fault of its own:", token.reason)
            self.register(device)

    def check_end(self, queue: SimQueue, status: str) -> None:
        """What ended in an old session is not ended for the one that subscribed it again."""
        session = queue.subscriber
        if status == "END" and self.world.is_ours(session) and session not in queue.ends_to:
            self.world.trace.violated(queue, "is END, but subscribed by", session)

    def _on_subscription_status(self, device: Device, queue: SimQueue, status: str) -> None:
        self.world.trace.note("SCHK", queue, status)
        self.check_end(queue, status)
        if status in {"END", "AUTH"} and not queue.deleted and self.world.is_live(device) and device.verified:
            if queue.subscriber == "another":
                queue.subscriber = None
            self.subscribe(device, queue)
