"""A machine that systemd runs, as far as a test needs one: systemd as the first process of namespaces of its own, on a
copy of this system (an overlay in memory, gone afterwards). Its network is this machine's. Needs root.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SYSTEMD: Final = Path("/lib/systemd/systemd")
_CGROUPS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
# $1: a folder. No unit of this system is started but the journal.
_BOOT: Final = r"""
set -e
mount -t tmpfs tmpfs "$1" && cd "$1" && mkdir up work root
mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=work root && cd root
mount -t proc proc proc && mount -t sysfs sysfs sys && mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs tmp && mount --rbind /dev dev
mkdir -p run/systemd/system && rm -rf etc/systemd/system/* usr/sbin/policy-rc.d
for unit in lib/systemd/system/*.service lib/systemd/system/*.socket lib/systemd/system/*.*mount; do
    case $unit in *journald* | *@*) ;; *) ln -s /dev/null "run/systemd/system/${unit##*/}" ;; esac
done
mkdir old && pivot_root . old && umount -l old && rmdir old && mount --make-rshared /  # as systemd has it
export container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin
exec /lib/systemd/systemd --system --unit=basic.target --log-target=journal
"""


@dataclass
class Machine:
    pid: int  # of its systemd, as this machine sees it

    async def run(self, *command: str, stdin: str = "") -> tuple[int, str]:
        """Exit code, and what it said."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--wd=/"]
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
        }
        process = await asyncio.create_subprocess_exec(
            *enter, *command, stdin=-1, stdout=-1, stderr=asyncio.subprocess.STDOUT, env=environment
        )
        out, _ = await asyncio.wait_for(process.communicate(stdin.encode()), 120)
        assert process.returncode is not None
        return process.returncode, out.decode()

    async def does(self, *command: str, stdin: str = "") -> str:
        """What it said; it has to end well."""
        code, out = await self.run(*command, stdin=stdin)
        assert code == 0, f"{' '.join(command)}: {code}\n{out}"
        return out.strip()

    async def put(self, file: Path, where: str) -> None:
        with file.open("rb") as content:
            process = await asyncio.create_subprocess_exec(
                "nsenter", f"--target={self.pid}", "--mount", "--wd=/", "tee", where, stdin=content, stdout=-3
            )
            assert await process.wait() == 0


@contextlib.asynccontextmanager
async def booted(directory: Path) -> AsyncIterator[Machine]:
    assert os.geteuid() == 0 and SYSTEMD.exists(), "a machine is booted by root, where systemd is installed"
    above = next(folder for folder in reversed(_CGROUPS) if (folder / "cgroup.procs").exists())
    group = above / f"ntf-relay-test-{os.getpid()}"
    group.mkdir()
    directory.mkdir()
    namespaces = ["--mount", "--pid", "--cgroup", "--ipc", "--uts", "--fork", "--kill-child", "--propagation=private"]
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec unshare "$@"', str(group), *namespaces),
        *("sh", "-c", _BOOT, "boot", str(directory)),
    )
    try:
        machine = Machine(await _child(process.pid))
        async with asyncio.timeout(60):
            while (await machine.run("systemctl", "is-active", "basic.target"))[1].strip() != "active":
                await asyncio.sleep(0.2)
        yield machine
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await _removed(group)


async def _child(pid: int) -> int:
    """The first process in the new namespace."""
    async with asyncio.timeout(20):
        while not (children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            await asyncio.sleep(0.05)
    return int(children[0])


async def _removed(group: Path) -> None:
    """Once its last process is gone."""
    async with asyncio.timeout(20):
        while group.exists():
            for folder in sorted(group.rglob("*"), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir() if folder.is_dir() else None
            with contextlib.suppress(OSError):
                group.rmdir()
            await asyncio.sleep(0.1)
