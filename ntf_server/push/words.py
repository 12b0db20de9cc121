"""Words of push providers and of their clocks, as they may stand in a reason: short, printable, of one line."""

import re
from typing import Final

_NOT_PRINTABLE: Final = re.compile(r"[^ -~]+")
SKEW: Final = 60  # seconds that clocks may differ by


def is_code(value: object) -> bool:
    """Whether it is a name such as providers give their errors, and not a text."""
    return isinstance(value, str) and 0 < len(value) < 64 and value.isascii() and value.replace("_", "").isalnum()


def one_line(text: object, limit: int = 160) -> str:
    """A provider's text, if it is one, in printable ASCII and cut short."""
    return _NOT_PRINTABLE.sub(" ", text)[:limit].strip() if isinstance(text, str) else ""


def clock_words(skew: float | None, whose: str) -> str:
    """What is to be said of this machine's clock. `skew`: seconds that the provider's is ahead; None: not known."""
    if skew is None:
        return "is this machine's clock right?"
    if abs(skew) <= SKEW:
        return f"this machine's clock agrees with {whose}'s"
    way = "behind" if skew > 0 else "ahead of"
    return f"this machine's clock is {abs(skew):.0f} s {way} {whose}'s"
