"""The reference's `ntf-server.ini`."""

from pathlib import Path

import pytest

from ntf_server.config.mistakes import ConfigError
from ntf_server.config.reference_ini import CONNECTION, SCHEMA, connection, is_on, read_ini

TEXT = """\
[STORE_LOG]
# a comment
enable = on

db_connection = postgresql://ntf:pa=ss:word@db.example.org/ntf?sslmode=require
; another
db_schema: other
log_stats = maybe

[TRANSPORT]
host = ntf.example.org
port = 443,5443
"""


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    path = tmp_path / "ntf-server.ini"
    path.write_text(TEXT)
    return path


def test_what_stands_in_it(ini: Path) -> None:
    read = read_ini(ini)
    assert connection(read) == ("postgresql://ntf:pa=ss:word@db.example.org/ntf?sslmode=require", "other")
    assert (read["TRANSPORT", "host"], read["TRANSPORT", "port"]) == ("ntf.example.org", "443,5443")
    assert is_on(ini, read, "STORE_LOG", "enable")
    assert not is_on(ini, read, "SUBSCRIBER", "use_service_credentials")
    with pytest.raises(ConfigError, match=r"\[STORE_LOG\] log_stats: unknown value 'maybe'; give on or off"):
        is_on(ini, read, "STORE_LOG", "log_stats")


def test_what_does_not(ini: Path) -> None:
    ini.write_text("\ufeff[TRANSPORT]\nport = 443\n", "utf-8")
    assert connection(read_ini(ini)) == (CONNECTION, SCHEMA)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"port = 443\n", "line 1 stands in no section"),
        (b"[TRANSPORT]\nport\n", "line 2 is no `key = value`; mend it"),
        (b"[STORE_LOG]\nenable = on\n", r"has no section \[TRANSPORT\]"),
        (b"", r"has no section \[TRANSPORT\]"),
        (b"[TRANSPORT]\nhost = \xff\n", "is not UTF-8"),
    ],
)
def test_what_is_none(ini: Path, content: bytes, words: str) -> None:
    ini.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_ini(ini)
    assert str(caught.value).startswith(f"{ini}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "ntf-server.ini", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=words):
            read_ini(path)
