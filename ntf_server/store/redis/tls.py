"""The TLS of connections to a Redis: made of the files of its URL, and made anew when these were replaced."""

import contextlib
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from ntf_server.store.contract import StoreConflictError
from ntf_server.store.redis.url import RedisUrl, TlsOptions


class Tls:
    """`context`: of the next connection; those that are there stay. Raises StoreConflictError."""

    def __init__(self, files: TlsOptions) -> None:
        self._files = files
        self.context = tls_context(files)

    @classmethod
    def of(cls, url: RedisUrl) -> Self | None:
        """None: in the clear. Raises StoreConflictError."""
        return cls(url.tls) if url.tls else None

    def prepare(self) -> Callable[[], None]:
        """Read the files again; what it gives takes them into use. Raises StoreConflictError."""
        context = tls_context(self._files)

        def commit() -> None:
            self.context = context

        return commit


def tls_context(files: TlsOptions) -> ssl.SSLContext:
    """Made once: it takes tens of milliseconds to read the system's authorities. Raises StoreConflictError."""
    with _told("ca_file", files.ca_file, cure="give a PEM bundle"):
        context = ssl.create_default_context(cafile=files.ca_file)
    if files.cert_file is not None:
        both = {"cert_file": files.cert_file, "key_file": files.key_file or files.cert_file}
        named = ", ".join(f"{name} {file}" for name, file in both.items())
        with _told(named, cure="give a certificate and its own key, in PEM and without a passphrase"):
            context.load_cert_chain(files.cert_file, files.key_file, password=lambda: b"")  # or a terminal is asked
    return context


@contextlib.contextmanager
def _told(name: str, file: Path | None = None, *, cure: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as e:  # of the first ssl.SSLError is one
        why = getattr(e, "reason", None) or getattr(e, "strerror", None) or e
        where = f"{name} {file}" if file else name
        raise StoreConflictError(f"the files of the store's url cannot be read: {where}: {why}; {cure}") from None
