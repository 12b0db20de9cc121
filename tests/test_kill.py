"""kill -9 of the relay while pushes flow: every notification that was received is pushed."""

import asyncio
import itertools
import random
import signal
from collections.abc import Callable

import pytest
from harness import Phone, RelayProcess

from ntf_server.testing import MockApns
from smp_bridge.client import Client
from smp_bridge.messages import MessageMeta
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient

PHONES, QUEUES = 8, 3

Item = tuple[bytes, bytes]  # notifier id and nonce of a notification


async def _set_up(
    relay: RelayProcess, smp_server: SmpServer, recipient: Recipient, phones: list[Phone]
) -> dict[bytes, tuple[Phone, Queue]]:
    """Queues of the phones, by notifier id, all subscribed."""
    out: dict[bytes, tuple[Phone, Queue]] = {}
    async with await Client.connect(relay.address) as client:
        for phone in phones:
            await phone.register(client)
            await phone.verify(client)
            for _ in range(QUEUES):
                queue = await recipient.queue()
                await phone.subscribe(client, smp_server.address, queue)
                out[queue.notifier_id] = phone, queue
    await smp_server.until(lambda: all(map(smp_server.subscribed, out)))
    return out


def _pushed(apns: MockApns, phones: list[Phone]) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """Of each queue: (nonce, metadata) of all that its device got, in order."""
    by_token = {phone.token: phone for phone in phones}
    out: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for push in apns.pushes:
        if "message" in push.body["notificationData"]:
            for entry in by_token[push.token].entries(push):
                out.setdefault(entry.notifier_id, []).append((entry.nonce, entry.meta))
    return out


class Tally:
    """What was in the store after each kill, and what the devices got."""

    def __init__(self, apns: MockApns, phones: list[Phone]) -> None:
        self._apns = apns
        self._phones = {phone.token: phone for phone in phones}
        self._read = 0  # pushes
        self._newest: dict[bytes, int] = {}  # of each queue: the last push that had something of it
        self._pushed: set[Item] = set()
        self._kept: dict[Item, int] = {}  # to the number of pushes before it was seen
        self.kills = self.interrupted = self.duplicates = 0

    def add(self, kept: dict[bytes, tuple[bytes, bool]]) -> None:
        """What was in the store after a kill."""
        self.kills += 1
        self.interrupted += sum(not sent for _, sent in kept.values())
        for notifier_id, (nonce, _) in kept.items():
            self._kept.setdefault((notifier_id, nonce), len(self._apns.pushes))

    def read(self) -> None:
        """What the devices got since the last time."""
        while self._read < len(self._apns.pushes):
            push = self._apns.pushes[self._read]
            if "message" in push.body["notificationData"]:
                items = {(e.notifier_id, e.nonce) for e in self._phones[push.token].entries(push)}
                self.duplicates += items <= self._pushed  # a queue has one device
                self._pushed |= items
                self._newest |= {notifier_id: self._read for notifier_id, _ in items}
            self._read += 1

    @property
    def received(self) -> set[Item]:
        return self._kept.keys() | self._pushed

    @property
    def delivered(self) -> set[Item]:
        """Those that reached the device, or that a newer one of their queue made obsolete which did.

        The store has the newest of each queue only, so what is pushed after a kill is what was kept, or newer.
        """
        self.read()
        superseded = {item for item, at in self._kept.items() if self._newest.get(item[0], -1) >= at}
        return self._pushed | superseded

    def __str__(self) -> str:
        numbers = len(self.received), len(self.delivered)
        return "{} kills, {} received, {} delivered, {} duplicates".format(self.kills, *numbers, self.duplicates)


