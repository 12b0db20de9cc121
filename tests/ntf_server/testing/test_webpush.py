from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any

import http_ece
import jwt
import pycurl
import pytest
import pywebpush
import requests
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from py_vapid import Vapid02

from ntf_server.testing import (
    Answer,
    CutTls,
    DecryptionError,
    Delay,
    Fault,
    GoAway,
    MockWebPush,
    Rejection,
    RstStream,
    Silence,
    Subscription,
)
from ntf_server.testing.ece import decrypt, public_point

pytest_plugins = ("ntf_server.testing.pytest_plugin",)

NOW = 1_800_000_000
H1, H2 = pycurl.CURL_HTTP_VERSION_1_1, pycurl.CURL_HTTP_VERSION_2_0
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
SUB = "mailto:push@example.org"
PRIVATE_HOSTS = [
    "localhost",
    "127.0.0.1",
    "192.0.2.7",
    "[2001:db8::7]",
    "relay",
    "relay.local",
    "a.onion",
    "a..org",
    "-a.org",
]


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64url(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


K = b64url(public_point(KEY.public_key()))


def token(web_push: MockWebPush, key: Any = KEY, algorithm: str = "ES256", **changes: Any) -> str:
    """Sign with PyJWT; a change to None removes a claim."""
    claims = {"aud": web_push.origin, "exp": NOW + 3600, "sub": SUB} | changes
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm)


def vapid(web_push: MockWebPush, **changes: Any) -> str:
    return f"vapid t={token(web_push, **changes)}, k={K}"


def encrypt(subscription: Subscription, data: bytes = b"secret", **options: Any) -> bytes:
    """Encrypt with http_ece."""
    sender = ec.generate_private_key(ec.SECP256R1())
    usual = {"private_key": sender, "dh": subscription.p256dh, "auth_secret": subscription.auth}
    return http_ece.encrypt(data, **(usual | options))


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.reason = json.loads(body)["reason"] if body else None


def perform(
    web_push: MockWebPush, url: str, headers: list[str], body: bytes, *, version: int, method: str, timeout: float
) -> Response:
    received, output = {}, io.BytesIO()

    def take_header(line: bytes) -> None:
        name, found, value = line.decode().partition(":")
        if found:
            received[name.lower()] = value.strip()

    curl = pycurl.Curl()
    try:
        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.HTTP_VERSION, version)
        curl.setopt(pycurl.CAINFO, str(web_push.ca_file))
        curl.setopt(pycurl.TIMEOUT_MS, int(timeout * 1000))
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.POSTFIELDS, body)
        curl.setopt(pycurl.CUSTOMREQUEST, method)
        curl.setopt(pycurl.HTTPHEADER, headers)
        curl.setopt(pycurl.HEADERFUNCTION, take_header)
        curl.setopt(pycurl.WRITEDATA, output)
        curl.perform()
        assert curl.getinfo(pycurl.INFO_HTTP_VERSION) == version
        return Response(curl.getinfo(pycurl.RESPONSE_CODE), received, output.getvalue())
    finally:
        curl.close()


async def push(
    web_push: MockWebPush,
    subscription: Subscription,
    headers: dict[str, str | None] | None = None,
    body: bytes | None = None,
    *,
    url: str | None = None,
    version: int = H2,
    method: str = "POST",
    timeout: float = 5,
) -> Response:
    """Push with libcurl; headers are on top of the usual ones, None removes one."""
    usual = {"authorization": vapid(web_push), "ttl": "60", "content-encoding": "aes128gcm"}
    lines = [f"{name}: {value}" for name, value in (usual | (headers or {})).items() if value is not None]
    content = encrypt(subscription) if body is None else body
    return await asyncio.to_thread(
        perform, web_push, url or subscription.endpoint, lines, content, version=version, method=method, timeout=timeout
    )


def mock(**options: Any) -> MockWebPush:
    return MockWebPush(**{"clock": lambda: NOW + 0.5, **options})


# --- what is accepted ---


