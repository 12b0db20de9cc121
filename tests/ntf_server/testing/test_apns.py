from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import signal
import ssl
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aioapns
import jwt
import pycurl
import pytest
from aioapns.connection import APNsProductionClientProtocol
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ntf_server.testing import Answer, CutTls, GoAway, MockApns, Rejection, RstStream
from ntf_server.testing.provider_token import ProviderTokens

pytest_plugins = ("ntf_server.testing.pytest_plugin",)

NOW = 1_800_000_000
TOKEN = "ab" * 32
OTHER = "cd" * 32
THIRD = "ef" * 80
TOPIC = "chat.example.app"
BACKGROUND: dict[str, str | None] = {"apns-push-type": "background", "apns-priority": "5"}
ALERT = b'{"aps":{"alert":"hello"}}'
SILENT = b'{"aps":{"content-available":1},"notificationData":{"nonce":"x"}}'


def b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(key: ec.EllipticCurvePrivateKey, header: object, claims: object) -> str:
    signed = f"{b64url(json.dumps(header).encode())}.{b64url(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{b64url(r.to_bytes(32) + s.to_bytes(32))}"


KEY = ec.generate_private_key(ec.SECP256R1())
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
HEADER = {"alg": "ES256", "kid": "KEYKEYKEY1"}
CLAIMS = {"iss": "TEAMTEAM01", "iat": NOW}
JWT = sign(KEY, HEADER, CLAIMS)


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = json.loads(body) if body else {}

    @property
    def outcome(self) -> tuple[int, str | None]:
        return self.status, self.body.get("reason")


def perform(
    apns: MockApns,
    headers: dict[str, str | None],
    body: bytes,
    *,
    path: str = f"/3/device/{TOKEN}",
    method: str = "POST",
    kept: pycurl.Curl | None = None,
) -> Response:
    """Push with libcurl; headers are on top of the usual ones, None removes one. `kept`: with its connection."""
    usual: dict[str, str | None] = {"authorization": f"bearer {JWT}", "apns-topic": TOPIC, "apns-push-type": "alert"}
    received, output = {}, io.BytesIO()

    def take_header(line: bytes) -> None:
        name, found, value = line.decode().partition(":")
        if found:
            received[name.lower()] = value.strip()

    curl = kept or pycurl.Curl()
    try:
        curl.setopt(pycurl.URL, apns.url + path)
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2_0)
        curl.setopt(pycurl.CAINFO, str(apns.ca_file))
        curl.setopt(pycurl.TIMEOUT, 5)
        curl.setopt(pycurl.POST, 1)
        curl.setopt(pycurl.POSTFIELDS, body)
        curl.setopt(pycurl.CUSTOMREQUEST, method)
        lines = [f"{name}: {value}" for name, value in (usual | headers).items() if value is not None]
        curl.setopt(pycurl.HTTPHEADER, [line.encode() for line in lines])
        curl.setopt(pycurl.HEADERFUNCTION, take_header)
        curl.setopt(pycurl.WRITEDATA, output)
        curl.perform()
        assert curl.getinfo(pycurl.INFO_HTTP_VERSION) == pycurl.CURL_HTTP_VERSION_2_0
        return Response(curl.getinfo(pycurl.RESPONSE_CODE), received, output.getvalue())
    finally:
        curl.reset() if kept else curl.close()


async def push(
    apns: MockApns, headers: dict[str, str | None] | None = None, body: bytes = ALERT, **request: Any
) -> Response:
    return await asyncio.to_thread(perform, apns, headers or {}, body, **request)


def strict(**options: Any) -> MockApns:
    options = {"key_id": "KEYKEYKEY1", "team_id": "TEAMTEAM01", "topics": [TOPIC], **options}
    return MockApns(public_key=KEY.public_key(), clock=lambda: NOW + 60.5, **options)


# --- what is accepted ---


