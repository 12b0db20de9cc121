"""What is to be done about an error of Redis. Texts name servers and scripts, no secrets and no arguments."""

from dataclasses import dataclass
from typing import Final

from redis.exceptions import AskError, AuthenticationError, MovedError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ConnectionLostError

from ntf_server.store.contract import (
    FencedError,
    StoreConflictError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
)
from ntf_server.store.redis.url import Endpoint

# Codes of what passes; whether another server may be the one to ask by then.
_PASSING: Final = {
    "BUSY": False,  # a script runs for long
    "CLUSTERDOWN": True,
    "LOADING": True,
    "MASTERDOWN": True,
    "MISCONF": False,  # its disk fails, or is full
    "NOREPLICAS": True,  # fewer than min-replicas-to-write
    "READONLY": True,
    "TRYAGAIN": False,  # some of the keys have moved, some have not
    "UNBLOCKED": True,  # it is the primary no more
}
_DENIED_IN_SCRIPT: Final = ("ACL failure in script", "The user executing the script")  # with the code ERR
# Of keys that a script makes from the one that it is given, in a slot that moves: some have moved.
_HALF_MOVED: Final = "attempted to access a non local key"  # behind "Script" by Redis, by Valkey 9.1 as it is
_DOWN_IN_SCRIPT: Final = "while the cluster is down"  # both, with the code ERR
_LONGEST: Final = 300  # characters of what a server says


class NotPrimaryError(Exception):
    """The server is a replica."""


@dataclass(frozen=True)
class Again:
    """Repeat it after a pause. `look`: find out first who is primary; `moves`: its slot does, so nothing fails."""

    reason: str
    look: bool
    moves: bool = False


@dataclass(frozen=True)
class Elsewhere:
    """Another server has the slot, from now on, or (`asking`) has what was not found here."""

    slot: int
    to: Endpoint
    asking: bool


@dataclass(frozen=True)
class InFull:
    """The server does not have the script: send it."""


Remedy = Again | Elsewhere | InFull | StoreError


def remedy(error: Exception, at: Endpoint, name: str) -> Remedy:
    """What to do about what a server answered, or about its silence; `name` is what it was asked for."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, NotPrimaryError):
        return Again(f"{at} is a replica", look=True)
    if isinstance(error, AskError):  # a MovedError is one
        host = error.host if error.host not in ("", "?") else at.host
        return Elsewhere(error.slot_id, Endpoint(host, error.port), asking=not isinstance(error, MovedError))
    code, text = _said(error)
    if code in _PASSING:
        return Again(f"{at}: {code} {text}", _PASSING[code], moves=code == "TRYAGAIN")
    if _HALF_MOVED in text.lower():
        return Again(f"{at}: {name}: its slot moves", look=True, moves=True)
    if _DOWN_IN_SCRIPT in text:
        return Again(f"{at}: {name}: the cluster is down", look=True)
    if code == "NOSCRIPT":
        return InFull()
    if (final := _final(error, code, text, at, name)) is not None:
        return final
    if isinstance(error, ConnectionLostError | OSError) or not isinstance(error, ResponseError):
        return Again(f"{at}: {text or 'no answer in time'}", look=True)
    return StoreConflictError(f"{at}: {name}: {code} {text}")


def _said(error: Exception) -> tuple[str, str]:
    """The code that Redis begins an error with, and the rest as one line; no code: it is not Redis that speaks."""
    text = " ".join(str(error).split())
    code = error.status_code if isinstance(error, RedisError) else None
    if code is None and isinstance(error, ResponseError):
        code, _, text = text.partition(" ")
    text, _, _ = text.partition(", with args")  # of an unknown command: these are ours to keep
    return code or "", text[:_LONGEST]


def _final(error: Exception, code: str, text: str, at: Endpoint, name: str) -> StoreError | None:
    if code == "OOM":
        return StoreFullError(f"{at}: maxmemory is reached")
    if code == "FENCED":
        return FencedError(text)
    if code == "CONFLICT":
        return StoreConflictError(text)
    if code == "NOPERM" or text.startswith(_DENIED_IN_SCRIPT):
        return StoreError(f"{at}: {name}: the user of [store] url lacks a right: {text}")
    if code == "NOAUTH":
        return StoreError(f"{at}: it asks for a password, and [store] url has none")
    if code == "DENIED":
        return StoreError(f"{at}: it is in protected mode: give it a password, or an address to bind to")
    if isinstance(error, AuthenticationError):
        if code == "WRONGPASS":
            return StoreError(f"{at}: the user or the password of [store] url is wrong")
        return StoreError(f"{at}: it does not take the password of [store] url: {text}")
    return None


def unavailable(reason: str, limit: float) -> StoreUnavailableError:
    """It was tried for long enough. `limit`: seconds."""
    return StoreUnavailableError(f"{reason or 'no answer'} (tried for {limit:g} s)")
