"""Every target over what is kept; a short fuzz of each; and that none is missing. All of it: `scripts/fuzz`."""

import ast
import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from fuzz import __main__ as command
from fuzz import corpus, findings, life
from fuzz.mutate import Mutator
from fuzz.target import Target
from fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
PACKAGES = ("smp_bridge", "ntf_server", "ntf_client")
LONG = {"listener": 1000, "client": 1000, "door": 1000, "hostile handshake": 1000, "operator command": 1000}


# Libraries may dislike what they are given, and take it.
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


def test_what_is_kept_finds_nothing(target: Target) -> None:
    kept = corpus.kept(target)
    assert kept
    assert sum(map(len, kept)) <= corpus.MAX_KEPT
    taken = [target.run(data) for data in kept]
    assert any(taken)
    assert not all(taken) or not target.refuses


@pytest.mark.long
def test_a_short_fuzz_finds_nothing(target: Target) -> None:
    mutator = Mutator(Random(1), [*corpus.kept(target), *target.seeds()], target.words, target.max_size)
    for _ in range(LONG.get(target.name, 20_000)):
        data = mutator.next()
        try:
            target.run(data)
        except Exception as e:
            pytest.fail(f"{e!r} of {data!r}")


# --- none is missing

# What takes bytes or text that come from outside is called like this; what it is called in a server that only tests
# use, and what reads our own database, is of no interest.
_NAMES = ("parse", "from_", "load", "judge", "open", "un_", "receive", "unpad", "unbox", "to_quick")
_NO_TARGETS = {
    "ntf_server.config.files.parse_store": "an operator's words",
    "ntf_server.config.page.parse_page": "an operator's words",
    "ntf_server.admin.ids.parse_id": "an operator's words",
    "smp_bridge.transmission.parse_message": "what the four targets of commands and answers begin with",
    "smp_bridge.smp.NtfCreds.parse": "part of NEW and NKEY",
    "smp_bridge.smp.ServerNtfCreds.parse": "part of IDS and NID",
    "smp_bridge.network.open_socket": "opens a socket",
    "smp_bridge.subscriptions.Subscriptions.load": "our own database",
    "smp_bridge.transport.BlockConnection.receive": "part of all sessions",
    "ntf_server.cli.main.parser_of": "makes the parser of an operator's arguments",
    "ntf_server.config.files.load_vapid_keys": "jose.load_key",
    "ntf_server.config.files.load": "reads files that have targets of their own",
    "ntf_server.config.files.load_database_path": "load_settings",
    "ntf_server.config.files.load_admin_socket": "load_settings",
    "ntf_server.config.files.load_store": "load_settings",
    "ntf_server.config.files.load_master_key": "MasterKey",
    "ntf_server.config.identity_files.load_credentials": "Credentials.load",
    "ntf_server.store.sealing.MasterKey.from_file": "from_bytes",
    "ntf_server.store.sealing.MasterKey.from_command": "from_bytes",
    "ntf_server.store.sealing.Sealer.open": "our own database",
    "ntf_server.store.contract.Sessions.load": "our own database",
    "ntf_server.store.open.open_store": "our own database",
    "ntf_server.store.open.opens": "our own database, and MasterKey",
    "ntf_server.store.reference.postgres.PostgresSource.open": "opens a connection; libpq reads the URL",
    "ntf_server.store.reference.store_log.StoreLogSource.open": "log_lines.parse_line",
    "ntf_server.admission.sessions.Connections.open": "takes no bytes",
    "ntf_server.admission.gate.Admission.open": "takes no bytes",
    "ntf_server.smp.subscriber.Subscriber.load": "our own database",
    "ntf_server.push.links.Link.opens": "takes no bytes",
    "ntf_client.arguments.parse": "who gives arguments runs the program",
    "ntf_client.device.Device.load": "state.load",
    "ntf_client.device.Device.open_push": "push.open_push",
    "ntf_client.device.Device.open_notification": "NotificationInfo.open",
}


def _functions(path: Path) -> Iterator[str]:
    """Public ones of a module, those of its public classes as `Class.name`."""
    for node in ast.parse(path.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        for f in inside:
            if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) and not f.name.startswith("_"):
                yield f"{node.name}.{f.name}" if f is not node else f.name


def _parsers() -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if ".testing" in module or ".store.sqlite" in module or ".store.redis" in module:  # our own stores
                continue
            for name in _functions(path):
                last = name.rpartition(".")[2]
                if last.startswith(_NAMES) and last != "parse_params":
                    yield f"{module}.{name}"


def test_all_that_parses_has_a_target() -> None:
    tried = {name for target in TARGETS.values() for name in target.of}
    parsers = set(_parsers())
    assert len(parsers) > 40
    assert sorted(parsers - tried - _NO_TARGETS.keys()) == []
    assert sorted(_NO_TARGETS.keys() & tried) == []
    assert sorted(_NO_TARGETS.keys() - parsers) == []


