"""The Debian package, and the unit in it: built, looked into, and installed on a machine that a real systemd runs."""

import asyncio
import re
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from harness import Phone
from machine import Machine, booted
from redis_servers import free_port

from ntf_server.testing import MockApns
from ntf_server.version import VERSION
from smp_bridge.address import ServerAddress
from smp_bridge.client import Client
from smp_bridge.testing import SmpServer
from smp_bridge.testing.recipient import Queue, Recipient

ROOT = Path(__file__).parents[1]
UNIT = "/usr/lib/systemd/system/ntf-server.service"
FOLDER = "/etc/opt/simplex-notifications"
NEWER = f"{VERSION}+newer"
CONFIGURATION = """
[transport]
host = "localhost"
port = {}

[store]
url = "sqlite:////var/lib/ntf-relay/ntf-server.db"

[apns.test]
host = "localhost"
port = {}
ca_file = "apple.pem"

[metrics]
port = {}

[subscriber]
allow_private_hosts = true

[limits]
enabled = false
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version"], "--version needs one"),
        (["--version", "new one"], "new one is no version of a Debian package"),
        (["--help"], "usage: "),
        (["a", "b"], "usage: "),
    ],
)
def test_what_cannot_be_built_is_told_before_anything_is_done(arguments: list[str], words: str) -> None:
    done = subprocess.run([ROOT / "scripts/deb", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert words in line


def test_scripts_of_the_package_are_for_the_smallest_shell() -> None:
    for name in ("postinst", "prerm", "postrm"):
        file = ROOT / "deploy/debian" / name
        assert file.read_text().startswith("#!/bin/sh\n") and "set -e\n" in file.read_text()
        subprocess.run(["sh", "-n", file], check=True)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of the built package."""
    directory = tmp_path_factory.mktemp("package")
    done = subprocess.run([ROOT / "scripts/deb", directory], stdout=-1, text=True, check=True, timeout=600)
    return Path(done.stdout.strip())


@pytest.mark.long
def test_what_is_in_it(package: Path) -> None:
    def said(option: str) -> str:
        return subprocess.run(["dpkg-deb", option, package], capture_output=True, text=True, check=True).stdout

    assert f"Version: {VERSION}\n" in said("--field")
    listed = [re.split(r" +", line, maxsplit=5) for line in said("--contents").splitlines()]
    assert {owner for _, owner, *_ in listed} == {"root/root"}
    assert [row for row in listed if "w" in row[0][5] + row[0][8] and not row[0].startswith("l")] == []
    files = {row[5].removeprefix(".") for row in listed}
    assert {
        "/usr/bin/ntf-server -> ../lib/ntf-relay/bin/ntf-server",
        "/usr/lib/systemd/system/ntf-server.service",
        "/usr/share/doc/ntf-relay/copyright",
        "/usr/share/doc/ntf-relay/docs/how-to/alerts.md",
        "/usr/share/ntf-relay/prometheus/alerts.yaml",
        "/usr/share/ntf-relay/balancers/haproxy.cfg",
        "/usr/share/bash-completion/completions/ntf-server",
    } <= files
    assert not [file for file in files if file.startswith(("/etc", "/var", "/opt"))]  # they are made, and stay
    tree = package.parent / "tree"
    subprocess.run(["dpkg-deb", "--extract", package, tree], check=True)
    assert list(tree.glob("usr/lib/ntf-relay/lib/python3.*/site-packages/psycopg"))  # to import from the reference
    text = subprocess.run(["grep", "-rlI", str(ROOT), tree], capture_output=True, text=True, check=False).stdout
    assert text == ""  # nothing says where it was built


def newer(package: Path) -> Path:
    """The same with another version."""
    tree, made = package.parent / "newer", package.parent / "newer.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {VERSION}\n", f"Version: {NEWER}\n"))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made], check=True, stdout=-3)
    shutil.rmtree(tree)
    return made


# --- installed


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    async with booted(tmp_path / "machine") as machine:
        yield machine


