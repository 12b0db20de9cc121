"""Which errors are final, which may pass, and which nobody expected."""

import ssl

import pytest

from ntf_server.admin.socket import AdminError, RefusedError
from ntf_server.cli.errors import UsageError, exit_code, lines, one_line
from ntf_server.config.files import ConfigError, NotNowError
from ntf_server.config.identity_files import IdentityFileError
from ntf_server.listener import ListenError
from ntf_server.store.contract import StoreConflictError, StoreCorruptError, StoreFullError, StoreUnavailableError
from ntf_server.store.migrate import DifferentError
from ntf_server.store.sealing import SealingError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (ConfigError("x"), 2),
        (IdentityFileError("x"), 2),
        (StoreCorruptError("x"), 2),
        (StoreConflictError("x"), 2),
        (StoreUnavailableError("another ntf-server uses this database"), 75),
        (StoreFullError("x"), 75),
        (SealingError("x"), 2),
        (ListenError("x"), 2),
        (ListenError("x", may_pass=True), 75),
        (NotNowError("x"), 75),
        (StoreUnavailableError("x"), 75),
        (AdminError("x"), 1),
        (RefusedError("x"), 2),
        (DifferentError("x"), 1),
        (OSError(28, "No space left on device", "x"), 1),
        (ssl.SSLError(1, "x"), 2),
        (RuntimeError("x"), None),
        (ValueError("x"), None),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else str(v),
)
def test_codes(error: Exception, code: int | None) -> None:
    assert exit_code(error) == code
    assert "\n" not in one_line(error)


def test_lines() -> None:
    assert one_line(OSError(28, "No space left on device", "/x")) == "/x: No space left on device"
    assert one_line(OSError("odd")) == "failed: odd"
    assert one_line(ssl.SSLError(1, "bad key")).startswith("the server's certificate cannot be used: ")
    assert one_line(ConfigError("a line")) == "a line"
    assert lines(ConfigError("one", "two")) == ("one", "two")
    assert lines(OSError("odd")) == ("failed: odd",)
