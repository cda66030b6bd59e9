"""Calls that wait for an interpreter: none waits for ever, whatever becomes of what was started."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

import pytest

from services.runner.domain.limits import Limits, Tier
from services.runner.domain.pooling import WarmKey
from services.runner.gateways.sandbox.port import (
    Interpreter,
    Reply,
    SandboxDied,
    SandboxUsage,
)
from services.runner.storage.nodes import NodeVersion
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.loading import Loader
from services.runner.usecases.warm import Need


class Sandbox:
    environment_path = ""
    name = "process:7"

    def __init__(self) -> None:
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.up = True

    def alive(self) -> bool:
        return self.up

    def begin_output(self, *_: object) -> None: ...

    def usage(self) -> SandboxUsage:
        return SandboxUsage()

    async def request(self, _: object) -> Reply:
        return Reply(header={"op": "loaded"})

    async def kill(self, *, grace_s: float = 0.0) -> SandboxUsage:
        del grace_s
        self.up = False
        return SandboxUsage()


class Spares:
    """Starts sandboxes; those whose number is in `failing` die."""

    def __init__(self, *, failing: Collection[int]) -> None:
        self.started = 0
        self._failing = failing

    async def start(self, _: object) -> Sandbox:
        self.started += 1
        if self.started in self._failing:
            raise SandboxDied("it did not start")
        return Sandbox()

    async def shrink(self) -> None: ...

    async def close(self) -> None: ...


class Row:
    id = uuid.UUID(int=7)
    taken = False

    def packages(self, *_: object, **__: object) -> None: ...

    def running(self, *_: object) -> None: ...

    def ended(self, *_: object) -> None: ...


class OwnRows(Loader):
    def new_row(self, key: WarmKey, version: NodeVersion) -> Any:
        del key, version
        return Row()


def a_pool(
    *,
    failing: Collection[int] = frozenset(),
    sandboxes_max: int = 16,
    processors: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[InterpreterPool, Spares]:
    spares = Spares(failing=failing)
    loader = OwnRows(spares=cast("Any", spares), rows=cast("Any", None), tier=Tier.T2)
    pool = InterpreterPool(
        loader=loader, sandboxes_max=sandboxes_max, processors=processors, clock=clock
    )
    return pool, spares


def a_need(version_number: int = 2) -> Need:
    version = NodeVersion(
        tenant_id=uuid.UUID(int=1),
        id=uuid.UUID(int=version_number),
        python_version="3.11",
        code="",
        main_function="main",
        input_types=[],
        output_types=[],
        lock_state="none",
        lock="",
        lock_digest="",
        lock_error="",
    )
    return Need(
        key=WarmKey(uuid.UUID(int=1), version.id, "e", Limits()),
        version=version,
        interpreter=Interpreter("3.11", Path("/python"), Path("/")),
        environment=None,
        packages=(),
        load_timeout_s=5.0,
    )


async def test_a_call_is_served_though_the_start_that_was_meant_for_it_failed() -> None:
    """Two are at work and hold on, two wait; the first start for these two fails."""
    pool, spares = a_pool(failing={3})
    at_work = [await pool.acquire(a_need()) for _ in range(2)]
    waiting = [asyncio.create_task(pool.acquire(a_need())) for _ in range(2)]
    done, _ = await asyncio.wait(waiting, timeout=10)
    assert set(waiting) == done
    with pytest.raises(SandboxDied):
        await waiting[0]
    assert spares.started >= 4
    for warm in [*at_work, await waiting[1]]:
        pool.release(warm)
    await pool.close()


async def test_a_call_is_served_though_every_call_before_it_ends_its_interpreter() -> None:
    pool, spares = a_pool()
    served = 0

    async def call() -> None:
        nonlocal served
        warm = await pool.acquire(a_need())
        await asyncio.sleep(0)
        await warm.sandbox.kill()
        pool.release(warm, recycle=True, worked_s=0.0)
        served += 1

    async with asyncio.timeout(30):
        await asyncio.gather(*(call() for _ in range(6)))
    assert (6, 6) == (served, spares.started)
    await pool.close()
