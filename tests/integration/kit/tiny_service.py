"""A service that does nothing, as a process: what `run_service` does with it is what is tested."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import structlog

from services.kit.pg import open_pool
from services.kit.rpc.health import Dependency, database
from services.kit.rpc.identity import Authenticator
from services.kit.run import App, listener, main

log = structlog.get_logger()


async def crash(_stop: asyncio.Event) -> None:
    raise ZeroDivisionError


async def idle(stop: asyncio.Event) -> None:
    await stop.wait()
    log.info("loop_ended")


async def drain() -> None:
    log.info("drained")
    if os.environ.get("TINY_DRAIN") == "fail":
        raise ZeroDivisionError


async def join() -> None:
    log.info("joined")
    if os.environ.get("TINY_JOIN") == "wait":
        await asyncio.Event().wait()


async def hang() -> None:
    await asyncio.Event().wait()


def leans_on(file: str) -> Dependency:
    return Dependency("file", partial(asyncio.to_thread, Path(file).exists))


@asynccontextmanager
async def build(env: Mapping[str, str]) -> AsyncIterator[App]:
    # Without a connection of its own it starts where no server is.
    size_min = int(env.get("TINY_POOL_MIN", "0"))
    pool = await open_pool(env["TINY_DATABASE_URL"], application_name="tiny", size_min=size_min)
    try:
        yield App(
            listener=listener(env, "tiny", "127.0.0.1:0"),
            authenticator=Authenticator(pool),
            servicers=[],
            dependencies=[
                *([leans_on(env["TINY_FILE"])] if "TINY_FILE" in env else ()),
                Dependency("postgres", database(pool).is_there, essential=False),
            ],
            loops=[crash if env.get("TINY_LOOP") == "crash" else idle],
            join=join,
            on_drain=drain,
        )
    finally:
        await (hang() if env.get("TINY_CLOSE") == "hang" else pool.close())
    log.info("closed")


main("tiny", build)
