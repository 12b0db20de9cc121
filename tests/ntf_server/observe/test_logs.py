"""Text or JSON, once, also after the settings changed."""

import json
import subprocess
import sys

CODE = """
import logging
from ntf_server.observe.logs import set_up_logging

set_up_logging("info", "text")
logging.debug("no")
logging.info("text %d", 1)
set_up_logging("debug", "json")
logging.debug("json")
try:
    raise ValueError("why")
except ValueError:
    logging.exception("failed")
set_up_logging("error", "text")
logging.warning("no")
"""


def test_levels_and_formats() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    text, *lines = done.stderr.splitlines()
    assert text.endswith(" INFO root: text 1")
    first, second = map(json.loads, lines)
    assert (first["level"], first["logger"], first["message"]) == ("debug", "root", "json")
    assert second["exception"].endswith("ValueError: why")
    assert done.stdout == ""