async def test_accepts_and_records_a_background_push() -> None:
    apns_id = str(uuid.uuid4())
    headers = BACKGROUND | {"apns-id": apns_id, "apns-expiration": "0", "apns-collapse-id": "c" * 64}
    async with strict() as apns:
        response = await push(apns, headers, SILENT)
        assert (response.status, response.body, response.headers["apns-id"]) == (200, {}, apns_id)
        (accepted,) = apns.pushes
        assert accepted.token == TOKEN
        assert accepted.body == json.loads(SILENT)
        assert accepted.headers["authorization"] == f"bearer {JWT}"
        assert (accepted.size, accepted.apns_id, accepted.topic) == (len(SILENT), apns_id, TOPIC)
        assert (accepted.push_type, accepted.priority) == ("background", 5)
        assert (accepted.received_at, accepted.connection) == (NOW + 60.5, 1)
        assert apns.rejected == []
        for secret in (TOKEN, JWT, "nonce"):
            assert secret not in repr(accepted)


async def test_makes_an_apns_id_and_assumes_an_alert_of_priority_10() -> None:
    async with strict() as apns:
        response = await push(apns, {"apns-push-type": None})
        assert apns.pushes[0].apns_id == response.headers["apns-id"]
        assert str(uuid.UUID(response.headers["apns-id"])) == response.headers["apns-id"]
        assert (apns.pushes[0].push_type, apns.pushes[0].priority) == ("alert", 10)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"authorization": f"Bearer {JWT}"}, ALERT),
        ({"apns-priority": "1"}, ALERT),
        ({"apns-priority": "5"}, ALERT),
        ({"apns-priority": "10", "apns-expiration": "1900000000"}, ALERT),
        ({"apns-push-type": "mdm"}, b'{"mdm":"magic"}'),
        ({"apns-push-type": "voip"}, b'{"aps":{}}' + b" " * 5110),
        ({}, b'{"aps":{}}' + b" " * 4086),
        ({"apns-id": str(uuid.uuid4()).upper()}, ALERT),
    ],
)
async def test_accepts(headers: dict[str, str | None], body: bytes) -> None:
    async with strict() as apns:
        assert (await push(apns, headers, body)).outcome == (200, None)
        assert len(apns.pushes) == 1


# --- what is refused ---

REFUSALS: list[tuple[dict[str, str | None], bytes, int, str]] = [
    ({"authorization": None}, ALERT, 403, "MissingProviderToken"),
    ({"authorization": "bearer"}, ALERT, 403, "MissingProviderToken"),
    ({"authorization": f"basic {JWT}"}, ALERT, 403, "MissingProviderToken"),
    ({"apns-topic": None}, ALERT, 400, "MissingTopic"),
    ({"apns-topic": "other.app"}, ALERT, 400, "TopicDisallowed"),
    ({"apns-push-type": "Alert"}, ALERT, 400, "InvalidPushType"),
    ({"apns-priority": "7"}, ALERT, 400, "BadPriority"),
    ({"apns-priority": "05"}, ALERT, 400, "BadPriority"),
    (BACKGROUND | {"apns-priority": "10"}, SILENT, 400, "BadPriority"),
    (BACKGROUND | {"apns-priority": None}, SILENT, 400, "BadPriority"),
    (BACKGROUND, ALERT, 400, "InvalidPushType"),
    (BACKGROUND, b'{"aps":{"content-available":1,"sound":"x"}}', 400, "InvalidPushType"),
    (BACKGROUND, b'{"aps":{"content-available":0}}', 400, "InvalidPushType"),
    ({}, b"", 400, "PayloadEmpty"),
    ({}, b"{}", 400, "BadMessage"),
    ({}, b'{"aps":1}', 400, "BadMessage"),
    ({}, b'["aps"]', 400, "BadMessage"),
    ({}, b'{"aps":{}', 400, "BadMessage"),
    ({}, b'{"aps":{"alert":"\xff"}}', 400, "BadMessage"),
    ({}, b"[" * 4000, 400, "BadMessage"),
    ({}, b'{"aps":{}}' + b" " * 4087, 413, "PayloadTooLarge"),
    ({"apns-push-type": "voip"}, b'{"aps":{}}' + b" " * 5111, 413, "PayloadTooLarge"),
    ({}, bytes(100_000), 413, "PayloadTooLarge"),
    ({"apns-id": "123"}, ALERT, 400, "BadMessageId"),
    ({"apns-id": uuid.uuid4().hex}, ALERT, 400, "BadMessageId"),
    ({"apns-expiration": "soon"}, ALERT, 400, "BadExpirationDate"),
    ({"apns-expiration": "-1"}, ALERT, 400, "BadExpirationDate"),
    ({"apns-collapse-id": "c" * 65}, ALERT, 400, "BadCollapseId"),
    ({"apns-collapse-id": "é" * 33}, ALERT, 400, "BadCollapseId"),
    ({"apns-topic": TOPIC, "APNS-TOPIC": TOPIC}, ALERT, 400, "DuplicateHeaders"),
]


