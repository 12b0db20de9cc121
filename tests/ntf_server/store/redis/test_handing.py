"""What calls have handed out, and memory may not have."""

from ntf_server.store.redis.handing import Handing


def test_each_call_has_a_number_of_its_own() -> None:
    handing = Handing()
    assert [handing.next_call() for _ in range(3)] == [1, 2, 3]


def test_what_is_under_way_is_not_settled() -> None:
    handing = Handing()
    handing.next_call()
    with handing.under_way():
        handing.next_call()
        with handing.under_way():
            handing.next_call()
            assert handing.settled == 1 and not handing.is_idle
        assert handing.settled == 1
    assert handing.settled == 3 and handing.is_idle


def test_a_shard_is_stranded_once_all_has_ended_that_was_under_way() -> None:
    handing = Handing()
    with handing.under_way():
        handing.next_call()
        handing.strand([1, 2])
        assert handing.stranded == set()
    assert handing.stranded == {1, 2}
    handing.recovered(1, handing.settled)
    assert handing.stranded == {2}


def test_a_recovery_counts_for_calls_before_it() -> None:
    """What was handed out while it was made, and got lost too, is to be recovered once more."""
    handing = Handing()
    handing.next_call()
    handing.strand([1])
    settled = handing.settled
    handing.next_call()
    handing.strand([1])
    handing.recovered(1, settled)
    handing.recovered(2, settled)
    assert handing.stranded == {1}
    handing.recovered(1, handing.settled)
    assert handing.stranded == set()
