"""One container with an agent inside: an implementation of the sandbox port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from services.runner.domain.limits import Tier
from services.runner.gateways.docker.daemon import FAULTS, Daemon, End
from services.runner.gateways.docker.gate import Gate
from services.runner.gateways.docker.options import ENVIRONMENT_PATH, FILES_PATH, OUTPUT_PATH
from services.runner.gateways.sandbox.held import HeldAgent
from services.runner.gateways.sandbox.port import (
    Header,
    Reply,
    SandboxDied,
    SandboxSpec,
    SandboxUsage,
    status_text,
)
from services.runner.gateways.sandbox.way_out import make_ready

_START_TIMEOUT_S: Final = 60.0  # the daemon may be busy with other containers
DEATH_TIMEOUT_S: Final = 5.0


class Container(HeldAgent):
    """A long-lived container; calls use descriptors that were passed in through the gate."""

    def __init__(
        self, spec: SandboxSpec, *, name: str, tier: Tier, daemon: Daemon, gate: Gate
    ) -> None:
        super().__init__(on_fault=self._kill_soon)
        self.spec = spec
        self.name = name
        self.tier = tier
        self.environment_path = ENVIRONMENT_PATH if spec.environment is not None else ""
        self.files_path = FILES_PATH if spec.exchange is not None else ""
        self.output_path = OUTPUT_PATH if spec.exchange is not None else ""
        self._daemon = daemon
        self._gate = gate
        self._container = ""
        self._killed = False
        self._usage = SandboxUsage()
        self._settling: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def begin(self, options: Mapping[str, Any], setup: Header) -> None:
        """Start it and await its agent, which then drops its privileges; raises SandboxDied."""
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                # Expected before the gate opens: the agent sends its greeting at once.
                greeting = self._channel.expect()
                greeting.add_done_callback(_seen)
                await self._enter(options)
                hello = await greeting
                if hello.header.get("op") != "hello":
                    raise SandboxDied("the agent sent no greeting")
                await make_ready(self, setup)
        except TimeoutError:
            await self.kill()
            raise SandboxDied("the container did not start in time") from None
        except FAULTS as problem:
            await self.kill()
            raise SandboxDied(f"the daemon refuses: {_words(problem)}") from None
        except BaseException:
            await self.kill()
            raise

    async def _enter(self, options: Mapping[str, Any]) -> None:
        ends = (self._channel.far_end.fileno(), *self._output.write_ends)
        handing: asyncio.Future[None] = asyncio.ensure_future(self._gate.hand_over(ends))
        try:
            self._container = await self._daemon.call(self._daemon.run, options)
            either: tuple[asyncio.Future[Any], ...] = (handing, self._ended)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not handing.done():
                raise SandboxDied("the container exited before its agent started")
            handing.result()
        finally:
            handing.cancel()
            self._channel.far_end.close()
            self._output.close_write_ends()
            await self._daemon.call(self._gate.close)

    def usage(self) -> SandboxUsage:
        """Return the usage as last read from the daemon, which was before it was killed."""
        return self._usage

    async def kill(self, *, grace_s: float = 0.0) -> SandboxUsage:
        """Kill the container with all that is in it; idempotent."""
        self._killed = True
        if self._container and not self._ended.done():
            if grace_s > 0:
                await self._signal("SIGTERM")
                await asyncio.wait((self._ended,), timeout=grace_s)
            if not self._ended.done():
                self._usage = await self._daemon.call(self._daemon.usage, self._container)
                await self._signal("SIGKILL")
                await asyncio.wait((self._ended,), timeout=DEATH_TIMEOUT_S)
        if not self._ended.done():
            await self._remove()
            self._close(End(-1, oom=False, printed=""))
        return self._usage

    def told_end(self, container: str) -> None:
        """Process an event of the daemon: the container has ended."""
        # The event may arrive before the response to the call that started it.
        self._container = self._container or container
        if self._settling is None and not self._ended.done():
            self._settling = self._spawn(self._settle())

    async def look(self) -> None:
        """Check whether it ended without an event."""
        if self._container and not self._ended.done():
            with contextlib.suppress(*FAULTS):
                if await self._daemon.call(self._daemon.end_of, self._container) is not None:
                    self.told_end(self._container)

    async def _settle(self) -> None:
        try:
            end = await self._daemon.call(self._daemon.end_of, self._container)
        except FAULTS:
            end = None
        self._close(end or End(-1, oom=False, printed=""))
        await self._remove()

    def _close(self, end: End) -> None:
        if self._ended.done():
            return
        self._output.close()
        if end.oom:
            message = "the sandbox ran out of memory"
        elif self._killed:
            message = "the sandbox was stopped"
        else:
            told = f": {end.printed.strip()[-1000:]}" if end.printed.strip() else ""
            message = f"the process ended before it returned ({status_text(end.status)}){told}"
        self._channel.fail(message, oom=end.oom, status=end.status)
        self._channel.close()
        self._ended.set_result(end.status)

    async def _signal(self, name: str) -> None:
        with contextlib.suppress(*FAULTS):
            await self._daemon.call(self._daemon.signal, self._container, name)

    async def _remove(self) -> None:
        if self._container:
            with contextlib.suppress(*FAULTS):
                await self._daemon.call(self._daemon.remove, self._container)

    def _kill_soon(self) -> None:
        if self._container:
            self._spawn(self._signal("SIGKILL"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _seen(greeting: asyncio.Future[Reply]) -> None:
    """Retrieve the greeting's exception, even if something before it failed first."""
    if not greeting.cancelled():
        greeting.exception()


def _words(problem: BaseException) -> str:
    explanation = getattr(problem, "explanation", None)
    return str(explanation or problem)[:1000]