@pytest.mark.parametrize(("headers", "body", "status", "reason"), REFUSALS)
async def test_refuses(headers: dict[str, str | None], body: bytes, status: int, reason: str) -> None:
    async with strict() as apns:
        response = await push(apns, headers, body)
        assert response.outcome == (status, reason)
        assert re.fullmatch(r"[0-9a-f-]{36}", response.headers["apns-id"])
        assert apns.pushes == []
        assert apns.rejected == [Rejection(status, reason, TOKEN, 1)]
        assert TOKEN not in repr(apns.rejected)


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", f"/3/device/{TOKEN}", 405, "MethodNotAllowed"),
        ("PUT", f"/3/device/{TOKEN}", 405, "MethodNotAllowed"),
        ("POST", "/3/device/", 400, "MissingDeviceToken"),
        ("POST", "/3/device", 400, "MissingDeviceToken"),
        ("POST", f"/3/device/{TOKEN}/more", 404, "BadPath"),
        ("POST", f"/2/device/{TOKEN}", 404, "BadPath"),
        ("POST", "/", 404, "BadPath"),
    ],
)
async def test_refuses_target(method: str, path: str, status: int, reason: str) -> None:
    async with strict() as apns:
        assert (await push(apns, method=method, path=path)).outcome == (status, reason)


@pytest.mark.parametrize(
    "token",
    [
        sign(OTHER_KEY, HEADER, CLAIMS),
        sign(KEY, HEADER | {"kid": "KEYKEYKEY2"}, CLAIMS),
        sign(KEY, HEADER | {"alg": "HS256"}, CLAIMS),
        sign(KEY, {"alg": "ES256"}, CLAIMS),
        sign(KEY, HEADER, CLAIMS | {"iss": "TEAMTEAM02"}),
        sign(KEY, HEADER, CLAIMS | {"iat": str(NOW)}),
        sign(KEY, HEADER, CLAIMS | {"iat": 10**400}),
        sign(KEY, HEADER, {"iss": "TEAMTEAM01"}),
        sign(KEY, [], CLAIMS),
        JWT[:-4],
        JWT + "==",
        JWT.rpartition(".")[0],
        JWT.replace(".", "!.", 1),
        JWT + ".x",
        "..",
        "é.é.é",
    ],
)
async def test_refuses_invalid_provider_token(token: str) -> None:
    async with strict() as apns:
        headers: dict[str, str | None] = {"authorization": f"bearer {token}"}
        assert (await push(apns, headers)).outcome == (403, "InvalidProviderToken")
        assert (await push(apns)).status == 200


async def test_token_in_der_form_is_invalid_even_without_a_key() -> None:
    signed = JWT.rpartition(".")[0]
    der = b64url(KEY.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    async with MockApns(clock=lambda: NOW) as apns:
        assert (await push(apns, {"authorization": f"bearer {signed}.{der}"})).outcome[1] == "InvalidProviderToken"
        foreign = sign(OTHER_KEY, HEADER, CLAIMS)
        assert (await push(apns, {"authorization": f"bearer {foreign}"})).status == 200


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (NOW + 3600, None),
        (NOW + 3601, "ExpiredProviderToken"),
        (NOW - 3600, None),
        (NOW - 3601, "ExpiredProviderToken"),
    ],
)
async def test_provider_token_lives_an_hour(now: int, reason: str | None) -> None:
    clock = [float(NOW)]
    async with MockApns(public_key=KEY.public_key(), clock=lambda: clock[0]) as apns:
        assert (await push(apns)).outcome == (200, None)
        clock[0] = now  # the token is known by now, and expires all the same
        assert (await push(apns)).outcome == ((403, reason) if reason else (200, None))


