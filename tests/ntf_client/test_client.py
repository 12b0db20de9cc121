"""`NtfClient`: every command against a real relay, and servers that do not follow the protocol."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ntf_client import NtfClient, Registration, SubscriptionCheck, TokenCheck, VerificationCode, open_push
from ntf_server.testing import MockApns
from smp_bridge import crypto, ntf
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client, ServerError, UnexpectedAnswerError
from smp_bridge.handshake import IdentityMismatchError, Versions
from smp_bridge.testing import Recipient, SmpServer
from smp_bridge.transmission import ERR_AUTH, ERR_QUOTA
from smp_bridge.transport import ConnectionClosedError

TOKEN = "0123456789abcdef" * 4
KEY = Ed25519PrivateKey.generate()
DH_KEY = X25519PrivateKey.generate()
ID = bytes(range(24))
ACTIVE = TokenCheck(ntf.TokenStatus.ACTIVE, None)


def device_token(token: str = TOKEN, provider: ntf.Provider = ntf.Provider.APNS_TEST) -> ntf.DeviceToken:
    return ntf.DeviceToken(provider, token.encode())


async def code_from(apns: MockApns, registration: Registration, token: str = TOKEN) -> bytes:
    content = open_push((await apns.next(token)).body, registration.secret)
    assert isinstance(content, VerificationCode)
    return content.code


@pytest.mark.parametrize("versions", [(1, 1), (2, 2), (1, 3)])
async def test_every_command(
    relay: ServerAddress, mock_apns: MockApns, smp_server: SmpServer, recipient: Recipient, versions: Versions
) -> None:
    key, dh_key = Ed25519PrivateKey.generate(), X25519PrivateKey.generate()
    queue = await recipient.queue()
    async with NtfClient.connect(relay, versions=versions) as client:
        assert client.version == versions[1]
        await client.ping()
        registration = await client.register(device_token(), key, dh_key)
        code = await code_from(mock_apns, registration)
        assert len(registration.token_id) == 24
        assert len(code) == 32
        assert (await client.check(registration.token_id, key)).status in ("REGISTERED", "CONFIRMED")
        await client.verify(registration.token_id, key, code)
        assert await client.check(registration.token_id, key) == ACTIVE

        subscribe = (registration.token_id, key, smp_server.address, queue.notifier_id, queue.notifier_key)
        subscription_id = await client.subscribe(*subscribe)
        assert await client.subscribe(*subscribe) == subscription_id
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id))
        check = await client.check_subscription(subscription_id, key)
        assert check in [SubscriptionCheck(ntf.SubscriptionStatus(s), "") for s in ("NEW", "PENDING", "ACTIVE")]
        await client.unsubscribe(subscription_id, key)
        with pytest.raises(ServerError, match="AUTH"):
            await client.check_subscription(subscription_id, key)

        await client.set_period(registration.token_id, key, 20)
        await client.set_period(registration.token_id, key, 0)
        other = "ff" * 32
        await client.replace(registration.token_id, key, device_token(other))
        await client.verify(registration.token_id, key, await code_from(mock_apns, registration, other))
        await client.delete(registration.token_id, key)
        with pytest.raises(ServerError) as caught:
            await client.check(registration.token_id, key)
        assert caught.value.error == ERR_AUTH


@pytest.mark.parametrize("key", [Ed448PrivateKey.generate(), X25519PrivateKey.generate()])
async def test_other_keys_authorize_too(relay: ServerAddress, key: crypto.AuthPrivateKey) -> None:
    async with NtfClient.connect(relay) as client:
        registration = await client.register(device_token(provider=ntf.Provider.APNS_NULL), key, DH_KEY)
        await client.delete(registration.token_id, key)


async def test_registering_again_gives_the_same_and_a_push_of_the_same_code(
    relay: ServerAddress, mock_apns: MockApns
) -> None:
    async with NtfClient.connect(relay) as client:
        first = await client.register(device_token(), KEY, DH_KEY)
        code = await code_from(mock_apns, first)
        second = await client.register(device_token(), KEY, DH_KEY)
        assert second == first
        assert await code_from(mock_apns, second) == code


@pytest.mark.parametrize(("versions", "reason"), [((2, 2), None), ((3, 3), ntf.InvalidReason.BAD)])
async def test_the_reason_of_an_invalid_token_is_told_from_version_3(
    relay: ServerAddress,
    mock_apns: MockApns,
    until: Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]],
    versions: Versions,
    reason: ntf.InvalidReason | None,
) -> None:
    mock_apns.reject_token(TOKEN)
    async with NtfClient.connect(relay, versions=versions) as client:
        registration = await client.register(device_token(), KEY, DH_KEY)

        async def invalid() -> bool:
            return (await client.check(registration.token_id, KEY)).status is ntf.TokenStatus.INVALID

        await until(invalid)
        assert await client.check(registration.token_id, KEY) == (ntf.TokenStatus.INVALID, reason)


async def test_what_the_server_refuses(relay: ServerAddress) -> None:
    async with NtfClient.connect(relay) as client:
        registration = await client.register(device_token(), KEY, DH_KEY)
        with pytest.raises(ServerError) as too_often:
            await client.set_period(registration.token_id, KEY, 19)
        with pytest.raises(ServerError) as wrong_code:
            await client.verify(registration.token_id, KEY, bytes(32))
        with pytest.raises(ServerError) as wrong_key:
            await client.check(registration.token_id, Ed25519PrivateKey.generate())
        with pytest.raises(ServerError) as other_dh_key:
            await client.register(device_token(), KEY, X25519PrivateKey.generate())
    assert too_often.value.error == ERR_QUOTA
    assert {e.value.error for e in (wrong_code, wrong_key, other_dh_key)} == {ERR_AUTH}


COMMANDS: dict[str, Callable[[NtfClient], Awaitable[Any]]] = {
    "TNEW": lambda c: c.register(device_token(), KEY, DH_KEY),
    "TVFY": lambda c: c.verify(ID, KEY, bytes(32)),
    "TCHK": lambda c: c.check(ID, KEY),
    "TRPL": lambda c: c.replace(ID, KEY, device_token()),
    "TDEL": lambda c: c.delete(ID, KEY),
    "TCRN": lambda c: c.set_period(ID, KEY, 20),
    "SNEW": lambda c: c.subscribe(ID, KEY, ServerAddress("smp", ("localhost",), "", bytes(32)), ID, KEY),
    "SCHK": lambda c: c.check_subscription(ID, KEY),
    "SDEL": lambda c: c.unsubscribe(ID, KEY),
    "PING": lambda c: c.ping(),
}


async def test_an_answer_of_the_wrong_type(scripted: Callable[..., Any]) -> None:
    wrong = [ntf.Ok() if name == "PING" else ntf.Pong() for name in COMMANDS]
    server = await scripted(*wrong)
    async with NtfClient.connect(server.address) as client:
        for name, command in COMMANDS.items():
            with pytest.raises(UnexpectedAnswerError, match=f"^{name} was answered with (OK|PONG)$"):
                await command(client)
    assert [c.tag.decode() for c in server.received] == list(COMMANDS)


async def test_a_bad_key_of_the_server(scripted: Callable[..., Any]) -> None:
    server = await scripted(ntf.IdTkn(ID, X25519PublicKey.from_public_bytes(bytes(32))))
    async with NtfClient.connect(server.address) as client:
        with pytest.raises(UnexpectedAnswerError, match="key"):
            await COMMANDS["TNEW"](client)


async def test_no_answer(scripted: Callable[..., Any]) -> None:
    server = await scripted(None, "close")
    async with await Client.connect(server.address) as connection:
        started = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await NtfClient(connection, timeout=0.05).ping()
        assert asyncio.get_running_loop().time() - started < 3
        with pytest.raises(ConnectionClosedError):
            await NtfClient(connection).ping()


async def test_what_does_not_fit_is_not_sent(scripted: Callable[..., Any]) -> None:
    server = await scripted()
    address = ServerAddress("smp", ("a" * 255, "b" * 255), "", bytes(32))
    async with NtfClient.connect(server.address) as client:
        with pytest.raises(ValueError, match="large"):
            await client.subscribe(ID, KEY, address, ID, KEY)
        for minutes in (-1, 65536):
            with pytest.raises(ValueError, match="minutes"):
                await client.set_period(ID, KEY, minutes)
    assert server.received == []


async def test_no_connection(scripted: Callable[..., Any]) -> None:
    server = await scripted()
    stranger = ServerAddress("ntf", server.address.hosts, server.address.port, bytes(32))
    with pytest.raises(IdentityMismatchError):
        async with NtfClient.connect(stranger):
            pass
    with pytest.raises(ValueError, match="notification server"):
        async with NtfClient.connect(ServerAddress("smp", ("localhost",), "", bytes(32))):
            pass
    await server.stop()
    with pytest.raises(OSError, match=r"\d"):
        async with NtfClient.connect(server.address):
            pass


async def test_a_server_that_never_shakes_hands() -> None:
    async with await asyncio.start_server(lambda _r, w: accepted.append(w), "localhost", 0) as server:
        accepted: list[asyncio.StreamWriter] = []
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(TimeoutError):
            async with NtfClient.connect(ServerAddress("ntf", ("localhost",), str(port), bytes(32)), timeout=0.2):
                pass
        for writer in accepted:
            writer.close()
            await writer.wait_closed()


def test_secrets_are_in_no_repr() -> None:
    assert repr(Registration(b"id-here", b"secret")) == "Registration()"
