"""A mock of Firebase Cloud Messaging, HTTP v1, and of the OAuth 2.0 endpoint that grants its access tokens.

Sources: Firebase, "Send a message using the HTTP v1 API", REST resource projects.messages, "ErrorCode".
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from ntf_server.testing.apns import Rejection
from ntf_server.testing.endpoint import Options, Request
from ntf_server.testing.faults import Answer, Fault, Script
from ntf_server.testing.fcm_message import FcmMessage, Refused, fcm_error, field_violation, parse_send
from ntf_server.testing.google import GOOGLE_TOKEN_URL, ServiceAccount, api_error, error_info
from ntf_server.testing.http2 import Http2Server
from ntf_server.testing.inbox import Inbox

_SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
_TOKEN_PATH = "/token"  # noqa: S105
_BAD_TOKEN = "The registration token is not a valid FCM registration token"  # noqa: S105


class MockFcm(Http2Server):
    """A mock FCM for `async with`, at `url`, to be trusted by `ca_file`; it speaks HTTP/2 and HTTP/1.1.

    Clients authenticate with the key file that `service_account` writes, at the token endpoint `token_url`.
    private_key: the account's RSA key; None makes one. expires_in: seconds that access tokens live, may be
    changed at any time. clock: unix seconds. on_push: called with each accepted message. record: keep messages
    and rejections; switch it off for long runs. Other options: see `Options`.
    """

    def __init__(
        self,
        *,
        project_id: str = "mock-project",
        private_key: rsa.RSAPrivateKey | None = None,
        expires_in: int = 3599,
        clock: Callable[[], float] = time.time,
        on_push: Callable[[FcmMessage], None] | None = None,
        record: bool = True,
        **options: Unpack[Options],
    ) -> None:
        options.setdefault("http1", True)
        super().__init__(**options)
        self.project_id = project_id
        self.rejected: list[Rejection] = []
        self.grants = 0
        self.refused_grants = 0
        self._account = ServiceAccount(project_id, _SCOPE, private_key=private_key, expires_in=expires_in, clock=clock)
        self._clock = clock
        self._on_push = on_push
        self._record = record
        self._script = Script()
        self._grant_script = Script()
        self._token_refusals: dict[str, Answer] = {}
        self._inbox: Inbox[FcmMessage] = Inbox()

    # --- for tests ---

    @property
    def pushes(self) -> list[FcmMessage]:
        """The accepted messages."""
        return self._inbox.items

    @property
    def token_url(self) -> str:
        """The token endpoint, also the audience of grants; google-auth always names Google's, which is fine too."""
        return self.url + _TOKEN_PATH

    @property
    def send_path(self) -> str:
        """The path of `messages:send`."""
        return f"/v1/projects/{self.project_id}/messages:send"

    @property
    def expires_in(self) -> int:
        """Seconds that access tokens live that are granted from now on."""
        return self._account.expires_in

    @expires_in.setter
    def expires_in(self, seconds: int) -> None:
        self._account.expires_in = seconds

    def service_account(self, path: Path) -> Path:
        """Write a service account's key file (JSON) with mode 0600, return its path."""
        self._account.write(path, self.token_url)
        return path

    def access_token(self) -> str:
        """Return a fresh access token, as if granted but not counted, for clients that cannot ask for one."""
        return self._account.issue()

    def revoke_access_tokens(self) -> None:
        """Answer 401 UNAUTHENTICATED for all access tokens granted so far."""
        self._account.revoke_all()

    def script(self, *faults: Fault, token: str | None = None) -> None:
        """Queue faults, one per message, for a registration token or for any; the token's come first.

        See `fcm_error` for FCM's errors. While faults wait for a token, a CutTls during the request takes
        effect at its end, since the token is in the body.
        """
        self._script.add(*faults, key=token)

    def script_grants(self, *faults: Fault) -> None:
        """Queue faults, one per request to the token endpoint; see `grant_error`."""
        self._grant_script.add(*faults)

    def unregister(self, token: str) -> None:
        """Answer 404 UNREGISTERED for a registration token from now on."""
        self._token_refusals[token] = fcm_error("UNREGISTERED")

    def reject_token(self, token: str) -> None:
        """Answer 400 INVALID_ARGUMENT for a registration token from now on."""
        violation = field_violation("message.token", "Invalid registration token")
        self._token_refusals[token] = fcm_error("INVALID_ARGUMENT", _BAD_TOKEN, violation)

    def mismatch_sender(self, token: str) -> None:
        """Answer 403 SENDER_ID_MISMATCH for a registration token from now on."""
        self._token_refusals[token] = fcm_error("SENDER_ID_MISMATCH")

    def reregister(self, token: str) -> None:
        """Undo `unregister`, `reject_token` and `mismatch_sender`."""
        self._token_refusals.pop(token, None)

    def clear(self) -> None:
        """Forget scripts, messages and rejections, but not tokens and counters."""
        self._script.clear()
        self._grant_script.clear()
        self._inbox.clear()
        self.rejected.clear()

    async def next(self, token: str | None = None, timeout: float = 10) -> FcmMessage:
        """Take the oldest accepted message, to a registration token if given, that was not taken before.

        Raises TimeoutError after `timeout` seconds without one.
        """
        return await self._inbox.next(lambda message: token in (None, message.token), timeout)

    # --- for Http2Server ---

    def draw(self, request: Request) -> Fault | None:
        """Take the next scripted fault, unless that takes the registration token."""
        if request.path == _TOKEN_PATH:
            return self._grant_script.take(None)
        return None if self._script.keyed else self._script.take(None)

    def draw_whole(self, request: Request) -> Fault | None:
        """Take the next scripted fault for the message's registration token."""
        return None if request.path == _TOKEN_PATH else self._script.take(_token_of(request.body))

    def respond(self, request: Request, scripted: Answer | None) -> Answer:
        """Check a request, record it and answer it; a scripted error is answered without checks."""
        answer = Answer() if scripted is None else scripted
        if answer.status == 200:
            checked = self._grant(request) if request.path == _TOKEN_PATH else self._send(request)
            if checked.status != 200 or answer.body is None:
                answer = replace(checked, headers=(*checked.headers, *answer.headers))
        if request.path == _TOKEN_PATH:
            self.grants += answer.status == 200
            self.refused_grants += answer.status != 200
        elif answer.status != 200 and self._record:
            token = _token_of(request.body) or ""
            self.rejected.append(Rejection(answer.status, answer.reason, token, request.connection))
        if any(name == "content-type" for name, _ in answer.headers):
            return answer
        return replace(answer, headers=(("content-type", "application/json; charset=UTF-8"), *answer.headers))

    def _grant(self, request: Request) -> Answer:
        return self._account.grant(request, (self.token_url, GOOGLE_TOKEN_URL))

    def _send(self, request: Request) -> Answer:
        try:
            message = self._check(request)
        except Refused as refused:
            return refused.answer
        return Answer(body=msgspec.json.encode({"name": message.name}))

    def _check(self, request: Request) -> FcmMessage:
        if request.method != "POST" or request.path.partition("?")[0] != self.send_path:
            raise Refused(self._wrong_target(request))
        headers = request.fields()
        if (refusal := self._account.refusal(headers.get("authorization"))) is not None:
            raise Refused(refusal)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(api_error(400, "INVALID_ARGUMENT", "Invalid JSON payload received. Not application/json."))
        message, validate_only = parse_send(request.body)
        if (refusal := self._token_refusals.get(message.token)) is not None:
            raise Refused(refusal)
        number = "fake_message_id" if validate_only else f"0:{time.time_ns() // 1000}%{secrets.token_hex(8)}"
        message = replace(
            message,
            name=f"projects/{self.project_id}/messages/{number}",
            received_at=self._clock(),
            connection=request.connection,
        )
        if not validate_only:
            self._take_in(message)
        return message

    def _wrong_target(self, request: Request) -> Answer:
        """A 404 that says nothing about a device; 403 for another project."""
        parts = request.path.split("/")
        if request.method == "POST" and parts[:3] == ["", "v1", "projects"] and parts[4:] == ["messages:send"]:
            text = "Permission 'cloudmessaging.messages.create' denied on resource (or it may not exist)."
            return api_error(403, "PERMISSION_DENIED", text, error_info("IAM_PERMISSION_DENIED"))
        return api_error(404, "NOT_FOUND", "The requested URL was not found on this server.")

    def _take_in(self, message: FcmMessage) -> None:
        if self._record:
            self._inbox.put(message)
        if self._on_push is not None:
            self._on_push(message)


class _Message(msgspec.Struct):
    token: str


class _Send(msgspec.Struct):
    message: _Message


def _token_of(body: bytes) -> str | None:
    try:
        return msgspec.json.decode(body, type=_Send).message.token
    except (ValueError, RecursionError):
        return None
