"""Names that operators give: ids as commands have them, and fingerprints as events have them."""

import re
from typing import Final

import pybase64

FINGERPRINT: Final = re.compile(r"[0-9a-f]{12}")
_SIZE: Final = 24  # bytes of a token's or a subscription's id


def parse_id(text: str) -> bytes | None:
    """A token's or a subscription's, from base64url; None: it is none."""
    try:
        found = pybase64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return None
    return found if len(found) == _SIZE else None
