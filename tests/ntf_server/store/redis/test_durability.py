"""WAIT and WAITAOF, and their answers; with real replicas: test_database.py."""

import pytest
from redis.exceptions import ResponseError

from ntf_server.store.redis.call import packed
from ntf_server.store.redis.durability import Durability
from ntf_server.store.redis.url import Endpoint

AT = Endpoint("r", 1)


@pytest.mark.parametrize(
    ("durability", "commands"),
    [
        (Durability(), []),
        (Durability(replicas=2, timeout=0.5), [(b"WAIT", 2, 500)]),
        (Durability(disks=1), [(b"WAITAOF", 1, 0, 1000)]),
        (Durability(disks=3), [(b"WAITAOF", 1, 2, 1000)]),
        (Durability(replicas=1, disks=1, timeout=0.0), [(b"WAIT", 1, 1), (b"WAITAOF", 1, 0, 1)]),
    ],
)
def test_what_goes_behind_a_pipeline(durability: Durability, commands: list[tuple[bytes | int, ...]]) -> None:
    assert durability.commands() == [packed(words) for words in commands]


@pytest.mark.parametrize(
    ("durability", "answers", "missing"),
    [
        (Durability(), [], None),
        (Durability(replicas=2), [2], None),
        (Durability(replicas=2), [3], None),
        (Durability(replicas=2), [1], "only 1 of 2 replicas have it after 1 s"),
        (Durability(disks=1), [[1, 0]], None),
        (Durability(disks=1), [[0, 2]], "only 2 of 1 servers"),  # not the primary's own
        (Durability(disks=2), [[1, 1]], None),
        (Durability(disks=2), [[1, 0]], "only 1 of 2 servers have it on disk"),
        (Durability(replicas=1, disks=1), [1, [1, 0]], None),
        (Durability(replicas=1, disks=1), [0, [1, 0]], "only 0 of 1 replicas"),
        (Durability(replicas=1, disks=1), [1, [0, 0]], "only 0 of 1 servers"),
        (Durability(replicas=1, disks=1), [ResponseError("no"), [0, 0]], "no"),
    ],
)
def test_what_is_missing(durability: Durability, answers: list[object], missing: str | None) -> None:
    told = durability.shortfall(answers, AT)
    assert (told is None) == (missing is None)
    assert missing is None or missing in str(told)
