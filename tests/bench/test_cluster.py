"""`bench/run cluster.py`."""

import cluster
import pytest


@pytest.mark.long
async def test_a_quick_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert await cluster._main(cluster.parse(["--quick", "--alternations", "1"])) in {0, 1}
    assert "CPU a push, Redis" in capfd.readouterr().out
