"""The machine that a relay runs on: owners of its files, limits of descriptors, room on disks."""

import ctypes
import os
import pwd
import resource
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ntf_server.findings import Finding, left_out, warning, well, wrong
from ntf_server.permissions import group_name, user_name

_MIB: Final = 2**20
_LITTLE: Final = 64 * _MIB  # bytes with which nothing can be stored for long
_FEW: Final = 1024 * _MIB  # and with which an operator should know it
_OTHERS: Final = 500  # descriptors besides those of clients: SMP servers, providers, the store
_TIMEX, _STATUS = 512, 40  # bytes of a struct timex, and more; where its status is, if a long has 8
_LONG: Final = 8
_UNSYNCHRONIZED: Final = 0x40  # STA_UNSYNC
_FULL: Final = 0.95  # of inodes


def owners(directory: Path, paths: Sequence[Path]) -> Iterator[Finding]:
    """Whether somebody else than root and the server's user, who runs this, may change them. That everybody may read
    or write a file with a secret is told by `preflight`.
    """
    user, bad = user_name(), False
    for path in (directory, *paths):
        try:
            found = path.stat()
        except OSError:
            continue
        if found.st_uid not in {0, os.geteuid()}:
            bad = True
            text = f"{path}: belongs to {_name(found.st_uid)}, who can change it; the server runs as {user}"
            yield warning("owner", text, f"`chown root {path}`, or give it to {user}")
        elif found.st_mode & stat.S_IWGRP and found.st_gid not in {0, os.getegid()}:
            bad = True
            text = f"{path}: all of group {group_name(found.st_gid)} may change it"
            yield warning("owner", text, f"`chmod g-w {path}`")
    if not bad:
        who = " and ".join(dict.fromkeys(("root", user)))
        yield well("owner", f"nobody but {who} may change the configuration and keys")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def descriptors(sessions: int, of_unit: str | None) -> Finding:
    """`sessions`: of clients that [limits] allows; `of_unit`: LimitNOFILE, None: no unit says so."""
    wanted = sessions + _OTHERS
    if of_unit is not None:
        hard = of_unit.rpartition(":")[2]
        limit = int(hard) if hard.isdigit() else 2**31  # infinity
        where, cure = f"LimitNOFILE={of_unit} of the unit", f"set LimitNOFILE={max(262144, wanted)} in the unit"
    else:
        _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = 2**31 if limit == resource.RLIM_INFINITY else limit
        where, cure = "`ulimit -Hn` of this user", "raise it (limits.conf), or set [limits] sessions to less"
    if limit < wanted:
        text = f"{where} allows {limit} files, and [limits] sessions {sessions} clients, each of which takes one"
        return warning("descriptors", text, cure)
    return well("descriptors", f"{where} allows enough for {sessions} clients and {_OTHERS} others")


def clock() -> Finding:
    """Whether something keeps this machine's clock right, as far as the kernel knows (adjtimex(2)); nobody is asked."""
    timex = ctypes.create_string_buffer(_TIMEX)  # zeros: nothing is changed
    if ctypes.sizeof(ctypes.c_long) != _LONG:
        return left_out("clock", "this machine's kernel is not asked: its structures are others")
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        return left_out("clock", f"the kernel does not say whether it is kept right: {os.strerror(ctypes.get_errno())}")
    if int.from_bytes(timex.raw[_STATUS : _STATUS + 4], sys.byteorder) & _UNSYNCHRONIZED:
        cure = "`timedatectl set-ntp true`; `doctor --online` looks how far it is off"
        return warning("clock", "the kernel says that nothing keeps this machine's clock right (NTP)", cure)
    return well("clock", "something keeps this machine's clock right, says the kernel")


def room(path: Path) -> Iterator[Finding]:
    """On the disk of a database, which may not be there yet."""
    folder = path.parent
    try:
        disk = os.statvfs(folder)
        size = path.stat().st_size if path.exists() else 0
    except OSError as e:
        yield wrong("disk", f"{folder}: {e.strerror}", "is it mounted?")
        return
    free = disk.f_bavail * disk.f_frsize
    told = f"{folder}: {free // _MIB} MiB are free, the database has {size // _MIB} MiB"
    if free < _LITTLE:
        yield wrong("disk", told, "make room: without any, nothing that apps ask for can be stored")
    elif free < max(_FEW, size):
        yield warning("disk", told, "make room: an upgrade keeps a copy of the database")
    else:
        yield well("disk", told)
    if disk.f_files and 1 - disk.f_favail / disk.f_files > _FULL:
        yield warning("disk", f"{folder}: {disk.f_favail} files can be made yet", "delete some: there are very many")
    if disk.f_flag & os.ST_RDONLY:
        yield wrong("disk", f"{folder}: is mounted for reading only", "mount it for writing; see `dmesg` for why")