@pytest.mark.parametrize("version", [H1, H2])
async def test_accepts_records_and_decrypts(version: int) -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        assert subscription.endpoint.startswith(f"https://localhost:{web_push.port}/push/")
        body = encrypt(subscription)
        headers: dict[str, str | None] = {"urgency": "high", "topic": "T" * 32}
        response = await push(web_push, subscription, headers, body, version=version)
        assert (response.status, response.reason, response.headers["ttl"]) == (201, None, "60")
        message = await web_push.next(subscription)
        assert web_push.pushes == [message]
        assert (message.data, message.body, message.size) == (b"secret", body, len(body))
        assert (message.ttl, message.urgency, message.topic) == (60, "high", "T" * 32)
        assert message.headers["content-encoding"] == "aes128gcm"
        assert message.vapid_key == public_point(KEY.public_key())
        assert (message.received_at, message.connection) == (NOW + 0.5, 1)
        assert response.headers["location"] == message.location
        assert web_push.rejected == []
        secrets = (subscription.path, repr(subscription.auth), message.headers["authorization"], message.location)
        for secret in (*secrets, repr(body), "private_key"):
            assert secret not in repr((message, subscription))


@pytest.mark.parametrize(
    ("headers", "ttl", "urgency"),
    [
        ({"ttl": "0", "topic": "a-Z_9"}, 0, "normal"),
        ({"ttl": "2419200", "urgency": "very-low"}, 2_419_200, "very-low"),
        ({"ttl": "99999999999", "urgency": "low"}, 2_419_200, "low"),
        ({"urgency": "normal", "content-type": "application/octet-stream"}, 60, "normal"),
    ],
)
async def test_accepts(headers: dict[str, str | None], ttl: int, urgency: str) -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        response = await push(web_push, subscription, headers)
        assert (response.status, response.headers["ttl"]) == (201, str(ttl))
        assert (web_push.pushes[0].ttl, web_push.pushes[0].urgency) == (ttl, urgency)


async def test_largest_and_empty_body() -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        body = encrypt(subscription, bytes(3993))
        assert len(body) == 4096
        assert (await push(web_push, subscription, body=body)).status == 201
        assert (await push(web_push, subscription, body=body + b"x")).status == 413
        assert (await push(web_push, subscription, {"content-encoding": None}, b"")).status == 201
        assert [message.data for message in web_push.pushes] == [bytes(3993), None]


async def test_max_ttl() -> None:
    async with mock(max_ttl=30) as web_push:
        subscription = web_push.subscribe()
        assert (await push(web_push, subscription)).headers["ttl"] == "30"


# --- what is refused ---


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"ttl": None}, 400, "BadTtl"),
        ({"ttl": "-1"}, 400, "BadTtl"),
        ({"ttl": "soon"}, 400, "BadTtl"),
        ({"ttl": "1.5"}, 400, "BadTtl"),
        ({"ttl": "1", "TTL": "2"}, 400, "BadTtl"),
        ({"urgency": "urgent"}, 400, "BadUrgency"),
        ({"urgency": "high, low"}, 400, "BadUrgency"),
        ({"topic": "t" * 33}, 400, "BadTopic"),
        ({"topic": "a.b"}, 400, "BadTopic"),
        ({"content-encoding": None}, 400, "BadContentEncoding"),
        ({"content-encoding": "aesgcm"}, 400, "BadContentEncoding"),
        ({"authorization": None}, 401, "MissingAuthorization"),
    ],
)
async def test_refuses(headers: dict[str, str | None], status: int, reason: str) -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        response = await push(web_push, subscription, headers)
        assert (response.status, response.reason) == (status, reason)
        assert response.headers.get("www-authenticate") == ("vapid" if status == 401 else None)
        assert web_push.pushes == []
        secret = subscription.path.removeprefix("/push/")
        assert web_push.rejected == [Rejection(status, reason, secret, 1)]
        assert secret not in repr(web_push.rejected)


async def test_refuses_target() -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        response = await push(web_push, subscription, method="GET")
        assert (response.status, response.headers["allow"]) == (405, "POST")
        for url in (subscription.endpoint + "x", web_push.origin + "/push/", web_push.origin):
            assert (await push(web_push, subscription, url=url)).status == 404


@pytest.mark.parametrize(
    "changes",
    [
        {"key": OTHER_KEY},
        {"key": "a secret of at least thirty-two bytes", "algorithm": "HS256"},
        {"aud": "https://example.org"},
        {"aud": None},
        {"aud": []},
        {"exp": None},
        {"exp": NOW},
        {"exp": NOW + 24 * 3600 + 1},
        {"sub": None},
        {"sub": "push@example.org"},
        {"sub": "http://example.org"},
        {"sub": "https:"},
        {"sub": "https://[::"},
        {"sub": "mailto:example.org"},
        *({"sub": f"mailto:push@{host}"} for host in PRIVATE_HOSTS),
        *({"sub": f"https://{host}/contact"} for host in PRIVATE_HOSTS),
    ],
)
async def test_refuses_vapid_token(changes: dict[str, Any]) -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        response = await push(web_push, subscription, {"authorization": vapid(web_push, **changes)})
        assert (response.status, response.reason) == (403, "BadJwtToken")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.replace("vapid", "WebPush"),
        lambda header: header.replace(" t=", " "),
        lambda header: header.replace(f", k={K}", ""),
        lambda header: header.replace(K, K[:-4]),
        lambda header: header.replace(K, "x" * len(K)),
        lambda header: header[:40],
        lambda header: f"{header}, {header}",
        lambda header: f"vapid t=..,k={K}",
        lambda header: "vapid",
    ],
)
async def test_refuses_vapid_header(change: Any) -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        response = await push(web_push, subscription, {"authorization": change(vapid(web_push))})
        assert (response.status, response.reason) == (403, "BadJwtToken")


