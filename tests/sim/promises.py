"""What holds when a world has been well for a while."""

import asyncio
from typing import Final

from sim.devices import Device
from sim.relay import SimRelay
from sim.services import ServiceServer
from sim.smp import SimQueue
from sim.world import World
from smp_bridge.ntf import TokenStatus

_CHECK_SLACK: Final = 120.0  # seconds


async def check_at_end(world: World) -> None:
    """Everybody has what was stored for him, every subscription is where it should be, and the relay ends in order."""
    relay = world.relay
    if relay is None or not relay.ready:
        world.trace.violated("the relay does not run")
        return
    world.check_read(relay, world.loop.time() - 30)
    check_owed(world)
    for device in world.devices:
        if world.is_live(device):
            await _check_device(world, relay, device)
    world.stopping = True
    relays = list(world.relays.values())
    for relay in relays:
        relay.stop()
    await asyncio.sleep(40)
    if not all(relay.ended for relay in relays):
        world.trace.violated("the relay does not end")


def check_owed(world: World) -> None:
    """Everything that was stored has reached its device, or is counted as expired."""
    now, lost = world.loop.time(), 0
    for queue, waiting in world.owed.items():
        if now - waiting.since > world.setup.message_ttl:
            world.check_wait(queue, waiting)
            lost += 1
        else:
            world.trace.violated(queue, waiting.newest, "never reached", world.owners[queue])
    if lost > world.expired_so_far():
        world.trace.violated(lost, "notifications expired, and were not counted")


def check_periods(world: World) -> None:
    """Who wants a check every so many minutes, and is pushed nothing else, has one."""
    for device in world.devices:
        excused = ["clock", "check", world.host_of(device.address).name, str(device)]
        silence = world.excuses.without(excused, device.pushed_at, world.loop.time())
        if device.period and world.is_live(device) and silence > device.period * 66 + _CHECK_SLACK:
            world.trace.violated(device, "got no check for", f"{silence:.0f} s")


async def _check_device(world: World, relay: SimRelay, device: Device) -> None:
    token = await _ask(world, relay, relay.store.find_token(device.token_id))
    if token is None or token.status is not TokenStatus.ACTIVE:
        world.trace.violated(device, "is", token.status if token else "unknown", token.reason if token else "")
        return
    for queue in device.queues.values():
        if queue.wanted and not queue.deleted and queue.subscriber != "another":
            await _check_subscription(world, relay, queue)


async def _check_subscription(world: World, relay: SimRelay, queue: SimQueue) -> None:
    status = await _ask(world, relay, relay.status(queue.subscription_id))
    session = queue.subscriber
    if status == "ACTIVE" and world.is_ours(session):
        return
    if any(s in queue.ends_to for s in queue.server.sessions if world.is_ours(s)):
        return  # an END that came after our own NSUB, in the same session: nobody can tell that
    if isinstance(queue.server, ServiceServer) and queue.server.hides_losses:
        return  # the audit of all finds it, within a day
    world.trace.violated(queue, "is", status, "and subscribed by", session)


async def _ask(world: World, relay: SimRelay, coro):  # type: ignore[no-untyped-def]
    return await world.loop.begin(relay.life, coro)
