import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from google.oauth2.service_account import Credentials

from ntf_server.config.service_account import parse_service_account
from ntf_server.push.exchange import Endpoint, HttpFailure, HttpResponse
from ntf_server.push.fcm.oauth import SCOPE, AccessToken, judge
from ntf_server.push.fcm.settings import ServiceAccount
from ntf_server.push.http import HttpEngine
from ntf_server.push.verdict import Again, Ours, Scope, Verdict
from ntf_server.testing import Answer, Delay, MockFcm, RstStream, Silence, grant_error

NOW = 1_800_000_000
KEY = rsa.generate_private_key(65537, 2048)
Outcome = tuple[str | None, Verdict | None]


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


class Tokens:
    """The access token, and a way to await it."""

    def __init__(self, engine: HttpEngine, endpoint: Endpoint, account: ServiceAccount, clock: Clock) -> None:
        self.access = AccessToken(engine, endpoint, account, clock)

    def ask(self) -> asyncio.Future[Outcome]:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.access.get(lambda token, failure: answer.set_result((token, failure)))
        return answer

    async def one(self) -> Outcome:
        return await asyncio.wait_for(self.ask(), 10)

    async def token(self) -> str:
        token, failure = await self.one()
        assert failure is None
        assert token
        return token


@contextlib.asynccontextmanager
async def granting(
    tmp_path: Path, *, timeout: float = 5.0, **options: Any
) -> AsyncIterator[tuple[MockFcm, Tokens, Clock]]:
    clock = Clock()
    async with MockFcm(private_key=KEY, clock=clock, **options) as fcm:
        account = parse_service_account(fcm.service_account(tmp_path / "account.json").read_bytes())
        engine = HttpEngine()
        try:
            endpoint = Endpoint(fcm.token_url, str(fcm.ca_file), timeout=timeout, http2_only=False)
            yield fcm, Tokens(engine, endpoint, account, clock), clock
        finally:
            await engine.close()


async def until_grants(fcm: MockFcm, tokens: Tokens, count: int) -> None:
    async with asyncio.timeout(10):
        while fcm.grants + fcm.refused_grants < count or tokens.access._renewing:
            await asyncio.sleep(0.005)


# --- the grant


async def test_the_assertion_is_what_google_s_own_library_sends(tmp_path: Path) -> None:
    async with granting(tmp_path) as (fcm, tokens, _):
        ours = jwt.decode(tokens.access._assertion(), KEY.public_key(), ["RS256"], options=LAX)
        file = tmp_path / "account.json"
        theirs = Credentials.from_service_account_file(str(file), scopes=[SCOPE])._make_authorization_grant_assertion()
        expected = jwt.decode(theirs, KEY.public_key(), ["RS256"], options=LAX)
        assert ours.keys() == expected.keys()
        assert (ours["iss"], ours["scope"]) == (expected["iss"], expected["scope"])
        assert ours["aud"] == fcm.token_url
        assert (ours["iat"], ours["exp"]) == (NOW - 60, NOW + 3540)
        headers = [jwt.get_unverified_header(t) for t in (tokens.access._assertion(), theirs)]
        assert headers[0] == headers[1]


LAX: Any = {"verify_aud": False, "verify_exp": False, "verify_iat": False}


async def test_one_grant_is_shared_by_all(tmp_path: Path) -> None:
    async with granting(tmp_path) as (fcm, tokens, _):
        answers = await asyncio.wait_for(asyncio.gather(*(tokens.ask() for _ in range(200))), 10)
        assert len(set(answers)) == 1
        [(token, failure)] = set(answers)
        assert (token is not None, failure) == (True, None)
        assert await tokens.token() == token
        assert (fcm.grants, fcm.refused_grants) == (1, 0)


async def test_a_valid_token_is_given_at_once(tmp_path: Path) -> None:
    async with granting(tmp_path) as (fcm, tokens, clock):
        await tokens.token()
        await fcm.stop()
        clock.now += 3599 - 301
        assert tokens.ask().done()


async def test_it_is_renewed_ahead_of_its_expiry_while_the_old_one_serves(tmp_path: Path) -> None:
    async with granting(tmp_path) as (fcm, tokens, clock):
        first = await tokens.token()
        clock.now += 3599 - 299
        fcm.script_grants(Delay(0.2))
        during = [tokens.ask() for _ in range(50)]
        assert all(a.done() and a.result() == (first, None) for a in during)
        await until_grants(fcm, tokens, 2)
        second = await tokens.token()
        assert second != first
        clock.now += 299 + 1
        assert await tokens.token() == second
        assert fcm.grants == 2