async def _kill_and_count(
    kills: int, relay: RelayProcess, smp_server: SmpServer, apns: MockApns, phones: list[Phone]
) -> Tally:
    rng = random.Random(kills)
    apns.latency = 0.02
    tally = Tally(apns, phones)
    async with await Recipient.connect(smp_server.address) as recipient:
        queues = await _set_up(relay, smp_server, recipient, phones)
        for _ in range(kills):
            sending = asyncio.create_task(_send(smp_server, list(queues), rng))
            await asyncio.sleep(rng.uniform(0.05, 0.4))  # a random moment, not a wait for something
            await relay.stop(signal.SIGKILL)
            sending.cancel()
            await asyncio.wait_for(apns.idle.wait(), 20)  # what was in flight has arrived, or never will
            tally.add(relay.kept())
            await relay.start()
            await smp_server.until(lambda: all(map(smp_server.subscribed, queues)), 20)
            async with asyncio.timeout(20):
                while tally.received != tally.delivered:
                    await asyncio.sleep(0.05)
        assert tally.interrupted, "no kill interrupted anything: the test shows nothing"

        last = await _send_one_each(queues)
        async with asyncio.timeout(30):
            while not _all_arrived(_pushed(apns, phones), last, queues):
                await asyncio.sleep(0.05)
    assert await relay.stop() == 0
    pushed = _pushed(apns, phones)
    for notifier_id, (nonce, sent) in relay.kept().items():
        assert sent
        assert nonce in [n for n, _ in pushed[notifier_id]]
    assert tally.delivered == tally.received
    assert tally.duplicates <= kills * len(phones)
    return tally


async def _send(smp_server: SmpServer, notifier_ids: list[bytes], rng: random.Random) -> None:
    for _ in itertools.count():
        smp_server.notify(*rng.sample(notifier_ids, 5))
        await asyncio.sleep(0.005)


async def _send_one_each(queues: dict[bytes, tuple[Phone, Queue]]) -> dict[bytes, bytes]:
    """Send a message to every queue; gives the message ids as their recipients see them."""
    for _, queue in queues.values():
        await queue.send("last")
    return {notifier_id: (await queue.receive()).message_id for notifier_id, (_, queue) in queues.items()}


def _all_arrived(
    pushed: dict[bytes, list[tuple[bytes, bytes]]],
    last: dict[bytes, bytes],
    queues: dict[bytes, tuple[Phone, Queue]],
) -> bool:
    return all(
        notifier_id in pushed
        and queues[notifier_id][1].open_notification(*pushed[notifier_id][-1]).message_id == message_id
        for notifier_id, message_id in last.items()
    )


async def test_every_notification_that_was_received_is_pushed(
    relay_process: RelayProcess, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    await _kill_and_count(3, relay_process, smp_server, mock_apns, [phone() for _ in range(PHONES)])


@pytest.mark.long
async def test_many_kills(
    relay_process: RelayProcess,
    smp_server: SmpServer,
    mock_apns: MockApns,
    phone: Callable[[], Phone],
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = await _kill_and_count(50, relay_process, smp_server, mock_apns, [phone() for _ in range(PHONES)])
    with capsys.disabled():
        print(f"\n{tally}")


async def test_what_was_received_before_the_kill_is_pushed_after_it(
    relay_process: RelayProcess, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """The provider is out of reach, so nothing of what was received can have been pushed before the kill."""
    phones = [phone() for _ in range(3)]
    async with await Recipient.connect(smp_server.address) as recipient:
        queues = await _set_up(relay_process, smp_server, recipient, phones)
        await mock_apns.stop()
        ids = await _send_one_each(queues)
        async with asyncio.timeout(20):
            while len(relay_process.kept()) < len(queues):
                await asyncio.sleep(0.05)
        await relay_process.stop(signal.SIGKILL)
        assert not any(sent for _, sent in relay_process.kept().values())
        await mock_apns.start()
        await relay_process.start()
        async with asyncio.timeout(20):
            while not _all_arrived(_pushed(mock_apns, phones), ids, queues):
                await asyncio.sleep(0.05)
        metas = {n: q.open_notification(*_pushed(mock_apns, phones)[n][-1]) for n, (_, q) in queues.items()}
        assert all(isinstance(m, MessageMeta) for m in metas.values())
