"""Set-ups with something that is not well, what `ntf-server doctor` says of each, and the page of the documentation
that lists them (`scripts/wrong-set-ups` writes it). What `check` says too: wrong_setups.py.
"""

import asyncio
import email.utils
import fcntl
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from archive_world import one_token
from certificates import client_certificate
from redis_servers import free_port
from wrong_pushes import Spoil, World, setting, silent_grants

from ntf_server.config.source import CONFIG_FILE
from ntf_server.testing import Answer

PAGE: Final = Path(__file__).parents[1] / "docs/reference/doctor.md"


@dataclass(frozen=True)
class WrongPlace:
    """`spoil`: what is done to a world where all is well; `words`: in a line that begins with `standing`."""

    what: str
    spoil: Spoil
    words: str
    standing: str = "wrong"
    online: bool = False

    @property
    def code(self) -> int:
        return {"wrong": 1, "refused": 2}.get(self.standing, 0)


def _certificate(world: World) -> None:
    certificate, key = client_certificate(world.folder)
    world.set(APNS__KEY_FILE="", APNS__KEY_ID="", APNS__TEAM_ID="")
    world.set(APNS__CERTIFICATE_FILE=certificate, APNS__CERTIFICATE_KEY_FILE=key)


async def _no_master_key(world: World) -> None:
    await one_token(world.folder)
    (world.folder / "master.key").unlink()


def _locked(world: World) -> None:
    lock = world.stack.enter_context((world.folder / "ntf-server.db.lock").open("w"))
    fcntl.flock(lock, fcntl.LOCK_EX)
    (world.folder / "ntf-server.db").touch()


def _port_in_use(world: World) -> None:
    taken = world.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    world.set(TRANSPORT__BIND="127.0.0.1", TRANSPORT__PORT=str(taken.getsockname()[1]))


async def _not_well(world: World) -> None:
    """A relay that says so; any program may listen at its socket."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"ok": true, "pid": 7, "troubles": ["APNs (AP) takes nothing"], "port": 443}\n')
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(answer, world.folder / "ntf-server.sock")
    await world.stack.enter_async_context(server)


async def _waiting(world: World) -> None:
    await one_token(world.folder)


def _clock(ahead: int) -> Spoil:
    def spoil(world: World) -> None:
        date = email.utils.formatdate(time.time() + ahead, usegmt=True)
        world.apns.script(*[Answer(404, "BadPath", headers=(("date", date),))] * 2)

    return spoil


def _unresolved(world: World) -> None:
    world.dns.refused.add("relay.example")
    world.set(TRANSPORT__HOST="relay.example")


def _smp(*hosts: str) -> Spoil:
    return setting(SUBSCRIBER__ALLOW_SERVERS=" ".join(hosts), SUBSCRIBER__ALLOW_PRIVATE_HOSTS="true")


WRONG_PLACES: Final = [
    WrongPlace(
        "a folder without a configuration",
        lambda world: (world.folder / CONFIG_FILE).unlink(),
        "DIR/ntf-server.toml: not found",
        "refused",
    ),
    WrongPlace(
        "a key with a typing error", setting(LOG__LEVL="info"), "NTF_SERVER__LOG__LEVL: [log] levl: unknown key"
    ),
    WrongPlace(
        "Apple's key is not there",
        lambda world: (world.folder / "AuthKey_ABC123DEFG.p8").unlink(),
        "[apns] key_file: DIR/AuthKey_ABC123DEFG.p8: No such file or directory",
    ),
    WrongPlace(
        "a service account that is none",
        lambda world: (world.folder / "account.json").write_text("{}"),
        "[fcm] service_account_file: DIR/account.json:",
    ),
    WrongPlace(
        "the online key of another certificate",
        lambda world: (world.folder / "server.key").write_bytes((world.folder / "ca.key").read_bytes()),
        "the private key is not the certificate's",
    ),
    WrongPlace(
        "no master key, and a database that needs it",
        _no_master_key,
        "[store] master_key_file: DIR/master.key: No such file or directory",
    ),
    WrongPlace(
        "a file that is no database",
        lambda world: (world.folder / "ntf-server.db").write_bytes(b"no database at all" * 400),
        "start         DIR/ntf-server.db: the database is corrupt (file is not a database)",
    ),
    WrongPlace(
        "a database that another server uses",
        _locked,
        "start         DIR/ntf-server.db: another ntf-server uses this database",
    ),
    WrongPlace("a port that is in use", _port_in_use, "[transport] bind, port: 127.0.0.1:PORT: is in use"),
    WrongPlace("a relay that is not well", _not_well, "server        APNs (AP) takes nothing"),
    WrongPlace(
        "a client certificate that soon ends",
        _certificate,
        "certificate   the client certificate for APNs ends on 20",
        "warning",
    ),
    WrongPlace(
        "a key that everybody may read",
        lambda world: (world.folder / "account.json").chmod(0o644),
        "set-up        DIR/account.json: everybody may read it (mode 0644), and it holds a secret",
        "warning",
    ),
    WrongPlace(
        "the identity's key beside the configuration", lambda _: None, "DIR/ca.key should be offline", "warning"
    ),
    WrongPlace("tokens that wait while no server runs", _waiting, "backlog       1 tokens wait for a push", "well"),
    WrongPlace("a clock that is two minutes behind", _clock(120), " s behind Apple's", "warning", online=True),
    WrongPlace("a clock that is two hours ahead", _clock(-7200), " s ahead of Apple's", online=True),
    WrongPlace(
        "a CA bundle that is not Apple's",
        setting(APNS__PRODUCTION__CA_FILE="ca.crt"),
        "APNs          TLS: 127.0.0.1:PORT: its certificate is not trusted",
        online=True,
    ),
    WrongPlace(
        "a firewall that refuses",
        lambda world: world.set(FCM__PORT=str(free_port())),
        "FCM           connection: 127.0.0.1:PORT: Connection refused",
        online=True,
    ),
    WrongPlace(
        "Google says nothing", silent_grants, "Google OAuth  127.0.0.1: 127.0.0.1:PORT: TLSv1.3, HTTP/2", online=True
    ),
    WrongPlace(
        "the server's name leads nowhere",
        _unresolved,
        "address       relay.example: the server's own name leads nowhere",
        online=True,
    ),
    WrongPlace(
        "an SMP server of the lists that is not there", _smp("localhost"), "SMP server    localhost", online=True
    ),
]

_HEAD: Final = """# What `ntf-server doctor` says

