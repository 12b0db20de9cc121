"""Hypothesis strategies for everything that goes over the wire, and helpers to compare it."""

import dataclasses
from ipaddress import IPv4Address, IPv6Address

from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x448 import X448PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import strategies as st

from smp_bridge import crypto, ntf, smp
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url, short
from smp_bridge.transmission import Err, Session

KEY_SIZES = {Ed25519PrivateKey: 32, X25519PrivateKey: 32, Ed448PrivateKey: 57, X448PrivateKey: 56}


def private_keys(*types):
    return st.one_of(st.binary(min_size=KEY_SIZES[t], max_size=KEY_SIZES[t]).map(t.from_private_bytes) for t in types)


quick_private_keys = private_keys(*(t for t in KEY_SIZES if t is not X448PrivateKey)).map(crypto.quick_private)


def _public(keys):
    return keys.map(lambda k: k.public_key())


all_private_keys = private_keys(*KEY_SIZES)
all_public_keys = _public(all_private_keys)
x25519_private_keys = private_keys(X25519PrivateKey)
x25519_keys = _public(x25519_private_keys)
sign_private_keys = private_keys(Ed25519PrivateKey, Ed448PrivateKey)
auth_private_keys = private_keys(Ed25519PrivateKey, Ed448PrivateKey, X25519PrivateKey)
auth_keys = _public(auth_private_keys)

shorts = st.binary(max_size=255)
ids = st.binary(min_size=24, max_size=24)
nonces = ids
hashes = st.binary(min_size=16, max_size=16)
int64s = st.integers(-(2**63), 2**63 - 1)
times = st.integers(0, 2**63 - 1)
secrets32 = st.binary(min_size=32, max_size=32)

_label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
names = st.lists(_label, min_size=1, max_size=4).map(".".join)
onions = st.from_regex(r"[a-z2-7]{56}\.onion", fullmatch=True)
hosts = st.one_of(
    names,
    onions,
    st.integers(0, 2**32 - 1).map(lambda n: str(IPv4Address(n))),
    st.integers(0, 2**128 - 1).map(lambda n: str(IPv6Address(n))),
)
ports = st.just("") | st.integers(1, 65535).map(str)


def addresses(*schemes):
    host_lists = st.lists(hosts, min_size=1, max_size=4).map(tuple)
    return st.builds(ServerAddress, st.sampled_from(schemes), host_lists, ports, secrets32)


smp_addresses = addresses("smp")

signed_keys = st.builds(crypto.SignedKey.sign, sign_private_keys, all_public_keys)

_web_push = st.tuples(
    st.binary(min_size=1, max_size=255),
    shorts,
    shorts,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=65, max_size=65),
).map(lambda fields: b"".join(map(short, fields)))

device_tokens = st.one_of(
    st.builds(ntf.DeviceToken, st.sampled_from([p for p in ntf.Provider if p is not ntf.Provider.WEB_PUSH]), shorts),
    st.builds(ntf.DeviceToken, st.just(ntf.Provider.WEB_PUSH), _web_push),
)

_texts = st.text(st.characters(codec="utf-8"), max_size=40)
_ERRORS = ["BLOCK", "SESSION", "AUTH", "SERVICE", "CRYPTO", "QUOTA", "EXPIRED", "NO_MSG", "LARGE_MSG", "INTERNAL"]
_CMD_ERRORS = ["UNKNOWN", "SYNTAX", "PROHIBITED", "NO_AUTH", "HAS_AUTH", "NO_ENTITY"]
errors = st.one_of(
    st.sampled_from(_ERRORS).map(Err),
    st.sampled_from(_CMD_ERRORS).map(lambda d: Err("CMD", d)),
    _texts.map(lambda text: Err("STORE", text)),
    st.sampled_from(["reason=spam", "reason=content", 'reason=spam,notice={"ttl":3600}']).map(
        lambda d: Err("BLOCKED", d)
    ),
)

_statuses = st.sampled_from([s for s in ntf.SubscriptionStatus if s is not ntf.SubscriptionStatus.ERR])
_reasons = st.sampled_from(ntf.InvalidReason)

modes = st.sampled_from("SC")
kinds = st.sampled_from("MC")
ntf_creds = st.builds(smp.NtfCreds, auth_keys, x25519_keys)
server_ntf_creds = st.builds(smp.ServerNtfCreds, shorts, x25519_keys)


def _new(version):
    kind = st.none() if version < 9 else kinds if version < 15 else st.none() | kinds
    creds = st.none() | ntf_creds if version >= 17 else st.none()
    return st.builds(smp.New, auth_keys, x25519_keys, st.none() | shorts, modes, kind, creds)


def _ids(version):
    return st.builds(
        smp.Ids,
        shorts,
        shorts,
        x25519_keys,
        st.none() if version < 9 else kinds if version < 15 else st.none() | kinds,
        st.none() | shorts if version >= 15 else st.none(),
        st.none() | shorts if version >= 16 else st.none(),
        st.none() | server_ntf_creds if version >= 17 else st.none(),
    )


