"""T1: Landlock, the filter and resource limits, where namespaces are not available."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

from services.runner.domain.limits import Tier
from services.runner.domain.network import Reach
from services.runner.gateways.sandbox.bubblewrap import SANDBOX_ENVIRONMENT, users_of_sandboxes
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.exchange import files_of, output_of
from services.runner.gateways.sandbox.groups import ProcessGroups
from services.runner.gateways.sandbox.port import Sandbox, SandboxDied, SandboxSpec
from services.runner.gateways.sandbox.process import SandboxProcess
from services.runner.gateways.sandbox.room import hold
from services.runner.gateways.sandbox.seccomp import build_filter

_READ: Final = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime")
_READ_OF_PROC: Final = ("/proc/loadavg", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat")
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random", "/dev/full")


class LandlockHost:
    """Starts agents that confine themselves before they read user code.

    Files and sockets are restricted; processes of the same user can still be seen by number. Under
    root each sandbox has its own user, which also limits its processes.
    """

    tier = Tier.T1
    # Without a network namespace a way out could not be controlled.
    networks: Sequence[Reach] = ()

    def __init__(self, folder: Path, *, cgroups: CgroupHost | None, groups: ProcessGroups) -> None:
        self._folder = folder
        self._cgroups = cgroups
        self._groups = groups
        self._holding: set[asyncio.Future[None]] = set()
        self._users = users_of_sandboxes(as_root=os.geteuid() == 0)
        self._filter = base64.b64encode(build_filter(namespaced=False)).decode()

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox whose agent is ready to load code; raises SandboxDied."""
        own = self._folder / str(spec.sandbox_id)
        uid = next(self._users)
        if uid is not None and not _open_to_all(spec.prefix):
            raise SandboxDied(
                f"the Python in {spec.prefix} is in a folder that only root may enter; use one in "
                "/usr or /opt, or start Qflow as an ordinary user"
            )
        cgroup = None
        try:
            self._folder.mkdir(mode=0o711, parents=True, exist_ok=True)
            own.mkdir(mode=0o700)
            if uid is not None:
                os.chown(own, uid, uid)
            if self._cgroups is not None:
                cgroup = self._cgroups.create(str(spec.sandbox_id), spec.limits)
            sandbox = SandboxProcess(
                spec,
                tier=self.tier,
                kind="landlock",
                command=lambda channel: (
                    [str(spec.python), "-I", "-S", str(spec.agent), str(channel)],
                    [],
                ),
                cgroup=cgroup,
                environment={**SANDBOX_ENVIRONMENT, "HOME": str(own), "TMPDIR": str(own)},
                folder=own,
            )
        except OSError as problem:
            if cgroup is not None:
                cgroup.remove()
            shutil.rmtree(own, ignore_errors=True)
            raise SandboxDied(f"the interpreter does not start: {problem.strerror}") from problem
        name = str(spec.sandbox_id)
        sandbox.ended.add_done_callback(lambda _: _forget(own))
        sandbox.ended.add_done_callback(lambda _: self._groups.forget(name))
        try:
            self._groups.note(name, pid=sandbox.pid, user=os.geteuid() if uid is None else uid)
        except OSError as problem:
            await sandbox.kill()
            raise SandboxDied(f"the sandbox cannot be recorded: {problem.strerror}") from problem
        rlimits = {
            "CORE": 0,
            "NOFILE": spec.limits.open_files,
            # Of a single file; the sum of all is checked periodically.
            "FSIZE": spec.limits.temporary_bytes,
        }
        if cgroup is None:
            rlimits["AS"] = spec.limits.memory_bytes * 4
        if uid is not None:
            rlimits["NPROC"] = spec.limits.processes
        read, write = _places(spec, own)
        try:
            await sandbox.become_ready(
                uid=uid,
                rlimits=rlimits,
                rooms=[str(own)],
                confine={"read": read, "write": write, "filter": self._filter},
            )
        except SandboxDied:
            self._groups.forget(name)  # now, not only when the loop runs the callback
            raise
        holding = asyncio.ensure_future(hold(sandbox, own, spec.limits.temporary_bytes))
        self._holding.add(holding)
        holding.add_done_callback(self._holding.discard)
        return sandbox

    async def living(self) -> set[UUID]:
        """Return the ids of this home's sandboxes, by their records."""
        return self._groups.names()

    async def strays(self) -> set[UUID]:
        """Return none: they die with this process, and earlier leftovers were ended first."""
        return set()

    async def remove(self, sandbox_id: UUID) -> None:
        """End a sandbox that nobody here wants."""
        if self._cgroups is not None:
            self._cgroups.end(sandbox_id)
        self._groups.end(str(sandbox_id))


def _places(spec: SandboxSpec, own: Path) -> tuple[list[str], list[str]]:
    """Return the paths that the agent may read, and those it may write."""
    read = [*_READ, *_READ_OF_PROC, str(spec.prefix)]
    if spec.environment is not None:
        read.append(str(spec.environment))
    write = [str(own), *_DEVICES, *(str(host) for host, _ in spec.binds)]
    if spec.exchange is not None:
        read.append(str(files_of(spec.exchange)))
        write.append(str(output_of(spec.exchange)))
    return read, write


def _open_to_all(folder: Path) -> bool:
    return all(each.stat().st_mode & stat.S_IXOTH for each in (folder, *folder.parents))


def _forget(folder: Path) -> None:
    """Remove a dead sandbox's files in a thread: there may be many."""
    asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, folder, True)
