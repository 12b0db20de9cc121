"""A real Prometheus with the files of deploy/prometheus, and a relay: alerts fire and end, dashboards have data."""

import asyncio
import json
import re
import shutil
import signal
import socket
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import dashboards
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from debian import program
from harness import Phone, RelayProcess, environment
from test_alerts import PROMETHEUS, RULES

from ntf_server.testing import Answer, MockApns
from smp_bridge import ntf
from smp_bridge.client import Client
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient

pytestmark = pytest.mark.long
REFUSED = Answer(403, "InvalidProviderToken")
# That show nothing here: no SMP server of ours, no Web Push, one relay with a database; what is not in trouble; tokens,
# which are counted every ten minutes.
EMPTY = (
    r"ntf_tokens\{|web_push|_other_servers|ntf_push_origins|ntf_store_(shards|nodes)|server\)|provider_trouble|store_failing"
    "|part_failures"
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        port: int = s.getsockname()[1]
        return port


class Iphone(Phone):
    """Of an app from Apple's store."""

    @property
    def device(self) -> ntf.DeviceToken:
        return ntf.DeviceToken(ntf.Provider.APNS, self.token.encode())


class Prometheus:
    """That runs, with the project's files but for the address of the relay, and ten times as quick."""

    def __init__(self, directory: Path, target: str) -> None:
        self.port = free_port()
        directory.mkdir()
        shutil.copy(PROMETHEUS / "alerts.yaml", directory)
        text = (PROMETHEUS / "prometheus.yaml").read_text().replace(": 10s", ": 1s").replace(": 5s", ": 1s")
        config = yaml.safe_load(text)
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.command = [
            str(program("prometheus")),
            f"--config.file={directory}/prometheus.yaml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    async def get(self, path: str, **query: str) -> Any:
        return await asyncio.to_thread(self._get, f"/api/v1/{path}?{urllib.parse.urlencode(query)}")

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    async def firing(self) -> set[str]:
        try:
            alerts = (await self.get("alerts"))["alerts"]
        except OSError:  # it starts
            return {"nothing is known"}
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def until(self, firing: set[str], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while await self.firing() != firing:
                await asyncio.sleep(0.5)


@pytest.fixture
async def apple() -> AsyncIterator[MockApns]:
    async with MockApns() as apple:
        yield apple


@pytest.fixture
async def relay(tmp_path: Path, apple: MockApns) -> AsyncIterator[RelayProcess]:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "apple.p8").write_bytes(pem)
    (tmp_path / "apple.p8").chmod(0o600)
    settings = environment(apple) | {
        "NTF_SERVER__APNS__KEY_FILE": str(tmp_path / "apple.p8"),
        "NTF_SERVER__APNS__KEY_ID": "KEYID12345",
        "NTF_SERVER__APNS__TEAM_ID": "TEAMID1234",
        "NTF_SERVER__METRICS__PORT": str(free_port()),
    }
    for what in ("HOST", "PORT", "CA_FILE"):
        settings[f"NTF_SERVER__APNS__PRODUCTION__{what}"] = settings[f"NTF_SERVER__APNS__TEST__{what}"]
    relay = RelayProcess(tmp_path / "relay", settings)
    await relay.init()
    await relay.start()
    yield relay
    await relay.stop()


@pytest.fixture
async def prometheus(tmp_path: Path, relay: RelayProcess) -> AsyncIterator[Prometheus]:
    watching = Prometheus(tmp_path / "prometheus", f"127.0.0.1:{relay.environment['NTF_SERVER__METRICS__PORT']}")
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*watching.command, stdout=log, stderr=log)
    yield watching
    process.kill()
    await process.wait()


async def test_alerts_of_a_relay(
    relay: RelayProcess, prometheus: Prometheus, apple: MockApns, smp_server: SmpServer
) -> None:
    device = Iphone(apple)
    await prometheus.until(set(), 30)
    async with await Client.connect(relay.address) as client, await Recipient.connect(smp_server.address) as recipient:
        await device.register(client)
        await device.verify(client)
        queue = await recipient.queue()
        await device.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id), 10)
        await queue.send("hello")
        await apple.next(device.token)
        await everything_has_data(prometheus)
        assert await prometheus.firing() == set()

        apple.script(*[REFUSED] * 1000)
        await queue.send("are you there?")
        await prometheus.until({"NtfProviderRefusesUs"}, 60)
        apple.clear()
        assert relay.process is not None
        relay.process.send_signal(signal.SIGHUP)  # the key was mended, say
        await prometheus.until(set(), 60)
    await relay.stop()
    await prometheus.until({"NtfDown"}, 60)


async def everything_has_data(prometheus: Prometheus) -> None:
    """Every query of every dashboard, and every rule, is taken; all that can be here has a value."""
    async with asyncio.timeout(60):
        while not (await prometheus.get("query", query='count_over_time(up{job="ntf-relay"}[5s]) > 4'))["result"]:
            await asyncio.sleep(0.5)  # rates need some scrapes
    queries = [
        query["expr"]
        for dashboard in dashboards.DASHBOARDS
        for panel in dashboard.made()["panels"]
        for query in panel.get("targets", ())
    ]
    values = {"$job": "ntf-relay", "$instance": ".*", "$__rate_interval": "5s", "$__range": "1h"}
    empty = []
    for query in queries:
        asked = re.sub(r"\$\w+", lambda found: values[found[0]], query)
        if not (await prometheus.get("query", query=asked))["result"] and not re.search(EMPTY, query):
            empty.append(query)
    assert len(queries) > 80 and empty == []
    rules = [rule for group in (await prometheus.get("rules"))["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule.alert for rule in RULES}
    assert {rule["health"] for rule in rules} == {"ok"}
