"""A push engine in a process of its own, which sends what was made ready for it, so many requests at once.

`engine_process.py NAME OPTIONS` is ready when it has sent some; then, for a line on its standard input, it sends the
rest, answers with `Result` as JSON, and ends. It also ends if the engine hangs.
"""

import argparse
import asyncio
import gc
import itertools
import json
import logging
import math
import os
import resource
import signal
import ssl
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import aioapns
import httpx
import pyfcm  # type: ignore[import-untyped]
from aioapns.connection import APNsProductionClientProtocol
from fill import device_token

from ntf_server.config.service_account import parse_service_account
from ntf_server.push.apns.open import OpenApns
from ntf_server.push.apns.provider_token import ProviderToken
from ntf_server.push.apns.settings import ApnsSettings, SigningKey
from ntf_server.push.exchange import Endpoint, HttpRequest, HttpResponse, HttpResult
from ntf_server.push.fcm.open import OpenFcm
from ntf_server.push.fcm.settings import FcmSettings
from ntf_server.push.http import HttpEngine
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.push.payload import apns_body, notification_data
from ntf_server.push.verdict import Again, Delivered, Ours, PushProvider, Verdict
from ntf_server.store.records import Claim, Entry, Lane, PushKind
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import NONCE_SIZE
from smp_bridge.ntf import DeviceToken, Provider

CONNECTIONS: Final = 2  # as many as the relay has
PROJECT: Final = "bench"
_TOPIC: Final = "chat.simplex.app"
_PATH: Final = "/3/device/"
_KEY_ID, _TEAM_ID = "BENCHKEY00", "BENCHTEAM0"
_BODIES: Final = 256  # that ready-made requests share
_GRACE: Final = 15  # seconds for what is not the run itself

_TTL: Final = dict.fromkeys(PushKind, 24 * 3600)  # seconds
_SERVER: Final = ServerAddress("smp", ("smp1.example.org",), "", bytes(32))

Done = Callable[[str], None]  # told once a request what went wrong, or the empty string


class Tally:
    """What came of requests."""

    def __init__(self) -> None:
        self.answered = 0
        self.errors: Counter[str] = Counter()
        self.last_at = time.monotonic()

    def add(self, error: str) -> None:
        """One is over."""
        self.answered += 1
        self.last_at = time.monotonic()
        if error:
            self.errors[error] += 1


Start = Callable[[range, Tally], Awaitable[None]]  # sends those requests


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be sent where. Requests are numbered from 0 below `count`; each is to a device of its own."""

    port: int
    ca_file: str
    account: str
    count: int
    concurrency: int
    timeout: float

    @property
    def url(self) -> str:
        """Of the mock."""
        return f"https://127.0.0.1:{self.port}"

    def claims(self, provider: Provider) -> list[Claim]:
        """One notification each."""
        now, secret = int(time.time()), os.urandom(32)
        out = []
        for i in range(self.count):
            entry = Entry(i, i, False, _SERVER, os.urandom(24), now, os.urandom(NONCE_SIZE), os.urandom(144))
            device = DeviceToken(provider, device_token(i))
            push_id = os.urandom(16)
            out.append(Claim(i, 1, Lane(provider), device, secret, PushKind.MESSAGES, now, push_id, entries=(entry,)))
        return out

    def endpoint(self, url: str, *, http2_only: bool = True) -> Endpoint:
        """With as many connections as the relay has."""
        return Endpoint(url, self.ca_file, timeout=self.timeout, http2_only=http2_only, connections=CONNECTIONS)

    def paths(self) -> list[str]:
        """Of the requests to APNs."""
        return [_PATH + device_token(i).decode() for i in range(self.count)]

    def bodies(self) -> list[bytes]:
        """What our relay would send to APNs, made before."""
        return [apns_body(claim, os.urandom(24))[0] for claim in self.claims(Provider.APNS_TEST)[:_BODIES]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the requests.

    `seconds`: to the last answer; `cpu`: of the process; `stopped`: by the time limit, `silent`: seconds before that.
    """

    answered: int
    errors: dict[str, int]
    seconds: float
    cpu: float
    stopped: bool
    silent: float


# --- how requests are kept under way


async def one_by_one(
    send: Callable[[int], Awaitable[str]], concurrency: int, numbers: Iterable[int], tally: Tally
) -> None:
    """So many tasks, each with a request at a time: how a client with a coroutine for each request is used."""
    waiting = iter(numbers)

    async def work() -> None:
        for number in waiting:
            try:
                error = await send(number)
            except Exception as e:
                error = type(e).__name__
            tally.add(error)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work())


