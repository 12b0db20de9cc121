"""Set-ups that are wrong, what `ntf-server check` and `start` say of each, and the page of the documentation that lists
them (`scripts/wrong-set-ups` writes it).
"""

import contextlib
import datetime
import fcntl
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from certificates import client_certificate
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from redis_servers import Server, free_port

from ntf_server.cli.init import config_text
from ntf_server.config.identity_files import create_identity, write_file
from ntf_server.config.source import CONFIG_FILE
from ntf_server.permissions import user_name
from ntf_server.push.jose import generate_key, key_pem
from ntf_server.store.sealing import generate_key_text
from smp_bridge.identity import Credentials, issue_leaf, load_certificates, private_key_pem
from smp_bridge.identity import generate_key as generate_online_key

PAGE: Final = Path(__file__).parents[1] / "docs/reference/wrong-set-ups.md"
COMMAND: Final = [sys.executable, "-m", "ntf_server"]
NOBODY: Final = "nobody"  # a user that is not root, everywhere
OTHER_KEY: Final = "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg"
_START: Final = """
from ntf_server.cli import check, main, service_user, start
import importlib, pathlib, sys
for name in check._LATE: importlib.import_module(name)
service_user.service_user(sys.argv[1], pathlib.Path()).become()
main.main(sys.argv[2:])
"""  # the interpreter of the tests may be out of that user's reach


class Place:
    """A folder as `init` leaves it, to be spoiled; what is entered in `stack` is there while the commands run.

    `deny` and `deny_folder` take rights from the user that the commands are for: nobody, if the tests are root's.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.port = free_port()
        folder.mkdir(mode=0o755)
        create_identity(folder, "ED25519", "ntf.example.org")
        (folder / "ca.key").unlink()
        write_file(folder / "master.key", f"{generate_key_text()}\n".encode())
        write_file(folder / "vapid.key", key_pem(generate_key()))
        write_file(folder / "AuthKey_ABC123DEFG.p8", key_pem(generate_key()))
        write_file(folder / "account.json", b"{}")
        text = config_text("ntf.example.org", self.port, web_push=False)
        write_file(folder / CONFIG_FILE, text.replace('# bind = ""  ', 'bind = "127.0.0.1"').encode(), 0o644)
        self.environ: dict[str, str] = {}
        self.is_for_nobody = False

    @property
    def database(self) -> Path:
        return self.folder / "ntf-server.db"

    def append(self, text: str) -> None:
        with (self.folder / CONFIG_FILE).open("a") as file:
            file.write(f"\n{text}\n")

    def change(self, old: str, new: str) -> None:
        text = (self.folder / CONFIG_FILE).read_text()
        assert old in text
        (self.folder / CONFIG_FILE).write_text(text.replace(old, new))

    def set(self, **values: str) -> None:
        """Variables, by SECTION__KEY."""
        self.environ |= {f"NTF_SERVER__{key}": value for key, value in values.items()}

    def apns(self, **values: str) -> None:
        names = {"KEY_FILE": "AuthKey_ABC123DEFG.p8", "KEY_ID": "ABC123DEFG", "TEAM_ID": "5NN7GUYB6T"} | values
        hosts = {"PRODUCTION__CA_FILE": "ca.crt", "SANDBOX__CA_FILE": "ca.crt"}
        self.set(**{f"APNS__{key}": value for key, value in (names | hosts).items()})

    def make_store(self, url: str = "") -> None:
        """As a first start does."""
        script = """
import asyncio, sys
from pathlib import Path
from ntf_server.config.files import load
from ntf_server.store.open import open_store
async def make():
    loaded = load(Path(sys.argv[1]))
    await (await open_store(loaded.store, directory=loaded.directory, master_key=loaded.master_key)).close()
