"""The sections and keys of `ntf-server.toml`, with their defaults; see `config` for where they come from."""

from typing import Annotated, Literal

import msgspec

from ntf_server.admission.budgets import PATTERN

_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
_AnyPort = Annotated[int, msgspec.Meta(ge=0, le=65535)]
# Upper bounds keep the numbers within what timers, libcurl and SQLite take; they also refuse nan and inf.
_Seconds = Annotated[float, msgspec.Meta(ge=0.001, le=86_400.0)]
_Ttl = Annotated[int, msgspec.Meta(ge=1, le=31_536_000)]
_TokenTtl = Annotated[int, msgspec.Meta(ge=7 * 24 * 3600, le=100 * 365 * 24 * 3600)]
_InFlight = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_Idle = Annotated[float, msgspec.Meta(ge=0.0, le=31_536_000.0)]
_Hours = Annotated[float, msgspec.Meta(ge=0.0, le=8_760.0)]
_Limit = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
_Rate = Annotated[str, msgspec.Meta(pattern=PATTERN)]
_Connecting = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class _Section(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Settings of a section; unknown keys are errors. Some are secrets: a repr shows none."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class Transport(_Section, frozen=True):
    """`host`: the name in the server's address; `bind`: the interface that is listened on.

    `proxies`: addresses or networks of balancers, which say whose connection it is (PROXY protocol 2);
    `name_servers`: `IP` or `IP:PORT` of DNS servers for all names of SMP servers and push services; none: the system's.
    """

    host: str = ""
    port: _AnyPort = 443
    bind: str = ""
    proxies: tuple[str, ...] = ()
    name_servers: tuple[str, ...] = ()


class Store(_Section, frozen=True):
    """`url`: `sqlite:///relative` or `sqlite:////absolute`; empty: `ntf-server.db` beside the configuration; a Redis:
    `redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `redis+cluster://`, see docs/how-to/many-nodes.md.

    The master key that seals the database: `master_key` itself (for the environment), else what `master_key_command`
    prints, else what `master_key_file` holds.

    `token_ttl`: seconds that a registration is kept that sends no command.

    Of a Redis: `node`, this relay's name, which no other node has; `wait_replicas`: on so many replicas a write has to
    be before it counts; `wait_aof`: on the disks of so many servers.
    """

    url: str = ""
    node: str = ""
    wait_replicas: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0
    wait_aof: Annotated[int, msgspec.Meta(ge=0, le=16)] = 0
    token_ttl: _TokenTtl = 365 * 24 * 3600
    master_key: str = ""
    master_key_command: str = ""
    master_key_file: str = "master.key"


class ApnsHost(_Section, frozen=True):
    """One APNs host. `ca_file`: PEM bundle to trust instead of the system's."""

    host: str
    port: _Port = 443
    ca_file: str = ""


class ProductionHost(ApnsHost, frozen=True):
    """That of apps from Apple's store."""

    host: str = "api.push.apple.com"


class SandboxHost(ApnsHost, frozen=True):
    """That of apps under development."""

    host: str = "api.sandbox.push.apple.com"


class Apns(_Section, frozen=True):
    """`key_file`: the `.p8` file from Apple, or `certificate_file` and its key, PEM; one of them turns AD and AP on.

    `test` turns AT on. `proxy`: http, https, socks5 or socks5h URL.
    """

    key_file: str = ""
    key_id: str = ""
    team_id: str = ""
    certificate_file: str = ""
    certificate_key_file: str = ""
    topic: str = "chat.simplex.app"
    proxy: str = ""
    in_flight: _InFlight | None = None
    production: ProductionHost = ProductionHost()
    sandbox: SandboxHost = SandboxHost()
    test: ApnsHost | None = None


class Fcm(_Section, frozen=True):
    """`service_account_file`: the JSON key from Google, which turns FC on. `proxy` as for APNs."""

    service_account_file: str = ""
    host: str = "fcm.googleapis.com"
    port: _Port = 443
    ca_file: str = ""
    proxy: str = ""
    in_flight: _InFlight | None = None


class WebPush(_Section, frozen=True):
    """`key_file`: the VAPID key that `init` makes, which turns WP on; `contact`: mailto: or https: URL.

    Without a `key_file` the reference's, `vapid.privkey` beside the configuration, does the same if it is there.
    `old_key_files`: keys that were in force before, the newest first, which subscriptions may still be for.
    `allow_hosts`: push services that are taken though they are on no public address; as in `server_list`.
    """

    key_file: str = ""
    old_key_files: tuple[str, ...] = ()
    contact: str = ""
    allow_hosts: tuple[str, ...] = ()
    ca_file: str = ""
    proxy: str = ""
    in_flight: _InFlight | None = None


class Delivery(_Section, frozen=True):
    """Seconds; `in_flight`: pushes that one provider may have under way, unless its own section says otherwise.

    `message_ttl`: how long a message push is tried; `provider_ttl`: how long the provider keeps one that the device is
    not there for, from when it became due. `checks`: periodic pushes, to tokens that were pushed nothing within their
    period, to all that ask for them, or none.
    """

    message_ttl: _Ttl = 24 * 3600
    provider_ttl: _Ttl = 28 * 24 * 3600
    verification_ttl: _Ttl = 600
    in_flight: _InFlight = 4000
    timeout: _Seconds = 30.0
    min_backoff: _Seconds = 1.0
    max_backoff: _Seconds = 300.0
    checks: Literal["quiet", "always", "off"] = "quiet"


class Subscriber(_Section, frozen=True):
    """How SMP servers are reached, and which.

    `allow_private_hosts`: also those on private and loopback addresses (for testing); `allow_servers` and
    `deny_servers`: see `server_list`; the limits: 0 for none; `audit_period`: hours, 0 for no audit;
    `connecting`: servers being connected to at once.
    """

    use_service_credentials: bool = False
    allow_private_hosts: bool = False
    host_mode: Literal["public", "onion"] = "public"
    required_host_mode: bool = False
    socks_proxy: str = ""
    socks_mode: Literal["onion", "always"] = "onion"
    own_server_domains: tuple[str, ...] = ()
    allow_servers: tuple[str, ...] = ()
    deny_servers: tuple[str, ...] = ()
    max_subscriptions_per_token: _Limit = 20_000
    max_subscriptions_per_server: _Limit = 0
    audit_period: _Hours = 24.0
    connecting: _Connecting = 1024


class Limits(_Section, frozen=True):
    """Budgets of strangers: docs/reference/limits.md has what each default was derived from.

    A rate: `300 + 5/s` is 300 at once, and then 5 a second; of two both hold. `enabled` false switches all of them off;
    `shared`: addresses or networks that stand for many clients each, which have budgets by session and in all only.
    """

    enabled: bool = True
    shared: tuple[str, ...] = ()
    sessions: _Count = 20_000
    sessions_per_address: _Count = 1500
    half_open: _Count = 4000
    half_open_per_address: _Count = 500
    handshakes: _Rate = "50 + 350/s and 10000 + 200/s"
    handshakes_per_address: _Rate = "100 + 170/s and 5000 + 50/s"
    commands: _Rate = "100 + 800/s"
    commands_per_session: _Rate = "2000 + 20/s"
    commands_per_address: _Rate = "2000 + 670/s and 20000 + 200/s"
    registrations: _Rate = "20 + 35/s and 1000 + 25/s"
    registrations_per_address: _Rate = "10 + 10/s and 300 + 5/s"
    replacements: _Rate = "20 + 35/s and 1000 + 25/s"
    replacements_per_address: _Rate = "10 + 10/s and 300 + 5/s"
    new_servers_per_token: _Rate = "200 + 0.02/s"  # noqa: S105  a rate
    new_servers_per_address: _Rate = "2000 + 1/s"
    connects: _Rate = "500 + 20/s"
    connects_per_destination: _Rate = "30 + 1/s"
    log_lines: _Rate = "200 + 1/s"


class InactiveClients(_Section, frozen=True):
    """`ttl`: seconds without a command after which a client is disconnected; 0: never."""

    ttl: _Idle = 12 * 3600.0


class Metrics(_Section, frozen=True):
    """The endpoint for Prometheus and for health checks, plain HTTP. `port` 0: off; `bind`: as in `Transport`."""

    port: _AnyPort = 0
    bind: str = "127.0.0.1"


class Admin(_Section, frozen=True):
    """`socket`: where commands reach a running relay; empty: beside the database, as `ntf-server.sock`.

    The live page, plain HTTP: `port` 0: off; `bind`: as in `Transport`; `page_socket`: a Unix socket in their place.
    `token_file`: what who looks has to know; `hosts`: names by which a proxy before it is asked.
    """

    socket: str = ""
    port: _AnyPort = 0
    bind: str = "127.0.0.1"
    page_socket: str = ""
    token_file: str = ""
    hosts: tuple[str, ...] = ()


class Log(_Section, frozen=True):
    """Logging goes to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(_Section, frozen=True):
    """The whole file."""

    transport: Transport = Transport()
    store: Store = Store()
    apns: Apns = Apns()
    fcm: Fcm = Fcm()
    web_push: WebPush = WebPush()
    delivery: Delivery = Delivery()
    subscriber: Subscriber = Subscriber()
    limits: Limits = Limits()
    inactive_clients: InactiveClients = InactiveClients()
    metrics: Metrics = Metrics()
    admin: Admin = Admin()
    log: Log = Log()
