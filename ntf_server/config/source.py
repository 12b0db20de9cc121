"""Where settings come from: `ntf-server.toml`, and variables `NTF_SERVER__SECTION__KEY` over it."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from ntf_server.config.identity_files import CA_CRT
from ntf_server.config.mistakes import ConfigError, Mistakes, nearest, shown
from ntf_server.config.reference_ini import REFERENCE_INI
from ntf_server.config.settings import Settings
from ntf_server.permissions import unreadable

CONFIG_FILE: Final = "ntf-server.toml"
PREFIX: Final = "NTF_SERVER__"
_FORM: Final = f"give {PREFIX}SECTION__KEY"
_LISTS: Final = (
    "proxies", "name_servers", "shared", "old_key_files", "allow_hosts", "own_server_domains", "allow_servers",
    "deny_servers", "hosts",
)  # fmt: skip
_NUMBER: Final = re.compile(r"[+-]?[0-9.]{1,20}")

_Path = tuple[str, ...]
_Section = type[msgspec.Struct]


def load_settings(directory: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """Raises ConfigError, with every mistake."""
    settings, mistakes = read_settings(directory, environ)
    mistakes.end()
    return settings


def read_settings(directory: Path, environ: Mapping[str, str] = os.environ) -> tuple[Settings, Mistakes]:
    """Settings without what is wrong, and all that is. Raises ConfigError if there is no file, or if it is no TOML."""
    file = directory / CONFIG_FILE
    try:
        values = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: not found; {_make(directory)}") from None
    except PermissionError as e:
        raise ConfigError(f"{unreadable(file, e, '')}, or be the server's user") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(f"{file}: cannot be read: {e}; mend it") from e
    mistakes = Mistakes()
    variables: dict[_Path, str] = {}
    for name, value in sorted(environ.items()):
        if name.startswith(PREFIX):
            mistakes.find(lambda name=name, value=value: _override(values, variables, name, value))  # type: ignore[misc]
    try:
        return msgspec.convert(values, Settings, strict=False), mistakes
    except (msgspec.ValidationError, UnicodeEncodeError):
        pass
    reader = _Reader(str(file), variables, mistakes)
    return msgspec.convert(reader.what_is_right(Settings, values), Settings, strict=False), mistakes


def _make(directory: Path) -> str:
    """How a folder gets its configuration."""
    if (directory / REFERENCE_INI).exists():
        return f"the folder is simplexmq's: run `ntf-server init --adopt {directory} --path {directory}`"
    if not (directory / CA_CRT).exists():
        return f"run `ntf-server init --path {directory}`, or give --path"
    return (
        f"the identity of another program is there: run `ntf-server init` in a new folder, and copy {CA_CRT},"
        " server.crt, server.key and fingerprint into it"
    )


def _override(values: dict[str, Any], variables: dict[_Path, str], name: str, value: str) -> None:
    """Put a variable's value where it belongs."""
    path = tuple(name.removeprefix(PREFIX).lower().split("__"))
    if len(path) < 2 or not all(path):
        raise ConfigError(f"{shown(name, 100)}: names no setting; {_FORM}, as in {PREFIX}TRANSPORT__PORT")
    for section in path[:-1]:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{shown(name, 100)}: {shown(section)} is not a section; {_FORM}, or mend the file")
    values[path[-1]] = value.replace(",", " ").split() if path[-1] in _LISTS else value
    variables[path] = name


class _Reader:
    """Tells right from wrong, key by key: msgspec ends with the first mistake, and gives no cure."""

    def __init__(self, file: str, variables: Mapping[_Path, str], mistakes: Mistakes) -> None:
        self._file = file
        self._variables = variables
        self._mistakes = mistakes

    def what_is_right(self, section: _Section, values: Mapping[str, Any], path: _Path = ()) -> dict[str, Any] | None:
        """None: a section without what it must have."""
        fields = {field.name: field for field in msgspec.structs.fields(section)}
        right: dict[str, Any] = {}
        for key, value in values.items():
            here = (*path, key)
            if key not in fields:
                self._wrong(here, _unknown(here, value, fields))
            elif (inner := _section_of(fields[key].type)) is not None:
                if not isinstance(value, dict):
                    self._wrong(here, f"{_kind(value)}; give it as a section, [{'.'.join(here)}]")
                elif (found := self.what_is_right(inner, value, here)) is not None:
                    right[key] = found
            elif (wrong := _wrong_value(fields[key].type, value)) is not None:
                self._wrong(here, wrong)
            else:
                right[key] = value
        missing = [name for name, field in fields.items() if field.required and name not in values]
        for name in missing:
            self._wrong((*path, name), "is missing; set it")
        return None if any(field.required and name not in right for name, field in fields.items()) else right

    def _wrong(self, path: _Path, what: str) -> None:
        *sections, key = map(shown, path)
        # an unknown section has no value of its own
        variable = next((name for p, name in self._variables.items() if p[: len(path)] == path), None)
        where = self._file if variable is None else shown(variable, 100)
        name = f"[{'.'.join(sections)}] {key}" if sections else key
        self._mistakes.add(ConfigError(f"{where}: {name}: {what}"), path[0])


