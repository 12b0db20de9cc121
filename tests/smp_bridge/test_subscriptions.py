import pytest

from smp_bridge import smp
from smp_bridge.client import UnexpectedAnswerError
from smp_bridge.subscriptions import Outcome, Result, Subscription, outcome
from smp_bridge.transmission import ERR_AUTH, ERR_INTERNAL, ERR_PROHIBITED, ERR_QUOTA, ERR_SERVICE, Err

ID = b"i" * 24
SUBSCRIBED = (Outcome.SUBSCRIBED, "")


@pytest.mark.parametrize("service_id", [None, ID])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (smp.Ok(), SUBSCRIBED),
        (smp.SOk(), SUBSCRIBED),
        (smp.SOk(b"o" * 24), SUBSCRIBED),
        (ERR_AUTH, (Outcome.AUTH, "")),
        (ERR_SERVICE, (Outcome.SERVICE, "")),
        (ERR_PROHIBITED, (Outcome.ERROR, "CMD PROHIBITED")),
        (Err("BLOCKED", "reason=spam"), (Outcome.ERROR, "BLOCKED reason=spam")),
        (UnexpectedAnswerError("it does not parse"), (Outcome.ERROR, "it does not parse")),
        (smp.Pong(), (Outcome.ERROR, "unexpected answer Pong")),
        (smp.SOks(1), (Outcome.ERROR, "unexpected answer SOks")),
        (None, None),
        (ERR_INTERNAL, None),
        (ERR_QUOTA, None),
        (Err("STORE", "the disk is full"), None),
        (Err("EXPIRED"), None),
    ],
)
def test_outcome(answer: object, service_id: bytes | None, expected: tuple[Outcome, str] | None) -> None:
    assert outcome(answer, service_id) == expected


@pytest.mark.parametrize(("service_id", "expected"), [(ID, Outcome.ASSOCIATED), (None, Outcome.SUBSCRIBED)])
def test_the_own_service_has_it(service_id: bytes | None, expected: Outcome) -> None:
    assert outcome(smp.SOk(ID), service_id) == (expected, "")


def test_no_service_is_not_the_own_one() -> None:
    assert outcome(smp.SOk(None), None) == SUBSCRIBED


def test_secrets_are_not_in_reprs() -> None:
    subscription = Subscription(1, b"secret-id", b"secret-key", 2)
    assert repr(subscription) == "Subscription(ref=1, tag=2)"
    assert "secret" not in repr(Result(1, 2, Outcome.ERROR, "QUOTA"))