async def in_batches(
    send: Callable[[Sequence[int], Done], None], concurrency: int, numbers: range, tally: Tally
) -> None:
    """As the dispatcher does: results that come together are followed by as many requests together."""
    loop = asyncio.get_running_loop()
    over, waiting = loop.create_future(), iter(numbers)
    free = under_way = 0

    def refill() -> None:
        nonlocal free, under_way
        batch = list(itertools.islice(waiting, free))
        free = 0
        under_way += len(batch)
        if batch:
            send(batch, done)
        elif not under_way and not over.done():
            over.set_result(None)

    def done(error: str) -> None:
        nonlocal free, under_way
        tally.add(error)
        free, under_way = free + 1, under_way - 1
        if free == 1:
            loop.call_soon(refill)

    free = concurrency
    refill()
    await over


# --- ours


def _send_claims(provider: PushProvider, claims: Sequence[Claim], numbers: Sequence[int], done: Done) -> None:
    def on_verdict(_: Claim, verdict: Verdict) -> None:
        done("" if isinstance(verdict, Delivered) else _reason(verdict))

    provider.send([claims[i] for i in numbers], on_verdict)


def _reason(verdict: Verdict) -> str:
    return verdict.reason if isinstance(verdict, Again | Ours) else str(verdict)


@asynccontextmanager
async def our_apns(load: Load) -> AsyncIterator[Start]:
    """The provider that the relay uses: it also makes the bodies, with their boxes."""
    engine = HttpEngine(streams=load.concurrency)
    signing = SigningKey(generate_key(), _KEY_ID, _TEAM_ID)
    settings = ApnsSettings({Provider.APNS_TEST: load.endpoint(load.url)}, _TOPIC, signing, _TTL)
    provider = OpenApns(settings, engine).providers[Provider.APNS_TEST]
    yield partial(in_batches, partial(_send_claims, provider, load.claims(Provider.APNS_TEST)), load.concurrency)
    await engine.close()


@asynccontextmanager
async def our_engine(load: Load) -> AsyncIterator[Start]:
    """The HTTP engine alone, with requests that are ready."""
    engine = HttpEngine(streams=load.concurrency)
    endpoint = load.endpoint(load.url)
    lines = [tuple(f"{name}: {value}" for name, value in fields) for fields in headers(load)]
    requests = [
        HttpRequest(endpoint, path, fields, body)
        for path, fields, body in zip(load.paths(), lines, itertools.cycle(load.bodies()), strict=False)
    ]

    def send(numbers: Sequence[int], done: Done) -> None:
        engine.send([(requests[i], partial(_answered, done)) for i in numbers])

    yield partial(in_batches, send, load.concurrency)
    await engine.close()


def _answered(done: Done, answer: HttpResult) -> None:
    if isinstance(answer, HttpResponse):
        done("" if answer.status == 200 else str(answer.status))
    else:
        done(str(answer))


def headers(load: Load) -> list[list[tuple[str, str]]]:
    """Those of our requests to APNs."""
    expiration = str(int(time.time()) + _TTL[PushKind.MESSAGES])
    shared = [
        ("apns-topic", _TOPIC),
        ("apns-expiration", expiration),
        ("content-type", "application/json"),
        ("authorization", f"bearer {ProviderToken(SigningKey(generate_key(), _KEY_ID, _TEAM_ID)).get()}"),
        ("apns-push-type", "alert"),
        ("apns-priority", "10"),
    ]
    return [[*shared, ("apns-id", str(uuid.uuid4()))] for _ in range(load.count)]


@asynccontextmanager
async def our_fcm(load: Load) -> AsyncIterator[Start]:
    """The provider that the relay uses."""
    engine = HttpEngine(streams=load.concurrency)
    account = parse_service_account(await asyncio.to_thread(Path(load.account).read_bytes))
    push_to, grants = (load.endpoint(url, http2_only=False) for url in (load.url, account.token_uri))
    provider = OpenFcm(FcmSettings(account, push_to, grants, _TTL), engine).providers[Provider.FCM]
    yield partial(in_batches, partial(_send_claims, provider, load.claims(Provider.FCM)), load.concurrency)
    await engine.close()


# --- others


def _tls(load: Load) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=load.ca_file)
    context.set_alpn_protocols(["h2"])
    return context


@asynccontextmanager
async def with_aioapns(load: Load) -> AsyncIterator[Start]:
    """It takes a dict, so its JSON is made in the run."""
    logging.getLogger("aioapns").setLevel(logging.CRITICAL)  # its errors are counted
    APNsProductionClientProtocol.APNS_SERVER, APNsProductionClientProtocol.APNS_PORT = "127.0.0.1", load.port
    client = aioapns.APNs(
        key=key_pem(generate_key()).decode(),
        key_id=_KEY_ID,
        team_id=_TEAM_ID,
        topic=_TOPIC,
        max_connections=CONNECTIONS,
        ssl_context=_tls(load),
    )
    requests = [
        aioapns.NotificationRequest(
            path.removeprefix(_PATH),
            message,
            notification_id=path,  # what the mock answers with
            time_to_live=_TTL[PushKind.MESSAGES],
            priority=10,
            push_type=aioapns.PushType.ALERT,
        )
        for path, message in zip(load.paths(), itertools.cycle(map(json.loads, load.bodies())), strict=False)
    ]

    async def send(number: int) -> str:
        answer = await client.send_notification(requests[number])
        return "" if answer.is_successful else f"{answer.status} {answer.description}"

    yield partial(one_by_one, send, load.concurrency)
    client.pool.close()