def _section_of(kind: Any) -> _Section | None:
    """The section that a type is, perhaps an optional one."""
    kinds = [k for k in (kind, *getattr(kind, "__args__", ())) if isinstance(k, type)]
    return next((k for k in kinds if issubclass(k, msgspec.Struct)), None)


def _unknown(path: _Path, value: Any, fields: Mapping[str, Any]) -> str:
    """What to do about a key, or a section, that there is not."""
    key, is_section = path[-1], isinstance(value, dict)
    what = "section" if is_section else "key"
    if not is_section and (owners := [section for section, name in _keys() if name == key]):
        return f"is no key here; put it under {' or '.join(f'[{owner}]' for owner in owners)}"
    known = [name for name, field in fields.items() if (_section_of(field.type) is not None) is is_section]
    if (meant := nearest(key, known)) is not None:
        return f"unknown {what}; did you mean {meant}?"
    return f"unknown {what}; remove it" + (f", or give one of {', '.join(known)}" if known else "")


def _keys(section: _Section = Settings, path: _Path = ()) -> Iterator[tuple[str, str]]:
    """Section and name of every key."""
    for field in msgspec.structs.fields(section):
        if (inner := _section_of(field.type)) is not None:
            yield from _keys(inner, (*path, field.name))
        else:
            yield ".".join(path), field.name


def _wrong_value(kind: Any, value: Any) -> str | None:
    """What is wrong with it, and what may stand there instead. Values are told only where no secret may stand."""
    try:
        msgspec.convert(value, kind, strict=False)
    except UnicodeEncodeError:
        return "is not UTF-8; give it anew"
    except msgspec.ValidationError:
        pass
    else:
        return None
    from msgspec import inspect  # noqa: PLC0415  nobody who makes no mistake needs it

    match inspect.type_info(kind):
        case inspect.LiteralType():
            known = list(map(str, get_args(kind)))
            meant = nearest(value, known) if isinstance(value, str) else None
            hint = f" did you mean {meant}?" if meant else ""
            found = f"unknown value {shown(value)!r}" if isinstance(value, str) else _kind(value)
            return f"{found};{hint} give one of {', '.join(known)}"
        case inspect.UnionType(types=types):
            number = next(t for t in types if not isinstance(t, inspect.NoneType))
            return f"{_number(value)}; give {_range(number)}"
        case inspect.IntType() | inspect.FloatType() as number:
            return f"{_number(value)}; give {_range(number)}"
        case inspect.BoolType():
            return f"{_kind(value)}; give true or false"
        case inspect.VarTupleType():
            found = "holds what is no text" if isinstance(value, list) else _kind(value)
            return f'{found}; give an array of texts, as in ["one", "two"]'
        case inspect.StrType(pattern=str()):
            return f'{_kind(value)} that is no rate; give one as in "300 + 5/s", or "50 + 10/s and 300 + 5/s"'
    return f"{_kind(value)}; give text in quotes"


def _range(number: Any) -> str:
    noun = "a whole number" if type(number).__name__ == "IntType" else "a number"
    low, high = (None if bound is None else f"{bound:.10g}" for bound in (number.ge, number.le))
    return noun + (f" from {low}" if low is not None else "") + (f" to {high}" if high is not None else "")


def _number(value: Any) -> str:
    """A number is told: a text may be a secret in the wrong place."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"is {shown(value)}" if is_number or _NUMBER.fullmatch(str(value)) else _kind(value)


def _kind(value: Any) -> str:
    """What was written, in words."""
    if isinstance(value, bool):
        return f"is {str(value).lower()}"
    kinds = {str: "text", int: "a number", float: "a number", list: "an array", dict: "a section"}
    return f"is {kinds.get(type(value), 'a date or a time')}"
