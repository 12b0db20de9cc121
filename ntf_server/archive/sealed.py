"""A stream that is sealed piece by piece: who lacks the master key learns its length, and changes nothing unseen.

A file: `ntf-relay backup 1` and a newline; a key of its own, wrapped by the master key (68 bytes); pieces, each its
length (4 bytes) and that many of AES-256-GCM. A nonce is the piece's number (11 bytes) and whether it is the last one
(1 byte), as in STREAM (Hoang, Reyhanitabar, Rogaway and Vizár, 2015): pieces cannot change places, and a file that was
cut off is told from a whole one. Each file has its own key, so no nonce comes twice.
"""

import io
import os
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ntf_server.store.sealing import MasterKey, SealingError, WrongMasterKeyError

MAGIC: Final = b"ntf-relay backup 1\n"
PIECE: Final = 1 << 20  # bytes
_ANY: Final = b"ntf-relay backup "
_KEY: Final = 32
_TAG: Final = 16
_WRAPPED: Final = 68  # bytes of a wrapped key


class ArchiveError(Exception):
    """Of a backup's file: one line that says what to do."""


def _aead(key: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), _KEY, None, b"ntf-relay backup: seal").derive(key))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


class Sealing(io.RawIOBase):
    """Writes; `finish` it when all is written, or what is there is no whole file."""

    def __init__(self, out: BinaryIO, master_key: MasterKey) -> None:
        key = os.urandom(_KEY)
        self._out, self._aead = out, _aead(key)
        self._number = 0
        self._pending = bytearray()
        out.write(MAGIC + master_key.wrap(key))

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """See `io.RawIOBase`; takes all of it."""
        self._pending += data
        while len(self._pending) > PIECE:  # the last piece is `finish`'s
            self._seal(bytes(self._pending[:PIECE]), last=False)
            del self._pending[:PIECE]
        return len(data)

    def finish(self) -> None:
        """Write the last piece."""
        self._seal(bytes(self._pending), last=True)
        self._pending.clear()

    def _seal(self, plain: bytes, *, last: bool) -> None:
        sealed = self._aead.encrypt(_nonce(self._number, last=last), plain, MAGIC)
        self._out.write(len(sealed).to_bytes(4, "big") + sealed)
        self._number += 1


class Opening(io.RawIOBase):
    """Reads; what it gives is what was written. Raises ArchiveError, which `name` begins."""

    def __init__(self, source: BinaryIO, master_key: MasterKey, name: str) -> None:
        self._source, self._name = source, name
        magic = source.read(len(MAGIC))
        if magic != MAGIC:
            newer = magic.startswith(_ANY)
            what = "is of a newer ntf-server; upgrade ntf-relay" if newer else "is no backup of ntf-server; give one"
            raise ArchiveError(f"{name}: {what}")
        try:
            self._aead = _aead(master_key.unwrap(source.read(_WRAPPED)))
        except WrongMasterKeyError as e:
            cure = "give the one that the server had when the backup was made"
            raise ArchiveError(f"{name}: was sealed with another master key ({e}); {cure}") from None
        except SealingError:
            raise self._damaged() from None
        self._number = 0
        self._piece = memoryview(b"")
        self._last = False

    def _damaged(self) -> ArchiveError:
        return ArchiveError(f"{self._name}: is damaged, or not all of it is there; give another backup")

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """See `io.RawIOBase`."""
        while not self._piece and not self._last:
            self._open()
        some = self._piece[: len(buffer)]
        buffer[: len(some)] = some
        self._piece = self._piece[len(some) :]
        return len(some)

    def drain(self) -> None:
        """To the end of it, which is looked at too."""
        while self.read(PIECE):
            pass
        if self._source.read(1):
            raise self._damaged()

    def _open(self) -> None:
        size = int.from_bytes(self._source.read(4), "big")
        if not _TAG <= size <= PIECE + _TAG:
            raise self._damaged()
        sealed = self._source.read(size)
        for last in (False, True):
            try:
                self._piece = memoryview(self._aead.decrypt(_nonce(self._number, last=last), sealed, MAGIC))
            except InvalidTag:
                continue
            self._last = last
            self._number += 1
            return
        raise self._damaged()
