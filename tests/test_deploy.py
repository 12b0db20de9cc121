"""deploy/compose.yaml: what has to fit fits, and what its services run does together what the docs say."""

import asyncio
import re
import time
import tomllib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from compose import CONFIGURATION, DEPLOY, Compose, load
from harness import Phone

from ntf_server.cli import status
from ntf_server.store.redis.names import Names
from ntf_server.supervisor import STOP_DEADLINE
from ntf_server.testing import MockApns
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Recipient
from smp_bridge.transport import ConnectionClosedError

RELAYS, SERVERS, SENTINELS = ([f"{name}{n}" for n in (1, 2, 3)] for name in ("relay", "redis", "sentinel"))
SEALED = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = load()["services"]
    return found


def test_what_is_started(services: dict[str, Any]) -> None:
    assert set(services) == {"init", *RELAYS, *SERVERS, *SENTINELS, "haproxy", "prometheus", "grafana"}
    assert {name for name, service in services.items() if service.get("profiles")} == {"init"}


def test_everything_runs_with_little(services: dict[str, Any]) -> None:
    """No root, no privileges, no files but its own, no more memory than it is given."""
    for name, service in services.items():
        assert {key: service[key] for key in SEALED} == SEALED, name
        assert service["user"] in {"999:999", "valkey", "haproxy", "nobody", "472"}
        assert service["mem_limit"] and service["pids_limit"]
    relays = [services[name] for name in RELAYS]
    assert all(service["volumes"] == [f"config:{CONFIGURATION}:ro"] for service in relays)
    assert services["init"]["volumes"] == [f"config:{CONFIGURATION}"] and services["init"]["network_mode"] == "none"
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports == {"haproxy": ["443:5223"], "grafana": ["127.0.0.1:3000:3000"]}


def test_a_relay_that_was_drained_stays_down_and_one_that_stops_has_time(services: dict[str, Any]) -> None:
    for name in RELAYS:
        assert services[name]["restart"] == "on-failure"
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > STOP_DEADLINE + 5


def test_relays_differ_in_their_names_and_addresses_only(services: dict[str, Any]) -> None:
    own = ("NTF_SERVER__STORE__NODE", "NTF_SERVER__TRANSPORT__BIND", "NTF_SERVER__METRICS__BIND")
    settings = [dict(services[name]["environment"]) for name in RELAYS]
    names = [s["NTF_SERVER__STORE__NODE"] for s in settings]
    assert names == RELAYS
    for s, name in zip(settings, RELAYS, strict=True):
        address = services[name]["networks"]["front"]["ipv4_address"]
        assert s["NTF_SERVER__TRANSPORT__BIND"] == s["NTF_SERVER__METRICS__BIND"] == address
        for key in own:
            del s[key]
    assert settings[0] == settings[1] == settings[2]


def test_addresses_are_those_of_who_is_meant(services: dict[str, Any]) -> None:
    file, proxy = load(), (DEPLOY / "compose/haproxy.cfg").read_text()
    addresses = [n["ipv4_address"] for s in services.values() for n in s.get("networks", {}).values()]
    assert len(addresses) == len(set(addresses))
    assert file["networks"]["store"]["internal"] is True
    settings = services["relay1"]["environment"]
    assert settings["NTF_SERVER__TRANSPORT__PROXIES"] == services["haproxy"]["networks"]["front"]["ipv4_address"]
    sentinels = [f"{services[name]['networks']['store']['ipv4_address']}:26379" for name in SENTINELS]
    assert settings["NTF_SERVER__STORE__URL"] == f"redis+sentinel://{','.join(sentinels)}/relay"
    fronts = [services[name]["networks"]["front"]["ipv4_address"] for name in RELAYS]
    assert re.findall(r"^    server (\S+) (\S+)$", proxy, re.MULTILINE) == [
        (name, f"{front}:{settings['NTF_SERVER__TRANSPORT__PORT']}") for name, front in zip(RELAYS, fronts, strict=True)
    ]
    assert f"check port {settings['NTF_SERVER__METRICS__PORT']} " in proxy
    assert "http-check send meth GET uri /ready " in proxy
    for name in (*SERVERS, *SENTINELS):
        address = services[name]["networks"]["store"]["ipv4_address"]
        assert services[name]["command"] == ["--bind", address]
        assert f"announce-ip {address}" in services[name]["environment"]["FIRST"]
        assert address in services[name]["healthcheck"]["test"]


