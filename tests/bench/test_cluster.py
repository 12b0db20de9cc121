"""`bench/run cluster.py`."""

import cluster
import pytest


@pytest.mark.long
async def test_a_quick_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert await cluster._main(cluster.parse(["--quick", "--alternations", "1"])) in {0, 1}
    assert "CPU a push, Redis" in capfd.readouterr().out


@pytest.mark.long
async def test_a_quick_run_of_take_overs(capfd: pytest.CaptureFixture[str]) -> None:
    """Relays that die, are stopped and drained: each time another has the queues, in time."""
    assert await cluster._main(cluster.parse(["--quick", "--take-over"])) == 0
    assert "drain to push p95" in capfd.readouterr().out
