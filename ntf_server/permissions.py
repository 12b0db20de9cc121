"""What the user that the relay runs as may do with files, and the cures; files with secrets that everybody may read."""

import grp
import os
import pwd
import stat
from pathlib import Path


def user_name() -> str:
    """Of whoever runs this process; a number if it has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def group_name(gid: int | None = None) -> str:
    """Of a group, or of whoever runs this process; its number if it has none."""
    gid = os.getegid() if gid is None else gid
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def may(path: Path, rights: int) -> bool:
    """`rights`: those of os.access. False if it is not there, or if a folder before it may not be entered."""
    return os.access(path, rights, effective_ids=True)


def unreadable(path: Path, error: OSError, cure: str) -> str:
    """`PATH: why; what to do`. `cure`: for all but a lack of permission."""
    if not isinstance(error, PermissionError):
        return f"{path}: {error.strerror}; {cure}"
    barred = next((folder for folder in reversed(path.absolute().parents) if not may(folder, os.X_OK)), None)
    if barred:
        todo = f"enter {barred}: `chgrp {group_name()} {barred} && chmod g+x {barred}`"
    else:
        todo = f"read it: `chgrp {group_name()} {path} && chmod g+r {path}`"
    return f"{path}: {error.strerror}; let user {user_name()} {todo}"


def unwritable(folder: Path, setting: str) -> str | None:
    """Why nothing can be made in a folder that a setting names, and what to do; None if it can."""
    user = user_name()
    if folder.exists() and not folder.is_dir():
        return f"{folder}: is no folder; set {setting} to a path in one"
    if not folder.is_dir():
        return f"{folder}: no such folder; create it: `install -d -m 700 -o {user} {folder}`"
    if may(folder, os.W_OK | os.X_OK):
        return None
    todo = f"set {setting} to a folder of its own, or give it this one: `chown {user} {folder}`"
    return f"{folder}: user {user} may not write there; {todo}"


def give_as_folder(*paths: Path) -> None:
    """By root: those that are there belong to the owner of their folder from now on, whose server uses them."""
    for path in paths if os.geteuid() == 0 else ():
        owner = path.parent.stat()
        if path.exists():
            os.chown(path, owner.st_uid, owner.st_gid)


def exposed(path: Path) -> str | None:
    """That everybody may read or write a file that holds a secret, and what to do; None if they may not."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    if not mode & (stat.S_IROTH | stat.S_IWOTH):
        return None
    what = "write" if mode & stat.S_IWOTH else "read"
    return f"{path}: everybody may {what} it (mode {stat.S_IMODE(mode):04o}), and it holds a secret: `chmod o= {path}`"
