"""What a start would meet: configuration, ports, store, keys and certificates, and what a running relay says."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from ntf_server.config.contradictions import apns_hosts
from ntf_server.config.files import Config
from ntf_server.findings import Finding, left_out, warning, well, wrong
from ntf_server.observe.condition import CERTIFICATES, State, certificate, certificate_words, duration
from ntf_server.preflight import Found
from ntf_server.store.records import Glance

_STALE: Final = 600.0  # seconds that something may be due while nobody pushes it


def of_lines(name: str, lines: Sequence[str]) -> Iterator[Finding]:
    """Mistakes as commands tell them: `where: what; cure`."""
    for line in lines:
        yield wrong(name, *text_and_cure(line))


def text_and_cure(line: str) -> tuple[str, str]:
    """(what is so, the cure) of a line: `where: what; cure`, or `where: what: cure`."""
    text, semicolon, cure = line.partition("; ")
    if not semicolon:
        text, _, cure = line.rpartition(": ")
    return (text, cure) if text else (line, "")


def of_start(config: Config, found: Found, troubles: Sequence[str], *, whole: bool) -> Iterator[Finding]:
    """`troubles`: what a start would end with; `whole`: the configuration has no mistakes, which are told elsewhere."""
    yield from of_lines("start", troubles)
    certificates = tuple(what for what, _ in CERTIFICATES.values())  # which `of_certificates` tells
    yield from (warning("set-up", *text_and_cure(line)) for line in found.warnings if not line.startswith(certificates))
    if whole and not troubles:
        yield well("start", "ports, admin socket, store and providers were tried: nothing is in its way")
    if config.store and found.store:
        yield well("store", f"{config.store} ({found.store})")


def of_running(running: dict[str, Any] | None) -> Iterator[Finding]:
    """What a relay says of itself, if one runs."""
    if running is None:
        yield left_out("server", "none runs with this configuration, so none was asked how it is")
        return
    if "troubles" not in running:
        yield left_out("server", "one of another user or version runs, which does not say how it is")
        return
    troubles = [str(line) for line in running["troubles"]]
    for line in troubles:
        yield wrong("server", line, "`ntf-server status` says more")
    if not troubles:
        yield well("server", f"process {running.get('pid')} is well, by its own words")
    servers = running.get("smp_servers", {})
    wanted, connected = servers.get("wanted", 0), servers.get("connected", 0)
    if wanted > connected:
        text = f"of {wanted} that are wanted {connected} are connected"
        yield warning("SMP servers", text, "`ntf-server servers list` says which, and why")
    elif wanted:
        yield well("SMP servers", f"all {wanted} that are wanted are connected")


def of_backlog(glance: Glance, *, running: bool) -> Iterator[Finding]:
    """What waits in the store of a relay that does not run."""
    due = sum(glance.due.values())
    if not due or running or (glance.nodes or 0) > 0:
        return
    oldest = glance.oldest_due or 0.0
    text = f"{due} tokens wait for a push, the oldest for {duration(oldest)}, and no server runs"
    yield (
        warning("backlog", text, "start it: `systemctl start ntf-server`") if oldest > _STALE else well("backlog", text)
    )


def of_keys(config: Config) -> Iterator[Finding]:
    """Keys that were loaded, and that they are pairs; never what is in them."""
    settings = config.settings
    if config.credentials:
        yield well("identity", "certificate, chain, key and fingerprint belong together")
    if config.master_key:
        yield well("master key", f"loaded, its id is {config.master_key.key_id.hex()}")
    if config.apns_key:
        apns = settings.apns
        yield well("APNs", f"key {apns.key_id} of team {apns.team_id} (P-256), topic {apns.topic}")
    elif config.client_certificate:
        yield well("APNs", f"client certificate of {config.client_certificate.name}, with its key")
    elif not apns_hosts(settings):
        yield left_out("APNs", "is off: no key and no certificate is set")
    if config.service_account:
        account = config.service_account
        yield well("FCM", f"service account {account.client_email} of project {account.project_id}")
    elif not settings.fcm.service_account_file:
        yield left_out("FCM", "is off: no service account is set")
    if config.vapid_key:
        older = f", {len(config.old_vapid_keys)} older ones" if config.old_vapid_keys else ""
        yield well("Web Push", f"VAPID key (P-256){older}, contact {settings.web_push.contact}")
    elif not settings.web_push.key_file:
        yield left_out("Web Push", "is off: no key is set")


def of_certificates(config: Config, now: float | None = None) -> Iterator[Finding]:
    """When those in use end."""
    if not config.credentials:
        return
    now = time.time() if now is None else now
    for name, end in config.certificates_end().items():
        found = certificate(name, end, now)
        text, cure = certificate_words(found, now)
        if found.state is State.FAILING:
            yield wrong("certificate", text, cure)
        elif found.state is State.ENDING:
            yield warning("certificate", text, cure)
        else:
            yield well("certificate", text)