async def test_without_pushes_nothing_is_renewed_until_there_are(tmp_path: Path) -> None:
    async with granting(tmp_path) as (fcm, tokens, clock):
        first = await tokens.token()
        clock.now += 3599
        waiting = tokens.ask()
        assert not waiting.done()
        assert (await asyncio.wait_for(waiting, 10))[0] not in {None, first}
        assert fcm.grants == 2


async def test_a_renewal_that_fails_is_not_hammered_while_the_old_token_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with granting(tmp_path) as (fcm, tokens, clock):
        first = await tokens.token()
        clock.now += 3599 - 299
        fcm.script_grants(Answer(503), Answer(503, headers=(("retry-after", "60"),)))
        for requests, later in ((2, 9), (2, 2), (3, 58), (3, 3)):  # seconds until the next is tried
            assert (await tokens.one()) == (first, None)
            await until_grants(fcm, tokens, requests)
            assert (await tokens.one()) == (first, None)
            assert fcm.grants + fcm.refused_grants == requests
            clock.now += later
        assert (await tokens.one()) == (first, None)
        await until_grants(fcm, tokens, 4)
        assert await tokens.token() != first
        assert caplog.text.count("not renewed ahead") == 2


async def test_a_short_lived_token_is_not_renewed_with_every_push(tmp_path: Path) -> None:
    async with granting(tmp_path, expires_in=100) as (fcm, tokens, clock):
        first = await tokens.token()
        for _ in range(20):
            assert await tokens.token() == first
        clock.now += 51
        assert tokens.ask().done()
        await until_grants(fcm, tokens, 2)
        assert await tokens.token() != first


async def test_a_token_that_is_not_taken_any_more_is_replaced_once(tmp_path: Path) -> None:
    async with granting(tmp_path) as (fcm, tokens, _):
        first = await tokens.token()
        tokens.access.expire(first)
        second = await tokens.token()
        assert second != first
        tokens.access.expire(first)  # answers to other pushes with the old one come later
        assert tokens.ask().done()
        assert fcm.grants == 2


# --- what goes wrong


@pytest.mark.parametrize("error", ["invalid_grant", "invalid_client", "invalid_scope"])
async def test_a_refused_grant_is_for_the_operator(tmp_path: Path, error: str) -> None:
    async with granting(tmp_path) as (fcm, tokens, _):
        fcm.script_grants(grant_error(error, "Not\nthis one"))
        token, failure = await tokens.one()
        assert token is None
        assert failure == Ours(f"OAuth: 400 {error}: Not this one", Scope.PROVIDER)
        await tokens.token()


async def test_an_account_with_another_key_is_refused(tmp_path: Path) -> None:
    async with granting(tmp_path) as (fcm, tokens, _):
        fcm._account._private_key = rsa.generate_private_key(65537, 2048)
        assert isinstance((await tokens.one())[1], Ours)
        assert fcm.refused_grants == 1


@pytest.mark.parametrize(
    ("ahead", "words"),
    [
        (30, ""),
        (600, ": this machine's clock is 600 s behind Google's"),
        (-600, ": this machine's clock is 600 s ahead of Google's"),
    ],
)
async def test_a_clock_that_is_wrong_is_named(tmp_path: Path, ahead: int, words: str) -> None:
    async with granting(tmp_path) as (fcm, tokens, _):
        refusal = grant_error("invalid_grant", "Too old")
        fcm.script_grants(replace(refusal, headers=(("date", formatdate(NOW + ahead, usegmt=True)),)))
        _, failure = await tokens.one()
        assert failure == Ours(f"OAuth: 400 invalid_grant: Too old{words}", Scope.PROVIDER)


async def test_a_clock_that_is_a_minute_ahead_is_no_trouble(tmp_path: Path) -> None:
    async with granting(tmp_path) as (fcm, tokens, clock):
        clock.now += 110
        fcm._account._clock = lambda: NOW
        assert await tokens.token()


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 60_000, b'{"error":7,"error_description":["SECRET"]}'])
def test_words_that_google_would_not_use_are_left_out(body: bytes) -> None:
    assert judge(HttpResponse(400, body), NOW) == Ours("OAuth: 400", Scope.PROVIDER)


