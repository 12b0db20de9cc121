"""Where log lines go and how they look: standard error; as text, as JSON, or as the journal wants them."""

import logging
import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Final

import structlog

from ntf_server.observe.events import FIELD, FIELDS
from ntf_server.observe.moments import moment

_NAME: Final = "ntf-server"
_UNSEEN: Final = {
    n: f"\\x{n:02x}" for n in (*range(0x20), *range(0x7F, 0xA0))
}  # control characters: strangers choose words
# sd-daemon(3): a line that begins with <N> has this priority of syslog(3).
_PRIORITIES: Final = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}
_Fields = MutableMapping[str, Any]


def set_up_logging(level: str, form: str, keep: logging.Filter | None = None) -> None:
    """At the start, and again when the settings change. `form`: text or json; `keep`: which lines are written."""
    root = logging.getLogger()
    handler = next((h for h in root.handlers if h.name == _NAME), None)
    if handler is None:
        handler = logging.StreamHandler()
        handler.name = _NAME
        root.addHandler(handler)
    handler.filters = [keep] if keep else []
    journal = form == "text" and is_journal(os.environ, sys.stderr.fileno())
    handler.setFormatter(_JournalFormatter() if journal else _formatter(_json() if form == "json" else _text()))
    root.setLevel(level.upper())


def is_journal(environment: Mapping[str, str], descriptor: int) -> bool:
    """Whether this file is systemd's journal, as `$JOURNAL_STREAM` says (systemd.exec(5))."""
    found = os.fstat(descriptor)
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _json() -> Sequence[structlog.typing.Processor]:
    return [_seen, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]


def _text(*, time: bool = True) -> Sequence[structlog.typing.Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=time and sys.stderr.isatty(),
        event_key="message",
        timestamp_key="time",
        pad_event_to=0,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return [_seen, _visible] + ([] if time else [_without_time]) + [renderer]


def _formatter(processors: Sequence[structlog.typing.Processor]) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(processors=processors)


class _JournalFormatter(logging.Formatter):
    """The journal knows the time itself, and each line's priority if it is told."""

    def __init__(self) -> None:
        super().__init__()
        self._inner = _formatter(_text(time=False))

    def format(self, record: logging.LogRecord) -> str:
        level = max((n for n in _PRIORITIES if n <= record.levelno), default=logging.DEBUG)
        lines = self._inner.format(record).splitlines()
        return "\n".join(f"<{_PRIORITIES[level]}>{line}" for line in lines)


def _seen(_logger: Any, _method: str, found: _Fields) -> _Fields:
    """What is told of a record, in this order."""
    record: logging.LogRecord = found["_record"]
    out = {
        "time": moment(record.created, "milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
    }
    if (event := getattr(record, FIELD, None)) is not None:
        out["event"] = str(event)
    out["message"] = found["event"]
    out |= getattr(record, FIELDS, {})
    if exc_info := found.get("exc_info"):
        out["exc_info"] = exc_info
    return out


def _visible(_logger: Any, _method: str, found: _Fields) -> _Fields:
    """One line is one line, whatever a stranger's words are."""
    for name, value in found.items():
        if isinstance(value, str):
            found[name] = value.translate(_UNSEEN)
    return found


def _without_time(_logger: Any, _method: str, found: _Fields) -> _Fields:
    del found["time"]
    return found