`ntf-server doctor` does what `check` does, and looks besides at what a start says nothing of. Each finding is `well`, a
`warning`, `wrong`, or `left out`, and what is not well has its cure. What fails, or cannot be looked at, keeps nothing
else from being looked at. 0: nothing is wrong; 1: something is; 2: there is no configuration.

| looked at | what for |
| --- | --- |
| `configuration`, `start`, `set-up` | all that [`check`](wrong-set-ups.md) does: settings, keys, ports, admin socket, the store opened with the master key |
| `server`, `SMP servers`, `backlog` | what a running relay says of itself, and to how many SMP servers it is connected; of one that does not run, whether pushes wait |
| `identity`, `master key`, `APNs`, `FCM`, `Web Push` | that keys are of the right form, and pairs; never what is in them |
| `certificate` | when the online and the identity's certificate, and client certificates, end: told from 30 days before |
| `owner` | whether somebody but root and the server's user may change the configuration or keys |
| `descriptors` | `LimitNOFILE` of the unit, else this user's limit, beside `[limits] sessions` |
| `disk` | room where the database is, for an upgrade's copy too |
| `unit` | whether the installed `ntf-server.service`, with its drop-ins, is as ours in what matters |
| `clock` | whether the kernel is kept in time (NTP); with `--online`: this machine's beside Apple's and Google's |
| `address`, `APNs`, `FCM`, `Google OAuth` | with `--online`: names, TCP, TLS with the CA bundle, HTTP; they are asked for nothing and given no credential |
| `SMP server` | with `--online`: TCP and TLS to the hosts of `[subscriber] allow_servers` and `own_server_domains`, port 5223, no more |

Without `--online` nothing leaves this machine but for what `check` does too: a store on Redis is opened, a SOCKS proxy is connected to, `master_key_command` is run. With it each host has 15 seconds, all two minutes.
As root it sees with the eyes of the user that the server runs as: `--user`, else `User=` of the unit, else the owner of the folder. Where systemd passes on keys that only root can read (`LoadCredential`), give `--user root`.

## What it says of what is not well

`tests/test_wrong_places.py` makes these, and has the command say this; `scripts/wrong-set-ups` writes this page. `DIR` is the folder of the configuration, `PORT` a port.

| what is not well | finding | what is said of it, or the part that matters | exit code |
| --- | --- | --- | --- |
"""  # noqa: E501


def page() -> str:
    """The whole page."""
    rows = []
    for row in WRONG_PLACES:
        finding = f"{row.standing}{', `--online`' if row.online else ''}"
        rows.append(f"| {row.what} | {finding} | `` {row.words} `` | {row.code} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
