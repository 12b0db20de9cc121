"""When something was, for people: one form in the log, in answers of commands, in the fields of events; and days."""

from datetime import UTC, datetime
from typing import Literal


def moment(at: float, precision: Literal["seconds", "milliseconds"] = "seconds") -> str:
    """Unix seconds as ISO 8601, in this machine's time zone and with its offset: what is searched for in the log."""
    return datetime.fromtimestamp(at, UTC).astimezone().isoformat(timespec=precision)


def day_of(at: float) -> str:
    """Unix seconds as a day, of UTC: of statistics, and on which certificates end."""
    return datetime.fromtimestamp(at, UTC).date().isoformat()
