"""Whom the server runs as, for a command of root's that has to see with that user's eyes."""

import argparse
import os
import pwd
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ntf_server.cli.errors import UsageError
from ntf_server.config.files import DEFAULT_DIR

UNIT: Final = "ntf-server.service"
UNIT_FOLDERS: Final = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
                       "/usr/lib/systemd/system", "/lib/systemd/system")  # fmt: skip
_LINE: Final = re.compile(r"([A-Za-z]+) *= *(.*)")
_LISTS: Final = frozenset(["Environment", "AmbientCapabilities", "RestartPreventExitStatus"])  # of more than one line
_CAPABILITY: Final = "CAP_NET_BIND_SERVICE"


@dataclass(frozen=True)
class ServiceUser:
    """`why` in words; `low_ports`: its unit lets it listen below 1024."""

    name: str
    uid: int
    gid: int
    why: str
    low_ports: bool = False

    def become(self) -> None:
        """For good, with the user's groups. Modules that nobody imported yet may be out of reach then."""
        os.initgroups(self.name, self.gid)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


def add_user(parser: argparse.ArgumentParser) -> None:
    """`--user`."""
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="whom the server runs as, if root asks (User= of the unit, else the owner of the folder)",
    )


def service_user(name: str | None, directory: Path, folders: Sequence[str] = UNIT_FOLDERS) -> ServiceUser | None:
    """By name, else by the unit of this configuration's folder, else the folder's owner. None: whoever runs this.

    Raises UsageError.
    """
    if os.geteuid() != 0:
        if name is not None and name != pwd.getpwuid(os.geteuid()).pw_name:
            raise UsageError(f"--user {name}: only root can look for another user; use sudo, or be {name}")
        return None
    unit = find_unit(folders)
    if unit is not None and not is_of(unit[1], directory):
        unit = None
    low_ports = unit is not None and _CAPABILITY in unit[1].get("AmbientCapabilities", "")
    if name is not None:
        return _named(name, "by --user", low_ports=low_ports)
    if unit is not None and (of_unit := unit[1].get("User")):
        return _named(of_unit, f"by User= of {unit[0]}", low_ports=low_ports)
    owner = directory.stat().st_uid if directory.exists() else 0
    if owner == 0:
        return None
    try:
        return _named(pwd.getpwuid(owner).pw_name, f"the owner of {directory}", low_ports=low_ports)
    except KeyError:
        raise UsageError(f"{directory}: its owner, {owner}, is no user; give it to one, or give --user") from None


def _named(name: str, why: str, *, low_ports: bool) -> ServiceUser | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        cure = f"create it: `useradd --system --shell /usr/sbin/nologin {name}`"
        raise UsageError(f"user {name} ({why}): there is no such user; {cure}") from None
    return ServiceUser(name, entry.pw_uid, entry.pw_gid, why, low_ports) if entry.pw_uid else None


def find_unit(folders: Sequence[str] = UNIT_FOLDERS) -> tuple[Path, Mapping[str, str]] | None:
    """Where the unit is, and what it says, with its drop-ins; None: there is none."""
    file = next((Path(folder) / UNIT for folder in folders if (Path(folder) / UNIT).is_file()), None)
    if file is None:
        return None
    values: dict[str, str] = {}
    drop_ins = sorted(path for folder in reversed(folders) for path in Path(folder, f"{UNIT}.d").glob("*.conf"))
    for path in (file, *drop_ins):
        for line in path.read_text(errors="replace").splitlines():
            if m := _LINE.fullmatch(line.strip()):
                key, value = m[1], m[2]
                more = key in _LISTS and value and values.get(key)  # else it replaces what was said before
                values[key] = f"{values[key]} {value}" if more else value
    return file, values


def is_of(values: Mapping[str, str], directory: Path) -> bool:
    """Whether a unit starts the server in this folder."""
    by_option = re.search(r"--path[ =](\S+)", values.get("ExecStart", ""))
    by_variable = re.search(r"NTF_SERVER_CFG_PATH=([^\s\"']+)", values.get("Environment", ""))
    found = by_option or by_variable
    return directory.absolute() == Path(found[1] if found else DEFAULT_DIR)
