"""What refusals mean: each that a provider's judge knows by name has a meaning and a cure."""

import pytest

from ntf_server.push import cures
from ntf_server.push.apns import judge as apns
from ntf_server.push.fcm import judge as fcm


def test_every_refusal_that_is_the_operator_s_or_the_token_s_has_a_cure() -> None:
    known = {reason for _, reason in apns._DEAD} | {r for r, scope in apns._OURS.items() if scope == "provider"}
    assert known | {apns.EXPIRED} <= cures.APNS.keys()
    assert fcm._DEAD.keys() <= cures.FCM.keys()


@pytest.mark.parametrize("words", [cures.APNS, cures.FCM, cures.OAUTH, cures.WEB_PUSH])
def test_each_is_a_sentence_and_another(words: dict[str, cures.Meaning]) -> None:
    for meaning, cure in words.values():
        assert meaning != cure and meaning and cure and not (meaning + cure).endswith((".", " "))


@pytest.mark.parametrize(
    ("status", "word", "meaning"),
    [
        (400, "BadDeviceToken", "Apple knows no such device token at this host"),
        (400, "SomethingNew", "the provider says no more"),
        (403, "", "the provider does not take our credentials"),
        (404, "", "nothing is at this address"),
        (429, "", "too many pushes came"),
        (302, "", "it leads elsewhere, where pushes do not follow"),
        (503, "Shutdown", "the provider is in trouble"),
    ],
)
def test_a_word_before_a_status(status: int, word: str, meaning: str) -> None:
    assert cures.explain(cures.APNS, status, word)[0] == meaning
