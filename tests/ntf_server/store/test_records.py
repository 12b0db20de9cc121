import pytest
from claims import claim

from ntf_server.store.records import Claim, Ended, Entry, NewToken, Outcome
from smp_bridge.address import ServerAddress
from smp_bridge.ntf import DeviceToken, Provider

SECRET = b"secret bytes"
ENTRY = Entry(1, 2, False, ServerAddress("smp", ("h",), "", bytes(32)), SECRET, 3, SECRET, SECRET)
CLAIM = claim(Provider.APNS, SECRET, entries=(ENTRY,))


@pytest.mark.parametrize(
    "record",
    [
        NewToken(SECRET, DeviceToken(Provider.APNS, SECRET), SECRET, SECRET, SECRET, SECRET, SECRET),
        ENTRY,
        CLAIM,
        Outcome(CLAIM, Ended.DELIVERED, held=(ENTRY,)),
    ],
)
def test_a_repr_shows_no_bytes(record: NewToken | Entry | Claim | Outcome) -> None:
    shown = repr(record)
    assert shown.startswith(type(record).__name__ + "(")
    assert "secret" not in shown.replace("secret=", "")


def test_a_repr_tells_the_rest() -> None:
    assert repr(Outcome(CLAIM, Ended.AGAIN, "429", after=2.5)).endswith("reason='429', dead=None, after=2.5, held=())")


def test_a_claim_is_itself_only() -> None:
    same = claim(Provider.APNS, SECRET, entries=(ENTRY,))
    assert same != CLAIM
    assert len({CLAIM, same, CLAIM}) == 2
