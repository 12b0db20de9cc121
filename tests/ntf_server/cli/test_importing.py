"""`ntf-server import`, of a store log; of a database where there is a PostgreSQL."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import in_process, one_line
from postgres_server import PASSWORD, QUOTED, WANTED, Postgres
from redis_servers import Server
from reference_world import TODAY, V6_5, V7_0, Queue, Registration, fill, last_log, many, store_log

from ntf_server.store import migrate
from ntf_server.store.open import open_store
from ntf_server.store.redis.url import parse_redis_url
from ntf_server.store.sealing import MasterKey
from smp_bridge.encoding import b64url

Capture = pytest.CaptureFixture[str]
COUNTS = "2 servers, 10 registrations, 9 subscriptions, 6 notifications"


@pytest.fixture
def known() -> list[Registration]:
    return many()


@pytest.fixture
def log(tmp_path: Path, known: list[Registration]) -> Path:
    path = tmp_path / "ntf-server-store.log"
    path.write_bytes(store_log(known))
    path.with_name("last.log").write_bytes(last_log(known))
    return path


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def found(made: Path, known: list[Registration], url: str = "sqlite:///ntf-server.db") -> dict[bytes, Any]:
    """Statuses and periods of registrations, and statuses of subscriptions."""

    async def look() -> dict[bytes, Any]:
        where = parse_redis_url(url) if url.startswith("redis") else url
        store = await open_store(where, directory=made, master_key=MasterKey.from_file(made / "master.key"))
        out: dict[bytes, Any] = {}
        for r in known:
            token = await store.find_token(r.token_id)
            out[r.token_id] = token and (token.status, token.period)
            for q in r.queues:
                pair = await store.find_subscription(q.subscription_id)
                out[q.subscription_id] = pair and pair[1].status
        await store.close()
        return out

    return asyncio.run(look())


def test_a_store_log(made: Path, log: Path, known: list[Registration], capsys: Capture) -> None:
    arguments = ["import", "--path", made, "--from-store-log", log, log.with_name("last.log")]
    code, out, err = in_process(capsys, *arguments, "--dry-run")
    assert code == 0
    assert out.splitlines() == [
        f"Nothing is written. The store would be {made / 'ntf-server.db'}, which will be created.",
        f"Would import: {COUNTS}.",
    ]
    assert not (made / "ntf-server.db").exists()
    if os.geteuid() == 0:  # what root makes is the server's
        os.chown(made, 65534, 65534)
    code, out, err = in_process(capsys, *arguments)
    assert code == 0, err
    assert out.startswith(f"Imported, read back and found the same: {COUNTS}.\nNever start the reference again")
    assert err.splitlines()[-1] == "compared: 10 of 10 registrations"
    assert {f.stat().st_uid for f in made.glob("ntf-server.db*")} == {made.stat().st_uid}
    there = found(made, known)
    for r in known:
        status = "REGISTERED" if r.status == "NEW" else r.status.partition(",")[0]
        assert there[r.token_id] == (status, r.period)
        for q in r.queues:
            assert there[q.subscription_id] == ("PENDING" if q.status == "INACTIVE" else q.status.partition(" ")[0])
    everything = b"".join(f.read_bytes() for f in made.glob("ntf-server.db*"))
    for r in known:
        assert r.device_token.encode() not in everything
        assert r.secret not in everything
        assert r.device_token not in out + err
    code, out, err = in_process(capsys, *arguments)  # once more
    assert (code, out) == (2, "")
    assert f"{made / 'ntf-server.db'}: has registrations or servers already, a whole store" in err


def test_into_a_redis(made: Path, log: Path, known: list[Registration], tmp_path: Path, capsys: Capture) -> None:
    with Server(tmp_path) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NTF_SERVER__STORE__URL", server.url)
        arguments = ["import", "--path", made, "--from-store-log", log]
        code, out, err = in_process(capsys, *arguments)
        assert code == 0, err
        assert "10 registrations, 9 subscriptions, 0 notifications" in out
        there = found(made, known, server.url)
        assert there[known[3].token_id] == ("ACTIVE", 1440)
        assert len([v for v in there.values() if v]) == 19
        code, _, err = in_process(capsys, *arguments)
        assert (code, "registrations or servers already" in err) == (2, True)


def test_what_could_not_be_read_is_told_and_the_exit_code_says_so(made: Path, log: Path, capsys: Capture) -> None:
    lost, skipped = Registration(queues=[Queue(), Queue()]), Registration()
    lines = store_log([skipped, lost]).replace(f"token=apns_test {lost.device_token}".encode(), b"token=fcm abcd")
    log.write_bytes(log.read_bytes() + lines + b"TDELETE AA")
    arguments = ["import", "--path", made, "--from-store-log", log, "--skip-tokens", b64url(skipped.token_id) + ",AAAA"]
    code, out, err = in_process(capsys, *arguments, "--dry-run")
    assert code == 1
    assert err.splitlines()[-1] == "ntf-server: --skip-tokens: 1 of these ids are of no registration there"
    code, out, _ = in_process(capsys, *arguments)
    assert code == 1
    ids = " ".join(b64url(q.subscription_id) for q in lost.queues)
    assert out.splitlines()[1:-1] == [
        "Left out:",
        f"  1 lines: the last one is cut off ({log.name}:24)",
        f"  1 registrations: --skip-tokens names them ({b64url(skipped.token_id)})",
        f"  1 registrations: the push provider is unknown ({b64url(lost.token_id)})",
        f"  2 subscriptions: their registration is left out ({ids.partition(' ')[0]}, …)",
    ]
    (made / "ntf-server.db").unlink()
    code, again, _ = in_process(capsys, *arguments, "--accept-left-out")
    assert (code, again) == (0, out)
    code, facts, _ = in_process(capsys, *arguments, "--dry-run", "--json")
    told = json.loads(facts)
    assert (code, told["exit_code"], told["dry_run"]) == (1, 1, True)
    assert told["counts"] == {"servers": 2, "registrations": 10, "subscriptions": 9, "notifications": 0}
    assert [(one["kind"], one["count"], one["asked"]) for one in told["left_out"]] == [
        ("lines", 1, False),
        ("registrations", 1, True),
        ("registrations", 1, False),
        ("subscriptions", 2, False),
    ]


class _Killed(BaseException):
    pass


def test_it_goes_on_after_it_was_ended(
    made: Path, log: Path, known: list[Registration], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["import", "--path", made, "--from-store-log", log]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "_AT_ONCE", 3)
        times = iter(range(100))

        def tell(_self: Any, what: str, done: int, _total: int, _unit: str = "") -> None:
            if what == "copied" and done >= 3 and next(times) == 1:
                raise KeyboardInterrupt

        patch.setattr("ntf_server.cli.migrate.Progress.__call__", tell)
        assert in_process(capsys, *arguments)[0] == 130
    code, _, err = in_process(capsys, "check", "--path", made)
    assert (code, "is being filled by `ntf-server migrate` or `ntf-server import`" in one_line(err)) == (2, True)
    other = log.with_name("other.log")
    other.write_bytes(store_log([Registration()]))
    code, _, err = in_process(capsys, "import", "--path", made, "--from-store-log", other)
    assert (code, "is being filled from another store" in err) == (2, True)
    code, out, err = in_process(capsys, *arguments)
    assert code == 0, err
    assert "10 registrations, 9 subscriptions" in out
    assert found(made, known)[known[0].token_id] == ("REGISTERED", 20)


def test_wrong_arguments(
    made: Path, log: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (made / "old.ini").write_text("[STORE_LOG]\nenable = on\n[TRANSPORT]\nport = 443\n")
    monkeypatch.setenv("PGHOST", str(tmp_path))  # where nobody listens
    for arguments, words in (
        ([], "give what to import: --from postgresql://…, --from-store-log FILE, or --config"),
        (["--from-store-log", tmp_path / "none.log"], "none.log: No such file or directory; give the reference's"),
        (["--from-store-log", made / "ca.crt"], "ca.crt: holds no line of the reference's store log"),
        (["--config", tmp_path / "none.ini"], "none.ini: No such file or directory; give the reference's"),
        (["--from-store-log", log, "--skip-tokens", "?"], "--skip-tokens: '?' is no id of a registration"),
        (["--from-store-log", log, "--schema", "ntf_server"], "--schema: is of a database; leave it away"),
        (["--config", made / "old.ini"], "old.ini names no database, so postgresql://ntf@/ntf_server_store was tried"),
        (["--from", "nonsense"], "--from: is no connection that PostgreSQL understands"),
        (["--from", f"postgresql://ntf:{QUOTED}@127.0.0.1:1/ntf"], "PostgreSQL cannot be reached: "),
    ):
        code, out, err = in_process(capsys, "import", "--path", made, *arguments)
        assert (code, out) == (75 if "reached" in words or "tried" in words else 2, "")
        assert words in one_line(err)
        assert PASSWORD not in err
        assert QUOTED not in err
        assert not (made / "ntf-server.db").exists()
    code, _, err = in_process(capsys, "import", "--path", tmp_path / "nowhere", "--from-store-log", log)
    assert (code, "nowhere/ntf-server.toml" in one_line(err)) == (2, True)


def test_without_the_driver(made: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ntf_server.store.reference.postgres", raising=False)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    code, out, err = in_process(capsys, "import", "--path", made, "--from", "postgresql://ntf@/ntf_server_store")
    assert (code, out) == (2, "")
    assert "psycopg, which talks to PostgreSQL, is not installed: /" in one_line(err)
    assert err.endswith(" -m pip install 'psycopg[binary]'\n")


def test_the_driver_is_not_loaded_where_it_is_not_used() -> None:
    look = "import sys, ntf_server.cli.importing; sys.exit('psycopg' in sys.modules)"
    subprocess.run([sys.executable, "-c", look], check=True)


@pytest.fixture
def filled(postgres: Postgres) -> Callable[..., str]:
    """A schema with these devices."""

    def make(known: list[Registration], migrations: Any = V7_0) -> str:
        name = f"ntf_{os.urandom(4).hex()}"
        with postgres.connect() as connection:
            fill(connection, name, known, migrations)
        return name

    return make


@pytest.mark.parametrize("migrations", [V6_5, V7_0], ids=["6.5", "7.0"])
class TestPostgres:
    pytestmark = WANTED

    def test_a_database(
        self, *, made: Path, known: list[Registration], postgres: Postgres, filled: Any, migrations: Any,
        capsys: Capture, tmp_path: Path,
    ) -> None:  # fmt: skip
        known[3].queues.append(Queue(associated=True, last=(TODAY, bytes(24), b"meta")))
        schema = filled(known, migrations)
        ini = tmp_path / "ntf-server.ini"
        ini.write_text(f"[STORE_LOG]\ndb_connection = {postgres.url}\ndb_schema = {schema}\n[TRANSPORT]\nport = 443\n")
        for arguments in (["--config", ini], ["--from", postgres.url, "--schema", schema]):
            (made / "ntf-server.db").unlink(missing_ok=True)
            code, out, err = in_process(capsys, "import", "--path", made, *arguments)
            assert code == 0, err
            assert "2 servers, 10 registrations, 10 subscriptions, 7 notifications" in out
            assert QUOTED not in out + err
            assert PASSWORD not in out + err
            assert found(made, known)[known[3].token_id] == ("ACTIVE", 1440)
        code, _, err = in_process(capsys, "import", "--path", made, "--config", ini)
        assert (code, "has registrations or servers already" in one_line(err)) == (2, True)

    def test_a_reference_that_still_runs(
        self,
        *,
        made: Path,
        known: list[Registration],
        postgres: Postgres,
        filled: Any,
        migrations: Any,
        capsys: Capture,
    ) -> None:
        import psycopg

        arguments = ["import", "--path", made, "--from", postgres.url, "--schema", filled(known, migrations)]
        with psycopg.connect(postgres.url):
            code, out, err = in_process(capsys, *arguments)
            assert (code, out) == (75, "")
            assert "a server uses this database (connections: 1): stop the reference" in one_line(err)
            assert not (made / "ntf-server.db").exists()
            code, out, err = in_process(capsys, *arguments, "--dry-run")
            assert (code, COUNTS in out) == (0, True)
            assert "stop the reference" in err
