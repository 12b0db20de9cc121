"""A budget of log lines by kind: what strangers do over and over must not fill the disk."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from ntf_server.admission.budgets import Buckets, Rate

_MAX_KINDS: Final = 1024


class LogLines(logging.Filter):
    """For a handler. A kind is a line of the program: its logger, and its text before what changes is filled in.

    Lines over the `rate` are left out; the next one of their kind says how many. Those at DEBUG are asked for, and
    all written.
    """

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._rate = rate
        self._clock = clock
        self._spent = Buckets(_MAX_KINDS)
        self._left_out: Counter[tuple[str, str]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        if record.levelno <= logging.DEBUG:
            return True
        kind = record.name, str(record.msg)
        if not self._spent.spend_if_there(kind, 1, self._rate, self._clock()):
            if kind in self._left_out or len(self._left_out) < _MAX_KINDS:
                self._left_out[kind] += 1
            return False
        if count := self._left_out.pop(kind, 0):
            record.msg = f"{record.getMessage()} ({count} more like this were left out)"
            record.args = ()
        return True
