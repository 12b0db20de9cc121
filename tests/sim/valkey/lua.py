"""Redis's scripts in a real Lua 5.1, with what Redis gives them: `redis.call`, `struct`, `bit`."""

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from lupa import lua51

from sim.valkey.keyspace import ReplyError, Status

_FORMATS: Final = {"i4": "i", "I4": "I", "d": "d", "B": "B", "H": "H"}

Call = Callable[[Sequence[bytes]], Any]


class Lua:
    """`run` scripts; what they call goes to `call`."""

    def __init__(self) -> None:
        self._runtime = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True, register_eval=False)
        self._chunks: dict[str, Any] = {}
        self._call: Call = lambda _: None
        names = self._runtime.globals()
        table = self._runtime.table_from
        names[b"redis"] = table({b"call": self._from_lua, b"error_reply": lambda text: table({b"err": text})})
        names[b"struct"] = table({b"pack": _pack, b"unpack": _unpack})
        names[b"bit"] = table({b"bxor": lambda a, b: _signed(int(a) ^ int(b))})

    def run(self, text: str, keys: Sequence[bytes], args: Sequence[bytes], call: Call) -> Any:
        """What the script gives, as Redis answers it. Raises ReplyError, also for what the script gives as an error."""
        chunk = self._chunks.get(text)
        if chunk is None:
            body = text.partition("\n")[2] if text.startswith("#!") else text
            chunk = self._chunks[text] = self._runtime.execute(f"return function() {body}\nend".encode())
        names = self._runtime.globals()
        names[b"KEYS"], names[b"ARGV"] = self._runtime.table_from(keys), self._runtime.table_from(args)
        self._call = call
        try:
            return _answer(chunk())
        except lua51.LuaError as e:
            raise ReplyError(f"ERR {e}") from None

    def _from_lua(self, *words: Any) -> Any:
        return self._to_lua(self._call([_word(word) for word in words]))

    def _to_lua(self, answer: Any) -> Any:
        if answer is None:
            return False
        if isinstance(answer, Status):
            return self._runtime.table_from({b"ok": answer.encode()})
        if isinstance(answer, list):
            return self._runtime.table_from([self._to_lua(part) for part in answer])
        return answer


def _word(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReplyError("ERR Lua redis lib command arguments must be strings or integers")
    return b"%d" % value if value == int(value) else b"%.17g" % value


def _answer(value: Any) -> Any:
    if value is None or value is False:
        return None
    if value is True:
        return 1
    if isinstance(value, float):
        return int(value)
    if isinstance(value, int | bytes):
        return value
    if (error := value[b"err"]) is not None:
        raise ReplyError(error.decode())
    if (status := value[b"ok"]) is not None:
        return Status(status.decode())
    out, place = [], 1
    while (part := value[place]) is not None:
        out.append(_answer(part))
        place += 1
    return out


def _layout(text: bytes) -> struct.Struct:
    letters, rest = "", text.decode().removeprefix(">")
    while rest:
        name = next(name for name in _FORMATS if rest.startswith(name))
        letters, rest = letters + _FORMATS[name], rest.removeprefix(name)
    return struct.Struct(">" + letters)


def _pack(text: bytes, *values: float) -> bytes:
    layout = _layout(text)
    whole = [float(v) if letter == "d" else int(v) for letter, v in zip(layout.format[1:], values, strict=True)]
    return layout.pack(*whole)


def _unpack(text: bytes, value: bytes, place: int = 1) -> tuple[Any, ...]:
    layout = _layout(text)
    if len(value) < place - 1 + layout.size:
        raise ReplyError("ERR data string too short")
    return *layout.unpack_from(value, place - 1), place + layout.size


def _signed(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value
