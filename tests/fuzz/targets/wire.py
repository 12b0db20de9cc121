"""What goes over the wire: primitives, addresses, blocks, commands and answers."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fuzz import samples
from fuzz.target import Target, add, versioned
from smp_bridge import crypto, ntf, smp
from smp_bridge.address import ServerAddress, parse_host, twin
from smp_bridge.encoding import (
    ParseError,
    Reader,
    b64url,
    boolean,
    int64,
    large,
    listing,
    maybe,
    short,
    un_b64url,
    word16,
    word32,
)
from smp_bridge.messages import MESSAGE_META_SIZE, MessageBody, MessageMeta
from smp_bridge.notifications import parse_notifications
from smp_bridge.transmission import (
    Invalid,
    Service,
    Session,
    Transmission,
    encode_blocks,
    encode_transmission,
    parse_block,
    verify_transmission,
)

SESSION_ID = bytes(range(32))
SERVICE = Service(samples.ID, b"h" * 32, samples.ED25519)
SESSIONS = [Session("smp", v, SESSION_ID, samples.X25519 if v >= 7 else None) for v in range(6, 19)]
SESSIONS += [Session("ntf", v, SESSION_ID, samples.X25519 if v >= 2 else None) for v in range(1, 4)]
SESSIONS += [dataclasses.replace(SESSIONS[v - 6], service=SERVICE) for v in (16, 18)]


def plain(value: Any) -> Any:
    """In a form that compares by content."""
    if isinstance(value, crypto.PrivateKey):
        return crypto.encode_private(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, ServerAddress):
        return type(value), [plain(getattr(value, f.name)) for f in dataclasses.fields(value)]
    return value


# --- primitives

_TAKES: list[tuple[Callable[[Reader], Any], Callable[[Any], bytes]]] = [
    (Reader.word16, word16),
    (Reader.word32, word32),
    (Reader.int64, int64),
    (Reader.byte, lambda n: bytes([n])),
    (Reader.short, short),
    (Reader.large, large),
    (Reader.boolean, boolean),
    (Reader.nonce, bytes),
    (lambda r: r.maybe(r.short), lambda v: maybe(None if v is None else short(v))),
    (lambda r: r.listing(r.short), lambda v: listing(map(short, v))),
    (lambda r: r.listing(r.large, non_empty=True), lambda v: listing(map(large, v))),
    (lambda r: r.maybe(lambda: r.listing(r.int64)), lambda v: maybe(None if v is None else listing(map(int64, v)))),
    (lambda r: r.literal(b"lit"), lambda _: b"lit"),
]


def _primitives(data: bytes) -> tuple[bytes, bytes]:
    """The first byte says how many takes follow; they are the bytes after it."""
    count = data[0] % 8 if data else 0
    r = Reader(data[1 + count :])
    out = b""
    for i in data[1 : 1 + count]:
        take, encode = _TAKES[i % len(_TAKES)]
        out += encode(take(r))
    out += r.rest()
    r.end()
    return r.data, out


def _same(pair: tuple[Any, Any]) -> None:
    assert pair[0] == pair[1]


add(
    Target(
        "primitives",
        _primitives,
        lambda: [
            bytes([len(i), *i]) + b"".join(parts)
            for i, parts in [
                ((0, 1, 2, 3), [bytes(15)]),
                ((4, 5, 6, 7), [short(b"abc"), large(b"abcd"), b"T", bytes(24)]),
                ((8, 9), [b"1", short(b"x"), listing([short(b"y")] * 3)]),
                ((8, 10, 11), [b"0", listing([large(b"y")]), b"1", listing([bytes(8)])]),
                ((12,), [b"lit"]),
            ]
        ],
        ["smp_bridge.encoding.Reader"],
        (ParseError,),
        _same,
        max_size=256,
    )
)
add(
    Target(
        "base64url",
        un_b64url,
        lambda: [b64url(bytes(range(n))).encode() for n in (0, 1, 2, 3, 32)] + [b"YWJj", b"YW", b"-_-_"],
        ["smp_bridge.encoding.un_b64url"],
        (ParseError,),
        lambda raw: _same((un_b64url(b64url(raw)), raw)),
        max_size=128,
    )
)


# --- addresses


def _check_address(a: ServerAddress) -> None:
    """All forms of it are the same server."""
    assert ServerAddress.from_text(str(a)) == a
    r = Reader(a.encode())
    again = ServerAddress.parse(r, a.scheme)
    r.end()
    assert again == a
    assert (again.hosts, again.port, again.key_hash) == (a.hosts, a.port, a.key_hash)
    assert a.plain == a
    assert a.plain.identity == a.identity
    assert hash(a.plain) == hash(a)
    assert ServerAddress.from_text(str(a.plain)) == a
    assert ServerAddress.parse(Reader(a.plain.encode()), a.scheme) == a
    assert 0 < a.port_number < 65536
    assert a.reachable
    assert a.password is None or a.password not in repr(a) or not a.password.strip("A")


def _binary_address(data: bytes) -> ServerAddress:
    r = Reader(data[1:])
    out = ServerAddress.parse(r, "ntf" if data[:1] > b"\x7f" else "smp")
    r.end()
    return out


def _text_of(parse: Callable[[str], Any]) -> Callable[[bytes], Any]:
    return lambda data: parse(data.decode("utf-8", "surrogateescape"))


_TEXTS = [str(a).encode() for a in samples.ADDRESSES]
_TEXTS += [b"smp://" + b64url(b"k" * 32).encode() + b":secret@h.example,[::ffff:192.0.2.1]:5223"]

add(
    Target(
        "address text",
        _text_of(ServerAddress.from_text),
        lambda: _TEXTS,
        ["smp_bridge.address.ServerAddress.from_text"],
        (ParseError,),
        lambda a: _check_address(dataclasses.replace(a, password=None)),
        words=[b"smp://", b"ntf://", b".onion", b"[::1]", b"smp4.simplex.im", b"::ffff:"],
    )
)
add(
    Target(
        "address binary",
        _binary_address,
        lambda: [bytes([255 * (a.scheme == "ntf")]) + a.encode() for a in samples.ADDRESSES],
        ["smp_bridge.address.ServerAddress.parse"],
        (ParseError,),
        _check_address,
        words=[b".onion", b"[::1]", b"smp4.simplex.im", b"::ffff:"],
    )
)


def _check_host(host: str) -> None:
    assert parse_host(host) == host
    assert "[" not in host
    assert twin(host) != host


add(
    Target(
        "host",
        _text_of(parse_host),
        lambda: [
            b"smp.example.org",
            b"::1",
            b"[2001:db8::1]",
            b"127.1",
            b"smp4.simplex.im",
            b"0x7f.1",
            b"fe80::1%eth0",
        ],
        ["smp_bridge.address.parse_host"],
        (ParseError,),
        _check_host,
        max_size=128,
    )
)


# --- blocks


def _block(data: bytes) -> tuple[Session, bytes, list[Transmission | Invalid]]:
    which, content = versioned(data, 0, len(SESSIONS) - 1)
    session = SESSIONS[which]
    return session, content, parse_block(session, content)


def _again(session: Session, t: Transmission) -> bytes:
    """The bytes that it was."""
    out = short(t.authenticator)
    if t.authenticator and session.service_auth:
        out += maybe(None if t.service_signature is None else short(t.service_signature))
    out += b"" if session.implied_session_id else short(session.session_id)
    return out + short(t.corr_id) + short(t.entity_id) + t.command


def _check_block(parsed: tuple[Session, bytes, list[Transmission | Invalid]]) -> None:
    session, content, found = parsed
    assert found
    good = [t for t in found if isinstance(t, Transmission)]
    for t in good:
        for key in (None, samples.ED25519, samples.ED448, samples.X25519):
            # Only who has a key can have made it: of these the fuzzer knows none but those in the seeds.
            verify_transmission(session, t, key.public_key() if key else None)
    if len(good) == len(found):
        raw = [_again(session, t) for t in good]
        whole = listing(map(large, raw)) if session.batch else raw[0]
        assert whole == content
        if len(content) <= session.block_size - 18:
            assert encode_blocks(session, raw) == [content]


def _seed_blocks() -> list[bytes]:
    out = []
    for i, s in enumerate(SESSIONS):
        client = dataclasses.replace(s, server_key=samples.DH if s.server_key else None)
        messages = samples.smp_messages() if s.scheme == "smp" else samples.ntf_messages()
        keys = [None, samples.ED25519, samples.ED448, *([samples.X25519] if s.server_key else [])]
        made = [
            encode_transmission(
                client, b"c" * 24, samples.ID, messages[n].encode(s.version), key, as_service=bool(s.service)
            )
            for n, key in enumerate(keys)
        ]
        out += [bytes([i]) + b for b in encode_blocks(s, made)[:2]]
    return out


add(
    Target(
        "block",
        _block,
        _seed_blocks,
        ["smp_bridge.transmission.parse_block"],
        (),
        _check_block,
        max_size=1200,
        share=0.5,
    )
)


def _notifications(data: bytes) -> tuple[Session, bytes, Any]:
    which, content = versioned(data, 0, 12)
    session = SESSIONS[which]
    return session, content, parse_notifications(session, content)


def _check_notifications(parsed: tuple[Session, bytes, Any]) -> None:
    """The quick way gives what the slow one does, and is taken wherever it can be."""
    session, content, quick = parsed
    slow = []
    for t in parse_block(session, content):
        try:
            message = smp.parse_answer(t.command, session.version) if isinstance(t, Transmission) else None
        except ParseError:
            message = None
        event = isinstance(t, Transmission) and not t.authenticator and not t.corr_id
        slow.append((t.entity_id, message) if event and isinstance(message, smp.NMsg) else None)
    alike = session.implied_session_id and None not in slow
    assert quick == (slow if alike else None)


def _seed_notifications() -> list[bytes]:
    out = []
    event = smp.NMsg(b"n" * 24, b"m" * 144)
    for i, s in enumerate(SESSIONS[:13]):
        for messages in ([event], [event, event], [event, smp.End()], [smp.NMsg(b"n" * 24, b"")]):
            sent = [encode_transmission(s, b"", samples.ID, m.encode(s.version)) for m in messages]
            out += [bytes([i]) + b for b in encode_blocks(s, sent)]
    return out


add(
    Target(
        "notifications",
        _notifications,
        _seed_notifications,
        ["smp_bridge.notifications.parse_notifications"],
        (),
        _check_notifications,
        max_size=600,
        words=[b"NMSG ", b"\0\0\x18"],
    )
)


# --- commands and answers


def _messages(
    name: str, parse: Callable[[bytes, int], Any], versions: tuple[int, int], known: Any, messages: Callable[[], Any]
) -> None:
    def parsed(data: bytes) -> tuple[Any, int]:
        version, rest = versioned(data, *versions)
        return parse(rest, version), version

    def check(pair: tuple[Any, int]) -> None:
        value, version = pair
        encoded = value.encode(version)
        again = parse(encoded, version)
        # A reason that came too early is understood, but not said.
        early = isinstance(value, ntf.Tkn) and version < ntf.INVALID_REASON
        assert plain(again) == plain(value) or early
        assert again.encode(version) == encoded

    def seeds() -> list[bytes]:
        # Every version has its own layout of a few; of the rest the oldest and the newest will do.
        some = {versions[0], versions[1]}
        return [
            bytes([v - versions[0]]) + m.encode(v)
            for m in messages()
            for v in range(versions[0], versions[1] + 1)
            if type(m) in known.values() and (v in some or isinstance(m, smp.New | smp.Ids))
        ]

    module = parse.__module__
    add(
        Target(
            name,
            parsed,
            seeds,
            [f"{module}.{parse.__name__}"],
            (ParseError,),
            check,
            words=[tag + b" " for tag in known],
        )
    )


_messages("smp command", smp.parse_command, smp.VERSIONS, smp.COMMANDS, samples.smp_messages)
_messages("smp answer", smp.parse_answer, smp.VERSIONS, smp.ANSWERS, samples.smp_messages)
_messages("ntf command", ntf.parse_command, ntf.VERSIONS, ntf.COMMANDS, samples.ntf_messages)
_messages("ntf answer", ntf.parse_answer, ntf.VERSIONS, ntf.ANSWERS, samples.ntf_messages)


def _entry(data: bytes) -> ntf.Entry:
    return ntf.Entry.parse(data)


add(
    Target(
        "push entry",
        _entry,
        lambda: [
            ntf.Entry(str(a), samples.ID, 1_800_000_000, b"n" * 24, b"m" * 144).encode() for a in samples.ADDRESSES
        ],
        ["smp_bridge.ntf.Entry.parse"],
        (ParseError,),
        lambda e: _same((ntf.Entry.parse(e.encode()), e)),
    )
)


# --- what is in boxes

_SECRET, _NONCE = b"s" * 32, b"n" * 24


def _meta(data: bytes) -> MessageMeta:
    return MessageMeta.open(_SECRET, _NONCE, crypto.box(_SECRET, _NONCE, data))


def _body(data: bytes) -> MessageBody:
    return MessageBody.open(_SECRET, _NONCE, crypto.box(_SECRET, _NONCE, data))


def _check_meta(m: MessageMeta) -> None:
    if len(m.message_id) <= MESSAGE_META_SIZE - 11:
        assert MessageMeta.open(_SECRET, _NONCE, m.seal(_SECRET, _NONCE)) == m


def _check_body(m: MessageBody) -> None:
    assert MessageBody.open(_SECRET, _NONCE, m.seal(_SECRET, _NONCE, 20 + len(m.body))) == m


add(
    Target(
        "message metadata",
        _meta,
        lambda: [crypto.pad(short(samples.ID) + int64(1_800_000_000), 128), b"\0\3abc"],
        ["smp_bridge.messages.MessageMeta.open", "smp_bridge.crypto.unpad", "smp_bridge.crypto.unbox"],
        (ParseError, crypto.CryptoError),
        _check_meta,
        max_size=300,
    )
)
add(
    Target(
        "message body",
        _body,
        lambda: [crypto.pad(int64(1_800_000_000) + b"T body", 64), crypto.pad(int64(-1) + b"Fxyz body", 64)],
        ["smp_bridge.messages.MessageBody.open"],
        (ParseError, crypto.CryptoError),
        _check_body,
        max_size=300,
    )
)


def _boxed(data: bytes) -> bytes:
    return crypto.unbox(_SECRET, data[:24], data[24:])


add(
    Target(
        "box",
        _boxed,
        lambda: [_NONCE + crypto.box(_SECRET, _NONCE, b"plain")],
        ["smp_bridge.crypto.unbox"],
        (crypto.CryptoError,),
        max_size=128,
        share=0.5,
    )
)
