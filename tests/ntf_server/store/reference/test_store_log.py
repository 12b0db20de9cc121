"""The reference's store log as a source: what of its lines counts, what is left out, how far memory goes."""

import os
from pathlib import Path
from typing import Any

import pytest
from moving import read
from reference_world import SMP, TODAY, Queue, Registration, last_log, many, store_log

from ntf_server.store.contract import StoreError
from ntf_server.store.portable import Source
from ntf_server.store.reference import store_log as module
from ntf_server.store.reference.store_log import BAD_LINE, CUT_OFF, NO_OWNER, TOO_LONG, StoreLogSource
from smp_bridge.address import ServerAddress
from smp_bridge.encoding import b64url


async def content(path: Path, *parts: bytes, skip: Any = (), at_once: int = 2) -> tuple[dict[bytes, Any], Any, Any]:
    """Registrations by their ids, what is left out, and the source."""
    path.write_bytes(b"".join(parts))
    source = await StoreLogSource.open([path], skip)
    try:
        _, moved, left_out = await read(source, at_once)  # type: ignore[arg-type]
        assert await source.tokens() == len(moved) + sum(
            n for r, n in left_out.items() if r.startswith("registrations")
        )
    finally:
        await source.close()
    return {token[0]: (token, queues) for token, queues in moved}, left_out, source


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "ntf-server-store.log"


def changed(r: Registration, word: str, rest: str = "") -> bytes:
    return f"{word} {b64url(r.token_id)}{rest and f' {rest}'}\n".encode()


def status(q: Queue, text: str) -> bytes:
    return f"SSTATUS {b64url(q.subscription_id)} {text}\n".encode()


async def test_all_that_is_there(log: Path, tmp_path: Path) -> None:
    known = many()
    log.write_bytes(store_log(known))
    last = tmp_path / "ntf-server-last-notifications.log"
    last.write_bytes(last_log(known))
    source = await StoreLogSource.open([log, last])
    source_: Source = source
    servers, moved, left_out = await read(source_)  # type: ignore[arg-type]
    assert left_out == {}
    assert [m[0][0] for m in moved] == sorted((r.token_id for r in known), key=repr)
    by_id = {token[0]: queues for token, queues in moved}
    for r in known:
        assert len(by_id[r.token_id]) == len(r.queues)
        found = {q[2]: q for q in by_id[r.token_id]}
        for q in r.queues:
            notification = found[q.subscription_id][-1]
            assert notification == (() if q.last is None else (1, notification[1], *q.last, 1))
    assert len(servers) == 2
    await source.check_idle()
    await source.close()


async def test_the_last_line_of_a_fact_counts(log: Path) -> None:
    first, second, gone = Registration(), Registration(status="REGISTERED"), Registration()
    first.queues, gone.queues = [Queue(), Queue(status="NEW")], [Queue()]
    kept, deleted = first.queues
    found, left_out, _ = await content(
        log,
        store_log([first, second, gone]),
        changed(first, "TCRON", "20"), changed(first, "TCRON", "60"), changed(first, "TTIME", str(TODAY + 86400)),
        changed(second, "TUPDATE", f"apns_prod abcd {b64url(b'new')}"), changed(second, "TSTATUS", "CONFIRMED"),
        status(kept, "END"), status(kept, "ERR no answer, yet service=T"),
        f"SDELETE {b64url(deleted.subscription_id)}\n".encode(), status(deleted, "ACTIVE"),
        changed(gone, "TDELETE"), changed(gone, "TSTATUS", "ACTIVE"),
        f"SERVICE {SMP} service=off\n".encode(),
    )  # fmt: skip
    assert left_out == {}
    assert found.keys() == {first.token_id, second.token_id}
    token, queues = found[first.token_id]
    assert 60 in token and TODAY + 86400 in token
    assert [(q[2], q[5], q[6]) for q in queues] == [(kept.subscription_id, "ERR", "no answer, yet")]
    token, _ = found[second.token_id]
    assert (token[1], token[2], token[8], token[11]) == ("AP", b"abcd", b"new", "CONFIRMED")


async def test_who_is_verified_ends_the_other_registrations_of_its_device(log: Path) -> None:
    old, new, other = Registration(queues=[Queue()]), Registration(status="CONFIRMED"), Registration()
    new.device_token = old.device_token
    found, left_out, _ = await content(log, store_log([old, new, other]), changed(new, "TSTATUS", "ACTIVE"))
    assert (found.keys(), left_out) == ({new.token_id, other.token_id}, {})


async def test_the_same_device_and_verify_key_twice_is_one(log: Path) -> None:
    active, again = Registration(queues=[Queue()]), Registration(status="CONFIRMED", queues=[Queue()])
    again.device_token, again.key = active.device_token.upper(), active.key
    found, left_out, source = await content(log, store_log([active, again]))
    assert found.keys() == {active.token_id}
    twice = "registrations: another one has the device, with the same verify key"
    assert left_out == {twice: 1, "subscriptions: their registration is left out": 1}
    assert source.left_out.ids[twice] == [b64url(again.token_id)]
    replaced = Registration(status="ACTIVE")  # made once more: the same id
    found, left_out, _ = await content(log, replaced.line(), changed(replaced, "TSTATUS", "EXPIRED"), replaced.line())
    assert (found[replaced.token_id][0][11], left_out) == ("ACTIVE", {})