@asynccontextmanager
async def with_httpx(load: Load) -> AsyncIterator[Start]:
    """One client with ready-made bodies and headers."""
    limits = httpx.Limits(max_connections=CONNECTIONS)
    paths, fields, bodies = load.paths(), headers(load), load.bodies()
    async with httpx.AsyncClient(
        http1=False,
        http2=True,
        verify=_tls(load),
        limits=limits,
        timeout=load.timeout,
        trust_env=False,
        base_url=load.url,
    ) as client:

        async def send(number: int) -> str:
            content = bodies[number % len(bodies)]
            answer = await client.post(paths[number], content=content, headers=fields[number])
            return "" if answer.status_code == 200 else str(answer.status_code)

        yield partial(one_by_one, send, load.concurrency)


@asynccontextmanager
async def with_pyfcm(load: Load) -> AsyncIterator[Start]:
    """Its call for many devices, with so many of them; a loop of its own, so it needs a thread without one."""
    pyfcm.FCMNotification.FCM_END_POINT_BASE = f"{load.url}/v1/projects"
    client = pyfcm.FCMNotification(service_account_file=load.account, project_id=PROJECT)
    android = {"priority": "HIGH", "ttl": f"{_TTL[PushKind.MESSAGES]}s"}
    claims = load.claims(Provider.FCM)
    data = [notification_data(claim)[0] for claim in claims[:_BODIES]]
    messages: list[dict[str, Any]] = [
        {"fcm_token": claim.device.token.decode(), "data_payload": payload, "android_config": android}
        for claim, payload in zip(claims, itertools.cycle(data), strict=False)
    ]

    async def start(numbers: range, tally: Tally) -> None:
        ends = time.monotonic() + load.timeout
        for first in range(numbers.start, numbers.stop, load.concurrency):
            batch = messages[first : min(first + load.concurrency, numbers.stop)]
            left = max(1.0, ends - time.monotonic())
            try:
                answers = await asyncio.to_thread(client.async_notify_multiple_devices, batch, timeout=left)
            except Exception as e:  # one that fails loses the answers of all
                answers = [type(e).__name__] * len(batch)
            for answer in answers:
                tally.add(answer if isinstance(answer, str) else "" if "name" in answer else "refused")

    yield start


ENGINES: Final[dict[str, Callable[[Load], AbstractAsyncContextManager[Start]]]] = {
    "apns": our_apns,
    "engine": our_engine,
    "aioapns": with_aioapns,
    "httpx": with_httpx,
    "fcm": our_fcm,
    "pyfcm": with_pyfcm,
}


async def run(name: str, load: Load, requests: int) -> None:
    """See the module's docstring. Raises TimeoutError if not even the warm-up ends."""
    async with ENGINES[name](load) as start:
        async with asyncio.timeout(load.timeout):
            await start(range(1), Tally())  # alone: it connects, and brings the peer's settings
            await start(range(1, load.count - requests), Tally())
        gc.collect()
        gc.freeze()  # what was made ready is not the engine's
        print(json.dumps("ready"), flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        began, cpu = time.monotonic(), time.process_time()
        tally, stopped = Tally(), False
        try:
            async with asyncio.timeout(load.timeout):
                await start(range(load.count - requests, load.count), tally)
        except TimeoutError:
            stopped = True
        cpu = time.process_time() - cpu
        silent = time.monotonic() - tally.last_at
        seconds = tally.last_at - began
        outcome = Outcome(tally.answered, dict(tally.errors), seconds, cpu, stopped, silent)
        print(json.dumps(asdict(outcome)), flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ca-file", required=True)
    parser.add_argument("--account", default="", help="a service account's key file")
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    a = parser.parse_args()
    signal.alarm(math.ceil(2 * a.timeout) + _GRACE)  # no handler: not even a loop that is held up survives it
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    load = Load(a.port, a.ca_file, a.account, a.requests + a.warm_up + 1, a.concurrency, a.timeout)
    try:
        asyncio.run(run(a.engine, load, a.requests))
    except TimeoutError:
        sys.exit(f"{a.engine}: hangs, or takes longer than {a.timeout:g} s to warm up")


if __name__ == "__main__":
    main()
