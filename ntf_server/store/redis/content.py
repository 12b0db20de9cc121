"""Contents of claims, as scripts give them, for who pushes."""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Self

from ntf_server.store.contract import StoreError
from ntf_server.store.memory import Cooling, Held, provider_of
from ntf_server.store.records import Claim, Lane, PushKind
from ntf_server.store.redis.node import Node
from ntf_server.store.redis.quarantine import drop_notifications, set_aside
from ntf_server.store.redis.rows import DamagedError, entry, registration
from ntf_server.store.sealing import CODE, DEVICE_TOKEN, SECRET, SealingError
from smp_bridge.ntf import DeviceToken

_NOTHING: Final = -1
_HEAD: Final = struct.Struct(">idBBBIBI")  # CONTENT of the prelude
_FIRST: Final = 9  # where in an answer queues and values of notifications begin


class Content(NamedTuple):
    """What `content` of the prelude gives of a token: `lane` and all behind it only if it is of a push.

    `expired`: codes, checks and notifications; `queues`: how many it has, told if there is a crowd.
    """

    token: bytes
    kind: int
    since: int
    more: bool
    expired: tuple[int, int, int]
    delivered: bool
    queues: int
    lane: bytes
    answer: Sequence[Any]

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Self:
        """As the script answers."""
        kind, since, more, codes, checks, late, delivered, queues = _HEAD.unpack(answer[0])
        lane = b"" if kind == _NOTHING else answer[2]
        return cls(answer[1], kind, int(since), more == 1, (codes, checks, late), delivered == 1, queues, lane, answer)

    @property
    def is_nothing(self) -> bool:
        """There is no push, and memory is to have the token no more."""
        return self.kind == _NOTHING


def count_expired(node: Node, content: Content) -> None:
    """What was over its time to live."""
    node.state.effects.count_expired(*content.expired)


async def claim(node: Node, contents: Iterable[Content], mark: int) -> list[Claim]:
    """Claims of tokens that memory has from now on, handed out by the call of this number.

    What cannot be opened is set aside; of a notification that cannot be read, that alone.
    """
    s = node.state
    claims: list[Claim] = []
    damaged: list[bytes] = []
    cut: list[tuple[bytes, bytes]] = []
    for content in contents:
        count_expired(node, content)
        token, lane = content.token, content.lane
        if content.is_nothing:
            s.forget(token)
            continue
        if token in s.cooling or token in node.ending:  # its push just ended: what comes together goes out together
            rest(node, token, lane)
            continue
        try:
            made = _claim(node, content)
        except (SealingError, DamagedError) as e:
            if isinstance(e, DamagedError) and e.what == "notifications":
                cut.append((token, e.key))
            else:
                damaged.append(token)
            continue
        claims.append(made)
        s.claims.put(token, Held(made, lane, content.more, mark=mark))
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


def _claim(node: Node, content: Content) -> Claim:
    s, shift, answer = node.state, node.shift, content.answer
    _, token, lane, number, registered_at, packed, code, tries, push_id = answer[:_FIRST]
    kind, since = PushKind(content.kind), content.since
    r = registration(packed)
    open_ = s.sealer.open
    entries = sorted(
        (entry(answer[i], answer[i + 1], node.addresses, shift) for i in range(_FIRST, len(answer), 2)),
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
        content.delivered,
        r.app,
        r.vapid_key,
    )