async def test_a_queue_by_two_spellings_of_its_server_is_one(log: Path) -> None:
    r = Registration(queues=[Queue(), Queue(ServerAddress("smp", ("SMP.example.org",), "5223", SMP.key_hash))])
    r.queues[1].notifier_id, r.queues[0].status = r.queues[0].notifier_id, "END"
    found, left_out, _ = await content(log, store_log([r]))
    assert [q[2] for q in found[r.token_id][1]] == [r.queues[1].subscription_id]
    assert left_out == {"subscriptions: another one has the queue, under another spelling of its server": 1}


async def test_lines_that_cannot_be_read_are_counted_and_the_others_read(log: Path) -> None:
    whole, broken, lost = Registration(queues=[Queue()]), Registration(queues=[Queue()]), Registration()
    broken.queues[0].last = (TODAY, bytes(24), b"meta")
    bad_key = broken.line().replace(b" dhSecret=", b" dhSecret=AAAA")
    found, left_out, source = await content(
        log,
        whole.line(), b"\n", b"what is this\n", whole.queues[0].line(whole.token_id), b"TCREATE tknId=\xff\n", bad_key,
        broken.queues[0].line(broken.token_id), Queue().line(lost.token_id), b"x" * 200_000, b"\n",
        changed(whole, "TCRON", "30"), lost.line()[:100],
    )  # fmt: skip
    assert found.keys() == {whole.token_id}
    assert 30 in found[whole.token_id][0]
    assert left_out == {
        BAD_LINE: 2,
        TOO_LONG: 1,
        CUT_OFF: 1,
        NO_OWNER: 1,
        "registrations: the DH secret has not 32 bytes": 1,
        "subscriptions: their registration is left out": 1,
    }
    assert source.left_out.ids[BAD_LINE] == [f"{log.name}:3", f"{log.name}:5"]
    assert source.left_out.ids[CUT_OFF] == [f"{log.name}:11"]


async def test_a_notification_that_is_not_whole_costs_no_subscription(log: Path) -> None:
    r = Registration(queues=[Queue(last=(TODAY, bytes(23), b"meta")), Queue(last=(TODAY, bytes(24), b"meta"))])
    newer = Registration(token_id=r.token_id, queues=[Queue(notifier_id=r.queues[1].notifier_id)])
    newer.queues[0].last = (TODAY + 1, b"n" * 24, b"newer")
    older = last_log([r])
    found, left_out, _ = await content(log, store_log([r]), last_log([newer]), older)
    assert left_out == {"notifications: its nonce or its metadata are not whole": 1}
    assert {q[-1][4] if q[-1] else b"" for q in found[r.token_id][1]} == {b"", b"newer"}


async def test_skipped(log: Path) -> None:
    known = many()
    skipped = next(r for r in known if r.queues)
    found, left_out, _ = await content(log, store_log(known), skip=[skipped.token_id], at_once=200)
    assert found.keys() == {r.token_id for r in known} - {skipped.token_id}
    assert left_out == {
        "registrations: --skip-tokens names them": 1,
        "subscriptions: --skip-tokens names their registrations": len(skipped.queues),
    }


async def test_a_source_is_its_content(log: Path) -> None:
    known = many()
    identities = []
    for parts, skip in (
        ((store_log(known),), ()),
        ((store_log(known),), ()),
        ((store_log(known), b"\n"), ()),
        ((store_log(known),), (known[0].token_id,)),
    ):
        identities.append((await content(log, *parts, skip=skip))[2].identity)
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


async def test_what_is_no_store_log(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, words in ((log, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(StoreError, match=words):
            await StoreLogSource.open([path])
    log.write_bytes(os.urandom(3000) + b"\n")
    with pytest.raises(StoreError, match="holds no line of the reference's store log"):
        await StoreLogSource.open([log])
    log.write_bytes(Registration().line())
    log.with_name(log.name + ".start").touch()
    with pytest.raises(StoreError, match=r"\.start: is there, so the reference was stopped while it wrote"):
        await StoreLogSource.open([log])
    log.with_name(log.name + ".start").unlink()
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "_TELL", 1)
    source = await StoreLogSource.open([log], (), lambda done, total: seen.append((done, total)))
    assert seen == [(log.stat().st_size,) * 2] * 2
    log.write_bytes(b"TDELETE AAAA\n")  # under it
    slice_ = await source.read(b"", 9)
    assert (slice_.moved, slice_.left_out) == ([], {"registrations: the log was changed meanwhile": 1})
    await source.close()


async def test_a_folder_of_temporary_files_that_is_full(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write_bytes(store_log(Registration() for _ in range(200)))
    monkeypatch.setattr(module, "_SCHEMA", f"PRAGMA max_page_count = 12; {module._SCHEMA}")
    with pytest.raises(StoreError, match=r"does not fit into the folder of temporary files .*SQLITE_TMPDIR") as caught:
        await StoreLogSource.open([log])
    assert "\n" not in str(caught.value)
