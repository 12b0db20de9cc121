"""Whom push providers are checked by, where the configuration names nobody."""

import ssl
from pathlib import Path
from typing import Final

_CA_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/cert.pem",  # macOS, BSD
)


def default_ca_file() -> str | None:
    """The system's CA bundle (PEM), which libcurl of the wheel does not know; None: there is none."""
    known = (ssl.get_default_verify_paths().cafile, *_CA_FILES)
    return next((f for f in known if f and Path(f).is_file()), None)
