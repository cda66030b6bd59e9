"""Control groups: limits on memory and processes, and shares of the processors, per sandbox.

Version 1 where its hierarchies are writable (root), else a delegated version 2 subtree, else none,
which lowers the reported tier.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from services.runner.domain.limits import Limits

_ROOT: Final = Path("/sys/fs/cgroup")
_PERIOD_US: Final = 100_000
# In version 1 a single-threaded process can enter a group by itself at once. Moving another process
# waits until no process of the machine is being started: some milliseconds.
_STEP_IN: Final = (
    'while [ "$1" != -- ]; do echo 0 > "$1" || exit 126; shift; done; shift; exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The groups of one sandbox: one folder per version-1 hierarchy, or a single one."""

    folders: tuple[Path, ...]
    memory: Path
    version: int
    accounts: tuple[Path, ...] = ()  # version 1: where processor time is counted
    entered: tuple[Path, ...] = ()  # version 1: what a command enters by itself

    def command(self, argv: list[str]) -> list[str]:
        """Return a command that enters these groups by itself, where it can, then runs `argv`."""
        if not self.entered:
            return argv
        tasks = [str(folder / "tasks") for folder in self.entered]
        return ["/bin/sh", "-c", _STEP_IN, "sh", *tasks, "--", *argv]

    def add(self, pid: int) -> None:
        """Move a process to the groups that it did not enter itself; its later children follow."""
        for folder in self.folders:
            if folder not in self.entered:
                (folder / "cgroup.procs").write_text(str(pid))
            elif pid not in _processes_in(folder):
                raise OSError(errno.ESRCH, "the agent is not in its control group")

    def out_of_memory(self) -> bool:
        """Return whether the kernel killed something here because of the memory limit."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _counter(self.memory / name, "oom_kill") > 0

    def memory_peak_bytes(self) -> int:
        """Return the highest memory usage."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        return _number(self.memory / name)

    def cpu_us(self) -> int:
        """Return the processor time used by all processes that were ever inside."""
        if self.version == 2:  # noqa: PLR2004
            return _counter(self.memory / "cpu.stat", "usage_usec")
        return next((_number(each / "cpuacct.usage") // 1000 for each in self.accounts), 0)

    def kill(self) -> None:
        """Send SIGKILL to everything inside, until nothing new appears."""
        if self.version == 2:  # noqa: PLR2004
            with contextlib.suppress(OSError):
                (self.memory / "cgroup.kill").write_text("1")
                return
        for _ in range(20):
            pids = self.processes()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Return the processes inside."""
        return _processes_in(self.folders[0])

    def remove(self) -> bool:
        """Remove the folders; False while a dying process still holds one."""
        gone = True
        for folder in self.folders:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone


class CgroupHost:
    """Creates groups under one folder of this deployment."""

    def __init__(self, bases: tuple[Path, ...], *, version: int) -> None:
        self._bases = bases
        self._version = version

    @property
    def version(self) -> int:
        """The version of control groups in use."""
        return self._version

    @classmethod
    def detect(cls, home: Path) -> CgroupHost | None:
        """Find hierarchies that this process may use; None if there are none."""
        name = "qflow-" + hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:12]
        return _detect_v1(name) or _detect_v2(name)

    def create(self, name: str, limits: Limits, *, helpers: int = 0) -> Cgroup:
        """Create a group with its limits; raises OSError.

        `helpers` are the processes around the agent, which are inside when a command enters by
        itself.
        """
        helpers = helpers if self._version == 1 else 0
        folders = tuple(base / name for base in self._bases)
        for folder in folders:
            # With parents: a runner that ended on the same home may just have removed the base.
            folder.mkdir(mode=0o755, parents=self._version == 1)
            if (folder / "memory.limit_in_bytes").exists():
                (folder / "memory.limit_in_bytes").write_text(str(limits.memory_bytes))
                with contextlib.suppress(OSError):  # absent where swap is not accounted
                    (folder / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))
            if (folder / "memory.max").exists():
                (folder / "memory.max").write_text(str(limits.memory_bytes))
                with contextlib.suppress(OSError):
                    (folder / "memory.swap.max").write_text("0")
                    (folder / "memory.oom.group").write_text("1")
            if (folder / "pids.max").exists():
                (folder / "pids.max").write_text(str(limits.processes + helpers))
        if limits.cpu_millicores and not _give_processors(folders, limits.cpu_millicores):
            for folder in folders:
                folder.rmdir()
            raise no_processors()
        accounts = tuple(each for each in folders if (each / "cpuacct.usage").exists())
        # The processor quota is for user code only: the interpreter starts before entering that
        # group.
        entered = [each for each in folders if not _is_throttled(each, limits)]
        return Cgroup(
            folders,
            folders[0],
            self._version,
            accounts,
            entered=tuple(entered) if self._version == 1 else (),
        )

    def names(self) -> set[UUID]:
        """Return the sandboxes that have a group here."""
        found = set()
        with contextlib.suppress(OSError):
            for folder in self._bases[0].iterdir():
                with contextlib.suppress(ValueError):
                    found.add(UUID(folder.name))
        return found

    def end(self, sandbox_id: UUID) -> None:
        """Kill what is in a sandbox's group, and remove the group."""
        folders = tuple(base / str(sandbox_id) for base in self._bases)
        group = Cgroup(folders, folders[0], self._version)
        group.kill()
        group.remove()

    def close(self) -> None:
        """Remove the base folders if they are empty: empty groups cost the kernel, too."""
        for base in self._bases:
            with contextlib.suppress(OSError):
                base.rmdir()

    def reap(self) -> int:
        """Kill what an earlier process of this home left; return the number of groups."""
        left = 0
        for base in self._bases:
            with contextlib.suppress(OSError):
                for folder in list(base.iterdir()):
                    if folder.is_dir():
                        left += 1
                        group = Cgroup((folder,), folder, self._version)
                        group.kill()
                        group.remove()
        return left


def no_processors() -> OSError:
    """Return the error of a processor share that cannot be enforced here."""
    return OSError(
        errno.ENOTSUP,
        "the cpu controller is not to be had here, so a node cannot be held to a share of the"
        " processors; delegate it to the runner, or remove cpu_millicores",
    )


def _is_throttled(folder: Path, limits: Limits) -> bool:
    return bool(limits.cpu_millicores) and (folder / "cpu.cfs_quota_us").exists()


def _give_processors(folders: Sequence[Path], millicores: int) -> bool:
    """Set the processor quota of a group; False without a controller."""
    quota_us = max(1000, _PERIOD_US * millicores // 1000)
    for folder in folders:
        if (folder / "cpu.cfs_quota_us").exists():
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(str(quota_us))
            return True
        if (folder / "cpu.max").exists():
            (folder / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
            return True
    return False


def _detect_v1(name: str) -> CgroupHost | None:
    bases = []
    own = _own_paths()
    for controller in ("memory", "pids", "cpu", "cpuacct"):
        mount = _ROOT / controller
        if not (mount / "cgroup.procs").exists():
            if controller.startswith("cpu"):
                continue
            return None
        for parent in (mount / own.get(controller, "").lstrip("/"), mount):
            base = parent / name
            try:
                base.mkdir(mode=0o755, exist_ok=True)
            except OSError:
                continue
            if os.access(base / "cgroup.procs", os.W_OK):
                bases.append(base)
                break
        else:
            return None
    return CgroupHost(tuple(bases), version=1)


def _detect_v2(name: str) -> CgroupHost | None:
    own = _ROOT / _own_paths().get("", "").lstrip("/")
    try:
        controllers = (own / "cgroup.controllers").read_text().split()
        if not {"memory", "pids"} <= set(controllers):
            return None
        # A group that has processes cannot delegate controllers: move this one aside first.
        aside = own / f"{name}-runner"
        aside.mkdir(exist_ok=True)
        (aside / "cgroup.procs").write_text(str(os.getpid()))
        hand_down(own, controllers)
        base = own / name
        base.mkdir(exist_ok=True)
        hand_down(base, controllers)
    except OSError:
        return None
    return CgroupHost((base,), version=2)


def hand_down(group: Path, offered: Sequence[str]) -> None:
    """Delegate controllers to the groups below, including the processors' if it is offered."""
    control = group / "cgroup.subtree_control"
    if "cpu" in offered:
        with contextlib.suppress(OSError):  # it may be forbidden while memory and pids are not
            control.write_text("+cpu")
    control.write_text("+memory +pids")


def _own_paths() -> dict[str, str]:
    """Return the path of this process's group by controller; the empty name is version 2."""
    paths = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            paths[controller] = path
    return paths


def _counter(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return 0
    return 0


def _processes_in(folder: Path) -> list[int]:
    try:
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
