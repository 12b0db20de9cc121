"""What goes wrong in a run, and when: by the seed."""

from collections.abc import Callable
from random import Random
from typing import Final

from sim.devices import SILENT, Device
from sim.providers import Host
from sim.relay import APNS_HOST
from sim.smp import SimQueue, SimServer
from sim.world import World
from smp_bridge.ntf import Provider

_HOUR: Final = 3600.0
_STEPS: Final = (5.0, 90.0, 1800.0, 2 * _HOUR, 25 * _HOUR, 400 * 24 * _HOUR)


class Faults:
    """Plans faults between two times, and ends them all at the end."""

    def __init__(self, world: World, begin: float, end: float) -> None:
        self.world = world
        self.rng: Random = world.rng
        kinds: list[tuple[Callable[[], None], int]] = [
            (self.trouble, 6),
            (self.refusal, 2),
            (self.wrong_topic, 1),
            (self.crash, 3),
            (self.restart, 2),
            (self.disk, 4),
            (self.clock, 2),
            (self.clock_and_restart, 1),
            (self.smp, 4),
            (self.storm, 2),
            (self.rush, 3),
            (self.late_end, 2),
            (self.take_over, 3),
            (self.delete_queue, 1),
            (self.failing, 2),
            (self.phone, 5),
            (self.strangers, 2),
            (self.damage, 1),
            (self.reload, 1),
        ]
        weighted = [fault for fault, weight in kinds for _ in range(weight)]
        for _ in range(self.rng.randint(9, 18)):
            self._at(self.rng.uniform(begin, end - 120), self.rng.choice(weighted))
        for host in world.hosts.values():
            if self.rng.random() < 0.3:
                host.flaky = self.rng.uniform(0.01, 0.08)
        if world.setup.message_ttl < end - begin:  # so long that something expires
            host = self.rng.choice([host for name, host in world.hosts.items() if name != SILENT])
            trouble = self.rng.choice(["refused", "errors"])
            lasts = world.setup.message_ttl + 300.0
            self._at(max(begin + 30, end - lasts), lambda: self.begin_trouble(host, trouble, lasts))
        if self.rng.random() < 0.3:
            world.setup.raises = self.rng.uniform(0.01, 0.05)
        self._at(end, self.heal)

    def _at(self, when: float, fault: Callable[[], None]) -> None:
        self.world.loop.in_world(when - self.world.loop.time(), fault)

    def _later(self, seconds: float, what: Callable[..., object], *args: object) -> None:
        self.world.loop.in_world(seconds, what, *args)

    def heal(self) -> None:
        """Everything is well from now on."""
        world, now = self.world, self.world.loop.time()
        world.quiet = True
        for name, host in world.hosts.items():
            if name != SILENT:
                host.mend()
            if host.flaky:  # what was lost shortly before waits for the longest backoff
                world.excuses.add(host.name, now - 240, now + 310)
            host.flaky = 0.0
            world.excuses.end(host.name, now + 700)
        world.setup.raises = 0.0
        world.disk.mend()
        world.excuses.end("disk", now + 15)
        if world.clock.offset:
            self._set_clock(-world.clock.offset)
        for server in world.servers:
            server.up, server.silent, server.hangs = True, False, False
            for queue in server.queues.values():
                if queue.subscriber == "another":
                    queue.subscriber = None
        for device in world.devices:
            device.address.failing_until = min(device.address.failing_until, now)

    # --- providers

    def trouble(self) -> None:
        """A bad time of a push service."""
        host = self.rng.choice([host for name, host in self.world.hosts.items() if name != SILENT])
        kinds = [t for t in host.troubles if t != "wrong_topic"]
        seconds = self.rng.choice([8.0, 20.0, 60.0, 150.0, 400.0]) * self.rng.uniform(0.8, 1.2)
        self.begin_trouble(host, self.rng.choice(kinds), seconds)

    def refusal(self) -> None:
        """Apple or Google refuse all that we send, for a fault of ours that is mended soon, or not so soon."""
        host = self.rng.choice([host for host in self.world.hosts.values() if host.refusals])
        self.begin_trouble(host, self.rng.choice(host.refusals), self.rng.choice([10.0, 30.0, 300.0]))

    def begin_trouble(self, host: Host, trouble: str, seconds: float) -> None:
        """It excuses what is late, and what is late because of it; but a connection that is bad is left soon."""
        if host.trouble or self.world.quiet:
            return
        world = self.world
        now = world.loop.time()
        connections = world.internet.connections
        reloads = world.reloads
        host.begin(trouble, seconds, connections)
        if trouble == "bad_connection":
            world.excuses.add(host.name, now, now + 90)
            return
        world.excuses.begin(host.name, now)
        quick = trouble in {"bad_key", "bad_account", "no_permission"}
        recovery = min(1.4 * seconds + 25 if quick else 2.2 * seconds + 100, 720.0)
        self._later(seconds, world.excuses.end, host.name, now + seconds + recovery)
        if trouble in host.refusals or trouble == "wrong_topic":
            self._later(seconds, self._check_refused, host, seconds, reloads)

    def _check_refused(self, host: Host, seconds: float, reloads: int) -> None:
        """Whoever refuses us is left alone, but for a probe now and then."""
        places = self.world.setup.places[Provider.FCM if host.kind == "fcm" else Provider.APNS]
        began_anew = 1 + self.world.reloads - reloads
        allowed = (began_anew * (places + 10) + seconds / 60) * self.world.width
        if len(host.refused) > allowed:
            self.world.trace.violated(
                f"{len(host.refused)} requests in {seconds:.0f} s to {host.name}, refusing ({allowed:.0f} may be)"
            )

    def wrong_topic(self) -> None:
        """The operator changes the configuration to a wrong one, and restarts."""
        world, host = self.world, self.world.hosts[APNS_HOST]
        seconds = self.rng.uniform(60, 400)
        if world.width > 1:
            return  # what Apple refuses to one node alone is no matter of a wrong configuration
        world.before_start.append(lambda: self.begin_trouble(host, "wrong_topic", seconds))
        self.restart()

    # --- the relay

    def crash(self) -> None:
        """At any step."""
        relay = self.world.relay
        if relay is not None and relay.life.dies_at is None:
            relay.life.dies_at = relay.life.steps + self.rng.randint(1, 600)

    def restart(self) -> None:
        """In order."""
        relay = self.world.relay
        if relay is not None and relay.ready:
            self.world.trace.fault("relay:restart")
            relay.stop()
            self.world.excuses.begin("relay", self.world.loop.time())

    def reload(self) -> None:
        """SIGHUP."""
        if self.world.relay is not None:
            self.world.trace.fault("relay:reload")
            self.world.reloads += 1
            self.world.relay.reload()

    def disk(self) -> None:
        """The disk has a bad time."""
        seconds = self.rng.choice([0.3, 2.0, 10.0, 30.0]) * self.rng.uniform(0.5, 1.5)
        trouble = self.rng.choice(self.world.disk.TROUBLES)
        if self.rng.random() < 0.5:  # with pushes under way
            queues = list(self.world.by_notifier.values())
            for queue in self.rng.sample(queues, min(len(queues), 8)):
                queue.server.notify(queue)
        self._later(self.rng.uniform(0.3, 2.0), self.begin_disk, trouble, seconds)

    def begin_disk(self, trouble: str, seconds: float) -> None:
        """Of this kind."""
        world = self.world
        if world.disk.was_in_trouble(0) or world.quiet:
            return
        world.disk.begin(trouble, seconds)
        world.excuses.begin("disk", world.loop.time())
        self._later(seconds, world.excuses.end, "disk", world.loop.time() + seconds + 15)

    def damage(self) -> None:
        """A sealed value of one registration is not what it was."""
        world = self.world
        device = self._device()
        if device is None or world.disk.connection is None or device.ref is None:
            return
        world.trace.fault("disk:damaged_record", device)
        column = self.rng.choice(["device_token", "secret", "server_dh"])
        world.disk.connection.execute(f"UPDATE tokens SET {column} = zeroblob(60) WHERE ref = ?", (device.ref,))
        device.damaged = True
        world.phones.forgive(device)

    def clock(self) -> None:
        """The relay's clock is set wrong, and later right."""
        self._set_clock(self.rng.choice(_STEPS) * self.rng.choice([-1, 1]))
        self._later(self.rng.choice([2.0, 45.0, 200.0]), self._right_clock)

    def clock_and_restart(self) -> None:
        """The clock is far ahead when the process dies, and right when the next one begins."""
        world, relay = self.world, self.world.relay
        if relay is None or not relay.ready or world.clock.offset:
            return
        world.trace.fault("clock:right_after_restart")
        self._set_clock(self.rng.choice(_STEPS[-3:]))
        for device in world.devices:
            if device.period and device.verified and world.is_live(device):
                device.period = 45 - device.period
                world.phones.set_period(device)
        world.before_start.append(self._right_clock)
        self._later(self.rng.uniform(3, 40), relay.life.die)

    def _right_clock(self) -> None:
        if self.world.clock.offset:
            self._set_clock(-self.world.clock.offset)

    def _set_clock(self, seconds: float) -> None:
        world = self.world
        world.trace.fault("clock:step", f"{seconds:+.0f}")
        world.clock.step(seconds)
        now = world.loop.time()
        if abs(world.clock.offset) > 40:
            world.excuses.begin("clock", now)
        else:  # a provider token of the wrong time is not renewed within 20 minutes
            world.excuses.end("clock", now + 20 * 60 + 720)

    # --- SMP servers

    def smp(self) -> None:
        """A server breaks its connections, restarts, hangs, or does not answer."""
        server = self.rng.choice(self.world.servers)
        what = self.rng.choice(["drop", "down", "hangs", "silent", "vanish"])
        self.world.trace.fault(f"smp:{what}", server)
        if what == "silent":
            server.silent = True
        elif what == "vanish":
            server.vanish_all()
        else:
            server.up, server.hangs = what != "down", what == "hangs"
            server.drop_all()
        self._later(self.rng.uniform(3, 200), self._right_server, server)

    @staticmethod
    def _right_server(server: SimServer) -> None:
        server.up, server.silent, server.hangs = True, False, False

    def storm(self) -> None:
        """All queues have many notifications at once, and then all connections break."""
        self.world.trace.fault("smp:storm")
        for server in self.world.servers:
            for queue in server.queues.values():
                for _ in range(self.rng.randint(0, 6)):
                    server.notify(queue)
            if self.rng.random() < 0.5:
                self._later(self.rng.uniform(0, 2), server.drop_all)

    def rush(self) -> None:
        """Much comes while the disk is slow, and then the sessions end, or the relay does."""
        world = self.world
        world.trace.fault("smp:rush")
        self.begin_disk("slow", self.rng.uniform(5, 20))
        queues = list(world.by_notifier.values())
        for i in range(self.rng.randint(3, 8)):  # one block after the other
            for queue in self.rng.sample(queues, len(queues) // 2):
                self._later(i * 0.5, queue.server.notify, queue)
        match self.rng.choice(["stop", "drop", "nothing"]):
            case "stop":
                self._later(self.rng.uniform(1, 5), self.restart)
            case "drop":
                for server in world.servers:
                    self._later(self.rng.uniform(1, 6), server.drop_all)

    def late_end(self) -> None:
        """Somebody takes a queue over and lets it go; before the END is stored, there is another session."""
        queue = self._queue()
        if queue is None or self.world.disk.was_in_trouble(0):
            return
        self.world.trace.fault("smp:end_before_another_session", queue)
        self.begin_disk("busy", self.rng.uniform(3, 6))
        queue.server.take_over(queue)
        queue.subscriber = None
        self._later(self.rng.uniform(1.6, 2.5), queue.server.drop_all)
        self._later(self.rng.uniform(20, 60), self.world.phones.look, self.world.owners[queue])

    def _queue(self) -> SimQueue | None:
        server = self.rng.choice(self.world.servers)
        queues = [q for q in server.queues.values() if q.wanted and not q.deleted]
        return self.rng.choice(queues) if queues else None

    def take_over(self) -> None:
        """Somebody else subscribes some queues; the phone finds that out when its app is opened."""
        queue = self._queue()
        if queue is None:
            return
        server = queue.server
        self.world.trace.fault("smp:take_over", queue)
        server.take_over(queue)
        if self.rng.random() < 0.5:  # the other one goes away at once, and the connection breaks
            queue.subscriber = None
            self._later(self.rng.uniform(0, 3), server.drop_all)
        self._later(self.rng.uniform(20, 60), self.world.phones.look, self.world.owners[queue])

    def delete_queue(self) -> None:
        """The recipient deletes it."""
        queue = self._queue()
        if queue is not None:
            self.world.trace.fault("smp:deleted", queue)
            queue.server.delete(queue)

    # --- phones

    def strangers(self) -> None:
        """Somebody registers endpoints of a push service that never answers."""
        self.world.trace.fault("phone:strangers")
        for _ in range(self.rng.randint(4, 12)):
            self._later(self.rng.uniform(0, 3), self.world.phones.register_stranger)

    def _device(self) -> Device | None:
        live = [d for d in self.world.devices if self.world.is_live(d) and d.verified]
        return self.rng.choice(live) if len(live) > 3 else None

    def failing(self) -> None:
        """A service answers with errors for some tokens only."""
        seconds = self.rng.uniform(30, 500)
        count = self.rng.choice([1, 3, 20])
        provider = self.rng.choice([Provider.APNS, Provider.APNS, Provider.FCM, Provider.WEB_PUSH])
        devices = [d for d in self.world.devices if d.address.provider is provider and self.world.is_live(d)]
        now = self.world.loop.time()
        for device in devices[: min(count, max(1, len(devices) - 1))]:
            device.address.failing_until = now + seconds
            self.world.excuses.add(str(device), now, now + seconds + min(2.2 * seconds + 100, 400))

    def phone(self) -> None:
        """What phones do."""
        device = self._device()
        if device is None:
            return
        world = self.world
        what = self.rng.choice(["replace", "replace", "replace", "delete", "uninstall", "unsubscribe", "look"])
        match what:
            case "replace":  # with pushes under way
                for queue in device.queues.values():
                    queue.server.notify(queue)
                self._later(self.rng.uniform(0.2, 2.0), world.phones.replace, device)
            case "delete":
                world.phones.delete(device)
            case "uninstall":
                world.trace.fault("phone:uninstalled", device)
                device.address.gone_at = world.loop.time()
                world.phones.forgive(device)
            case "unsubscribe":
                world.phones.unsubscribe(device, self.rng.choice(list(device.queues.values())))
            case "look":
                world.phones.look(device)