def test_a_relay_is_healthy_that_may_have_clients(services: dict[str, Any]) -> None:
    """Docker knows 0 and 1 only, and waits for longer than the command does."""
    for name in RELAYS:
        check = services[name]["healthcheck"]
        assert check["test"] == ["CMD-SHELL", "ntf-server status --ready || exit 1"]
        assert int(check["timeout"].removesuffix("s")) > status.TIMEOUT
    assert 'CMD ["sh", "-c", "ntf-server status --ready || exit 1"]\n' in (DEPLOY / "Dockerfile").read_text()


def test_an_image_is_made_of_the_program_and_nothing_else() -> None:
    """What is copied is let through, and the other way round; it runs as no root, with a folder to write to."""
    docker = (DEPLOY / "Dockerfile").read_text()
    copied = {
        word.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", docker, re.MULTILINE)
        for word in line.split()
    }
    ignored = (DEPLOY.parent / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((DEPLOY.parent / name).exists() for name in copied)
    assert [line for line in ignored if line and line[0] not in "#!"] == ["*", "**/__pycache__"]
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    assert {*project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"], project["project"]["readme"]} <= copied
    _, build, image = docker.split("\nFROM ")
    assert "python -m venv --without-pip /opt/ntf-relay\n" in build and "pip" not in image
    assert re.search(r"^USER (?!root|0)", image, re.MULTILINE)
    assert 'VOLUME ["/etc/opt/simplex-notifications", "/var/lib/ntf-relay"]' in image


def test_what_is_mounted_is_there(services: dict[str, Any]) -> None:
    volumes = set()
    for service in services.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists() and mount.endswith(":ro")
            else:
                volumes.add(source)
    assert set(load()["volumes"]) == volumes


def test_who_watches_asks_relays_and_is_asked_by_who_is_here_alone(services: dict[str, Any]) -> None:
    port = services["relay1"]["environment"]["NTF_SERVER__METRICS__PORT"]
    [job] = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())["scrape_configs"]
    fronts = [f"{services[name]['networks']['front']['ipv4_address']}:{port}" for name in RELAYS]
    assert job["static_configs"] == [{"targets": fronts}]
    prometheus, grafana = services["prometheus"], services["grafana"]
    address = prometheus["networks"]["watch"]["ipv4_address"]
    assert f"--web.listen-address={address}:9090" in prometheus["command"]
    assert prometheus["volumes"] == ["prometheus:/prometheus", "./prometheus:/etc/prometheus:ro"]
    [source] = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == f"http://{address}:9090" and list(grafana["networks"]) == ["watch"]
    assert "store" not in prometheus["networks"] | grafana["networks"]
    [provider] = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/ntf-relay.yaml").read_text())["providers"]
    mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"])
    assert mounts == {
        "./grafana/provisioning": "/etc/grafana/provisioning",
        "./grafana/dashboards": provider["options"]["path"],
    }
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert (DEPLOY / "grafana/dashboards" / Path(home).name).is_file()


# --- for real


@pytest.fixture
async def compose(tmp_path: Path, mock_apns: MockApns) -> AsyncIterator[Compose]:
    more = {
        "NTF_SERVER__APNS__TEST__HOST": "localhost",
        "NTF_SERVER__APNS__TEST__PORT": str(mock_apns.port),
        "NTF_SERVER__APNS__TEST__CA_FILE": str(mock_apns.ca_file),
        "NTF_SERVER__SUBSCRIBER__ALLOW_PRIVATE_HOSTS": "true",
    }
    compose = Compose(tmp_path, more)
    yield compose
    await compose.close()


async def until(what: str, holds: Callable[[], Any], compose: Compose, timeout: float = 40) -> Any:
    end = time.monotonic() + timeout
    while True:
        try:
            if found := holds():
                return found
        except (redis.RedisError, OSError):
            pass
        assert time.monotonic() < end, f"in vain: {what}\n{compose.log()}"
        await asyncio.sleep(0.1)


def ask(compose: Compose, name: str, *words: str) -> Any:
    port = 26379 if name in SENTINELS else 6379
    with redis.Redis(compose.address(name, "store"), port, socket_timeout=3, protocol=2) as client:
        client.response_callbacks.clear()
        return client.execute_command(*words)


async def start_store(compose: Compose) -> None:
    await compose.start(*SERVERS)
    for name in SERVERS:
        await until(f"{name} starts", lambda name=name: ask(compose, name, "PING"), compose)  # type: ignore[misc]
    await compose.start(*SENTINELS)
    for name in SENTINELS:
        await until("a quorum", lambda name=name: ask(compose, name, "SENTINEL", "CKQUORUM", "relay"), compose)  # type: ignore[misc]


async def test_an_identity_is_made_and_its_relays_take_it(compose: Compose) -> None:
    code, out = await compose.run("init", "--fqdn", "ntf.example.com")
    assert code == 0 and "ntf://" in out
    await start_store(compose)
    for name in RELAYS:
        code, out = await compose.run(name, "check")
        assert code == 0, out
        assert compose.environment(name)["NTF_SERVER__STORE__URL"].removeprefix("redis+sentinel://") in out


@pytest.mark.long
async def test_the_way_of_a_message_while_things_end(
    compose: Compose, smp_server: SmpServer, mock_apns: MockApns, phone: Callable[[], Phone]
) -> None:
    """Through the balancer, with a relay drained, a primary killed, and all of it started again."""
    _, out = await compose.run("init", "--fqdn", "ntf.example.com", "--sign-algorithm", "ED25519")
    key_hash = ServerAddress.from_text(out.split()[-1]).key_hash
    await start_store(compose)
    await compose.start(*RELAYS)
    primary = Names("ntf").nodes.decode()
    await until("relays", lambda: len(ask(compose, "redis1", "ZRANGE", primary, "0", "-1")) == 3, compose)
    async with asyncio.timeout(40):
        for name in RELAYS:
            while await compose.run(name, "status", "--ready") != (0, "ready\n"):
                await asyncio.sleep(0.1)
    device = phone()
    async with compose.balancer() as (host, port), await Recipient.connect(smp_server.address) as recipient:
        address = ServerAddress("ntf", (host,), str(port), key_hash)
        queue = await recipient.queue()
        async with await connected(address) as client:
            await device.register(client)
            await device.verify(client)
            await device.subscribe(client, smp_server.address, queue)

        async def wakes(text: str, timeout: float) -> None:
            await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id), timeout)
            mock_apns.clear()
            await queue.send(text)
            await mock_apns.next(device.token, timeout=timeout)

        await wakes("hello", 10)
        for name in ("relay2", "relay3"):  # one of them may have the queue
            code, said = await compose.run(name, "drain")
            assert (code, said.splitlines()[-1]) == (0, "Drained, and stopped."), said
            assert await compose.processes.pop(name).wait() == 0
        await wakes("drained", 5)
        await compose.kill("redis1")
        await wakes("failed over", 60)
        await compose.start("redis1", "relay2", "relay3")
        await until("a replica", lambda: b"role:slave" in ask(compose, "redis1", "INFO", "replication"), compose, 90)
        await wakes("as before", 30)
        async with await connected(address) as client:
            assert (await device.status(client)).status == "ACTIVE"
    assert "Traceback" not in compose.log()


async def connected(address: ServerAddress) -> Client:
    """As soon as the balancer knows a relay that is well."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await Client.connect(address)
            except (OSError, ConnectionClosedError):
                await asyncio.sleep(0.2)
