"""Which version of ntf-relay this is."""

import importlib.metadata


def version() -> str:
    """As it was installed."""
    try:
        return importlib.metadata.version("ntf-relay")
    except importlib.metadata.PackageNotFoundError:  # run from its source, not installed
        return "unknown"