def test_provider_tokens_beyond_those_remembered() -> None:
    tokens = ProviderTokens(KEY.public_key(), clock=lambda: NOW, renewed_after=0)
    good = [f"bearer {sign(KEY, HEADER, CLAIMS | {'iat': NOW - age})}" for age in range(100)]
    assert [tokens.refusal(each) for each in good * 2] == [None] * 200
    assert tokens.refusal(f"bearer {sign(OTHER_KEY, HEADER, CLAIMS)}") == (403, "InvalidProviderToken")


async def test_a_connections_provider_token_is_renewed_every_20_minutes_at_most() -> None:
    clock, curl = [float(NOW)], pycurl.Curl()
    first, second, third = ("bearer " + sign(KEY, HEADER, CLAIMS | {"iat": NOW + n}) for n in range(3))
    async with MockApns(public_key=KEY.public_key(), clock=lambda: clock[0]) as apns:

        async def show(authorization: str, kept: pycurl.Curl | None = curl) -> str | None:
            return (await push(apns, {"authorization": authorization}, kept=kept)).outcome[1]

        assert await show(first) is None
        clock[0] += 20 * 60 - 1
        assert [await show(each) for each in (second, first)] == ["TooManyProviderTokenUpdates", None]
        assert await show(second, None) is None  # another server with this key, or the same one started again
        other_key = "bearer " + sign(KEY, HEADER | {"kid": "KEYKEYKEY2"}, CLAIMS)
        assert await show(other_key) is None  # is no renewal
        clock[0] += 1
        assert [await show(each) for each in (third, third)] == [None, None]
        assert await show(first) == "TooManyProviderTokenUpdates"
    curl.close()


def test_a_provider_token_that_came_too_early_is_taken_when_its_time_has_come() -> None:
    clock = [float(NOW)]
    tokens = ProviderTokens(KEY.public_key(), clock=lambda: clock[0])
    first, second = ("bearer " + sign(KEY, HEADER, CLAIMS | {"iat": NOW + n}) for n in range(2))
    assert tokens.refusal(first) is None
    for minutes in (10, 19):
        clock[0] = NOW + minutes * 60
        assert tokens.refusal(second) == (429, "TooManyProviderTokenUpdates")
    clock[0] = NOW + 20 * 60
    assert tokens.refusal(second) is None
    assert tokens.refusal(first) == (429, "TooManyProviderTokenUpdates")


# --- device tokens ---


@pytest.mark.parametrize(
    "token", ["ab", "ab" * 31, "a" * 63, "a" * 65, "zz" * 32, "%3Cc63963fd%20fdafa1b9%3E", "ab" * 101, TOKEN + "%20"]
)
async def test_what_is_no_device_token_is_refused(token: str) -> None:
    async with strict() as apns:
        assert (await push(apns, path=f"/3/device/{token}")).outcome == (400, "BadDeviceToken")
    async with strict(any_device_token=True) as apns:
        assert (await push(apns, path=f"/3/device/{token}")).outcome == (200, None)


@pytest.mark.parametrize("token", [TOKEN, TOKEN.upper(), THIRD, "0f" * 100])
async def test_device_tokens_of_32_bytes_and_more_are_taken(token: str) -> None:
    async with strict() as apns:
        assert (await push(apns, path=f"/3/device/{token}")).outcome == (200, None)


async def test_device_tokens() -> None:
    async with strict() as apns:
        apns.unregister(TOKEN, timestamp=1_700_000_000_123)
        response = await push(apns)
        assert (response.status, response.body) == (410, {"reason": "Unregistered", "timestamp": 1_700_000_000_123})
        apns.unregister(TOKEN)
        assert (await push(apns)).body["timestamp"] == (NOW + 60) * 1000 + 500
        apns.reject_token(TOKEN)
        assert (await push(apns)).outcome == (400, "BadDeviceToken")
        apns.reregister(TOKEN)
        apns.bind_token(TOKEN, "other.app")
        assert (await push(apns)).outcome == (400, "DeviceTokenNotForTopic")
        assert (await push(apns, path=f"/3/device/{OTHER}")).status == 200
        apns.bind_token(TOKEN, TOPIC)
        assert (await push(apns)).status == 200