asyncio.run(make())
"""
        environ = self.environ | ({"NTF_SERVER__STORE__URL": url} if url else {})
        subprocess.run([sys.executable, "-c", script, str(self.folder)], env=os.environ | environ, check=True)

    def valkey(self, **options: str) -> Server:
        server = self.stack.enter_context(Server(self.folder.parent / "valkey", options))
        self.set(STORE__URL=server.url)
        return server

    def taken_port(self) -> int:
        taken = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        return int(taken.getsockname()[1])

    def give_away(self) -> None:
        """To whom the commands are for."""
        self.is_for_nobody = os.geteuid() == 0
        if self.is_for_nobody:
            for path in (self.folder, *self.folder.iterdir()):
                shutil.chown(path, NOBODY)

    def deny(self, path: Path) -> None:
        if self.is_for_nobody:
            shutil.chown(path, "root", "root")
            path.chmod(0o600)
        else:
            path.chmod(0)

    def deny_folder(self, path: Path, mode: int) -> None:
        if self.is_for_nobody:
            shutil.chown(path, "root", "root")
        path.chmod(mode)
        self.stack.callback(path.chmod, 0o755)

    @property
    def user(self) -> str:
        return NOBODY if self.is_for_nobody else user_name()

    def check(self) -> subprocess.CompletedProcess[str]:
        user = ["--user", NOBODY] if self.is_for_nobody else []
        return self._run([*COMMAND, "check", "--path", str(self.folder), *user])

    def start(self) -> subprocess.CompletedProcess[str]:
        arguments = ["start", "--path", str(self.folder)]
        as_nobody = [sys.executable, "-c", _START, NOBODY, *arguments]
        return self._run(as_nobody if self.is_for_nobody else [*COMMAND, *arguments])

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=os.environ | self.environ, capture_output=True, text=True, timeout=60, check=False
        )


@dataclass(frozen=True)
class WrongSetup:
    """`words`: in a line of what is said; DIR, PORT and USER stand for what they are. `code`: of both commands;
    0: it is a warning of `check`, and the server starts.
    """

    what: str
    spoil: Callable[[Place], Any]
    words: str
    code: int = 2

    def told(self, place: Place) -> str:
        """The words, as they are for this place."""
        values = {"DIR": str(place.folder), "PORT": str(place.port), "USER": place.user}
        return re.sub(r"\b(DIR|PORT|USER)\b", lambda m: values[m[1]], self.words)


# --- how to spoil it


def _remove(*names: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        for name in names:
            (place.folder / name).unlink()

    return spoil


def _write(name: str, data: bytes) -> Callable[[Place], object]:
    return lambda place: (place.folder / name).write_bytes(data)


def _append(text: str) -> Callable[[Place], None]:
    return lambda place: place.append(text)


def _set(**values: str) -> Callable[[Place], None]:
    return lambda place: place.set(**values)


def _apns(**values: str) -> Callable[[Place], None]:
    return lambda place: place.apns(**values)


def _a_reference_s(place: Place) -> None:
    for name in (CONFIG_FILE, "master.key", "vapid.key"):
        (place.folder / name).unlink()
    (place.folder / "ntf-server.ini").write_text("[STORE_LOG]\nenable: on\n")


def _an_identity_alone(place: Place) -> None:
    _a_reference_s(place)
    (place.folder / "ntf-server.ini").unlink()


def _another_leaf(place: Place) -> None:
    credentials, ca_key = Credentials.generate("ED25519", "ntf.example.org")
    key = generate_online_key("ED25519")
    ca = load_certificates(credentials.chain[1].public_bytes(Encoding.PEM))[0]
    leaf = issue_leaf(key, "ntf.example.org", ca, ca_key, datetime.datetime.now(datetime.UTC))
    (place.folder / "server.crt").write_bytes(leaf.public_bytes(Encoding.PEM))
    (place.folder / "server.key").write_bytes(private_key_pem(key))


def _p384(place: Place) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (place.folder / "AuthKey_ABC123DEFG.p8").write_bytes(data)
    place.apns()


def _unpaired_certificate(place: Place) -> None:
    client_certificate(place.folder)
    (place.folder / "push.key").write_bytes(key_pem(generate_key()))
    place.set(APNS__CERTIFICATE_FILE="push.pem", APNS__CERTIFICATE_KEY_FILE="push.key")
    place.set(APNS__PRODUCTION__CA_FILE="ca.crt", APNS__SANDBOX__CA_FILE="ca.crt")


def _an_app_s_file(place: Place) -> None:
    (place.folder / "account.json").write_text(json.dumps({"project_info": {}, "client": []}))
    place.set(FCM__SERVICE_ACCOUNT_FILE="account.json", FCM__CA_FILE="ca.crt")


def _with_store(spoil: Callable[[Place], object]) -> Callable[[Place], None]:
    def both(place: Place) -> None:
        place.make_store()
        spoil(place)

    return both


def _sqlite(*statements: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        with contextlib.closing(sqlite3.connect(place.database)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return spoil


def _overwritten(place: Place) -> None:
    data = bytearray(place.database.read_bytes())
    for page in range(2, len(data) // 4096, 3):
        data[4096 * page : 4096 * (page + 1)] = os.urandom(4096)
    place.database.write_bytes(data)


def _in_use(place: Place) -> None:
    place.make_store()
    lock = place.stack.enter_context(place.database.with_name("ntf-server.db.lock").open("w"))
    fcntl.flock(lock, fcntl.LOCK_EX)


def _evicting(place: Place) -> None:
    place.valkey(maxmemory="1gb", **{"maxmemory-policy": "allkeys-lru"})


def _of_another_key(place: Place) -> None:
    place.valkey()
    place.make_store()
    place.set(STORE__MASTER_KEY=OTHER_KEY)


def _newer_redis(place: Place) -> None:
    server = place.valkey()
    place.make_store()
    server.ask("HSET", "ntf:{g}:store", "schema", 99)


def _of_another_program(place: Place) -> None:
    place.valkey().ask("SET", "ntf:{g}:store", "theirs")


def _with_a_password(place: Place) -> None:
    server = place.valkey()
    server.ask("CONFIG", "SET", "requirepass", "s3cret")


def _away(place: Place) -> None:
    place.set(STORE__URL=f"redis://127.0.0.1:{place.port}")


def _port_taken(place: Place) -> None:
    place.stack.enter_context(socket.create_server(("127.0.0.1", place.port)))


def _metrics_taken(place: Place) -> None:
    place.stack.enter_context(socket.create_server(("127.0.0.1", place.port)))
    place.set(METRICS__PORT=str(place.port), TRANSPORT__PORT=str(free_port()))


def _live_page_token(place: Place) -> None:
    write_file(place.folder / "page.token", b"letmein\n")
    place.set(ADMIN__PORT=str(free_port()), ADMIN__TOKEN_FILE="page.token")


def _low_port(place: Place) -> None:
    place.give_away()
    place.set(TRANSPORT__PORT="81")


def _denied(name: str) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        place.give_away()
        place.deny(place.folder / name)

    return spoil


def _denied_folder(mode: int) -> Callable[[Place], None]:
    def spoil(place: Place) -> None:
        place.give_away()
        place.deny_folder(place.folder, mode)

    return spoil


def _denied_keys(place: Place) -> None:
    (place.folder / "keys").mkdir()
    shutil.move(place.folder / "AuthKey_ABC123DEFG.p8", place.folder / "keys")
    place.apns(KEY_FILE="keys/AuthKey_ABC123DEFG.p8")
    place.give_away()
    place.deny_folder(place.folder / "keys", 0o600)


def _denied_database(place: Place) -> None:
    place.make_store()
    place.give_away()
    place.deny(place.database)


def _readable(name: str, mode: int = 0o644) -> Callable[[Place], None]:
    return lambda place: (place.folder / name).chmod(mode)


def _readable_apns(place: Place) -> None:
    place.apns()
    (place.folder / "AuthKey_ABC123DEFG.p8").chmod(0o640 | 0o004)


WRONG_SETUPS: Final = [
    # --- the configuration
    WrongSetup(
        "an empty folder, or a wrong `--path`",
        lambda place: [path.unlink() for path in place.folder.iterdir()],
        "DIR/ntf-server.toml: not found; run `ntf-server init --path DIR`, or give --path",
    ),
    WrongSetup(
        "a folder of the reference's server",
        _a_reference_s,
        "DIR/ntf-server.toml: not found; the folder is simplexmq's: run `ntf-server init --adopt DIR --path DIR`",
    ),
    WrongSetup(
        "an identity, and nothing else",
        _an_identity_alone,
        "DIR/ntf-server.toml: not found; the identity of another program is there: run `ntf-server init` in"
        " a new folder",
    ),
    WrongSetup(
        "a file that is no TOML",
        _append("= 3"),
        "DIR/ntf-server.toml: cannot be read: Invalid statement",
    ),
    WrongSetup(
        "a key with a typing error",
        lambda place: place.change("port = ", "prot = "),
        "DIR/ntf-server.toml: [transport] prot: unknown key; did you mean port?",
    ),
    WrongSetup(
        "a key in the wrong section",
        _append("[metrics]\nsocks_proxy = 'localhost:9050'"),
        "DIR/ntf-server.toml: [metrics] socks_proxy: is no key here; put it under [subscriber]",
    ),
    WrongSetup(
        "a section with a typing error",
        _append("[delivry]\ntimeout = 10"),
        "DIR/ntf-server.toml: delivry: unknown section; did you mean delivery?",
    ),
    WrongSetup(
        "a variable with a typing error",
        _set(METRICS__PROT="9100"),
        "NTF_SERVER__METRICS__PROT: [metrics] prot: unknown key; did you mean port?",
    ),
    WrongSetup(
        "a word that is none of those there are",
        lambda place: place.change('level = "info"', 'level = "warn"'),
        "[log] level: unknown value 'warn'; did you mean warning? give one of debug, info, warning, error",
    ),
    WrongSetup(
        "a number that is too large",
        _set(TRANSPORT__PORT="70000"),
        "NTF_SERVER__TRANSPORT__PORT: [transport] port: is 70000; give a whole number from 0 to 65535",
    ),
    WrongSetup(
        "text for a number",
        _append("[delivery]\ntimeout = 'ten'"),
        "[delivery] timeout: is text; give a number from 0.001 to 86400",
    ),
    WrongSetup(
        "a host that is none",
        _set(TRANSPORT__HOST="ntf example"),
        "[transport] host: bad host name; give a host name or an IP address",
    ),
    WrongSetup(
        "onion hosts, and no proxy to them",
        _set(SUBSCRIBER__HOST_MODE="onion"),
        "[subscriber] host_mode: onion needs socks_proxy; set it, as in localhost:9050",
    ),
    WrongSetup(
        "everything through a proxy that is not named",
        _set(SUBSCRIBER__SOCKS_MODE="always"),
        "[subscriber] socks_mode: always needs socks_proxy; set it, as in localhost:9050",
    ),
    WrongSetup(
        "a SOCKS proxy that is none",
        _set(SUBSCRIBER__SOCKS_PROXY="localhost:tor"),
        "[subscriber] socks_proxy: not a SOCKS5 proxy ([user:password@]host:port); give",
    ),
    WrongSetup(
        "a provider's proxy without a port",
        _set(APNS__PROXY="http://proxy.example.org"),
        "[apns] proxy: is no proxy's URL with a port; give http://, https://, socks5:// or socks5h://",
    ),
    # --- keys of providers
    WrongSetup(
        "an id of Apple's key that is none",
        _apns(KEY_ID="ABC"),
        "[apns] key_id: is not 10 capital letters and digits; set it to the one that Apple shows, which is"
        " ABC123DEFG by"
        " the name of key_file",
    ),
    WrongSetup(
        "the team's id in place of the key's",
        _apns(KEY_ID="5NN7GUYB6T"),
        "[apns] key_id: is not ABC123DEFG, which key_file is named after; set it to that, or rename the file",
    ),
    WrongSetup(
        "Apple's key without the team's id",
        _apns(TEAM_ID=""),
        "[apns] team_id: goes with key_file; set it to the one that Apple shows",
    ),
    WrongSetup(
        "Apple's key is not there",
        _apns(KEY_FILE="AuthKey_5NN7GUYB6T.p8", KEY_ID="5NN7GUYB6T"),
        "[apns] key_file: DIR/AuthKey_5NN7GUYB6T.p8: No such file or directory; give the .p8 file from Apple",
    ),
    WrongSetup(
        "a key of another kind for Apple's",
        _p384,
        "[apns] key_file: DIR/AuthKey_ABC123DEFG.p8: not a P-256 key; give the .p8 file from Apple",
    ),
    WrongSetup(
        "a client certificate, and another one's key",
        _unpaired_certificate,
        "[apns] certificate_key_file: DIR/push.key: is not the key of certificate_file; give the certificate"
        " from Apple",
    ),
    WrongSetup(
        "an app's file in place of the service account's key",
        _an_app_s_file,
        "[fcm] service_account_file: DIR/account.json: is an app's google-services.json, not a service account's key",
    ),
    WrongSetup(
        "a contact that push services refuse",
        _set(WEB_PUSH__KEY_FILE="vapid.key", WEB_PUSH__CA_FILE="ca.crt", WEB_PUSH__CONTACT="mailto:me@localhost"),
        "[web_push] contact: localhost is no public DNS name, so push services refuse it; give one",
    ),
    WrongSetup(
        "a CA bundle without a certificate in it",
        _set(WEB_PUSH__KEY_FILE="vapid.key", WEB_PUSH__CA_FILE="vapid.key", WEB_PUSH__CONTACT="mailto:a@example.org"),
        "[web_push] ca_file: DIR/vapid.key: holds no certificate; give a PEM bundle",
    ),
    # --- the identity
    WrongSetup(
        "the online key is not there",
        _remove("server.key"),
        "DIR/server.key: No such file or directory; make a new online certificate of the same identity:"
        " `ntf-server cert"
        " --ca-key FILE`",
    ),
    WrongSetup(
        "the online certificate is not there",
        _remove("server.crt"),
        "DIR/server.crt: No such file or directory; make a new online certificate of the same identity:"
        " `ntf-server cert"
        " --ca-key FILE --fqdn NAME`",
    ),
    WrongSetup(
        "the identity's certificate is not there",
        _remove("ca.crt"),
        "DIR/ca.crt: No such file or directory; restore it from a copy: it is the server's identity, which"
        " cannot be made"
        " again",
    ),
    WrongSetup(
        "no identity at all",
        _remove("ca.crt", "server.crt", "server.key"),
        "DIR: has no server.crt, ca.crt, server.key; restore them, or run `ntf-server init` in a new folder",
    ),
    WrongSetup(
        "the online key of another certificate",
        lambda place: (place.folder / "server.key").write_bytes(private_key_pem(generate_online_key("ED25519"))),
        "the private key is not the certificate's; make a new online certificate of the same identity",
    ),
    WrongSetup(
        "an online certificate of another identity",
        _another_leaf,
        "the chain is not validly signed; make a new online certificate of the same identity",
    ),
    WrongSetup(
        "the fingerprint of another identity",
        _write("fingerprint", b"AAAA\n"),
        "DIR/fingerprint: is not of DIR/ca.crt; restore the one that belongs to it, or delete it",
    ),
    # --- the store and its key
    WrongSetup(
        "no master key, and a database that needs it",
        _with_store(_remove("master.key")),
        "[store] master_key_file: DIR/master.key: No such file or directory; restore it from your copy",
    ),
    WrongSetup(
        "no master key, and no database yet",
        _remove("master.key"),
        "[store] master_key_file: DIR/master.key: No such file or directory; make one: `umask 077; openssl rand -base64"
        " 32 >DIR/master.key`",
    ),
    WrongSetup(
        "a master key that is none",
        _write("master.key", b"password\n"),
        "[store] master_key_file: DIR/master.key: 8 characters that are no master key; give 32 random bytes",
    ),
    WrongSetup(
        "a key service that is down",
        _set(STORE__MASTER_KEY_COMMAND="false"),
        "[store] master_key_command: the master key's command false: ended with exit code 1; run it as user USER"
        " until it prints the key",
        75,
    ),
    WrongSetup(
        "another master key than the database's",
        _with_store(_set(STORE__MASTER_KEY=OTHER_KEY)),
        "DIR/ntf-server.db: the master key is not the one that this database was sealed with",
    ),
    WrongSetup(
        "a file that is no database",
        lambda place: place.database.write_bytes(b"not a database" * 1000),
        "DIR/ntf-server.db: the database is corrupt (file is not a database): stop the server, move the file",
    ),
    WrongSetup(
        "a database of another program",
        _sqlite("CREATE TABLE theirs (x)"),
        "DIR/ntf-server.db: this is the database of another program; set [store] url to a new file",
    ),
    WrongSetup(
        "a database of a newer version",
        _with_store(_sqlite("PRAGMA user_version = 99")),
        "DIR/ntf-server.db: the database is of a newer ntf-server (schema 99); upgrade ntf-relay",
    ),
    WrongSetup(
        "a database with pages that were overwritten",
        _with_store(_overwritten),
        "DIR/ntf-server.db: the database is corrupt (",
    ),
    WrongSetup(
        "a database in a folder that is not there",
        _set(STORE__URL="sqlite:///state/ntf-server.db"),
        "[store] url: DIR/state: no such folder; create it: `install -d -m 700 -o USER DIR/state`",
    ),
    WrongSetup(
        "a database that another server uses",
        _in_use,
        "DIR/ntf-server.db: another ntf-server uses this database",
        75,
    ),
    WrongSetup(
        "a store's URL that is none",
        _set(STORE__URL="postgresql://localhost/ntf"),
        "[store] url: postgresql: must be sqlite:///PATH (sqlite:////PATH if absolute), or one of a Redis",
    ),
    WrongSetup(
        "a Valkey that throws records away when it is full",
        _evicting,
        "has maxmemory-policy allkeys-lru, which throws records away: set it to noeviction",
    ),
    WrongSetup(
        "another master key than that of the store on Valkey",
        _of_another_key,
        "the master key is not the one that this store was sealed with",
    ),
    WrongSetup(
        "a store on Valkey of a newer version",
        _newer_redis,
        "the store is of a newer ntf-server (schema 99, this one has",
    ),
    WrongSetup(
        "a Valkey whose keys are another program's",
        _of_another_program,
        "what is there under the prefix ntf is no relay's store; set ?prefix= in [store] url to another one",
    ),
    WrongSetup(
        "a Valkey that asks for a password",
        _with_a_password,
        "it asks for a password, and [store] url has none",
    ),
    WrongSetup(
        "a Valkey that is not there",
        _away,
        "(tried for 5 s); start it, or mend [store] url",
        75,
    ),
    # --- ports and sockets
    WrongSetup(
        "the port is in use",
        _port_taken,
        "[transport] bind, port: 127.0.0.1:PORT: is in use; stop what uses it, which `ss -ltnp sport = :PORT` shows, or"
        " choose another one",
        75,
    ),
    WrongSetup(
        "the port for metrics is in use",
        _metrics_taken,
        "[metrics] bind, port: 127.0.0.1:PORT: is in use; stop what uses it, which `ss -ltnp sport = :PORT` shows, or"
        " choose another one",
        75,
    ),
    WrongSetup(
        "an address that no interface has",
        _set(TRANSPORT__BIND="203.0.113.5"),
        "[transport] bind, port: 203.0.113.5:PORT: this machine has no such address now; give one that `ip address`"
        " shows, or none to listen on all",
        75,
    ),
    WrongSetup(
        "an interface that is none",
        _set(TRANSPORT__BIND="999.1.1.1"),
        "[transport] bind, port: 999.1.1.1:PORT: ",
    ),
    WrongSetup(
        "a live page that other machines reach, without a token",
        _set(ADMIN__PORT="9090", ADMIN__BIND="0.0.0.0"),
        "DIR/ntf-server.toml: [admin] token_file: is missing, and 0.0.0.0 is open to other machines; make one, `umask"
        " 077; openssl rand -base64 24 >DIR/page.token`, and set token_file to it, or bind to 127.0.0.1",
    ),
    WrongSetup(
        "a token for the live page that can be guessed",
        _live_page_token,
        "[admin] token_file: DIR/page.token: is no token of 20 characters or more, letters, digits and signs; make one",
    ),
    WrongSetup(
        "a file where the admin socket goes",
        _set(ADMIN__SOCKET="fingerprint"),
        "DIR/fingerprint: is in the way, and no socket; move it away",
    ),
    # --- the user that the server runs as
    WrongSetup(
        "a configuration that the server's user may not read",
        _denied(CONFIG_FILE),
        "DIR/ntf-server.toml: Permission denied; let user USER read it: `chgrp",
    ),
    WrongSetup(
        "an online key that the server's user may not read",
        _denied("server.key"),
        "DIR/server.key: Permission denied; let user USER read it: `chgrp",
    ),
    WrongSetup(
        "a master key that the server's user may not read",
        _denied("master.key"),
        "DIR/master.key: Permission denied; let user USER read it: `chgrp",
    ),
    WrongSetup(
        "a folder with keys that the server's user may not enter",
        _denied_keys,
        "DIR/keys/AuthKey_ABC123DEFG.p8: Permission denied; let user USER enter DIR/keys: `chgrp",
    ),
    WrongSetup(
        "a database that root restored",
        _denied_database,
        "DIR/ntf-server.db: user USER may not write to it; give it the file: `chown USER DIR/ntf-server.db`",
    ),
    WrongSetup(
        "a database in a folder that the server's user may not write to",
        _denied_folder(0o555),
        "DIR: user USER may not write there; set [store] url to a folder of its own, or give it this one:"
        " `chown USER DIR`",
    ),
    WrongSetup(
        "a port that the system keeps, and a user without the right to it",
        _low_port,
        "[transport] bind, port: 127.0.0.1:81: the system keeps this port for the privileged; start the server by its"
        " unit, which gives it CAP_NET_BIND_SERVICE, or choose one from 1024 on",
    ),
    # --- what works, and not as it should
    WrongSetup(
        "an online key that everybody may read",
        _readable("server.key"),
        "DIR/server.key: everybody may read it (mode 0644), and it holds a secret: `chmod o= DIR/server.key`",
        0,
    ),
    WrongSetup(
        "a master key that everybody may write",
        _readable("master.key", 0o666),
        "DIR/master.key: everybody may write it (mode 0666), and it holds a secret: `chmod o= DIR/master.key`",
        0,
    ),
    WrongSetup(
        "a master key in the configuration, which everybody may read",
        lambda place: place.change('master_key_file = "master.key"', f"master_key = '{OTHER_KEY}'"),
        "DIR/ntf-server.toml: everybody may read it (mode 0644), and it holds a secret: `chmod o= DIR/ntf-server.toml`",
        0,
    ),
    WrongSetup(
        "Apple's key that everybody may read",
        _readable_apns,
        "DIR/AuthKey_ABC123DEFG.p8: everybody may read it (mode 0644), and it holds a secret: `chmod o=",
        0,
    ),
    WrongSetup(
        "an address that says localhost",
        _set(TRANSPORT__HOST="localhost"),
        "the address says localhost, which apps elsewhere do not reach: set [transport] host to the server's name",
        0,
    ),
    WrongSetup(
        "a SOCKS proxy that is not there",
        lambda place: place.set(SUBSCRIBER__SOCKS_PROXY=f"127.0.0.1:{free_port()}"),
        "[subscriber] socks_proxy: nobody listens at 127.0.0.1:",
        0,
    ),
    WrongSetup(
        "the identity's key beside the configuration",
        _write("ca.key", b""),
        "DIR/ca.key should be offline",
        0,
    ),
]

_HEAD: Final = """# Wrong set-ups

What `ntf-server check` says of set-ups that are wrong. With another exit code than 0 `start` says the same and exits
with the same code: 2 where no retry mends it, 75 where it may pass by itself. With 0 it is a warning, and the server
starts. `DIR` is the folder of the configuration, `PORT` a port, `USER` the user that the server runs as.
`tests/test_wrong_setups.py` makes these set-ups, and has both commands say this; `scripts/wrong-set-ups` writes this
page.

| what is wrong | what is said of it, or the part that matters | exit code |
| --- | --- | --- |
"""


def page() -> str:
    """The whole page."""
    rows = []
    for row in WRONG_SETUPS:
        words = row.words.replace("|", "\\|")
        rows.append(f"| {row.what} | `` {words} `` | {row.code} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
