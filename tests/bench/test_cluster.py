"""`bench/run cluster.py`."""

import cluster
import pytest


@pytest.mark.long
async def test_a_quick_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert await cluster._main(cluster.parse(["--quick", "--alternations", "1", "pushes", "nodes"])) in {0, 1}
    told = capfd.readouterr().out
    assert "CPU a push, Redis" in told
    assert "3 relays on one Redis" in told


@pytest.mark.long
async def test_a_quick_run_of_take_overs(capfd: pytest.CaptureFixture[str]) -> None:
    """Relays that die, are stopped and drained: each time another has the queues, in time."""
    assert await cluster._main(cluster.parse(["--quick", "take-over"])) == 0
    assert "drain to push p95" in capfd.readouterr().out


def test_a_part_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cluster.parse(["pushes", "nothing"])
    assert "no part is named nothing" in capsys.readouterr().err