def smp_messages(cls, version):
    """Commands and answers of one type, with the fields that the version carries."""
    special = {
        smp.New: lambda: _new(version),
        smp.Ids: lambda: _ids(version),
        smp.Key: lambda: st.builds(smp.Key, auth_keys),
        smp.SKey: lambda: st.builds(smp.SKey, auth_keys),
        smp.NKey: lambda: st.builds(smp.NKey, ntf_creds),
        smp.Ack: lambda: st.builds(smp.Ack, shorts),
        smp.Send: lambda: st.builds(smp.Send, st.booleans(), st.binary(max_size=300)),
        smp.Nid: lambda: st.builds(smp.Nid, server_ntf_creds),
        smp.SOk: lambda: st.builds(smp.SOk, st.none() | shorts),
        smp.NSubs: lambda: st.builds(smp.NSubs, int64s, hashes) if version >= 19 else st.builds(smp.NSubs),
        smp.SOks: lambda: st.builds(smp.SOks, int64s, hashes if version >= 19 else st.none()),
        smp.Ends: lambda: st.builds(smp.Ends, int64s, hashes if version >= 19 else st.none()),
        smp.Msg: lambda: st.builds(smp.Msg, shorts, st.binary(max_size=300)),
        smp.NMsg: lambda: st.builds(smp.NMsg, nonces, shorts),
        Err: lambda: errors,
    }
    return special[cls]() if cls in special else _bare(cls)


def ntf_messages(cls, version):
    """Commands and answers of one type, with the fields that the version carries."""
    special = {
        ntf.TNew: lambda: st.builds(ntf.TNew, device_tokens, auth_keys, x25519_keys),
        ntf.TVfy: lambda: st.builds(ntf.TVfy, shorts),
        ntf.TRpl: lambda: st.builds(ntf.TRpl, device_tokens),
        ntf.TCrn: lambda: st.builds(ntf.TCrn, st.integers(0, 65535)),
        ntf.SNew: lambda: st.builds(ntf.SNew, shorts, smp_addresses, shorts, quick_private_keys),
        ntf.IdTkn: lambda: st.builds(ntf.IdTkn, shorts, x25519_keys),
        ntf.IdSub: lambda: st.builds(ntf.IdSub, shorts),
        ntf.Tkn: lambda: st.one_of(
            st.builds(ntf.Tkn, st.sampled_from(ntf.TokenStatus)),
            st.builds(ntf.Tkn, st.just(ntf.TokenStatus.INVALID), _reasons if version >= 3 else st.none()),
        ),
        ntf.Sub: lambda: st.one_of(
            st.builds(ntf.Sub, _statuses), st.builds(ntf.Sub, st.just(ntf.SubscriptionStatus.ERR), _texts)
        ),
        Err: lambda: errors,
    }
    return special[cls]() if cls in special else _bare(cls)


def _bare(cls):
    assert cls.bare, f"a strategy for {cls.__name__} is missing"
    return st.builds(cls)


@st.composite
def mutated(draw, valid):
    """Valid bytes with a few spots replaced, cut out or filled in, and perhaps the end cut off."""
    data = bytearray(draw(valid))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def broken(valid):
    """Bytes that may or may not parse."""
    return st.binary(max_size=600) | mutated(valid)


def plain(value):
    """A value in a form that compares by content: private keys have no `==`."""
    if isinstance(value, crypto.PrivateKey):
        return crypto.encode_private(value)
    if dataclasses.is_dataclass(value):
        return type(value), [plain(getattr(value, f.name)) for f in dataclasses.fields(value)]
    return value


def bytes_inside(value, shown=()):
    """All bytes in a value, private keys included, except in fields of the names `shown`."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, crypto.PrivateKey):
        yield crypto.encode_private(value)
    elif isinstance(value, crypto.PublicKey):
        yield crypto.encode_public(value)
    elif isinstance(value, tuple):
        for item in value:
            yield from bytes_inside(item, shown)
    elif dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            if f.name not in shown:
                yield from bytes_inside(getattr(value, f.name), shown)


def hides(value, shown=()):
    """Whether `repr` and `str` of a value tell none of its bytes, in any usual form, outside of the fields `shown`."""
    text = repr(value) + str(value)
    for name in shown:
        text = text.replace(repr(getattr(value, name, None)), "")
    secrets = [b for b in bytes_inside(value, shown) if len(b) >= 8]
    return not any(form in text for b in secrets for form in (repr(b)[2:-1], b.hex(), b64url(b)))


SESSION_ID = bytes(range(32))


def sessions(schemes=("smp", "ntf")):
    """Sessions of every version of the protocols, without keys."""
    versions = [("smp", v) for v in range(6, 19)] + [("ntf", v) for v in range(1, 4)]
    return st.sampled_from([Session(s, v, SESSION_ID) for s, v in versions if s in schemes])
