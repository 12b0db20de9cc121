"""Text or JSON, once, also after the settings changed; and what the journal wants."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ntf_server.observe.logs import is_journal

CODE = """
import logging
from ntf_server.observe.events import Event, EventLog
from ntf_server.observe.logs import set_up_logging

events = EventLog("ntf_server.app")
set_up_logging("info", "text")
logging.debug("no")
logging.info("text %d", 1)
logging.warning("a stranger's\\n\\x1b[31mwords")
events.tell(Event.STORE_WELL, "well again", seconds=3, failures=2)
set_up_logging("debug", "json")
logging.debug("json")
try:
    raise ValueError("why")
except ValueError:
    logging.exception("failed")
events.tell(Event.STORE_TROUBLE, "it fails", reason="disk\\nfull")
set_up_logging("error", "text")
logging.warning("no")
"""
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"


def lines_of(code: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_levels_and_formats() -> None:
    first, second, third, *lines = lines_of(CODE)
    assert re.fullmatch(rf"{TIME} \[info     \] text 1 \[root\]", first)
    assert re.fullmatch(rf"{TIME} \[warning  \] a stranger's\\x0a\\x1b\[31mwords \[root\]", second)
    assert re.fullmatch(
        rf"{TIME} \[warning  \] well again \[ntf_server\.app\] event=store\.well seconds=3 failures=2", third
    )
    debug, error, event = map(json.loads, lines)
    assert (debug["level"], debug["logger"], debug["message"]) == ("debug", "root", "json")
    assert re.fullmatch(TIME, debug["time"])
    assert error["exception"].endswith("ValueError: why")
    del event["time"]
    assert event == {
        "level": "error",
        "logger": "ntf_server.app",
        "event": "store.trouble",
        "message": "it fails",
        "reason": "disk\nfull",
    }


def test_the_time_zone_is_the_machines() -> None:
    code = (
        "import logging; from ntf_server.observe.logs import set_up_logging as s; s('info', 'text'); logging.info('')"
    )
    [line] = lines_of(code, TZ="Asia/Kathmandu")
    assert line.split(" ")[0].endswith("+05:45")


def test_a_traceback_in_the_journal_has_its_priority_in_each_line(tmp_path: Path) -> None:
    """The journal is a stream that its variable names: here a file stands for it."""
    code = """
import logging, os
stat = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{stat.st_dev}:{stat.st_ino}"
from ntf_server.observe.logs import set_up_logging

set_up_logging("debug", "text")
logging.debug("debug")
logging.info("info")
logging.warning("warning")
try:
    raise ValueError("why")
except ValueError:
    logging.exception("failed")
"""
    debug, info, warning, *error = lines_of(code)
    assert (debug, info, warning) == (
        "<7>[debug    ] debug [root]",
        "<6>[info     ] info [root]",
        "<4>[warning  ] warning [root]",
    )
    assert len(error) > 3 and all(line.startswith("<3>") for line in error)
    assert error[-1] == "<3>ValueError: why"


@pytest.mark.parametrize("stream", [None, "", "0:0", "rubbish"])
def test_another_stream_is_not_the_journal(stream: str | None) -> None:
    environment = {} if stream is None else {"JOURNAL_STREAM": stream}
    assert not is_journal(environment, sys.__stderr__.fileno() if sys.__stderr__ else 2)
