"""Contents of claims, as scripts give them, for who pushes."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from ntf_server.store.contract import StoreError
from ntf_server.store.memory import Cooling, Held, provider_of
from ntf_server.store.records import Claim, Lane, PushKind
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.quarantine import drop_notifications, set_aside
from ntf_server.store.redis.rows import DamagedError, entry, registration
from ntf_server.store.sealing import CODE, DEVICE_TOKEN, SECRET, SealingError
from smp_bridge.ntf import DeviceToken

_NOTHING: Final = -1


def lane_of_content(content: Sequence[Any]) -> bytes:
    """Of what `content` of the prelude gives, if it is of a push."""
    return bytes(content[7][0])


def count_expired(node: Node, content: Sequence[Any]) -> None:
    """What was over its time to live."""
    node.state.effects.count_expired(*content[4:7])


async def claim(node: Node, contents: Iterable[Sequence[Any]], mark: int) -> list[Claim]:
    """Claims of tokens that memory has from now on, handed out by the call of this number.

    What cannot be opened is set aside; of a notification that cannot be read, that alone.
    """
    s = node.state
    claims: list[Claim] = []
    damaged: list[bytes] = []
    cut: list[tuple[bytes, bytes]] = []
    for content in contents:
        count_expired(node, content)
        token, kind, since, more = content[:4]
        if kind == _NOTHING:
            s.forget(token)
            continue
        lane = lane_of_content(content)
        if token in s.cooling or token in node.ending:  # its push just ended: what comes together goes out together
            rest(node, token, lane)
            continue
        try:
            made = _claim(node, token, PushKind(kind), since, content)
        except (SealingError, DamagedError) as e:
            if isinstance(e, DamagedError) and e.what == "notifications":
                cut.append((token, e.key))
            else:
                damaged.append(token)
            continue
        claims.append(made)
        s.claims.put(token, Held(made, lane, bool(more), mark=mark))
    if damaged or cut:
        try:
            await set_aside(node, damaged)
            await drop_notifications(node, cut)
        except StoreError:
            node.strand()  # they are seen again; who asked gets those that are claimed
    return claims


def rest(node: Node, token: bytes, lane: bytes) -> None:
    """Memory has it, and it goes out when the time between two pushes is over."""
    s = node.state
    cooling = s.cooling.get(token)
    s.cool(token, Cooling(s.steady if cooling is None else cooling.since, lane, again=True))


def _claim(node: Node, token: bytes, kind: PushKind, since: int, content: Sequence[Any]) -> Claim:
    s, shift = node.state, node.shift
    lane, number, registered_at, packed, code, tries, push_id, delivered = content[7]
    r = registration(packed)
    open_ = s.sealer.open
    entries = sorted(
        (entry(content[i], content[i + 1], node.addresses, shift) for i in range(9, len(content), 2)),
        key=lambda e: e.seq,
    )
    if kind is PushKind.MESSAGES:
        since = next(e.received_at for e in entries if not e.sent)
    else:
        since -= shift
    provider = provider_of(lane)
    return Claim(
        token,
        int(number),
        Lane(provider, lane[2:]),
        DeviceToken(provider, open_(r.device_token, DEVICE_TOKEN + token)),
        open_(r.secret, SECRET + token),
        kind,
        since,
        push_id or s.random(16),
        open_(code, CODE + token) if kind is PushKind.VERIFICATION else b"",
        tuple(entries),
        int(tries),
        int(registered_at) - shift,
        bool(delivered),
        r.app,
        r.vapid_key,
    )
