"""What a session does: blocks, the window, another try, faults; and places for those that connect."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from subscription_owner import FAST, SLOW, Handle, Owner, errors, make_queues, running

from smp_bridge import crypto
from smp_bridge import queue_session as stream
from smp_bridge.address import ServerAddress
from smp_bridge.backoff import Backoff
from smp_bridge.client import Client
from smp_bridge.failure import NsubAnswer
from smp_bridge.identity import Credentials
from smp_bridge.places import ANYWHERE, Standing
from smp_bridge.queue_session import PAGE, AgentConfig, Share
from smp_bridge.subscriptions import NsubRequest, NsubResult
from smp_bridge.testing import Recipient, SmpServer
from smp_bridge.testing.faults import AnswersFault, duplicate, lose_every, mix_blocks, reverse
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL
from smp_bridge.turns import TurnsConfig

SERVICE, _ = Credentials.generate("ED25519", "service")
DOUBLE = 87  # double-signed NSUBs with an Ed25519 key that fill a block


@pytest.fixture
async def server() -> AsyncIterator[SmpServer]:
    async with SmpServer() as server:
        yield server


class Blocks:
    """For `SmpServer.answers`: how many NSUBs or NSUBS came in each block, and how many blocks waited at most."""

    def __init__(self, owner: Owner, server: ServerAddress, then: AnswersFault = lambda answers: answers) -> None:
        self._owner = owner
        self._server = server
        self._then = then
        self.sizes: list[int] = []
        self.waiting = 0

    def __call__(self, answers: list[bytes]) -> list[bytes]:
        self.sizes.append(len(answers))
        self.waiting = max(self.waiting, len(self.sizes) - self._owner.answered[self._server])
        return self._then(answers)


class Delays(Backoff):
    """Short delays, counted; `taken` belongs to the class, as there is one of these a session."""

    taken: list[str]

    def delay(self) -> float:
        self.taken.append("delay")
        super().delay()
        return 0.02

    def reset(self) -> None:
        self.taken.append("reset")


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Delays.taken = []
    monkeypatch.setattr(stream, "Backoff", Delays)
    return Delays.taken


# --- full blocks


@pytest.mark.parametrize("as_der", [False, True])
async def test_blocks_are_full(server: SmpServer, as_der: bool) -> None:
    owner = Owner(page=PAGE)
    for queue in await make_queues(server, 2 * PAGE + 5):
        key = crypto.encode_private(queue.notifier_key) if as_der else queue.notifier_key
        owner.keep(server.address, queue.notifier_id, key)
    server.answers = blocks = Blocks(owner, server.address)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        session = agent._servers[server.address].session
        assert session is not None
        assert not session._client._batches  # nothing of a block is kept
    assert blocks.sizes == [PAGE, PAGE, 5]


async def test_blocks_of_double_signed_ones_are_full(server: SmpServer) -> None:
    """What did not fit goes with the next ones."""
    owner = Owner(page=PAGE)
    owner.credentials = SERVICE
    owner.add(server.address, *await make_queues(server, 3 * DOUBLE + 5))
    server.answers = blocks = Blocks(owner, server.address)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.until(lambda: bool(owner.counts))
    assert blocks.sizes == [DOUBLE, DOUBLE, DOUBLE, 5, 1]  # the last is NSUBS
    assert owner.counts == [3 * DOUBLE + 5]


async def test_added_ones_that_do_not_fit_a_block_are_sent_after_it(server: SmpServer) -> None:
    owner = Owner(page=PAGE)
    owner.credentials = SERVICE
    queues = await make_queues(server, DOUBLE + 3)
    owner.add(server.address, queues[0])
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.until(lambda: bool(owner.counts))
        server.answers = blocks = Blocks(owner, server.address)
        agent.subscribe(server.address, *owner.add(server.address, *queues[1:]))
        await owner.all_active(server.address)
    assert blocks.sizes == [DOUBLE, 2]


async def test_what_does_not_fit_a_block_is_not_lost(server: SmpServer) -> None:
    owner = Owner(page=PAGE)
    async with await Recipient.connect(server.address) as recipient:
        makers = (Ed448PrivateKey.generate, Ed25519PrivateKey.generate, X25519PrivateKey.generate)
        keys = [makers[i % 3]() for i in range(300)]
        owner.add(server.address, *await asyncio.gather(*(recipient.queue(secure=None, notifier_key=k) for k in keys)))
    server.answers = blocks = Blocks(owner, server.address)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        agent.subscribe(server.address, *owner.kept[server.address])
        await server.until(lambda: server.nsubs() >= 600)
    assert not owner.ended
    assert sum(blocks.sizes) == server.nsubs() == 600
    assert len(blocks.sizes) == 6
    assert all(server.nsubs(s.notifier_id) == 2 for s in owner.kept[server.address].values())


async def test_added_ones_share_blocks_and_what_was_deleted_meanwhile_is_none(server: SmpServer) -> None:
    owner = Owner()
    queues = await make_queues(server, 40)
    owner.add(server.address, queues[0])
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        server.answers = blocks = Blocks(owner, server.address)
        refs = owner.add(server.address, *queues[1:])
        for ref in refs:
            agent.subscribe(server.address, ref)
        gone = owner.kept[server.address].pop(refs[0])
        await owner.all_active(server.address)
        agent.subscribe(server.address, refs[0])
        agent.subscribe(server.address, refs[1])
        await server.until(lambda: server.nsubs(queues[2].notifier_id) == 2)
    assert blocks.sizes == [38, 1]
    assert server.nsubs(gone.notifier_id) == 0


async def test_the_tag_comes_back(server: SmpServer) -> None:
    owner = Owner(page=PAGE)
    for i, queue in enumerate(await make_queues(server, 3)):
        owner.keep(server.address, queue.notifier_id, queue.notifier_key, tag=253 + i)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
    assert owner.tags == [253, 254, 255]


# --- keys that are of no use


async def test_bad_keys_among_good_ones(server: SmpServer) -> None:
    owner = Owner(page=PAGE)
    x448 = bytes.fromhex("3046020100300506032b656f043a0438") + bytes(56)
    for i, queue in enumerate(await make_queues(server, 6)):
        key = crypto.encode_private(queue.notifier_key)
        owner.keep(server.address, queue.notifier_id, {1: b"garbage", 3: key[:-1], 4: x448}.get(i, key), tag=i)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        assert owner.active[server.address] == {0, 2, 5}
        bad = "the key is bad"
        assert owner.ended == {i: NsubResult(i, i, NsubAnswer.ERROR, bad) for i in (1, 3, 4)}
        ref = owner.keep(server.address, b"n" * 24, b"")
        agent.subscribe(server.address, ref)
        await owner.until(lambda: ref in owner.ended)
    assert owner.sessions.count(("connected", server.address)) == 1


@pytest.mark.parametrize("as_der", [False, True])
async def test_a_key_that_the_session_cannot_use(as_der: bool) -> None:
    owner = Owner()
    async with SmpServer(versions=(6, 6)) as server:
        async with await Recipient.connect(server.address) as recipient:
            queues = [await recipient.queue() for _ in range(2)]
        x25519 = X25519PrivateKey.generate()
        owner.keep(server.address, b"n" * 24, crypto.encode_private(x25519) if as_der else x25519, tag=7)
        owner.add(server.address, *queues)
        async with running(owner) as agent:
            agent.start(server.address)
            await owner.all_active(server.address)
    assert owner.ended == {0: NsubResult(0, 7, NsubAnswer.ERROR, "the server is too old for this key")}
    assert owner.active[server.address] == set()
    assert owner.kept[server.address].keys() == {1, 2}


# --- the window


@pytest.mark.parametrize("window", [1, 3])
async def test_never_more_blocks_without_an_answer_than_the_window(server: SmpServer, window: int) -> None:
    owner = Owner(page=2)
    owner.add(server.address, *await make_queues(server, 24))
    # The answers to as many blocks come together: so many must have been under way.
    server.answers = blocks = Blocks(owner, server.address, mix_blocks(window))
    async with running(owner, replace(FAST, window=window, request_timeout=30.0)) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
    assert blocks.sizes == [2] * 12
    assert blocks.waiting == window


async def test_the_window_holds_for_added_ones_and_other_tries(
    server: SmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PAGE", 10)
    owner = Owner()
    queues = await make_queues(server, 60)
    owner.add(server.address, queues[0])
    async with running(owner, replace(FAST, window=2)) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
        server.answers = blocks = Blocks(owner, server.address, lose_every(2))
        blocks.sizes += [0]  # what was answered before
        agent.subscribe(server.address, *owner.add(server.address, *queues[1:]))
        await owner.all_active(server.address, 20)
    assert blocks.waiting == 2


async def test_what_all_servers_share(server: SmpServer) -> None:
    """A silent server keeps its part, and holds up nobody."""
    async with SmpServer() as silent:
        owner = Owner(page=2)
        for s in (server, silent):
            owner.add(s.address, *await make_queues(s, 24))
        silent.silent = True
        server.answers = blocks = Blocks(owner, server.address, mix_blocks(2))
        async with running(owner, replace(FAST, window=8, in_flight=5, request_timeout=30.0)) as agent:
            agent.start(silent.address)
            await owner.until(lambda: owner.pages >= 1)
            agent.start(server.address)
            await owner.all_active(server.address)
            assert not owner.active[silent.address]
            assert agent.is_connected(silent.address)
    assert blocks.waiting == 2


def test_the_window_is_shared_among_those_that_stream() -> None:
    share = Share(AgentConfig(window=8, in_flight=20))
    assert share.window() == 8
    with contextlib.ExitStack() as stack:
        windows = [stack.enter_context(share.streaming()) or share.window() for _ in range(22)]
    assert windows == [8, 8, 6, 5, 4, 3, 2, 2, 2, 2, *[1] * 12]
    assert share.window() == 8
    with pytest.raises(RuntimeError), share.streaming():
        raise RuntimeError
    assert share.window() == 8


async def test_servers_stream_only_while_they_have_pages(server: SmpServer) -> None:
    owner = Owner()
    owner.add(server.address, *await make_queues(server, 1))
    async with running(owner, replace(FAST, window=8, in_flight=8)) as agent:
        share = agent._shared.sessions
        agent.start(server.address)
        with share.streaming():
            for sessions in (1, 3):
                await owner.until(lambda n=sessions: len(owner.sessions) >= n)  # type: ignore[misc]
                await owner.all_active(server.address)
                async with asyncio.timeout(5):
                    while share.window() != 8:
                        await asyncio.sleep(0)
                server.drop_all()


async def test_a_slow_store_of_one_server_leaves_a_turn_to_another(server: SmpServer) -> None:
    class Stuck(Owner):
        async def page(self, session: Handle, limit: int) -> Sequence[NsubRequest]:
            if session.server != good:
                reached.set()
                await asyncio.Event().wait()
            return await super().page(session, limit)

    good, reached = server.address, asyncio.Event()
    async with SmpServer() as other:
        owner = Stuck()
        for s in (server, other):
            owner.add(s.address, *await make_queues(s, 1))
        async with running(owner) as agent:
            agent.start(other.address)
            await asyncio.wait_for(reached.wait(), 5)
            agent.start(server.address)
            await owner.all_active(server.address)


async def test_few_blocks_are_loaded_and_signed_at_once() -> None:
    class Watched(Owner):
        async def page(self, session: Handle, limit: int) -> Sequence[NsubRequest]:
            loading.append(session.server)
            most.append(len(loading))
            await asyncio.sleep(0.01)
            loading.remove(session.server)
            return await super().page(session, limit)

    loading: list[ServerAddress] = []
    most: list[int] = []
    owner = Watched()
    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(SmpServer()) for _ in range(6)]
        for s in servers:
            owner.add(s.address, *await make_queues(s, 1))
        agent = await stack.enter_async_context(running(owner))
        for s in servers:
            agent.start(s.address)
        for s in servers:
            await owner.all_active(s.address)
    assert max(most) == 2


async def test_a_server_that_does_not_take_what_is_sent_is_waited_for(
    server: SmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drain(_: Client) -> None:
        reached.set()
        await taken.wait()

    reached, taken = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(Client, "drain", drain)
    owner = Owner(page=2)
    owner.add(server.address, *await make_queues(server, 6))
    async with running(owner) as agent:
        agent.start(server.address)
        await asyncio.wait_for(reached.wait(), 5)
        await owner.until(lambda: len(owner.active[server.address]) == 2)
        assert owner.pages == 1
        taken.set()
        await owner.all_active(server.address)


# --- another try


async def test_each_try_waits_for_its_backoff(server: SmpServer, delays: list[str]) -> None:
    """Also if there is always something that waits: here blocks of which one is answered at a time."""
    owner = Owner(page=3)
    queues = await make_queues(server, 9)
    for queue in queues:
        server.script_nsub(queue.notifier_id, *[ERR_INTERNAL] * 3)
    owner.add(server.address, *queues)
    async with running(owner, replace(FAST, window=1)) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
    assert delays.count("delay") >= 3
    assert delays[-1] == "reset"
    assert [server.nsubs(q.notifier_id) for q in queues] == [4] * 9


async def test_tries_in_blocks_of_a_page_wait_for_their_backoff(
    server: SmpServer, delays: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PAGE", 3)
    owner = Owner()
    queues = await make_queues(server, 9)
    for queue in queues:
        server.script_nsub(queue.notifier_id, *[ERR_INTERNAL] * 3)
    owner.add(server.address, *queues)
    async with running(owner, replace(FAST, window=1)) as agent:
        agent.start(server.address)
        await owner.all_active(server.address)
    assert delays.count("delay") == 3
    assert all(len(refs) == 3 for refs in owner.loaded)


async def test_added_ones_do_not_wait_for_another_try(server: SmpServer) -> None:
    owner = Owner()
    bad, good = await make_queues(server, 2)
    server.script_nsub(bad.notifier_id, ERR_INTERNAL)
    owner.add(server.address, bad)
    async with running(owner, replace(FAST, min_backoff=1000.0, max_backoff=1000.0, patience=SLOW)) as agent:
        agent.start(server.address)
        await server.until(lambda: server.nsubs() == 1)
        [ref] = owner.add(server.address, good)
        agent.subscribe(server.address, ref)
        await owner.until(lambda: owner.active[server.address] == {ref})
    assert server.nsubs(bad.notifier_id) == 1


async def test_too_many_that_wait_for_another_try_stop_the_pages(
    server: SmpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MAX_AGAIN", 20)
    owner = Owner(page=10)
    queues = await make_queues(server, 80)
    for queue in queues:
        server.script_nsub(queue.notifier_id, ERR_INTERNAL)
    owner.add(server.address, *queues)
    async with running(owner, replace(FAST, window=1, min_backoff=0.4, max_backoff=0.6)) as agent:
        agent.start(server.address)
        await owner.until(lambda: bool(owner.loaded))
        assert owner.pages == 2
        await owner.all_active(server.address, 20)
    assert [server.nsubs(q.notifier_id) for q in queues] == [2] * 80


async def test_nsubs_is_tried_again_after_a_backoff(server: SmpServer, delays: list[str]) -> None:
    owner = Owner()
    owner.credentials = SERVICE
    owner.add(server.address, *await make_queues(server, 1))
    server.script_nsubs(ERR_INTERNAL, ERR_INTERNAL)
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.until(lambda: bool(owner.counts))
    assert delays == ["reset", "delay", "delay", "reset"]  # the first: NSUBs were answered


# --- the end of a session


async def test_nothing_is_subscribed_after_nsubs_was_refused(server: SmpServer) -> None:
    class Watched(Owner):
        async def disconnected(self, session: Handle) -> None:
            pages.append(self.pages)
            await super().disconnected(session)

    pages: list[int] = []
    owner = Watched()
    owner.credentials = SERVICE
    owner.add(server.address, *await make_queues(server, 3))
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.until(lambda: bool(owner.counts))
        server.script_nsubs(ERR_AUTH)
        server.drop_all()
        await owner.until(lambda: len(pages) == 2)
        await owner.all_active(server.address)
    assert pages[0] == pages[1]


async def test_an_owner_that_fails_to_take_results_ends_the_session_loudly(
    server: SmpServer, caplog: pytest.LogCaptureFixture
) -> None:
    owner = Owner()
    owner.failing = {"results"}
    owner.add(server.address, *await make_queues(server, 1))
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.until(lambda: len(owner.sessions) == 3)
        await owner.all_active(server.address)
    assert errors(caplog) == ["a session with an SMP server failed"]


async def test_no_results_are_handed_on_after_the_session(server: SmpServer) -> None:
    class Stuck(Owner):
        async def results(self, session: Handle, results: Sequence[NsubResult]) -> None:
            if not happened:
                happened.append("results")
                self._changed.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    happened.append("cancelled")
            await super().results(session, results)

        async def disconnected(self, session: Handle) -> None:
            happened.append("disconnected")
            await super().disconnected(session)

    happened: list[str] = []
    owner = Stuck()
    owner.add(server.address, *await make_queues(server, 1))
    async with running(owner) as agent:
        agent.start(server.address)
        await owner.until(lambda: bool(happened))
        server.drop_all()
        await owner.until(lambda: "disconnected" in happened)
        await owner.all_active(server.address)
    assert happened[:3] == ["results", "cancelled", "disconnected"]


# --- faults


async def cut_first(server: SmpServer) -> None:
    server.cut_after(1)


async def cut_in_a_batch(server: SmpServer) -> None:
    server.cut_after(30)


def answers(fault: Callable[[], AnswersFault]) -> Callable[[SmpServer], Awaitable[None]]:
    async def begin(server: SmpServer) -> None:
        server.answers = fault()

    return begin


async def count_is_too_low(server: SmpServer) -> None:
    server.service_count_offset = -3


async def count_is_too_high(server: SmpServer) -> None:
    server.service_count_offset = 3


async def slow(server: SmpServer) -> None:
    server.slow = 0.05


async def refuse(server: SmpServer) -> None:
    server.refuse_services = True
    server.drop_all()


async def drop(server: SmpServer) -> None:
    server.drop_all()


async def restart(server: SmpServer) -> None:
    await server.stop()
    await server.start()


async def change_ids(server: SmpServer) -> None:
    server.change_service_ids()


async def change_ids_and_drop(server: SmpServer) -> None:
    server.change_service_ids()
    server.drop_all()


async def forget_and_drop(server: SmpServer) -> None:
    server.forget_services()
    server.drop_all()


async def dissociate_some_and_drop(server: SmpServer) -> None:
    server.dissociate()
    server.drop_all()


FAULTS = [
    cut_first,
    cut_in_a_batch,
    pytest.param(answers(lambda: lose_every(2)), id="half the answers lost"),
    pytest.param(answers(lambda: duplicate), id="answers twice"),
    pytest.param(answers(lambda: reverse), id="answers in reverse"),
    pytest.param(answers(lambda: mix_blocks(2)), id="answers to two blocks mixed"),
    pytest.param(answers(lambda: partial(lambda f, a: duplicate(reverse(f(a))), lose_every(3))), id="all of these"),
    count_is_too_low,
    count_is_too_high,
    slow,
    refuse,
    drop,
    restart,
    change_ids,
    change_ids_and_drop,
    forget_and_drop,
    dissociate_some_and_drop,
]


@pytest.mark.parametrize("credentials", [None, SERVICE], ids=["plain", "service"])
@pytest.mark.parametrize("when", ["before", "in the midst", "after"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_faults(
    *,
    server: SmpServer,
    fault: Callable[[SmpServer], Awaitable[None]],
    when: str,
    credentials: Credentials | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(stream, "PAGE", 20)
    owner = Owner()
    owner.credentials = credentials
    queues = await make_queues(server, 45)
    owner.add(server.address, *queues)
    second = asyncio.create_task(server.until(lambda: server.connections > 1, 60))
    if when == "before":
        await fault(server)
    async with running(owner, replace(FAST, window=2)) as agent:
        agent.start(server.address)
        if when == "in the midst":
            await server.until(lambda: server.nsubs() > 0)
            await fault(server)
        if when == "after":
            await owner.all_active(server.address)
            await fault(server)
            await server.until(lambda: server.connections == 1)
            agent.subscribe(server.address, *owner.kept[server.address])
        await server.until(lambda: all(server.subscribed(q.notifier_id) for q in queues), 20)
        await owner.until(lambda: owner.has_session(server.address))
        await owner.all_active(server.address, 20)
        assert server.connections == 1
        assert not owner.ended
        assert server.nsubs() <= 8 * len(queues)
        assert not second.done()
        second.cancel()
    assert errors(caplog) == []


# --- places to connect, of the agent's servers


@contextlib.asynccontextmanager
async def black_holes(like: ServerAddress, count: int) -> AsyncIterator[list[ServerAddress]]:
    """Addresses that take connections and say nothing."""

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    servers = [await asyncio.start_server(hold, "127.0.0.1", 0) for _ in range(count)]
    try:
        yield [replace(like, port=str(s.sockets[0].getsockname()[1])) for s in servers]
    finally:
        for s in servers:
            s.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize("proven", [True, False])
async def test_black_holes_do_not_delay_a_good_server(server: SmpServer, proven: bool) -> None:
    owner = Owner()
    queues = await make_queues(server, 1)
    turns = TurnsConfig(places=1024, new_places=64, quick=1, quick_time=0.02)
    async with black_holes(server.address, 6) as holes:
        for number, address in enumerate((*holes, server.address)):
            owner.add(address, *queues)
            owner.standings[address] = Standing((ANYWHERE,) if proven else (), 0.0, (number,))
        async with running(owner, replace(FAST, turns=turns)) as agent:
            for address in (*holes, server.address):
                agent.start(address)
            await owner.all_active(server.address)
            assert not owner.failures
            assert agent.servers == 7
            assert agent.knows(server.address)
            assert agent.connecting(proven=proven) == 6
            assert agent.connecting(proven=not proven) == 0


async def test_what_nobody_knows_does_not_delay_what_is_proven(server: SmpServer) -> None:
    """More black holes than there are places for them."""
    owner = Owner()
    queues = await make_queues(server, 1)
    owner.add(server.address, *queues)
    async with black_holes(server.address, 20) as holes:
        for number, address in enumerate(holes):
            owner.add(address, *queues)
            owner.standings[address] = Standing(claims=(number,))
        config = replace(FAST, turns=TurnsConfig(places=4, new_places=4, quick_time=0.02))
        async with running(owner, config) as agent:
            for address in holes:
                agent.start(address)
            for _ in range(3):
                agent.start(server.address)
                await owner.all_active(server.address)
                server.drop_all()
                await owner.until(lambda: not owner.has_session(server.address))
    assert owner.prefixes == ["127.0.0.0/24"] * 3


async def test_many_servers_at_once() -> None:
    """Each has its subscriptions, and one connection."""
    async with contextlib.AsyncExitStack() as stack:
        credentials, _ = Credentials.generate("ED25519", "localhost")
        servers = [await stack.enter_async_context(SmpServer(credentials=credentials)) for _ in range(40)]
        owner = Owner()
        for s in servers:
            owner.add(s.address, *await make_queues(s, 2))
        agent = await stack.enter_async_context(running(owner, replace(FAST, in_flight=8)))
        for s in servers:
            agent.start(s.address)
        for s in servers:
            await owner.all_active(s.address)
            assert (s.connections, s.nsubs()) == (1, 2)
    assert not owner.failures
