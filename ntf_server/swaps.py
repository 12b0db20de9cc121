"""Who takes what of a new configuration while the relay runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from ntf_server.admin.live import Live
from ntf_server.admission.gate import Admission
from ntf_server.commands import Commands
from ntf_server.config.files import Config
from ntf_server.config.reload import Commit, Part, Swap
from ntf_server.listener import Listener
from ntf_server.periodic import Checks
from ntf_server.providers import Providers
from ntf_server.smp.subscriber import Subscriber
from ntf_server.store.contract import StoreConflictError
from ntf_server.store.redis.tls import Tls
from ntf_server.store.sealing import MasterKey


@dataclass(frozen=True)
class Takers:
    """The parts of a relay that can take something new. `store_tls`: None of a store without TLS; `opens`: whether a
    master key opens the store; `set_up_log`: see `app`.
    """

    providers: Providers
    listener: Listener
    commands: Commands
    subscriber: Subscriber
    checks: Checks
    admission: Admission
    store_tls: Tls | None
    live: Live
    opens: Callable[[MasterKey], bool]
    set_up_log: Callable[[Config], None]


def swaps(takers: Takers) -> Mapping[Part, Swap]:
    """What `Reloader` prepares, by part."""

    def swap_store(_: Config) -> Commit:
        assert takers.store_tls is not None  # else no file of it can differ
        return takers.store_tls.prepare()

    def swap_master_key(config: Config) -> Commit:
        """The relay has the database's key in memory; the next start needs this one."""
        if not takers.opens(config.master_key):
            raise StoreConflictError("it does not open the store; set the one that does, or run `ntf-server rekey`")
        return lambda: None

    def use_lists(config: Config) -> None:
        takers.commands.use(config.servers, config.limits)
        takers.subscriber.use(config.servers)

    def use_limits(config: Config) -> None:
        takers.admission.use(config.budgets)
        takers.set_up_log(config)

    def use_checks(config: Config) -> None:
        takers.checks.use(config.settings.delivery.checks)

    def always(use: Callable[[Config], None]) -> Swap:
        """Of what refuses nothing that was parsed."""
        return lambda config: partial(use, config)

    return {
        Part.LISTENER: lambda config: takers.listener.prepare(config.credentials),
        Part.STORE: swap_store,
        Part.MASTER_KEY: swap_master_key,
        Part.APNS: always(takers.providers.use),
        Part.FCM: always(takers.providers.use),
        Part.WEB_PUSH: always(takers.providers.use),
        Part.SUBSCRIBER: always(use_lists),
        Part.CHECKS: always(use_checks),
        Part.LIMITS: always(use_limits),
        Part.LOG: always(takers.set_up_log),
        Part.PAGE: always(takers.live.use),
    }
