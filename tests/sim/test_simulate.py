"""Some seeds, a replay, and that the mutants fit the code; all seeds and all mutants: `scripts/simulate`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sim import mutate
from sim.known import faults_of
from sim.mutant import Mutant
from sim.mutants import MUTANTS
from sim.scenario import Store

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 8
NODE_SEEDS = 2


def simulate(*arguments: str, hash_seed: str = "0", timeout: float = 600) -> subprocess.CompletedProcess[str]:
    # Which lines are reached is not counted in worlds: that makes each take more than twice as long.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment |= {"PYTHONPATH": str(ROOT / "tests"), "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-m", "sim", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout
    )


def check(store: Store, seeds: int, silent: int) -> None:
    """So many worlds, in which at most so many of the faults never happen."""
    done = simulate("--store", store, "--seeds", str(seeds), timeout=4 * 3600)
    assert done.returncode in {0, 1}, done.stderr
    counted = re.search(r"(\d+) seeds, (\d+) pushes, (\d+) violations", done.stdout)
    assert counted is not None, done.stdout + done.stderr
    assert (int(counted[1]), int(counted[3])) == (seeds, 0), done.stdout
    assert int(counted[2]) >= 200 * seeds, done.stdout
    fired = dict(re.findall(r"([a-z]+:\w+) (\d+)", done.stdout.partition("faults: ")[2]))
    assert fired.keys() >= faults_of(store)
    assert sum(int(n) == 0 for n in fired.values()) <= silent, done.stdout


def test_what_is_promised_holds_in_some_worlds() -> None:
    check(Store.SQLITE, SEEDS, 30)


def test_what_is_promised_holds_in_some_worlds_of_several_nodes() -> None:
    check(Store.REDIS, NODE_SEEDS, 80)


@pytest.mark.long
def test_what_is_promised_holds_in_many_worlds() -> None:
    check(Store.SQLITE, 1000, 0)


@pytest.mark.long
def test_what_is_promised_holds_in_many_worlds_of_several_nodes() -> None:
    check(Store.REDIS, 150, 0)


@pytest.mark.long
def test_all_mutants_are_found() -> None:
    done = simulate("--mutants", timeout=3 * 3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(MUTANTS)} of {len(MUTANTS)} mutants found" in done.stdout


@pytest.mark.parametrize(
    ("seed", "store"),
    [
        (3, Store.SQLITE),
        (11, Store.SQLITE),
        *(pytest.param(seed, Store.REDIS, marks=pytest.mark.long) for seed in (1, 7)),
    ],
)
def test_a_seed_gives_the_same_trace_each_time(seed: int, store: Store) -> None:
    traces = (simulate("--store", store, "--seed", str(seed), "--trace", hash_seed=h).stdout for h in ("0", "1"))
    first, second = traces
    assert re.search(r"trace [0-9a-f]{16}", first)
    assert len(first.splitlines()) > 500
    assert first == second


def test_seeds_differ() -> None:
    first, second = (simulate("--store", "sqlite", "--seed", seed).stdout.rpartition(" ")[2] for seed in ("1", "2"))
    assert first != second


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_fits_the_code_and_changes_it(mutant: Mutant) -> None:
    assert mutate.mutated(mutant) != (ROOT / mutant.file).read_text()


def test_mutants_have_names_of_their_own_and_are_enough() -> None:
    names = [m.name for m in MUTANTS]
    assert len(set(names)) == len(names) >= 20
    for finding in ("B2", "B6", "B7", "B8", "B9", "B10", "B11", "B12", "K1", "K2", "K3", "K10", "K12"):
        assert any(name.split()[0] == finding for name in names), finding


def test_a_mutant_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(mutate.MisfitError):
        mutate.mutated(Mutant("x", "y", "ntf_server/supervisor.py", "this is not there", ""))


def test_a_mutant_is_found() -> None:
    done = simulate("--mutants", "--only", "B11", "--limit", "100", "--jobs", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 mutants found" in done.stdout


def test_a_pause_that_ended_on_a_slow_disk_held_up_an_origin_for_good() -> None:
    """Its end came while the store was asked what is due, and nobody looked again."""
    assert simulate("--store", "sqlite", "--seed", "149").returncode == 0


@pytest.mark.parametrize("seed", ["449", "917"])
def test_a_provider_token_that_came_early_once_was_refused_for_good(seed: str) -> None:
    """By the mock: Apple had seen the one before late, since it was refused, or out of reach, for other reasons."""
    assert simulate("--store", "sqlite", "--seed", seed).returncode == 0


@pytest.mark.long
def test_twelve_strangers_whose_servers_had_proved_themselves_held_all_places() -> None:
    """Each held an eighth of them, with servers that confirmed once and then hung."""
    assert simulate("--store", "sqlite", "--seed", "40").returncode == 0


def test_a_clock_that_was_set_far_ahead_while_the_relay_was_stopped_expired_what_waited() -> None:
    """The relay had seen nothing of that, and took it for a year."""
    assert simulate("--store", "sqlite", "--seed", "450").returncode == 0


@pytest.mark.long
def test_a_renewal_of_leases_that_was_given_up_failed_and_nobody_heard_of_it() -> None:
    assert simulate("--store", "redis", "--seed", "2").returncode == 0


@pytest.mark.long
def test_what_only_memory_knew_to_be_due_waited_on_when_its_shard_could_be_had_again() -> None:
    assert simulate("--store", "redis", "--seed", "6").returncode == 0


@pytest.mark.long
def test_what_a_deleted_device_had_was_expected_to_be_taken_over() -> None:
    """By the simulator; and a loss that it hid from a server which only counts was no excuse (seed 206, once)."""
    assert simulate("--store", "redis", "--seed", "220").returncode == 0


def test_whose_store_it_is_says_the_seed() -> None:
    assert [Store.ANY.of(seed) for seed in range(4)] == [Store.SQLITE, Store.REDIS, Store.SQLITE, Store.SQLITE]
    assert {Store.REDIS.of(0), Store.SQLITE.of(1)} == {Store.REDIS, Store.SQLITE}