# --- scripts ---


async def test_scripted_answers() -> None:
    async with strict() as apns:
        apns.script(Answer(503, "Shutdown", headers=(("retry-after", "3"),)), Answer(500), Answer(200))
        apns.script(Answer(410, "ExpiredToken", timestamp=7), token=OTHER)
        response = await push(apns)
        assert (response.outcome, response.headers["retry-after"]) == ((503, "Shutdown"), "3")
        assert (await push(apns, path=f"/3/device/{OTHER}")).body == {"reason": "ExpiredToken", "timestamp": 7}
        assert (await push(apns)).outcome == (500, None)
        assert (await push(apns)).status == 200
        assert [rejection.status for rejection in apns.rejected] == [503, 410, 500]
        assert len(apns.pushes) == 1
        apns.script(Answer(200))
        assert (await push(apns, body=b"")).outcome == (400, "PayloadEmpty")  # a scripted 200 excuses nothing


@pytest.mark.parametrize(
    ("fault", "error"),  # 92 is CURLE_HTTP2_STREAM
    [
        (RstStream(), 92),
        (CutTls(10), None),
        (CutTls(5, during="response"), None),
    ],
)
async def test_scripted_faults_reach_libcurl(fault: RstStream | CutTls, error: int | None) -> None:
    async with strict() as apns:
        apns.script(fault)
        with pytest.raises(pycurl.error) as caught:
            await push(apns)
        assert error in (None, caught.value.args[0])
        assert len(apns.pushes) == (fault == CutTls(5, during="response"))
        assert (await push(apns)).status == 200


async def test_libcurl_retries_a_stream_that_goaway_left_unprocessed() -> None:
    async with strict() as apns:
        apns.script(GoAway(processed=False), GoAway())
        assert (await push(apns)).status == 200
        assert (len(apns.pushes), apns.counters.requests, apns.counters.opened) == (1, 2, 2)


async def test_stopped_server_refuses_and_comes_back() -> None:
    async with strict() as apns:
        await apns.stop()
        with pytest.raises(pycurl.error) as caught:
            await push(apns)
        assert caught.value.args[0] == pycurl.E_COULDNT_CONNECT
        await apns.start()
        assert (await push(apns)).status == 200


# --- taking pushes ---


async def test_next_takes_each_push_once_by_token() -> None:
    async with strict() as apns:
        for token in (OTHER, THIRD, OTHER):
            await push(apns, path=f"/3/device/{token}", body=json.dumps({"aps": {}, "n": len(apns.pushes)}).encode())
        assert (await apns.next(THIRD)).body["n"] == 1
        assert (await apns.next()).body["n"] == 0
        assert (await apns.next(OTHER)).body["n"] == 2
        with pytest.raises(TimeoutError):
            await apns.next(timeout=0.01)
        assert len(apns.pushes) == 3
        await push(apns)
        apns.clear()
        with pytest.raises(TimeoutError):
            await apns.next(timeout=0.01)
        assert apns.pushes == []


async def test_next_waits_for_its_token() -> None:
    async with strict() as apns:
        first, second = asyncio.create_task(apns.next(OTHER)), asyncio.create_task(apns.next(THIRD))
        await push(apns, path=f"/3/device/{THIRD}")
        assert (await second).token == THIRD
        assert not first.done()
        await push(apns, path=f"/3/device/{OTHER}")
        assert (await first).token == OTHER


async def test_on_push_without_a_record() -> None:
    seen: list[int] = []
    async with strict(record=False, on_push=lambda accepted: seen.append(accepted.size)) as apns:
        await push(apns)
        await push(apns, body=b"")
        assert seen == [len(ALERT)]
        assert (apns.pushes, apns.rejected, apns.counters.requests) == ([], [], 2)


# --- aioapns as the client ---

Connect = Callable[[MockApns], aioapns.APNs]


