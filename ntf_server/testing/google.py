"""Google's OAuth 2.0 token endpoint for service accounts, and Google's form of API errors.

Sources: Google, "Using OAuth 2.0 for server to server applications"; AIP-193 "Errors"; RFC 7523; RFC 6749.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ntf_server.testing.endpoint import Request
from ntf_server.testing.faults import Answer
from ntf_server.testing.jwt import InvalidJwtError, Jwt

GOOGLE_TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105
_GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_MAX_LIFETIME = 3600  # seconds of an assertion
_SKEW = 60  # seconds by which clocks may differ
_UNAUTHENTICATED = "Request had invalid authentication credentials. Expected OAuth 2 access token."


def api_error(code: int, status: str, message: str, *details: Mapping[str, Any], reason: str | None = None) -> Answer:
    """Make an error of a Google API: HTTP status, google.rpc.Code, text, details; `reason` is for records."""
    error: dict[str, Any] = {"code": code, "message": message, "status": status}
    if details:
        error["details"] = details
    return Answer(code, reason or status, body=json.dumps({"error": error}).encode())


def error_info(reason: str, **metadata: str) -> dict[str, Any]:
    """Make a google.rpc.ErrorInfo detail."""
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return {"@type": kind, "reason": reason, "domain": "googleapis.com", "metadata": metadata}


def grant_error(error: str, description: str = "", status: int = 400) -> Answer:
    """Make an error of the token endpoint (RFC 6749 section 5.2), such as `invalid_grant`."""
    return Answer(status, error, body=json.dumps({"error": error, "error_description": description}).encode())


class ServiceAccount:
    """A service account, its RSA key and the access tokens that it was granted.

    `expires_in`: seconds that access tokens live from their grant on; `clock` gives unix seconds.
    """

    def __init__(
        self,
        project_id: str,
        scope: str,
        *,
        private_key: rsa.RSAPrivateKey | None = None,
        expires_in: int = 3599,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.project_id = project_id
        self.email = f"mock@{project_id}.iam.gserviceaccount.com"
        self.key_id = secrets.token_hex(20)
        self.expires_in = expires_in
        self._scope = scope
        self._private_key = private_key
        self._clock = clock
        self._expiries: dict[str, float] = {}  # of access tokens

    @property
    def private_key(self) -> rsa.RSAPrivateKey:
        """The account's key, made when it is first needed: that takes a while."""
        if self._private_key is None:
            self._private_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return self._private_key

    def write(self, path: Path, token_url: str) -> None:
        """Write the key file that Google's console hands out, readable by its owner only."""
        pem = self.private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        content = {
            "type": "service_account",
            "project_id": self.project_id,
            "private_key_id": self.key_id,
            "private_key": pem.decode(),
            "client_email": self.email,
            "client_id": "100000000000000000001",
            "token_uri": token_url,
            "universe_domain": "googleapis.com",
        }
        path.touch(mode=0o600)
        path.chmod(0o600)  # it may have existed
        path.write_text(json.dumps(content, indent=2))

    def issue(self) -> str:
        """Make an access token."""
        token = "ya29." + secrets.token_urlsafe(48)
        self._expiries[token] = self._clock() + self.expires_in
        return token

    def revoke_all(self) -> None:
        """Forget every access token."""
        self._expiries.clear()

    # --- the token endpoint ---

    def grant(self, request: Request, audiences: Collection[str]) -> Answer:
        """Answer a request for an access token."""
        if request.method != "POST":
            return grant_error("invalid_request", "Only POST is allowed.", 405)
        if request.fields().get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            return grant_error("invalid_request", "The body is not a form.")
        try:
            form = parse_qs(request.body.decode("ascii"), strict_parsing=True, max_num_fields=10)
        except ValueError:
            return grant_error("invalid_request", "The form is malformed.")
        if form.get("grant_type") != [_GRANT_TYPE]:
            return grant_error("unsupported_grant_type", "Invalid grant_type")
        if len(assertion := form.get("assertion", [])) != 1:
            return grant_error("invalid_request", "Missing required parameter: assertion")
        if (refusal := self._refuse_assertion(assertion[0], audiences)) is not None:
            return refusal
        granted = {"access_token": self.issue(), "expires_in": self.expires_in, "token_type": "Bearer"}
        return Answer(body=json.dumps(granted).encode())

    def _refuse_assertion(self, assertion: str, audiences: Collection[str]) -> Answer | None:
        try:
            jwt = Jwt.parse(assertion)
            issued_at, expires_at = jwt.seconds("iat"), jwt.seconds("exp")
        except InvalidJwtError as error:
            return grant_error("invalid_grant", f"Invalid JWT: {error}.")
        if jwt.claims.get("iss") != self.email:
            return grant_error("invalid_grant", "Invalid grant: account not found")
        try:
            jwt.verify_rs256(self.private_key.public_key())
        except InvalidJwtError:
            return grant_error("invalid_grant", "Invalid JWT Signature.")
        if jwt.header.get("kid", self.key_id) != self.key_id:
            return grant_error("invalid_grant", "Invalid JWT Signature.")
        if jwt.claims.get("aud") not in audiences:
            return grant_error("invalid_grant", "Invalid JWT: Failed audience check.")
        now = self._clock()
        if not (issued_at - _SKEW <= now < expires_at + _SKEW and 0 < expires_at - issued_at <= _MAX_LIFETIME):
            return grant_error("invalid_grant", "Invalid JWT: Token must be a short-lived token (60 minutes).")
        if self._scope not in str(jwt.claims.get("scope", "")).split(" "):
            return grant_error("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
        return None

    # --- the API behind it ---

    def refusal(self, authorization: str | None) -> Answer | None:
        """Return the API's answer to a request with that header, None to accept it."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return api_error(401, "UNAUTHENTICATED", _UNAUTHENTICATED, error_info("CREDENTIALS_MISSING"))
        expires_at = self._expiries.get(token)
        if expires_at is None:
            return api_error(401, "UNAUTHENTICATED", _UNAUTHENTICATED, error_info("ACCESS_TOKEN_TYPE_UNSUPPORTED"))
        if self._clock() >= expires_at:
            return api_error(401, "UNAUTHENTICATED", _UNAUTHENTICATED, error_info("ACCESS_TOKEN_EXPIRED"))
        return None
