"""A service account's key in the forms that it comes in, and the field that is named when something is wrong."""

import codecs
import json
from typing import Any

import pytest
from certificates import ODD_KEYS
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from ntf_server.config.service_account import parse_service_account
from ntf_server.push.fcm.settings import ServiceAccountError

KEY = rsa.generate_private_key(65537, 2048)
PKCS8 = Encoding.PEM, PrivateFormat.PKCS8
PEM = KEY.private_bytes(*PKCS8, NoEncryption()).decode()
ENCRYPTED = KEY.private_bytes(*PKCS8, BestAvailableEncryption(b"x")).decode()
FILE = {
    "type": "service_account",
    "project_id": "my-project:x.org",
    "private_key_id": "abc",
    "private_key": PEM,
    "client_email": "push@my-project.iam.gserviceaccount.com",
    "token_uri": "https://oauth2.googleapis.com/token",
}


def text(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (FILE | changes).items() if v is not ...}).encode()


@pytest.mark.parametrize(
    "data",
    [
        text(),
        codecs.BOM_UTF8 + text(),
        text(private_key=PEM.replace("\n", "\\n")),
        text(private_key=PEM.replace("\n", "\\r\\n")),
        text(private_key=PEM.replace("\n", "\r\n")),
        text(type=...),
        text(token_uri=...),
        text(extra={"x": 1}),
    ],
)
def test_forms(data: bytes) -> None:
    account = parse_service_account(data)
    assert (account.project_id, account.key_id) == ("my-project:x.org", "abc")
    assert account.client_email == FILE["client_email"]
    assert account.token_uri == "https://oauth2.googleapis.com/token"
    assert account.key.private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize("key_id", [..., "", None])
def test_without_a_key_id(key_id: Any) -> None:
    assert parse_service_account(text(private_key_id=key_id)).key_id == ""


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (text().decode().encode("utf-16"), "is not UTF-8"),
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[" * 10_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (text(type="authorized_user"), "is of type 'authorized_user' instead of 'service_account'"),
        (b'{"project_info": {}, "client": []}', "is an app's google-services.json"),
        (text(project_id=...), "project_id: is missing"),
        (text(project_id=""), "project_id: is empty or no text"),
        (text(project_id=7), "project_id: is empty or no text"),
        (text(project_id="a/b"), "project_id: is no project's id"),
        (text(project_id="A"), "project_id: is no project's id"),
        (text(client_email=...), "client_email: is missing"),
        (text(private_key=...), "private_key: is missing"),
        (text(private_key="rubbish"), "private_key: is no key in PEM"),
        (
            text(private_key=KEY.private_bytes(*PKCS8, BestAvailableEncryption(b"x")).decode()),
            "private_key: is encrypted",
        ),
        (
            text(private_key=ec.generate_private_key(ec.SECP256R1()).private_bytes(*PKCS8, NoEncryption()).decode()),
            "private_key: is not an RSA key",
        ),
        *((text(private_key=key.decode()), "private_key: is no key in PEM") for key in ODD_KEYS),
        (text(private_key_id=7), "private_key_id: is no text"),
        (text(token_uri="http://oauth2.googleapis.com/token"), "token_uri: is not an https: URL"),
    ],
)
def test_what_is_none(data: bytes, what: str) -> None:
    with pytest.raises(ServiceAccountError) as e:
        parse_service_account(data)
    assert what in str(e.value)
    assert e.value.__cause__ is None
    assert PEM.splitlines()[1] not in str(e.value)
