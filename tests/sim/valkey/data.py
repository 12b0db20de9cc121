"""What one Redis has and does: its keys, the scripts that it knows, and what it answers to a command."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from sim.valkey.keyspace import FREEING, OK, WRITES, Keyspace, ReplyError
from sim.valkey.lua import Lua

_OOM: Final = "OOM command not allowed when used memory > 'maxmemory'."
_INFO: Final = (
    b"redis_version:7.2.4\r\nvalkey_version:9.1.2\r\ncluster_enabled:%d\r\n"
    b"connected_slaves:%d\r\nrole:%s\r\nmaster_replid:%d\r\n"
)
_CONFIG: Final = {
    b"appendfsync": b"everysec",
    b"cluster-require-full-coverage": b"yes",
    b"appendonly": b"yes",
    b"maxmemory": b"1000000000",
    b"maxmemory-policy": b"noeviction",
    b"min-replicas-to-write": b"0",
}


class Data:
    """`answer` commands. `full`: no memory is left; `read_only`: it is a replica; `effects`: what a command or a
    script wrote, all of it at once, as it goes to replicas and to the disk.
    """

    def __init__(self, lua: Lua, clock: Callable[[], int]) -> None:
        self.keys = Keyspace(clock)
        self.keys.on_write = self._on_write
        self.full = False
        self.read_only = False
        self.replicas = 0
        self.in_cluster = False
        self.history = 0  # another one with each start, and each time that it becomes primary
        self.on_effects: Callable[[list[Sequence[bytes]]], None] = lambda _: None
        self.guard: Callable[[Sequence[bytes]], None] = lambda _: None  # what a script may not ask for, it refuses
        self.ran = ""  # the text of the script that the last command ran, and its first key
        self.ran_on = b""
        self._lua = lua
        self._scripts: dict[bytes, str] = {}
        self._written: list[Sequence[bytes]] = []

    def answer(self, words: Sequence[bytes]) -> Any:
        """A reply. Raises ReplyError."""
        name = words[0].upper()
        self._written = []
        self.ran = ""
        try:
            if name in {b"EVALSHA", b"EVAL"}:
                return self._script(name, *words[1:])
            if name in _OTHERS:
                return _OTHERS[name](self, words[1:])
            self._admit(name)
            return self.keys.do(words)
        finally:
            if self._written:
                self.on_effects(self._written)

    @property
    def wrote(self) -> bool:
        """Whether the last command may have changed something."""
        return bool(self._written)

    def flush_scripts(self) -> None:
        """It knows none any more."""
        self._scripts.clear()

    def apply(self, effects: Sequence[Sequence[bytes]]) -> None:
        """What another one wrote."""
        for words in effects:
            self.keys.do(words)
        self._written = []

    def put(self, key: bytes, payload: bytes) -> None:
        """What DUMP gave, of another one, though no memory may be left. Raises ReplyError."""
        self._written = []
        self.keys.do([b"RESTORE", key, b"0", payload])
        self.on_effects(self._written)

    def _on_write(self, words: Sequence[bytes]) -> None:
        self._written.append(words)

    def _admit(self, name: bytes) -> None:
        if name not in WRITES:
            return
        if self.read_only:
            raise ReplyError("READONLY You can't write against a read only replica.")
        if self.full and name not in FREEING:
            raise ReplyError(_OOM)

    def _script(self, how: bytes, what: bytes, count: bytes, *words: bytes) -> Any:
        if how == b"EVAL":
            text = what.decode()
            self._scripts[hashlib.sha1(what).hexdigest().encode()] = text
        elif (found := self._scripts.get(what)) is None:
            raise ReplyError("NOSCRIPT No matching script. Please use EVAL.")
        else:
            text = found
        flags = text.partition("\n")[0] if text.startswith("#!") else None
        if flags is not None and "no-writes" not in flags:
            if self.read_only:
                raise ReplyError("READONLY Can not run script with write flag on readonly replica.")
            if self.full and "allow-oom" not in flags:
                raise ReplyError(_OOM)
        keys, args = words[: int(count)], words[int(count) :]
        self.ran, self.ran_on = text, keys[0]
        return self._lua.run(text, keys, args, lambda call: self._from_script(call, checked=flags is not None))

    def _from_script(self, words: Sequence[bytes], *, checked: bool) -> Any:
        self.guard(words)
        # What was let in as a whole is not asked again, and what has begun to write goes on.
        if not checked and not self._written:
            self._admit(words[0].upper())
        return self.keys.do(words)

    # --- what is not about keys

    def _info(self, _: Sequence[bytes]) -> bytes:
        return _INFO % (self.in_cluster, self.replicas, b"slave" if self.read_only else b"master", self.history)

    def _config(self, words: Sequence[bytes]) -> list[bytes]:
        return [word for name in words[1:] for word in (name, _CONFIG[name])]

    def _ping(self, _: Sequence[bytes]) -> Any:
        return OK

    def _wait(self, words: Sequence[bytes]) -> int:
        return min(self.replicas, int(words[0]))


_OTHERS: Final[dict[bytes, Callable[[Data, Sequence[bytes]], Any]]] = {
    b"INFO": Data._info,
    b"CONFIG": Data._config,
    b"PING": Data._ping,
    b"ASKING": Data._ping,
    b"WAIT": Data._wait,
}
