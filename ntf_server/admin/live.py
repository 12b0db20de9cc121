"""The live page of a relay, where `[admin]` switches it on: aiohttp, which takes 11 MiB, is loaded then only."""

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Final

from ntf_server.admin.facts import Parts
from ntf_server.config.files import Config
from ntf_server.config.source import CONFIG_FILE
from ntf_server.listener import of_settings
from ntf_server.observe.condition import Condition
from ntf_server.observe.metrics import Metrics
from ntf_server.supervisor import Stage, Supervisor

log = logging.getLogger(__name__)

PART: Final = "live page"


class Live:
    """`start` it when the relay has started."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._use: Callable[[Config], None] = lambda _: None
        if config.page is not None:  # before clients come: it takes a third of a second
            importlib.import_module("ntf_server.admin.page.site")

    def use(self, config: Config) -> None:
        """What it can take of a new configuration: its token, and names by which it is asked."""
        self._use(config)

    async def start(
        self,
        supervisor: Supervisor,
        parts: Parts,
        condition: Callable[[], Condition],
        *,
        about: Mapping[str, str],
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        """If it is on. Raises ListenError."""
        page = self._config.page
        if page is None:
            return
        from ntf_server.admin.page import site, view  # noqa: PLC0415  see above

        services, servers = parts.dispatcher.services, parts.subscriber.facts
        shown = site.Site(page, view.Sources(about, metrics, condition, services, servers, clock))
        self._use = lambda config: shown.use(config.page)
        supervisor.on_stop(Stage.ACCEPT, PART, lambda _: shown.close())
        with of_settings(f"{self._config.directory / CONFIG_FILE}: [admin] {page.setting}"):
            await shown.start()
        supervisor.part(PART, shown.run)
        log.info("the live page is at %s", page.url)