def test_what_targets_say_that_they_try_exists() -> None:
    for target in TARGETS.values():
        for name in target.of:
            module = name
            while not (ROOT / (module.replace(".", "/") + ".py")).exists():
                module = module.rpartition(".")[0]
                assert module, name
            text = (ROOT / (module.replace(".", "/") + ".py")).read_text()
            assert all(part in text for part in name.removeprefix(module).split(".")), name


# --- that a fault is found


def _fails(data: bytes) -> bytes:
    if b"BUG" in data:
        raise ZeroDivisionError
    if b"REFUSED" in data:
        raise ValueError
    return data


FAULTY = Target("faulty", _fails, lambda: [b"BAG"], [], (ValueError,), words=[b"BUG"])


def test_a_fault_is_no_refusal() -> None:
    assert FAULTY.run(b"good")
    assert not FAULTY.run(b"REFUSED")
    with pytest.raises(ZeroDivisionError):
        FAULTY.run(b"BUG")


def _raises(*_: object) -> None:
    raise ZeroDivisionError


async def _sleeps(*_: object) -> None:
    await asyncio.sleep(1e6)


@pytest.mark.parametrize(
    ("of", "name", "fault", "found"),
    [
        ("listener", "ntf_server.commands.Commands._on_token", _raises, "a client's session failed"),
        ("listener", "ntf_server.commands.Commands._on_token", _sleeps, "TimeoutError"),
        ("listener", "ntf_server.listener.encode_blocks", lambda *_: [], "TimeoutError"),
        ("listener", "ntf_server.admission.gate.Admission.closed", lambda *_: None, "AssertionError"),
        ("client", "smp_bridge.client.parse_block", _raises, "handling events failed"),
        ("client", "smp_bridge.client.Client._forget", lambda *_: None, "AssertionError"),
        ("client", "smp_bridge.client.Client._give_up", lambda *_: None, "AssertionError"),
        ("notifications", "fuzz.targets.wire.parse_notifications", lambda *_: None, "AssertionError"),
        ("ntf command", "smp_bridge.ntf.TVfy.params", lambda *_: b"\0", "AssertionError"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # what a fault leaves behind
def test_a_fault_of_ours_is_found(
    monkeypatch: pytest.MonkeyPatch, of: str, name: str, fault: Callable[..., object], found: str
) -> None:
    seeds = TARGETS[of].seeds()[:40]
    monkeypatch.setattr(name, fault)
    errors = []
    for data in seeds:
        try:
            TARGETS[of].run(data)
        except Exception as e:
            errors.append(f"{type(e).__name__}: {e}")
    assert any(found in error for error in errors), errors[:3]


def test_inputs_are_found_that_fail_and_the_same_each_time() -> None:
    one, other = (Mutator(Random(3), [b"BAG"], [b"BUG"], 16) for _ in range(2))
    made = [one.next() for _ in range(1000)]
    assert made == [other.next() for _ in range(1000)]
    assert any(b"BUG" in data for data in made)
    assert max(map(len, made)) == 16


def test_a_finding_is_kept_once_with_a_command_that_repeats_it(tmp_path: Path) -> None:
    found = findings.Findings(tmp_path)
    for data in (b"BUG 1", b"BUG 2"):
        try:
            FAULTY.run(data)
        except ZeroDivisionError as e:
            found.crash(FAULTY, data, e)
    [finding] = findings.read(tmp_path)
    assert finding.kind == "crash"
    assert finding.what.startswith("ZeroDivisionError")
    assert finding.path.read_bytes() == b"BUG 1"
    assert f"scripts/fuzz 'faulty' --input {finding.path}" in finding.path.with_suffix(".txt").read_text()


def test_what_is_kept_is_little(tmp_path: Path) -> None:
    target = TARGETS["rate"]
    best = corpus.keep(target, [*target.seeds(), b"300 + 5/s", b"300 + 6/s", b"x" * 30, b"y"])
    assert 2 <= len(best) <= 4
    corpus.write(tmp_path, best)
    assert sorted(corpus.found(tmp_path)) == sorted(best)


@pytest.mark.parametrize("fault", [False, True])
def test_a_run_goes_on_where_the_one_before_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, fault: bool
) -> None:
    arguments = ["rate", "--blind", "--state", str(tmp_path)]
    assert command.main([*arguments, "--inputs", "2500"]) == 0
    assert "| rate | 2,500 |" in capsys.readouterr().out
    if fault:
        findings.Findings(tmp_path / "rate" / "findings").add("stall", "rate", b"1", "rate took 9 s")
    of_all = sum(target.share for target in TARGETS.values()) / TARGETS["rate"].share
    assert command.main([*arguments, "--up-to", str(int(3000.5 * of_all))]) == fault
    out = capsys.readouterr().out
    assert "| rate | 3,000 |" in out
    assert ("stall: rate took 9 s" in out) == fault
    shutil.rmtree(tmp_path)


def test_time_does_not_grow_old() -> None:
    for _ in range(3):
        life.run(asyncio.sleep(2.0**21))
    assert life.loop_time() < 2.0**22


def test_one_input_once_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"1 + 1/s")
    assert command.main(["rate", "--input", str(path)]) == 0
    assert "taken" in capsys.readouterr().out
