"""Which version of ntf-relay this is: that of the installed package."""

from importlib.metadata import version
from typing import Final

VERSION: Final = version("ntf-relay")
