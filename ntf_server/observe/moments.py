"""When something was, for people: one form in the log, in answers of commands, in the fields of events."""

from datetime import UTC, datetime
from typing import Literal


def moment(at: float, precision: Literal["seconds", "milliseconds"] = "seconds") -> str:
    """Unix seconds as ISO 8601, in this machine's time zone and with its offset: what is searched for in the log."""
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(timespec=precision)
