"""T0: a bare process. No isolation; only with the unsafe switch."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from services.runner.domain.limits import Tier
from services.runner.domain.network import Reach
from services.runner.gateways.sandbox.cgroups import CgroupHost
from services.runner.gateways.sandbox.port import Sandbox, SandboxDied, SandboxSpec
from services.runner.gateways.sandbox.process import SandboxProcess


class BareHost:
    """Starts agents as plain processes of this user."""

    tier = Tier.T0
    networks: Sequence[Reach] = (Reach.EGRESS, Reach.HOST)  # nothing is isolated anyway

    def __init__(self, *, cgroups: CgroupHost | None) -> None:
        self._cgroups = cgroups

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start an agent; raises SandboxDied."""
        cgroup = None
        if self._cgroups is not None:
            cgroup = self._cgroups.create(str(spec.sandbox_id), spec.limits)
        argv = [str(spec.python), "-I", "-S", str(spec.agent)]
        try:
            sandbox = SandboxProcess(
                spec,
                tier=self.tier,
                kind="process",
                command=lambda channel: ([*argv, str(channel)], []),
                cgroup=cgroup,
            )
        except OSError as problem:
            if cgroup is not None:
                cgroup.remove()
            raise SandboxDied(f"the interpreter does not start: {problem.strerror}") from problem
        rlimits = {"CORE": 0, "NOFILE": spec.limits.open_files}
        await sandbox.become_ready(uid=None, rlimits=rlimits)
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
