"""A real Prometheus with the files of deploy/prometheus, and a relay: alerts fire and end, dashboards have data."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import dashboards
import pytest
import watching
from harness import RelayProcess, environment
from redis_servers import free_port
from test_alerts import RULES
from watching import Iphone, Prometheus, as_production

from ntf_server.testing import Answer, MockApns
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


@pytest.fixture
async def relay(tmp_path: Path, mock_apns: MockApns) -> AsyncIterator[RelayProcess]:
    settings = environment(mock_apns) | as_production(mock_apns, tmp_path / "apple.p8")
    relay = RelayProcess(tmp_path / "relay", settings | {"NTF_SERVER__METRICS__PORT": str(free_port())})
    await relay.init()
    await relay.start()
    yield relay
    await relay.stop()


@pytest.fixture
async def prometheus(tmp_path: Path, relay: RelayProcess) -> AsyncIterator[Prometheus]:
    async with watching.prometheus(tmp_path / "prometheus", "1s") as running:
        running.watch(f"127.0.0.1:{relay.environment['NTF_SERVER__METRICS__PORT']}")
        yield running


async def test_alerts_of_a_relay(
    relay: RelayProcess, prometheus: Prometheus, mock_apns: MockApns, smp_server: SmpServer
) -> None:
    device = Iphone(mock_apns)
    await prometheus.until(set(), 30)
    async with await Client.connect(relay.address) as client, await Recipient.connect(smp_server.address) as recipient:
        await device.register(client)
        await device.verify(client)
        queue = await recipient.queue()
        await device.subscribe(client, smp_server.address, queue)
        await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id), 10)
        await queue.send("hello")
        await mock_apns.next(device.token)
        await everything_has_data(prometheus)
        assert await prometheus.firing() == set()

        mock_apns.script(*[REFUSED] * 1000)
        await queue.send("are you there?")
        await prometheus.until({"NtfProviderRefusesUs"}, 60)
        mock_apns.clear()
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