class Service:
    """The unit on a machine."""

    def __init__(self, machine: Machine, address: ServerAddress, metrics: int) -> None:
        self.machine = machine
        self.address = address
        self.metrics = metrics

    async def show(self, name: str) -> str:
        return await self.machine.does("systemctl", "show", "--value", f"--property={name}", "ntf-server")

    async def until(self, name: str, value: str, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while await self.show(name) != value:
                await asyncio.sleep(0.2)

    async def drop_in(self, name: str, text: str) -> None:
        folder = "/etc/systemd/system/ntf-server.service.d"
        await self.machine.does("install", "-d", folder)
        await self.machine.does("tee", f"{folder}/{name}", stdin=text)
        await self.machine.does("systemctl", "daemon-reload")
        code, said = await self.machine.run("systemctl", "restart", "ntf-server")
        assert code == 0, f"{said}\n{await self.machine.does('journalctl', '--unit=ntf-server', '--no-pager', '-n20')}"


async def set_up(machine: Machine, package: Path, apns: MockApns) -> Service:
    """As deploy/README.md says."""
    await machine.put(package, "/tmp/ntf-relay.deb")
    said = await machine.does("dpkg", "--install", "/tmp/ntf-relay.deb")
    assert "next, ntf-server init" in said
    assert (await machine.does("stat", "-c", "%U:%G %a", "/var/lib/ntf-relay", FOLDER)).split("\n") == [
        "ntf:ntf 700",
        "root:ntf 750",
    ]
    port, metrics = free_port(), free_port()
    told = await machine.does("ntf-server", "init", "--fqdn", "localhost", "--port", str(port))
    found = re.search(r"ntf://\S+", told)
    assert found
    await machine.put(apns.ca_file, f"{FOLDER}/apple.pem")
    await machine.does("tee", f"{FOLDER}/ntf-server.toml", stdin=CONFIGURATION.format(port, apns.port, metrics))
    await machine.does("rm", f"{FOLDER}/ca.key")
    await machine.does("chown", "-R", "root:ntf", FOLDER)
    await machine.does("chmod", "-R", "u=rwX,g=rX,o=", FOLDER)
    await machine.does("ntf-server", "check")
    await machine.does("systemctl", "enable", "--now", "ntf-server")
    service = Service(machine, ServerAddress.from_text(found[0]), metrics)
    assert await service.show("ActiveState") == "active"  # Type=notify: it has said so
    return service


@pytest.mark.long
async def test_a_relay_that_systemd_runs(
    machine: Machine, package: Path, mock_apns: MockApns, smp_server: SmpServer, phone: Callable[[], Phone]
) -> None:
    """Pushes go out under the unit's filter of system calls; reload, watchdog, credentials, upgrade, removal."""
    service = await set_up(machine, package, mock_apns)
    device = phone()
    async with await Recipient.connect(smp_server.address) as recipient:
        queue = await recipient.queue()
        async with await Client.connect(service.address) as client:
            await device.register(client)
            await device.verify(client)
            await device.subscribe(client, smp_server.address, queue)
        await wakes(device, queue, smp_server, mock_apns)
        await is_sealed(service)
        await machine.does("systemctl", "reload", "ntf-server")
        await service.until("ActiveState", "active")
        assert "reloaded" in await machine.does("journalctl", "--unit=ntf-server", "--no-pager")
        await a_relay_that_stands_still_is_started_again(service)
        await keys_that_only_root_reads(service)
        await wakes(device, queue, smp_server, mock_apns)

        before = await machine.does("md5sum", "-b", f"{FOLDER}/ntf-server.toml", f"{FOLDER}/server.crt")
        pid = await service.show("MainPID")
        await machine.put(newer(package), "/tmp/newer.deb")
        await machine.does("dpkg", "--install", "/tmp/newer.deb")
        assert NEWER in await machine.does("dpkg-query", "--show", "ntf-relay")
        await service.until("ActiveState", "active")
        assert await service.show("MainPID") != pid and await service.show("UnitFileState") == "enabled"
        assert await machine.does("md5sum", "-b", f"{FOLDER}/ntf-server.toml", f"{FOLDER}/server.crt") == before
        async with await Client.connect(service.address) as client:
            assert (await device.status(client)).status == "ACTIVE"
        await wakes(device, queue, smp_server, mock_apns)
    said = await machine.does("dpkg", "--purge", "ntf-relay")
    assert f"kept are {FOLDER}" in said
    await machine.does("ls", f"{FOLDER}/master.key", "/var/lib/ntf-relay/ntf-server.db")
    assert (await machine.run("ls", "/usr/lib/ntf-relay"))[0] != 0
    assert await service.show("ActiveState") == "inactive"


async def wakes(device: Phone, queue: Queue, smp_server: SmpServer, apns: MockApns) -> None:
    await smp_server.until(lambda: smp_server.subscribed(queue.notifier_id), 20)
    apns.clear()
    await queue.send("hello")
    await apns.next(device.token, timeout=20)


async def is_sealed(service: Service) -> None:
    """What the unit says is so; and metrics of the process are there all the same."""
    status = await service.machine.does("cat", f"/proc/{await service.show('MainPID')}/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (fields["Seccomp"], fields["NoNewPrivs"]) == ("2", "1")
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 1 << 10  # CAP_NET_BIND_SERVICE
    assert int(fields["Uid"].split()[1]) != 0 and fields["Umask"] == "0077"
    said = await service.machine.does("systemd-analyze", "security", "--offline=true", UNIT)
    exposure = float(said.split("exposure level for ntf-server.service: ")[1].split()[0])
    told = re.search(r"exposure level[^*]*\*\*([\d.]+)\*\*", (ROOT / "deploy/README.md").read_text())
    assert told and exposure <= float(told[1])
    url = f"http://127.0.0.1:{service.metrics}/metrics"
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    assert "\nprocess_start_time_seconds " in page


async def a_relay_that_stands_still_is_started_again(service: Service) -> None:
    await service.drop_in("soon.conf", "[Service]\nWatchdogSec=3\n")
    await asyncio.sleep(4)
    assert await service.show("NRestarts") == "0"
    await service.machine.does("kill", "-STOP", await service.show("MainPID"))
    await service.until("NRestarts", "1")
    await service.until("ActiveState", "active")
    await service.machine.does("rm", "/etc/systemd/system/ntf-server.service.d/soon.conf")


async def keys_that_only_root_reads(service: Service) -> None:
    machine = service.machine
    await machine.does("chown", "root:root", f"{FOLDER}/master.key")
    await machine.does("chmod", "0600", f"{FOLDER}/master.key")
    assert (await machine.run("ntf-server", "check"))[0] == 2  # as the service's user
    example = await machine.does("cat", "/usr/share/ntf-relay/ntf-server.service.d/credentials.conf")
    await service.drop_in("credentials.conf", example)
    assert await service.show("ActiveState") == "active"
    code, _ = await machine.run("setpriv", "--reuid=ntf", "--clear-groups", "cat", f"{FOLDER}/master.key")
    assert code != 0
    await machine.does("ntf-server", "check", "--user", "root")
