"""Where log lines go and how they look: standard error, as text or as JSON."""

import json
import logging
import time
from typing import Final

_NAME: Final = "ntf-server"


def set_up_logging(level: str, form: str, keep: logging.Filter | None = None) -> None:
    """At the start, and again when the settings change. `form`: text or json; `keep`: which lines are written."""
    root = logging.getLogger()
    handler = next((h for h in root.handlers if h.name == _NAME), None)
    if handler is None:
        handler = logging.StreamHandler()
        handler.name = _NAME
        root.addHandler(handler)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.filters = [keep] if keep else []
    handler.setFormatter(_JsonFormatter() if form == "json" else text)
    root.setLevel(level.upper())


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        out = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            out["exception"] = self.formatException(record.exc_info)
        return json.dumps(out)
