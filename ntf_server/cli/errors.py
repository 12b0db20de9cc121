"""What an error that ends a command means to whoever started it."""

import ssl
from collections.abc import Sequence
from typing import Final

from ntf_server.admin.socket import AdminError, RefusedError
from ntf_server.archive.sealed import ArchiveError
from ntf_server.config.identity_files import IdentityFileError
from ntf_server.config.mistakes import ConfigError, NotNowError
from ntf_server.listener import ListenError
from ntf_server.store.contract import StoreCorruptError, StoreError, StoreUnavailableError
from ntf_server.store.migrate import DifferentError
from ntf_server.store.sealing import SealingError

FAILED: Final = 1
FINAL: Final = 2
TRY_AGAIN: Final = 75  # EX_TEMPFAIL


class UsageError(Exception):
    """One line for the operator; exit code 2."""


def exit_code(error: Exception) -> int | None:
    """None: nobody expected it, so let its traceback be seen."""
    if isinstance(error, ListenError):
        return TRY_AGAIN if error.may_pass else FINAL
    if isinstance(error, NotNowError):
        return TRY_AGAIN
    if isinstance(error, StoreError):
        return TRY_AGAIN if isinstance(error, StoreUnavailableError) else FINAL
    if isinstance(error, UsageError | ArchiveError | RefusedError | ConfigError | IdentityFileError):
        return FINAL
    if isinstance(error, StoreCorruptError | SealingError | ssl.SSLError):
        return FINAL
    if isinstance(error, AdminError | DifferentError | OSError):
        return FAILED
    return None


def lines(error: Exception) -> Sequence[str]:
    """What to tell: a line for each mistake."""
    return error.mistakes if isinstance(error, ConfigError) else (one_line(error),)


def one_line(error: Exception) -> str:
    """The same as one line."""
    if isinstance(error, ssl.SSLError):
        return f"the server's certificate cannot be used: {error}; run `ntf-server cert`"
    if isinstance(error, OSError):
        return f"{error.filename or 'failed'}: {error.strerror or error}"
    return str(error)
