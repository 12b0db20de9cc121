"""What errors of the contract carry; what engines do with it is the conformance suite's."""

import pytest

from ntf_server.store.contract import PartlyUnavailableError, StoreUnavailableError


def test_who_does_not_look_into_what_is_left_tries_all_again() -> None:
    with pytest.raises(StoreUnavailableError, match="shards are away") as caught:
        raise PartlyUnavailableError("shards are away", 2, ["a", "b"])
    assert isinstance(caught.value, PartlyUnavailableError)
    assert (caught.value.result, caught.value.left, caught.value.kind) == (2, ["a", "b"], "unavailable")
