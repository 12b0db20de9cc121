"""The JSON key of a Google service account, as it comes from the console, from editors and out of variables."""

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ntf_server.push.fcm.settings import ServiceAccount, ServiceAccountError

_TYPE: Final = "service_account"
_DEFAULT_URI: Final = "https://oauth2.googleapis.com/token"
_PROJECT: Final = re.compile(r"[a-z0-9:.-]+")  # it becomes part of an URL's path


def parse_service_account(data: bytes) -> ServiceAccount:
    """Raises ServiceAccountError, which names the field that is wrong and shows no secret."""
    try:
        values = msgspec.json.decode(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ServiceAccountError("is not UTF-8") from None
    except (msgspec.DecodeError, RecursionError):
        raise ServiceAccountError("is not JSON") from None
    if not isinstance(values, dict):
        raise ServiceAccountError("is not a JSON object")
    kind = values.get("type", _TYPE)
    if kind != _TYPE:
        raise ServiceAccountError(f"is of type {str(kind)[:40]!r} instead of {_TYPE!r}")
    if "project_info" in values or "client" in values:
        raise ServiceAccountError("is an app's google-services.json, not a service account's key")
    fields = {name: _text(values, name) for name in ("project_id", "client_email", "private_key")}
    if not _PROJECT.fullmatch(fields["project_id"]):
        raise ServiceAccountError("project_id: is no project's id")
    uri = _text({"token_uri": _DEFAULT_URI} | values, "token_uri")
    if not re.fullmatch(r"https://[!-~]+", uri):
        raise ServiceAccountError("token_uri: is not an https: URL")
    key_id = values.get("private_key_id") or ""
    if not isinstance(key_id, str):
        raise ServiceAccountError("private_key_id: is no text")
    return ServiceAccount(fields["project_id"], fields["client_email"], key_id, uri, _key(fields["private_key"]))


def _text(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    if value is None:
        raise ServiceAccountError(f"{name}: is missing")
    if not isinstance(value, str) or not value:
        raise ServiceAccountError(f"{name}: is empty or no text")
    return value


def _key(text: str) -> rsa.RSAPrivateKey:
    pem = text.replace("\\r", "").replace("\\n", "\n")  # escaped once more, as happens in variables
    try:
        key = load_pem_private_key(pem.encode(), None)
    except TypeError:
        raise ServiceAccountError("private_key: is encrypted") from None
    except (ValueError, UnsupportedAlgorithm, InternalError):
        raise ServiceAccountError("private_key: is no key in PEM") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ServiceAccountError("private_key: is not an RSA key")
    return key
