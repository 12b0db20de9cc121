"""What happened of late: the last events that the log's level lets through, for whoever looks at a running relay."""

import logging
from collections import deque
from contextlib import nullcontext
from typing import Final, NamedTuple

from ntf_server.observe.events import FIELD

KEPT: Final = 50
LONGEST: Final = 300  # characters of what is said


class Told(NamedTuple):
    """An event: its number, which grows; when, in Unix seconds; its level, its name, and what is said of it."""

    number: int
    at: float
    level: str
    name: str
    text: str


class Recent(logging.Handler):
    """Hears of events while it is the handler of a logger: the last KEPT of those that are loud, and of those that are
    not: what strangers can bring about does not push out what an operator has to know.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._loud: deque[Told] = deque(maxlen=KEPT)
        self._quiet: deque[Told] = deque(maxlen=KEPT)
        self._number = 0

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`: called in whatever thread something happens."""
        name = getattr(record, FIELD, None)
        if name is None:
            return
        try:
            text = plain(record.getMessage(), LONGEST)
        except Exception:  # a fault of whoever told it; the log says so
            return
        self._number += 1
        told = Told(self._number, record.created, record.levelname.lower(), str(name), text)
        (self._loud if record.levelno >= logging.WARNING else self._quiet).append(told)

    def since(self, number: int = 0) -> list[Told]:
        """Those after this one, oldest first."""
        with self.lock or nullcontext():
            return sorted(told for told in (*self._loud, *self._quiet) if told.number > number)


def plain(text: str, longest: int) -> str:
    """On one line, not too long, and without what changes how the rest of it looks: strangers choose words."""
    shown = text if text.isprintable() else "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"
