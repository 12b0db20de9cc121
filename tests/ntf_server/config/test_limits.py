"""`[limits]`: text to budgets."""

import ipaddress

import pytest

from ntf_server.admission.budgets import Rate
from ntf_server.config.limits import LimitsError, parse_limits
from ntf_server.config.settings import Limits


def test_the_defaults() -> None:
    budgets = parse_limits(Limits())
    assert budgets is not None
    assert (budgets.shared, budgets.sessions_per_address) == ((), 1500)
    assert budgets.registrations_per_address == Rate.parse("10 + 10/s and 300 + 5/s")


def test_switched_off_there_are_none_but_what_is_wrong_is_told() -> None:
    assert parse_limits(Limits(enabled=False)) is None
    with pytest.raises(LimitsError, match=r"^registrations: 0 would"):
        parse_limits(Limits(enabled=False, registrations="0 + 1/s"))


def test_shared_addresses_and_networks() -> None:
    budgets = parse_limits(Limits(shared=("127.0.0.1", "2001:db8::/32")))
    assert budgets is not None
    assert budgets.shared == (ipaddress.ip_network("127.0.0.1/32"), ipaddress.ip_network("2001:db8::/32"))
    with pytest.raises(LimitsError, match=r"^shared: 'localhost' does not appear"):
        parse_limits(Limits(shared=("localhost",)))
