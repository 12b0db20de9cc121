"""Prometheus with the project's files, for tests; and a device that Apple's own push service wakes."""

import asyncio
import contextlib
import json
import shutil
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml
from debian import program
from harness import Phone
from redis_servers import free_port
from test_alerts import PROMETHEUS

from ntf_server.push.jose import generate_key, key_pem
from ntf_server.testing import MockApns
from smp_bridge import ntf


class Iphone(Phone):
    """Of an app from Apple's store."""

    @property
    def device(self) -> ntf.DeviceToken:
        return ntf.DeviceToken(ntf.Provider.APNS, self.token.encode())


def as_production(mock_apns: MockApns, key_file: Path) -> dict[str, str]:
    """Settings of a relay for which this mock is Apple's production service; its key is written there."""
    key_file.write_bytes(key_pem(generate_key()))
    return {
        "NTF_SERVER__APNS__KEY_FILE": str(key_file),
        "NTF_SERVER__APNS__KEY_ID": "KEYID12345",
        "NTF_SERVER__APNS__TEAM_ID": "TEAMID1234",
        "NTF_SERVER__APNS__PRODUCTION__HOST": "localhost",
        "NTF_SERVER__APNS__PRODUCTION__PORT": str(mock_apns.port),
        "NTF_SERVER__APNS__PRODUCTION__CA_FILE": str(mock_apns.ca_file),
    }


class Prometheus:
    """With the project's files but for the addresses of relays."""

    def __init__(self, directory: Path, every: str) -> None:
        self.port = free_port()
        self._targets = directory / "targets.json"
        self._watched: list[str] = []
        directory.mkdir()
        self.watch()
        shutil.copy(PROMETHEUS / "alerts.yaml", directory)
        config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
        config["global"] |= {"scrape_interval": every, "evaluation_interval": every, "scrape_timeout": "1s"}
        [job] = config["scrape_configs"]
        del job["static_configs"]
        job["file_sd_configs"] = [{"files": [str(self._targets)], "refresh_interval": "1s"}]
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.command = [
            str(program("prometheus")),
            f"--config.file={directory}/prometheus.yaml",
            f"--storage.tsdb.path={directory}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def watch(self, *targets: str) -> None:
        """From now on these relays, HOST:PORT of metrics, too."""
        self._watched += targets
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps([{"targets": self._watched}]))
        new.replace(self._targets)

    async def get(self, path: str, **query: str) -> Any:
        return await asyncio.to_thread(self._get, f"/api/v1/{path}?{urllib.parse.urlencode(query)}")

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    async def firing(self, target: str = "") -> set[str]:
        """Of a relay, or all."""
        try:
            alerts = (await self.get("alerts"))["alerts"]
        except OSError:  # it starts
            return {"nothing is known"}
        return {
            alert["labels"]["alertname"]
            for alert in alerts
            if alert["state"] == "firing" and target in {"", alert["labels"].get("instance")}
        }

    async def until(self, firing: set[str], seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while await self.firing() != firing:
                await asyncio.sleep(0.5)


@contextlib.asynccontextmanager
async def prometheus(directory: Path, every: str) -> AsyncIterator[Prometheus]:
    """One that runs, and looks so often."""
    watching = Prometheus(directory, every)
    with (directory / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*watching.command, stdout=log, stderr=log)
    try:
        yield watching
    finally:
        process.kill()
        await process.wait()
