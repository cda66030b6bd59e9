"""One sandboxed process tree: spawn, talk, watch, kill. Tiers differ only by command line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from services.runner.domain.limits import Tier
from services.runner.gateways.sandbox.cgroups import Cgroup, no_processors
from services.runner.gateways.sandbox.exchange import files_of, output_of
from services.runner.gateways.sandbox.held import HeldAgent
from services.runner.gateways.sandbox.port import (
    Header,
    SandboxDied,
    SandboxSpec,
    SandboxUsage,
    status_text,
)
from services.runner.gateways.sandbox.way_out import make_ready

START_TIMEOUT_S: Final = 20.0
# After SIGKILL the kernel may take a while to free a large address space.
_DEATH_TIMEOUT_S: Final = 5.0


class SandboxProcess(HeldAgent):
    """A sandbox made of processes on this machine."""

    def __init__(
        self,
        spec: SandboxSpec,
        *,
        tier: Tier,
        kind: str,
        command: Callable[[int], tuple[list[str], list[int]]],
        cgroup: Cgroup | None,
        environment: Mapping[str, str] | None = None,
        folder: Path = Path("/"),
    ) -> None:
        if cgroup is None and spec.limits.cpu_millicores:
            raise no_processors()
        super().__init__(on_fault=self._kill_all)
        self.spec = spec
        self.name = f"{kind}:{spec.sandbox_id}"
        self.tier = tier
        self.environment_path = str(spec.environment or "")
        self.files_path = str(files_of(spec.exchange)) if spec.exchange else ""
        self.output_path = str(output_of(spec.exchange)) if spec.exchange else ""
        self._cgroup = cgroup
        self._agent_pid = 0
        self._members: list[int] = []
        self._usage = SandboxUsage()
        self._killed = False
        self._why = ""
        self._releasing: asyncio.Future[None] | None = None
        stdout, stderr = self._output.write_ends
        argv, descriptors = command(self._channel.far_end.fileno())
        if cgroup is not None:
            argv = cgroup.command(argv)
        try:
            # In the loop's thread, the main one: a sandbox dies with the thread that started it.
            # Without preexec_fn the child is made by vfork and runs no Python code of ours.
            self._process = subprocess.Popen(  # noqa: S603
                argv,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(self._channel.far_end.fileno(), *descriptors),
                env=dict(environment or {}),
                cwd=folder,
                start_new_session=True,
            )
        except OSError:
            self._channel.close()
            self._channel.far_end.close()
            self._output.close()
            raise
        finally:
            self._output.close_write_ends()
            for descriptor in descriptors:
                os.close(descriptor)
        self._channel.far_end.close()
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._exited)

    @property
    def pid(self) -> int:
        """The outermost process."""
        return self._process.pid

    async def become_ready(
        self,
        *,
        uid: int | None,
        rlimits: dict[str, int],
        rooms: Sequence[str] = (),
        confine: Header | None = None,
    ) -> None:
        """Await the agent's greeting, confine it, and have it drop its privileges.

        `rooms` are the sandbox's own temporary folders, which are checked for leftovers of calls.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                hello = await self._channel.expect()
                if hello.header.get("op") != "hello":
                    raise SandboxDied("the agent sent no greeting")
                if self._cgroup is None or self._cgroup.entered:
                    self._confine()
                else:  # the kernel may take a while to move another process
                    await asyncio.to_thread(self._confine)
                setup = {"op": "setup", "uid": uid, "rlimits": rlimits, "confine": confine}
                await make_ready(self, {**setup, "rooms": rooms})
        except TimeoutError:
            await self.kill()
            raise SandboxDied("the sandbox did not start in time") from None
        except OSError as problem:
            await self.kill()
            raise SandboxDied(f"no control group: {problem.strerror}") from problem
        except SandboxDied as problem:
            await self.kill()
            printed = " ".join(text for text in self.output_tails() if text).strip()
            raise SandboxDied(
                f"{problem}: {printed[-1000:]}" if printed else str(problem)
            ) from None
        except BaseException:
            await self.kill()
            raise

    def usage(self) -> SandboxUsage:
        """Return what its control group has counted so far, also after its end."""
        if self._cgroup is not None:
            self._usage = SandboxUsage(
                memory_peak_bytes=self._cgroup.memory_peak_bytes(), cpu_us=self._cgroup.cpu_us()
            )
        return self._usage

    async def kill(self, *, grace_s: float = 0.0) -> SandboxUsage:
        """Kill every process inside; idempotent."""
        self._killed = True
        if not self._ended.done() and grace_s > 0 and self._agent_pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._agent_pid, signal.SIGTERM)
            await asyncio.wait((self._ended,), timeout=grace_s)
        self._kill_all()
        if not self._ended.done():
            await asyncio.wait((self._ended,), timeout=_DEATH_TIMEOUT_S)
        await self._release()
        return self._usage

    def end(self, why: str) -> None:
        """Kill every process inside at once; `why` becomes the error of the awaited reply."""
        self._why = why
        self._kill_all()

    def _kill_all(self) -> None:
        """Kill the namespace's first process, with which the others end, then the group."""
        for pid in self._members:
            if not self._ended.done():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        if self._cgroup is not None:
            self._cgroup.kill()
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                self._process.kill()

    async def _release(self) -> None:
        """Remove the control group once it is empty; concurrent callers all wait for that."""
        self.usage()
        cgroup, self._cgroup = self._cgroup, None
        if cgroup is not None:
            self._releasing = asyncio.ensure_future(_remove(cgroup))
        if self._releasing is not None:
            await asyncio.shield(self._releasing)

    def _confine(self) -> None:
        """Put the agent into its control group, found from outside, before it reads user code."""
        tree = _descendants(self._process.pid)
        self._members = tree
        self._agent_pid = tree[-1] if tree else self._process.pid
        if self._cgroup is not None:
            self._cgroup.add(self._agent_pid)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        # Its children may live on in its process group, whose number is ours until the wait.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        oom = self._cgroup is not None and self._cgroup.out_of_memory()
        self._output.close()
        if oom:
            message = "the sandbox ran out of memory"
        elif self._why:
            message = self._why
        elif self._killed:
            message = "the sandbox was stopped"
        else:
            message = f"the process ended before it returned ({status_text(status)})"
        self._channel.fail(message, oom=oom, status=status)
        self._channel.close()
        if not self._ended.done():
            self._ended.set_result(status)


async def _remove(cgroup: Cgroup) -> None:
    for _ in range(100):
        if cgroup.remove():
            return
        cgroup.kill()
        await asyncio.sleep(0.01)


def _children(pid: int) -> Sequence[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return ()


def _descendants(pid: int) -> list[int]:
    """Follow the first child of each process: bwrap's inner process, then the agent."""
    chain: list[int] = []
    current = pid
    deadline = time.monotonic() + 1
    while len(chain) < 4 and time.monotonic() < deadline:  # noqa: PLR2004
        children = _children(current)
        if not children:
            return chain
        current = children[0]
        chain.append(current)
    return chain
