"""What `start` does short of serving, tried without a trace: ports, admin socket, the store with its key, providers.

A relay that runs with this configuration is in nobody's way: it is asked what it listens on.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from ntf_server.admin.socket import AdminError, NotRunningError, ask, check_path
from ntf_server.config.files import Config, socket_path_error
from ntf_server.config.identity_files import CA_KEY, SERVER_KEY
from ntf_server.config.settings import Settings
from ntf_server.config.source import CONFIG_FILE, PREFIX
from ntf_server.listener import ListenError, listen_errors, of_settings
from ntf_server.observe.condition import State, certificate, certificate_sentence
from ntf_server.permissions import exposed
from ntf_server.providers import Providers
from ntf_server.store.contract import StoreCorruptError, StoreError
from ntf_server.store.open import Shared, inspect_store
from ntf_server.store.sealing import SealingError
from smp_bridge.network import is_public_host
from smp_bridge.tls import server_context

_PATIENCE: Final = 3.0  # seconds for an answer on this machine
_ENOUGH: Final = 2000  # bytes of an answer
_OURS: Final = b"ntf_"  # what the names of our metrics begin with
_OUR_PAGE: Final = b"ntf-relay"  # what refusals of our live page begin with


@dataclass
class Found:
    """`troubles`: what `start` would raise; `warnings`: a line each; `store`: what is in it, in words; `running`: what
    a relay says that runs with this configuration, None if there is none.
    """

    troubles: list[Exception] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    store: str = ""
    running: dict[str, Any] | None = None

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        """What is raised inside is one of the troubles."""
        try:
            yield
        except (ListenError, OSError, StoreError, StoreCorruptError, SealingError) as e:
            self.troubles.append(e)


async def preflight(config: Config, *, ports: bool = True) -> Found:
    """Of a configuration that was loaded, or of what is right in it: the rest is None. `ports`: they are tried."""
    found = Found(warnings=[*_warnings(config)], running=await running_relay(config.admin_socket))
    if config.credentials:
        with found.collected():
            server_context("ntf", config.credentials)
    if ports:
        await try_ports(config.directory, config.settings, found)
    before = len(found.troubles)
    if config.store and config.master_key:
        with found.collected():
            await _try_store(config, found)
    if found.running is None and config.store and len(found.troubles) == before:  # they have one folder, as a rule
        if error := socket_path_error(config.admin_socket):
            found.warnings.append(f"there will be no admin socket: {error}")
        else:
            with found.collected():
                check_path(config.admin_socket)
        if config.page and config.page.socket:
            with found.collected(), of_settings(f"{config.directory / CONFIG_FILE}: [admin] page_socket"):
                check_path(config.page.socket, "[admin] page_socket")
    if config.credentials:
        with found.collected():
            await Providers(config).close()
    if (proxy := config.network and config.network.socks_proxy) and not await _answers(proxy.host, proxy.port):
        found.warnings.append(f"[subscriber] socks_proxy: nobody listens at {proxy.host}:{proxy.port}: is Tor running?")
    return found


async def try_ports(directory: Path, settings: Settings, found: Found) -> None:
    """Bind each, and let it go; those that the running relay has are its own."""
    transport, metrics, running = settings.transport, settings.metrics, found.running
    if running is not None and running.get("port", transport.port) == transport.port:
        transport = msgspec.structs.replace(transport, port=0)
    await _try_port(directory, "transport", transport.bind, transport.port, found)
    if metrics.port and (running is None or not await _answers(metrics.bind, metrics.port, _OURS)):
        await _try_port(directory, "metrics", metrics.bind, metrics.port, found)
    admin = settings.admin
    if admin.port and (running is None or not await _answers(admin.bind, admin.port, _OUR_PAGE)):
        await _try_port(directory, "admin", admin.bind, admin.port, found)


async def _try_port(directory: Path, section: str, bind: str, port: int, found: Found) -> None:
    """As `Listener` and the endpoint of metrics do."""
    where = f"{directory / CONFIG_FILE}: [{section}] bind, port"
    with found.collected(), of_settings(where), listen_errors(bind or None, port):
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, bind or None, port, start_serving=False)
        server.close()


async def running_relay(admin_socket: Path) -> dict[str, Any] | None:
    """What it says of itself; nothing, if it is another user's; None: there is none."""
    return await asyncio.to_thread(_ask, admin_socket)


def _ask(admin_socket: Path) -> dict[str, Any] | None:
    try:
        return ask(admin_socket, "status", timeout=_PATIENCE)
    except NotRunningError:
        return None
    except AdminError:
        return {} if admin_socket.is_socket() else None


async def _try_store(config: Config, found: Found) -> None:
    store = config.settings.store
    shared = Shared(store.node, store.wait_replicas, store.wait_aof)
    in_use = found.running is not None
    seen = await inspect_store(config.store, master_key=config.master_key, shared=shared, in_use=in_use)
    found.store = seen.what
    found.warnings += seen.warnings


async def _answers(host: str, port: int, word: bytes = b"") -> bool:
    """Whether somebody listens there, and tells a word if asked for metrics."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection(host or "localhost", port)
            try:
                if not word:
                    return True
                writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                return word in await reader.read(_ENOUGH)
            finally:
                writer.close()
    return False


def _warnings(config: Config) -> Iterator[str]:
    """What works, and not as it should."""
    host = config.settings.transport.host or "localhost"
    if not is_public_host(host):
        yield f"the address says {host}, which apps elsewhere do not reach: set [transport] host to the server's name"
    yield from filter(None, map(exposed, private_files(config)))
    if (config.directory / CA_KEY).exists():
        yield f"{config.directory / CA_KEY} should be offline; keep it elsewhere, as only `ntf-server cert` needs it"
    now = time.time()
    for name, ends in config.certificates_end().items():
        if (found := certificate(name, ends, now)).state is not State.WELL:
            yield certificate_sentence(found, now)


def private_files(config: Config) -> Iterator[Path]:
    """Those with secrets in them."""
    settings = config.settings
    apns, store = settings.apns, settings.store
    names = [SERVER_KEY, apns.key_file, apns.certificate_key_file, settings.fcm.service_account_file]
    names += [settings.web_push.key_file, *settings.web_push.old_key_files, settings.admin.token_file]
    if not store.master_key and not store.master_key_command:
        names.append(store.master_key_file)
    if isinstance(config.store, Path):
        names.append(str(config.store))
    elif config.store and config.store.login.password and f"{PREFIX}STORE__URL" not in config.environ:
        names.append(CONFIG_FILE)
    if store.master_key and f"{PREFIX}STORE__MASTER_KEY" not in config.environ:
        names.append(CONFIG_FILE)
    yield from (config.directory / name for name in dict.fromkeys(names) if name)