def test_words_are_of_one_line_and_short() -> None:
    body = json.dumps({"error": "invalid_grant", "error_description": "x\n\x1b[31m" * 100}).encode()
    verdict = judge(HttpResponse(400, body), NOW)
    assert isinstance(verdict, Ours)
    assert verdict.reason.isprintable()
    assert len(verdict.reason) < 200


def test_no_answer_is_retried() -> None:
    assert judge(HttpFailure(7, timeout=False), NOW) == Again("OAuth: connection refused", Scope.PROVIDER)


@pytest.mark.parametrize(
    ("fault", "failure"),
    [
        (Answer(503), Again("OAuth: 503", Scope.PROVIDER)),
        (Answer(500), Again("OAuth: 500", Scope.PROVIDER)),
        (Answer(429, headers=(("retry-after", "30"),)), Again("OAuth: 429", Scope.PROVIDER, 30.0)),
        (RstStream(), Again("OAuth: HTTP/2 stream reset", Scope.PROVIDER)),
        (Answer(302, headers=(("location", "/x"),)), Ours("OAuth: 302", Scope.PROVIDER)),
        (Silence(), Again("OAuth: timed out", Scope.PROVIDER)),
    ],
)
async def test_faults_of_the_token_endpoint(tmp_path: Path, fault: Any, failure: Verdict) -> None:
    async with granting(tmp_path, timeout=0.3) as (fcm, tokens, _):
        fcm.script_grants(fault)
        waiting = [tokens.ask() for _ in range(10)]
        assert await asyncio.wait_for(asyncio.gather(*waiting), 10) == [(None, failure)] * 10
        assert await tokens.token()


async def test_a_token_endpoint_that_is_down(tmp_path: Path) -> None:
    async with granting(tmp_path) as (fcm, tokens, _):
        await fcm.stop()
        assert await tokens.one() == (None, Again("OAuth: connection refused", Scope.PROVIDER))
        await fcm.start()
        assert await tokens.token()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 60_000,
        b'{"access_token":' * 4000,
        b'{"expires_in":3599}',
        b'{"access_token":"SECRET"}',
        b'{"access_token":"SECRET","expires_in":"soon"}',
        b'{"access_token":"SECRET","expires_in":null}',
        b'{"access_token":"SECRET","expires_in":NaN}',
        b'{"access_token":"SECRET","expires_in":Infinity}',
        b'{"access_token":"SECRET","expires_in":1' + b"0" * 400 + b"}",
        b'{"access_token":"SECRET","expires_in":1' + b"0" * 9000 + b"}",
        b'{"access_token":"SECRET","expires_in":0}',
        b'{"access_token":null,"expires_in":3599}',
        b'{"access_token":["SECRET"],"expires_in":3599}',
        b'{"access_token":"","expires_in":3599}',
        b'{"access_token":"SECRET\\r\\nx-evil: 1","expires_in":3599}',
        '{"access_token":"SECRETü","expires_in":3599}'.encode(),
    ],
)
async def test_an_answer_that_google_would_not_give(tmp_path: Path, body: bytes) -> None:
    async with granting(tmp_path) as (fcm, tokens, _):
        fcm.script_grants(Answer(200, body=body))
        assert await tokens.one() == (None, Again("OAuth: the answer does not parse", Scope.PROVIDER))
        assert await tokens.token()


async def test_secrets_are_in_no_repr_and_no_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("ntf_server", "asyncio"):
        caplog.set_level(logging.DEBUG, name)
    async with granting(tmp_path) as (fcm, tokens, clock):
        fcm.script_grants(grant_error("invalid_grant"), Answer(500))
        outcomes = [await tokens.one() for _ in range(2)]
        token = await tokens.token()
        clock.now += 3400
        fcm.script_grants(grant_error("invalid_grant"))
        await tokens.token()
        await until_grants(fcm, tokens, 4)
        shown = repr((outcomes, tokens.access, tokens.access._account)) + caplog.text
    assert "not renewed ahead" in caplog.text
    for secret in (token, tokens.access._assertion().split(".")[2][:20], "BEGIN"):
        assert secret not in shown
