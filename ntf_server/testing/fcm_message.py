"""What FCM takes as a message: the body of `messages:send`, checked field by field, and FCM's errors.

Sources: Firebase, REST resource projects.messages, "ErrorCode" and "REST error codes for the HTTP v1 API".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

from ntf_server.testing.faults import Answer
from ntf_server.testing.google import api_error

Priority: TypeAlias = Literal["NORMAL", "HIGH"]

_MAX_DATA = 4096  # bytes
_MAX_TTL = 2_419_200  # seconds, 4 weeks, and the default
# Google's own Admin SDKs send lower case.
_PRIORITIES: Mapping[str, Priority] = {"NORMAL": "NORMAL", "normal": "NORMAL", "HIGH": "HIGH", "high": "HIGH"}
_TTL = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)s")
_RESERVED_KEYS = re.compile(r"from|message_type|gcm|google\..*|gcm\..*")
_TYPES = {
    "str": (str, "TYPE_STRING"),
    "bool": (bool, "TYPE_BOOL"),
    "dict": (dict, "an object"),
}
_REQUEST = {"message": "dict", "validateOnly": "bool"}
_MESSAGE = {
    **dict.fromkeys(("name", "token", "topic", "condition"), "str"),
    **dict.fromkeys(("data", "notification", "android", "webpush", "apns", "fcmOptions"), "dict"),
}
_ANDROID = {
    **dict.fromkeys(("collapseKey", "priority", "ttl", "restrictedPackageName"), "str"),
    **dict.fromkeys(("data", "notification", "fcmOptions"), "dict"),
    **dict.fromkeys(("directBootOk", "bandwidthConstrainedOk", "restrictedSatelliteOk"), "bool"),
}
_ERRORS = {
    "UNSPECIFIED_ERROR": (500, "UNKNOWN", "Unknown error."),
    "INVALID_ARGUMENT": (400, "INVALID_ARGUMENT", "Request contains an invalid argument."),
    "UNREGISTERED": (404, "NOT_FOUND", "Requested entity was not found."),
    "SENDER_ID_MISMATCH": (403, "PERMISSION_DENIED", "SenderId mismatch"),
    "QUOTA_EXCEEDED": (429, "RESOURCE_EXHAUSTED", "Sending limit exceeded for the message target."),
    "UNAVAILABLE": (503, "UNAVAILABLE", "The service is currently unavailable."),
    "INTERNAL": (500, "INTERNAL", "Internal error encountered."),
    "THIRD_PARTY_AUTH_ERROR": (401, "UNAUTHENTICATED", "APNs certificate or web push auth key was invalid or missing."),
}


class Refused(Exception):  # noqa: N818  (an answer, not a failure)
    """The request is answered with an error."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status, answer.reason)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class FcmMessage:
    """An accepted message; `size` is the bytes of its data's keys and values, `ttl` seconds.

    `data` is what reaches an Android device: `android.data` if there is one. `android` has its field names in
    camel case. `priority` and `ttl` are NORMAL and 4 weeks where the request has none. `received_at` is in
    unix seconds. Token, data and android are in no repr.
    """

    token: str = field(repr=False)
    data: Mapping[str, str] = field(repr=False)
    android: Mapping[str, Any] = field(repr=False)
    size: int
    priority: Priority
    ttl: float
    name: str = ""
    received_at: float = 0.0
    connection: int = 0


def fcm_error(
    code: str, message: str | None = None, *details: Mapping[str, Any], retry_after: int | str | None = None
) -> Answer:
    """Make an error of FCM by its ErrorCode, such as `QUOTA_EXCEEDED`; retry_after: seconds or an HTTP date.

    Raises KeyError for a code that FCM does not have.
    """
    http_status, status, text = _ERRORS[code]
    detail = {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}
    answer = api_error(http_status, status, message or text, detail, *details, reason=code)
    headers = () if retry_after is None else (("retry-after", str(retry_after)),)
    return Answer(answer.status, answer.reason, headers, body=answer.body)


def field_violation(where: str, description: str) -> dict[str, Any]:
    """Make a google.rpc.BadRequest detail."""
    violations = [{"field": where, "description": description}]
    return {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations}