async def test_refuses_vapid_token_that_names_another_algorithm() -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        claims = token(web_push).split(".")[1]
        for algorithm, status in (("ES256", 201), ("ES384", 403), ("none", 403)):
            signed = f"{b64url(json.dumps({'alg': algorithm}).encode())}.{claims}"
            r, s = decode_dss_signature(KEY.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
            header = f"vapid t={signed}.{b64url(r.to_bytes(32) + s.to_bytes(32))}, k={K}"
            assert (await push(web_push, subscription, {"authorization": header})).status == status


async def test_vapid_forms_and_time() -> None:
    clock = [float(NOW)]
    async with mock(clock=lambda: clock[0]) as web_push:
        subscription = web_push.subscribe()
        longest = vapid(web_push, exp=NOW + 24 * 3600, sub="https://example.org/", aud=["x", web_push.origin])
        quoted = f'VAPID k="{K}",t="{token(web_push)}"'
        for header in (longest, quoted):
            assert (await push(web_push, subscription, {"authorization": header})).status == 201
        clock[0] = NOW + 3600  # the header is known by now, and expires all the same
        assert (await push(web_push, subscription, {"authorization": quoted})).status == 403
        assert (await push(web_push, subscription, {"authorization": longest})).status == 201
        clock[0] = NOW - 1
        assert (await push(web_push, subscription, {"authorization": longest})).status == 403


async def test_restricted_subscription() -> None:
    async with mock(require_vapid=False) as web_push:
        free = web_push.subscribe()
        ours = web_push.subscribe(public_point(KEY.public_key()))
        theirs = web_push.subscribe(public_point(OTHER_KEY.public_key()))
        assert (await push(web_push, free, {"authorization": None})).status == 201
        assert web_push.pushes[0].vapid_key is None
        assert (await push(web_push, ours, {"authorization": None})).status == 401
        assert (await push(web_push, ours)).status == 201
        response = await push(web_push, theirs)
        assert (response.status, response.reason) == (403, "VapidPkHashMismatch")


async def test_many_vapid_headers() -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        headers = [{"authorization": vapid(web_push, exp=NOW + 100 + number)} for number in range(70)]
        responses = await asyncio.gather(*(push(web_push, subscription, each) for each in headers))
        assert {each.status for each in responses} == {201}


# --- subscriptions ---


async def test_gone_subscriptions() -> None:
    async with mock() as web_push:
        subscription, other = web_push.subscribe(), web_push.subscribe()
        web_push.unsubscribe(subscription)
        response = await push(web_push, subscription)
        assert (response.status, response.reason) == (410, "Unregistered")
        web_push.unsubscribe(subscription, 404)
        assert (await push(web_push, subscription)).status == 404
        assert (await push(web_push, other)).status == 201
        web_push.resubscribe(subscription)
        assert (await push(web_push, subscription)).status == 201


async def test_subscription_outlives_an_outage() -> None:
    web_push = mock()
    with pytest.raises(RuntimeError):
        web_push.subscribe()
    async with web_push:
        subscription = web_push.subscribe()
        await web_push.stop()
        with pytest.raises(pycurl.error) as caught:
            await push(web_push, subscription)
        assert caught.value.args[0] == pycurl.E_COULDNT_CONNECT
        await web_push.start()
        web_push.blackhole()
        with pytest.raises(pycurl.error) as caught:
            await push(web_push, subscription, timeout=0.1)
        assert caught.value.args[0] == pycurl.E_OPERATION_TIMEDOUT
        web_push.blackhole(False)
        assert (await push(web_push, subscription)).status == 201


async def test_origin_on_ipv6() -> None:
    async with mock(host="::1") as web_push:
        subscription = web_push.subscribe()
        assert subscription.endpoint.startswith(f"https://[::1]:{web_push.port}/push/")
        assert (await push(web_push, subscription)).status == 201


# --- scripts ---


async def test_scripted_answers() -> None:
    async with mock() as web_push:
        subscription, other = web_push.subscribe(), web_push.subscribe()
        web_push.script(Answer(429, "TooManyRequests", (("retry-after", "7"),)), Answer(500), Answer(202))
        web_push.script(Answer(503), subscription=other)
        response = await push(web_push, subscription)
        assert (response.status, response.reason, response.headers["retry-after"]) == (429, "TooManyRequests", "7")
        assert (await push(web_push, other)).status == 503
        assert (await push(web_push, subscription)).status == 500
        response = await push(web_push, subscription)
        assert (response.status, response.headers["location"]) == (202, web_push.pushes[0].location)
        web_push.script(Answer(201))
        assert (await push(web_push, subscription, {"ttl": None})).status == 400  # a scripted 201 excuses nothing
        assert [each.status for each in web_push.rejected] == [429, 503, 500, 400]
        assert len(web_push.pushes) == 1


@pytest.mark.parametrize("version", [H1, H2])
@pytest.mark.parametrize(
    ("fault", "effect"),
    [
        (RstStream(), 0),
        (RstStream(processed=True), 1),
        (CutTls(10), 0),
        (CutTls(5, during="response"), 1),
        (Silence(processed=True), 1),
        (Delay(0.01, RstStream()), 0),
    ],
)
async def test_faults_reach_libcurl(fault: Fault, effect: int, version: int) -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        web_push.script(fault, subscription=subscription)
        with pytest.raises(pycurl.error) as caught:
            await push(web_push, subscription, version=version, timeout=0.2 if isinstance(fault, Silence) else 5)
        assert (caught.value.args[0] == pycurl.E_OPERATION_TIMEDOUT) == isinstance(fault, Silence)
        assert len(web_push.pushes) == effect
        assert (await push(web_push, subscription, version=version)).status == 201


async def test_libcurl_retries_a_stream_that_goaway_left_unprocessed() -> None:
    async with mock() as web_push:
        subscription = web_push.subscribe()
        web_push.script(GoAway(processed=False))
        assert (await push(web_push, subscription)).status == 201
        assert (len(web_push.pushes), web_push.counters.opened) == (1, 2)


# --- taking messages ---


async def test_next_takes_each_message_once_by_subscription() -> None:
    async with mock() as web_push:
        first, second = web_push.subscribe(), web_push.subscribe()
        waiting = asyncio.create_task(web_push.next(second))
        for number, subscription in enumerate((first, second, first)):
            await push(web_push, subscription, body=encrypt(subscription, b"%d" % number))
        assert (await waiting).data == b"1"
        assert (await web_push.next()).data == b"0"
        assert (await web_push.next(first)).data == b"2"
        with pytest.raises(TimeoutError):
            await web_push.next(timeout=0.01)
        assert len(web_push.pushes) == 3
        web_push.script(Answer(500))
        web_push.clear()
        assert web_push.pushes == []
        assert (await push(web_push, first)).status == 201


async def test_on_push_without_a_record() -> None:
    seen: list[bytes | None] = []
    async with mock(record=False, on_push=lambda message: seen.append(message.data)) as web_push:
        subscription = web_push.subscribe()
        await push(web_push, subscription)
        await push(web_push, subscription, {"ttl": None})
        assert seen == [b"secret"]
        assert (web_push.pushes, web_push.rejected, web_push.counters.requests) == ([], [], 2)


# --- decryption ---


def test_decrypts_the_example_of_rfc_8291() -> None:
    private_key = ec.derive_private_key(
        int.from_bytes(unb64url("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94")), ec.SECP256R1()
    )
    body = unb64url(
        "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl"
        "7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
    )
    plaintext = decrypt(body, private_key, unb64url("BTBZMqHH6r4Tts7J_aSIgg"))
    assert plaintext == b"When I grow up, I want to be a watermelon"


@settings(max_examples=40, deadline=None)
@given(st.binary(min_size=1, max_size=3993), st.binary(min_size=16, max_size=16))
def test_decrypts_what_http_ece_encrypts(data: bytes, auth: bytes) -> None:
    sender, receiver = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    point = public_point(receiver.public_key())
    body = http_ece.encrypt(data, private_key=sender, dh=point, auth_secret=auth)
    assert decrypt(body, receiver, auth) == data
    assert http_ece.decrypt(body, private_key=receiver, auth_secret=auth) == data


async def test_browser_cannot_decrypt() -> None:
    async with mock() as web_push:
        subscription, other = web_push.subscribe(), web_push.subscribe()
        good = encrypt(subscription)
        bad = [
            encrypt(other),
            encrypt(subscription, auth_secret=other.auth),
            encrypt(subscription, bytes(100), rs=60),  # more than one record
            good[:-1] + bytes([good[-1] ^ 1]),
            good[:85],
            good[:86],
            good[:20] + b"\x40" + good[21:],
            good[:21] + bytes(65) + good[86:],
            good[:16] + len(good[86:]).to_bytes(4) + good[20:],  # record size not beyond the record
            b"x",
        ]
        for body in bad:
            assert (await push(web_push, subscription, body=body)).status == 201  # the service cannot know
            message = await web_push.next(subscription)
            with pytest.raises(DecryptionError):
                _ = message.data


@pytest.mark.parametrize(
    ("padded", "data"),
    [(b"a\0\2", b"a\0"), (b"a\2\0\0", b"a"), (b"\2", b""), (b"a\1", None), (b"a\1\0", None), (b"\0\0", None)],
)
def test_padding(padded: bytes, data: bytes | None) -> None:
    sender, receiver = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    points = [public_point(key.public_key()) for key in (sender, receiver)]
    salt, auth = bytes(16), bytes(16)
    key, nonce = http_ece.derive_key("encrypt", "aes128gcm", salt, None, sender, points[1], auth, None)
    body = salt + (4096).to_bytes(4) + bytes([65]) + points[0] + AESGCM(key).encrypt(nonce, padded, None)
    if data is None:
        with pytest.raises(DecryptionError):
            decrypt(body, receiver, auth)
    else:
        assert decrypt(body, receiver, auth) == data


# --- pywebpush as the client ---


async def with_pywebpush(web_push: MockWebPush, subscription: Subscription, data: str, **options: Any) -> Any:
    def call() -> Any:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(web_push.ca_file)
            return pywebpush.webpush(
                subscription.to_json(),
                data,
                vapid_private_key=Vapid02(KEY),
                vapid_claims={"sub": SUB},
                requests_session=session,
                **options,
            )

    return await asyncio.to_thread(call)


async def test_pywebpush_is_satisfied() -> None:
    async with MockWebPush() as web_push:
        subscription = web_push.subscribe(public_point(KEY.public_key()))
        response = await with_pywebpush(web_push, subscription, "hello", ttl=60, headers={"urgency": "low"})
        message = await web_push.next(subscription)
        assert (response.status_code, response.headers["location"]) == (201, message.location)
        assert (message.data, message.ttl, message.urgency) == (b"hello", 60, "low")
        assert http_ece.decrypt(message.body, private_key=subscription.private_key, auth_secret=subscription.auth)


async def test_pywebpush_reads_refusals() -> None:
    async with MockWebPush() as web_push:
        subscription = web_push.subscribe()
        web_push.unsubscribe(subscription)
        with pytest.raises(pywebpush.WebPushException) as caught:
            await with_pywebpush(web_push, subscription, "hello")
        assert caught.value.status_code == 410
        web_push.script(Answer(429, headers=(("retry-after", "9"),)))
        with pytest.raises(pywebpush.WebPushException) as caught:
            await with_pywebpush(web_push, subscription, "hello")
        assert (caught.value.status_code, caught.value.retry_after) == (429, "9")


# --- the plugin and the command ---


async def test_fixture_listens(mock_web_push: MockWebPush) -> None:
    subscription = mock_web_push.subscribe()
    header = vapid(mock_web_push, exp=int(time.time()) + 60)
    assert (await push(mock_web_push, subscription, {"authorization": header})).status == 201


async def read_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 10)).decode().strip()


async def test_command(tmp_path: Path) -> None:
    ca_file, file = tmp_path / "ca.pem", tmp_path / "subscription.json"
    file.touch(mode=0o644)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "ntf_server.testing", "--kind", "webpush"),
        *("--ca-file", str(ca_file), "--subscription", str(file)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    matched = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", await read_line(process))
    assert matched is not None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    info = json.loads(file.read_text())

    def call() -> None:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(ca_file)
            claims: dict[str, str | int] = {"sub": SUB}
            pywebpush.webpush(
                info, "hello", vapid_private_key=Vapid02(KEY), vapid_claims=claims, requests_session=session
            )

    await asyncio.to_thread(call)
    assert re.fullmatch(r"push size=\d+ urgency=normal ttl=0", await read_line(process))
    process.send_signal(signal.SIGTERM)
    output, errors = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, output, errors) == (0, b"", b"")
