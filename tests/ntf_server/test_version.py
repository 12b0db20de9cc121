"""The version is that of the package."""

import importlib.metadata

from ntf_server.version import VERSION


def test_the_package_has_it() -> None:
    assert importlib.metadata.version("ntf-relay") == VERSION
