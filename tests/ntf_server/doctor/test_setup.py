"""What is told of what a start would meet. By the command: tests/test_wrong_places.py."""

from pathlib import Path

import pytest
from archive_world import folder
from certificates import client_certificate

from ntf_server.config.files import load
from ntf_server.doctor.setup import of_backlog, of_certificates, of_keys, of_lines, of_running, of_start
from ntf_server.findings import Finding, Standing, left_out, warning, well, wrong
from ntf_server.observe.condition import ENDING
from ntf_server.preflight import Found
from ntf_server.store.records import Glance


def test_lines_of_commands_have_their_cure() -> None:
    lines = ["FILE: what is wrong; mend it", "FILE: it is open: `chmod o= FILE`", "it is offline"]
    assert [*of_lines("start", lines)] == [
        wrong("start", "FILE: what is wrong", "mend it"),
        wrong("start", "FILE: it is open", "`chmod o= FILE`"),
        wrong("start", "it is offline", ""),
    ]


def test_a_start_that_meets_nothing(tmp_path: Path) -> None:
    config = load(folder(tmp_path / "relay"), {})
    ends = "the client certificate for APNs ends on 2030-01-01, in 3 days: renew it"  # told with all certificates
    found = Found(warnings=["FILE: is large; make room", ends], store="will be created")
    assert [f.standing for f in of_start(config, found, [], whole=True)] == ["warning", "well", "well"]
    assert [f.name for f in of_start(config, found, ["FILE: no; do"], whole=True)] == ["start", "set-up", "store"]
    assert [f.name for f in of_start(config, found, [], whole=False)] == ["set-up", "store"]


@pytest.mark.parametrize(
    ("running", "standing"),
    [
        (None, Standing.LEFT_OUT),
        ({}, Standing.LEFT_OUT),
        ({"troubles": [], "pid": 7}, Standing.WELL),
        ({"troubles": ["the store fails"], "pid": 7}, Standing.WRONG),
    ],
)
def test_what_a_relay_says_of_itself(running: dict[str, object] | None, standing: Standing) -> None:
    [found] = of_running(running)
    assert found.standing is standing


@pytest.mark.parametrize(("connected", "standing"), [(3, Standing.WELL), (2, Standing.WARNING)])
def test_what_smp_servers_a_relay_is_connected_to(connected: int, standing: Standing) -> None:
    servers = {"wanted": 3, "connected": connected}
    [_, found] = of_running({"troubles": [], "pid": 7, "smp_servers": servers})
    assert (found.name, found.standing) == ("SMP servers", standing)


def test_what_waits_while_no_server_runs() -> None:
    assert [*of_backlog(Glance({}, 0), running=False)] == []
    waits = Glance({}, 3, {"AP": 2, "FC": 1}, 7200.0)
    assert [*of_backlog(waits, running=True)] == []
    assert [*of_backlog(Glance({}, 3, {"AP": 2}, 3600.0, nodes=1), running=False)] == []
    text = "3 tokens wait for a push, the oldest for 2 h, and no server runs"
    assert [*of_backlog(waits, running=False)] == [warning("backlog", text, "start it: `systemctl start ntf-server`")]
    [soon] = of_backlog(Glance({}, 3, {"AP": 2}, 5.0), running=False)
    assert soon.standing is Standing.WELL


def test_keys_and_never_what_is_in_them(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    config = load(directory, {})
    found = {f.name: f for f in of_keys(config)}
    assert found["APNs"] == left_out("APNs", "is off: no key and no certificate is set")
    assert found["FCM"] == left_out("FCM", "is off: no service account is set")
    assert found["identity"].standing is Standing.WELL and config.master_key.key_id.hex() in found["master key"].text
    web_push = {"NTF_SERVER__WEB_PUSH__KEY_FILE": "vapid.key", "NTF_SERVER__WEB_PUSH__CONTACT": "mailto:a@example.org"}
    found = {f.name: f for f in of_keys(load(directory, web_push))}
    assert found["Web Push"] == well("Web Push", "VAPID key (P-256), contact mailto:a@example.org")


def test_certificates_that_end(tmp_path: Path) -> None:
    directory = folder(tmp_path / "relay")
    certificate, key = client_certificate(directory)
    files = {"NTF_SERVER__APNS__CERTIFICATE_FILE": certificate, "NTF_SERVER__APNS__CERTIFICATE_KEY_FILE": key}
    config = load(directory, files)

    def told(now: float) -> dict[str, Finding]:
        return dict(zip(("online", "identity", "apns"), of_certificates(config, now), strict=True))

    end = config.certificates_end()["apns"]
    assert told(end - ENDING - 1)["apns"].standing is Standing.WELL
    soon = told(end - ENDING + 1)["apns"]
    assert soon.standing is Standing.WARNING and "renew it at Apple" in soon.cure
    assert told(end)["apns"].standing is Standing.WRONG
    assert told(end)["online"].standing is Standing.WELL
    assert told(config.certificates_end()["online"])["online"].standing is Standing.WRONG
