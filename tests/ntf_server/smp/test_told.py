"""What operators are told of SMP servers: the first host, never a key or a queue."""

import inspect
import logging
from typing import Any

from ntf_server.observe.events import FIELD, FIELDS, Event
from ntf_server.smp import told
from smp_bridge.address import ServerAddress

SERVER = ServerAddress("smp", ("smp.example.org", "o" * 56 + ".onion"), "", bytes(range(32)))
VALUES: dict[str, Any] = {"server": SERVER, "service": True, "count": 3}


def test_each_says_whom_it_is_about(logged: list[logging.LogRecord]) -> None:
    functions = [
        f
        for _, f in inspect.getmembers(told, inspect.isfunction)
        if f.__name__[0] != "_" and f.__module__ == told.__name__
    ]
    for function in functions:
        function(**{name: VALUES.get(name, 5) for name in inspect.signature(function).parameters})
    assert len(logged) == len(functions) > 10
    for record in logged:
        event, fields = getattr(record, FIELD), getattr(record, FIELDS)
        assert event in Event and set(fields) == set(event.fields)
        if "server" in fields:
            assert fields["server"] == "smp.example.org" and "smp.example.org" in record.getMessage()
        assert "onion" not in record.getMessage()


def test_a_service_that_is_not_known_has_none(logged: list[logging.LogRecord]) -> None:
    told.service_lost(SERVER, None, 7)
    told.service_lost(SERVER, 2, 7)
    expected = "SMP server smp.example.org has %s of our service's 7 queues; subscribing one by one"
    assert [record.getMessage() for record in logged] == [expected % "none", expected % 2]
