"""Spares: sandboxes started ahead of demand, without code in them yet."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from services.runner.domain.limits import Limits
from services.runner.domain.network import Network, Reach
from services.runner.gateways.sandbox.exchange import make_exchange, remove_exchange
from services.runner.gateways.sandbox.port import (
    Interpreter,
    Sandbox,
    SandboxDied,
    SandboxHost,
    SandboxSpec,
    ServeEgress,
)

log = structlog.get_logger()

# After a spare is taken its replacement waits a little: the call gets the processors first.
_FILL_AFTER_S: Final = 0.03
_WANTED_FOR_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Shape:
    """What is fixed before code is loaded: sandboxes of one shape are interchangeable."""

    interpreter: Interpreter
    environment: Path | None
    limits: Limits


class Spares:
    """Keeps a few sandboxes of the most recently requested shapes."""

    def __init__(
        self,
        host: SandboxHost,
        *,
        keep: int,
        binds: Sequence[tuple[Path, str]] = (),
        exchanges: Path | None = None,
        egress: Callable[[Network], ServeEgress] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._keep = keep
        self._binds = binds
        self._exchanges = exchanges
        self._egress = egress
        self._clock = clock
        self._ready: dict[Shape, list[Sandbox]] = {}
        self._filling: dict[Shape, int] = {}
        self._wanted: dict[Shape, float] = {}  # the most recently requested is last
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def start(self, shape: Shape) -> Sandbox:
        """Return a sandbox of a shape: a spare if there is one, else a new one."""
        spare = self._take(shape)
        self.want(shape)
        return spare or await self._start(shape)

    def want(self, shape: Shape) -> None:
        """Keep spares of a shape for a while; of the most recent shape one is kept for good."""
        self._wanted.pop(shape, None)
        self._wanted[shape] = self._clock()
        missing = self._keep - len(self._ready.get(shape, ())) - self._filling.get(shape, 0)
        for _ in range(missing):
            self._filling[shape] = self._filling.get(shape, 0) + 1
            self._spawn(self._fill(shape))

    def environment_keys(self) -> frozenset[str]:
        """Return the keys of environments that spares use, or are about to."""
        shapes = {*self._ready, *self._filling, *self._wanted}
        return frozenset(each.environment.name for each in shapes if each.environment is not None)

    async def shrink(self) -> None:
        """End spares of shapes not requested for a while; one of the last shape stays."""
        now = self._clock()
        last = next(reversed(self._wanted), None)
        for shape, since in list(self._wanted.items()):
            if now - since < _WANTED_FOR_S:
                continue
            stays = 1 if shape == last else 0
            ready = self._ready.get(shape, [])
            while len(ready) > stays:
                await ready.pop().kill()
            if not stays:
                self._wanted.pop(shape, None)
                self._ready.pop(shape, None)

    def vacate(self, environment_key: str) -> None:
        """End the spares of an environment, and start no more."""
        for shape in list(self._wanted):
            if shape.environment is not None and shape.environment.name == environment_key:
                del self._wanted[shape]
                for sandbox in self._ready.pop(shape, ()):
                    self._spawn(self._end(sandbox))

    async def drop(self) -> None:
        """End all spares."""
        ready, self._ready = self._ready, {}
        for sandboxes in ready.values():
            for sandbox in sandboxes:
                await sandbox.kill()

    async def close(self) -> None:
        """End all spares, and start no more."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self.drop()

    def _take(self, shape: Shape) -> Sandbox | None:
        ready = self._ready.get(shape)
        while ready:
            sandbox = ready.pop()
            if sandbox.alive():
                return sandbox
            self._spawn(self._end(sandbox))
        return None

    async def _end(self, sandbox: Sandbox) -> None:
        await sandbox.kill()

    async def _fill(self, shape: Shape) -> None:
        try:
            await asyncio.sleep(_FILL_AFTER_S)
            sandbox = await self._start(shape)
        except SandboxDied as died:
            log.warning("spare_not_started", fault=str(died)[:500])
            return
        finally:
            self._filling[shape] -= 1
            if not self._filling[shape]:
                del self._filling[shape]
        if self._closed or shape not in self._wanted:
            await sandbox.kill()
        else:
            self._ready.setdefault(shape, []).append(sandbox)

    async def _start(self, shape: Shape) -> Sandbox:
        sandbox_id = uuid.uuid4()
        exchange = None
        if self._exchanges is not None:
            try:
                exchange = make_exchange(self._exchanges, sandbox_id)
            except OSError as problem:
                raise SandboxDied(f"no place to hand files over: {problem.strerror}") from problem
        try:
            sandbox = await self._host.start(self._spec(shape, sandbox_id, exchange))
        except BaseException:
            if exchange is not None:
                remove_exchange(exchange)
            raise
        if exchange is not None:
            sandbox.ended.add_done_callback(lambda _: _forget(exchange))
        return sandbox

    def _spec(self, shape: Shape, sandbox_id: uuid.UUID, exchange: Path | None) -> SandboxSpec:
        network = shape.limits.network
        return SandboxSpec(
            sandbox_id=sandbox_id,
            python=shape.interpreter.executable,
            prefix=shape.interpreter.prefix,
            agent=shape.interpreter.agent,
            environment=shape.environment,
            limits=shape.limits,
            binds=self._binds,
            exchange=exchange,
            egress=self._egress(network)
            if self._egress is not None and network.reach is Reach.EGRESS
            else None,
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _forget(exchange: Path) -> None:
    """Remove the exchange folder of a dead sandbox in a thread: its files may be large."""
    asyncio.get_running_loop().run_in_executor(None, remove_exchange, exchange)