@pytest.fixture
def aioapns_client(monkeypatch: pytest.MonkeyPatch) -> Connect:
    pem = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()

    def connect(apns: MockApns) -> aioapns.APNs:
        monkeypatch.setattr(APNsProductionClientProtocol, "APNS_SERVER", apns.host)
        monkeypatch.setattr(APNsProductionClientProtocol, "APNS_PORT", apns.port)
        return aioapns.APNs(
            key=pem,
            key_id="KEYKEYKEY1",
            team_id="TEAMTEAM01",
            topic=TOPIC,
            max_connections=1,
            ssl_context=apns.tls.client_context(["h2"]),
        )

    return connect


def live(**options: Any) -> MockApns:
    return MockApns(public_key=KEY.public_key(), key_id="KEYKEYKEY1", team_id="TEAMTEAM01", topics=[TOPIC], **options)


def request(token: str = TOKEN, **options: Any) -> aioapns.NotificationRequest:
    return aioapns.NotificationRequest(token, {"aps": {"alert": "hello"}}, **options)


async def test_aioapns_is_satisfied(aioapns_client: Connect) -> None:
    async with live(streams=100, first_streams=1) as apns:
        client = aioapns_client(apns)
        first = request(time_to_live=60, priority=5, push_type=aioapns.PushType.ALERT, collapse_key="c")
        result = await client.send_notification(first)
        assert (result.is_successful, result.notification_id) == (True, first.notification_id)
        requests = [request(f"{number:064x}") for number in range(200)]
        results = await asyncio.gather(*(client.send_notification(each) for each in requests))
        assert all(each.is_successful for each in results)
        assert sorted(each.token for each in apns.pushes[1:]) == sorted(each.device_token for each in requests)
        assert (apns.counters.opened, apns.counters.refused) == (1, 0)
        assert 1 <= apns.counters.max_streams <= 100
        client.pool.close()
        await apns.idle.wait()


async def test_aioapns_reads_refusals(aioapns_client: Connect) -> None:
    async with live() as apns:
        client = aioapns_client(apns)
        apns.unregister(TOKEN, timestamp=42)
        result = await client.send_notification(request())
        assert (result.status, result.description, result.timestamp) == ("410", "Unregistered", 42)
        result = await client.send_notification(request("x", apns_topic="other.app"))
        assert (result.status, result.description) == ("400", "TopicDisallowed")
        client.pool.close()
        await apns.idle.wait()


async def test_aioapns_retries_after_a_cut(aioapns_client: Connect) -> None:
    async with live() as apns:
        client = aioapns_client(apns)
        apns.script(CutTls(0))
        assert (await client.send_notification(request())).is_successful
        assert (apns.counters.opened, len(apns.pushes)) == (2, 1)
        client.pool.close()
        await apns.idle.wait()


def test_pyjwt_agrees_with_our_signer() -> None:
    assert jwt.decode(JWT, KEY.public_key(), algorithms=["ES256"], options={"verify_iat": False}) == CLAIMS


# --- the plugin and the command ---


async def test_fixture_listens(mock_apns: MockApns) -> None:
    claims = {"iss": "ANYTEAM", "iat": int(time.time())}
    headers: dict[str, str | None] = {"authorization": f"bearer {sign(OTHER_KEY, HEADER, claims)}"}
    assert (await push(mock_apns, headers)).outcome == (200, None)


async def read_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 10)).decode().strip()


async def test_command(tmp_path: Path) -> None:
    ca_file, key_file = tmp_path / "ca.pem", tmp_path / "key.pem"
    key_file.write_bytes(
        KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "ntf_server.testing", "--port", "0"),
        *("--ca-file", str(ca_file), "--public-key", str(key_file), "--topic", TOPIC),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    matched = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)", await read_line(process))
    assert matched is not None
    protocol_port = int(matched[1])
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["h2"])
    pem = KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(APNsProductionClientProtocol, "APNS_SERVER", "localhost")
        patch.setattr(APNsProductionClientProtocol, "APNS_PORT", protocol_port)
        client = aioapns.APNs(key=pem, key_id="K", team_id="T", topic=TOPIC, ssl_context=context)
        assert (await client.send_notification(request())).is_successful
        client.pool.close()
    line = await read_line(process)
    assert re.fullmatch(r"push size=\d+ type=alert priority=10", line)
    assert TOKEN not in line
    process.send_signal(signal.SIGTERM)
    output, errors = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, output, errors) == (0, b"", b"")