def parse_send(body: bytes) -> tuple[FcmMessage, bool]:
    """Check the body of `messages:send`; return the message, and whether it is only to be validated."""
    try:
        document = msgspec.json.decode(body)
    except (ValueError, RecursionError):  # malformed, invalid UTF-8, or nested too deep
        raise _bad_request("", "Invalid JSON payload received.") from None
    request = _fields("", document, _REQUEST)
    message = _fields("message", request.get("message", {}), _MESSAGE)
    android = _fields("message.android", message.get("android", {}), _ANDROID)
    targets = [name for name in ("token", "topic", "condition") if message.get(name)]
    if not targets:
        text = "Recipient of the message is not set."
        raise Refused(fcm_error("INVALID_ARGUMENT", text, field_violation("message", text)))
    if targets != ["token"]:
        raise _bad_request("message", f"The mock delivers to one token, not to {' and '.join(targets)}.")
    data = _strings("message.data", message.get("data", {}))
    if "data" in android:
        data = _strings("message.android.data", android["data"])
    parsed = FcmMessage(
        token=message["token"],
        data=data,
        android=android,
        size=_check_size(data),
        priority=_priority(android.get("priority", "NORMAL")),
        ttl=_ttl(android.get("ttl")),
    )
    return parsed, request.get("validateOnly", False)


def _fields(where: str, value: object, known: Mapping[str, str]) -> dict[str, Any]:
    """Check names and types of an object's fields; protobuf's JSON takes camel case and snake case."""
    if not isinstance(value, dict):
        raise _bad_value(where, "an object", value)
    fields: dict[str, Any] = {}
    for key, each in value.items():
        name = re.sub(r"_([a-z])", lambda found: found[1].upper(), key)
        if name not in known or name in fields:
            at = f" at '{where}'" if where else ""
            raise _bad_request(where, f'Invalid JSON payload received. Unknown name "{key}"{at}: Cannot find field.')
        if each is None:  # as if absent
            continue
        kind, described = _TYPES[known[name]]
        if not isinstance(each, kind):
            raise _bad_value(f"{where}.{key}".lstrip("."), described, each)
        fields[name] = each
    return fields


def _strings(where: str, data: Mapping[str, object]) -> dict[str, str]:
    strings: dict[str, str] = {}
    for index, (key, value) in enumerate(data.items()):
        if not isinstance(value, str):
            raise _bad_value(f"{where}[{index}].value", "TYPE_STRING", value)
        if _RESERVED_KEYS.fullmatch(key):
            text = f"Invalid data payload key: {key}"
            raise Refused(fcm_error("INVALID_ARGUMENT", text, field_violation(where, text)))
        strings[key] = value
    return strings


def _check_size(data: Mapping[str, str]) -> int:
    size = sum(len(text.encode()) for item in data.items() for text in item)
    if size > _MAX_DATA:
        raise Refused(fcm_error("INVALID_ARGUMENT", "Android message is too big"))
    return size


def _priority(text: str) -> Priority:
    if (priority := _PRIORITIES.get(text)) is None:
        raise _bad_value("message.android.priority", "AndroidConfig.AndroidMessagePriority", text)
    return priority


def _ttl(text: str | None) -> float:
    if text is None:
        return _MAX_TTL
    matched = _TTL.fullmatch(text)
    if matched is None:
        raise _bad_value("message.android.ttl", "type.googleapis.com/google.protobuf.Duration", text)
    if (seconds := float(matched[1])) > _MAX_TTL:
        description = "Invalid ttl: more than 4 weeks"
        raise Refused(fcm_error("INVALID_ARGUMENT", None, field_violation("message.android.ttl", description)))
    return seconds


def _bad_value(where: str, kind: str, value: object) -> Refused:
    return _bad_request(where, f"Invalid value at '{where}' ({kind}), {json.dumps(value)}")


def _bad_request(where: str, text: str) -> Refused:
    """The JSON does not fit the API: Google answers that before FCM is asked, so without an FcmError."""
    return Refused(api_error(400, "INVALID_ARGUMENT", text, field_violation(where, text)))
