from typing import Any

import pytest
from claims import ENTRY, MESSAGES, Took, claim, comparable

from ntf_server.push.verdict import NullProvider, Verdict
from ntf_server.store.records import Claim, PushKind
from smp_bridge.ntf import Provider


@pytest.mark.parametrize("kind", PushKind)
def test_null_answers_as_if_delivered(kind: PushKind) -> None:
    claims = [claim(Provider.APNS_NULL, b"", kind, ref) for ref in range(3)]
    got: list[tuple[Claim, Any]] = []

    def on_verdict(of: Claim, verdict: Verdict) -> None:
        got.append((of, comparable(verdict)))

    NullProvider().send(claims, on_verdict)
    assert got == [(c, Took((ENTRY,) * (kind is MESSAGES))) for c in claims]
