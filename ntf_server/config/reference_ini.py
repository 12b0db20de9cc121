"""The reference's `ntf-server.ini`: sections and keys, as they stand in it."""

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ntf_server.config.mistakes import ConfigError, shown
from ntf_server.permissions import unreadable

REFERENCE_INI: Final = "ntf-server.ini"
CONNECTION: Final = "postgresql://ntf@/ntf_server_store"  # what it uses if none is given
SCHEMA: Final = "ntf_server"

# Section and key, the section in capitals.
Ini = Mapping[tuple[str, str], str]


def read_ini(path: Path) -> Ini:
    """Raises ConfigError."""
    parser = configparser.RawConfigParser(strict=False, empty_lines_in_values=False, default_section="")
    try:
        parser.read_string(path.read_text("utf-8-sig"))
    except OSError as e:
        raise ConfigError(unreadable(path, e, f"give the reference's {REFERENCE_INI}")) from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: is not UTF-8; give the reference's {REFERENCE_INI}") from e
    except configparser.MissingSectionHeaderError as e:
        raise ConfigError(f"{path}: line {e.lineno} stands in no section; give the reference's {REFERENCE_INI}") from e
    except configparser.ParsingError as e:
        line = e.errors[0][0] if e.errors else "?"
        raise ConfigError(f"{path}: line {line} is no `key = value`; mend it") from e
    ini = {(s.upper(), key): value for s in parser.sections() for key, value in parser.items(s)}
    if not any(section == "TRANSPORT" for section, _ in ini):
        raise ConfigError(f"{path}: has no section [TRANSPORT]; give the reference's {REFERENCE_INI}")
    return ini


def is_on(path: Path, ini: Ini, section: str, key: str) -> bool:
    """Whether a switch is `on`; it is off if it is not there. Raises ConfigError."""
    value = ini.get((section, key), "off")
    if value not in {"on", "off"}:
        raise ConfigError(f"{path}: [{section}] {key}: unknown value {shown(value)!r}; give on or off")
    return value == "on"


def connection(ini: Ini) -> tuple[str, str]:
    """The database's, with its password if it has one; and the schema."""
    section = "STORE_LOG"
    return ini.get((section, "db_connection"), CONNECTION), ini.get((section, "db_schema"), SCHEMA)
