"""grpc.health of a service: whether it takes calls, and whether its dependencies are available.

`Check` and `Watch` know these names: "" (the process takes calls; not serving once it drains),
`qflow.<service>` and each service of the contract (the same, and all essential dependencies are
available), and `qflow.<service>.<dependency>`. Dependencies are probed when somebody asks, at
most once a second: without health checks there are no probes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, LiteralString

import structlog
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from services.kit.pg import Pool, connection

log = structlog.get_logger()

_FRESH_S: Final = 1.0
_LOOK_MAX_S: Final = 2.0
# How often dependencies are probed while somebody watches.
_WATCH_S: Final = 2.0
# With less free space, writing a log line or a result may fail.
DISK_FREE_BYTES_MIN: Final = 64 * 1024 * 1024
_FREE_FILES_MIN: Final = 1000

_ANSWER: Final[LiteralString] = "SELECT 1"


@dataclass(frozen=True, slots=True)
class Dependency:
    """Something that a service depends on; `is_there` may raise, and may hang."""

    name: str
    is_there: Callable[[], Awaitable[bool]]
    # Whether the service is useless without it.
    essential: bool = True


def database(pool: Pool) -> Dependency:
    """Return the check of PostgreSQL, through the same pool as calls."""

    async def answers() -> bool:
        async with connection(pool) as db:
            return bool(await db.fetchval(_ANSWER))

    return Dependency("postgres", answers)


def disk(folder: Path) -> Dependency:
    """Return the check of the disk of a folder: writable, and with free space."""
    return Dependency("disk", partial(asyncio.to_thread, _has_room, folder))


def _has_room(folder: Path) -> bool:
    told = os.statvfs(folder)
    few_files = told.f_files > 0 and told.f_favail < _FREE_FILES_MIN
    free_bytes = told.f_bavail * told.f_frsize
    return os.access(folder, os.W_OK) and free_bytes >= DISK_FREE_BYTES_MIN and not few_files


class Health(health.aio.HealthServicer):
    """The `grpc.health.v1` servicer of one service."""

    def __init__(self, name: str, dependencies: Sequence[Dependency] = ()) -> None:
        super().__init__()
        self._own = f"qflow.{name}"
        self._dependencies = dependencies
        # All of these have the same status: whether all essential dependencies are available.
        self._names = [self._own]
        self._there: dict[str, bool] = {}
        self._looking = asyncio.Lock()
        self._looked_at_s = -_FRESH_S
        self._serves = False

    async def start(self, services: Iterable[str] = ()) -> None:
        """Report that calls are taken, for the services with these full names."""
        self._names += sorted({each for each in services if each.startswith("qflow.")})
        self._serves = True
        await self.set("", HealthCheckResponse.SERVING)
        await self._tell()

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:
        """Return the status of a name, as it is now."""
        if request.service:
            await self._look()
        answer: HealthCheckResponse = await super().Check(request, context)
        return answer

    async def Watch(self, request: HealthCheckRequest, context: Any) -> None:
        """Send the status of a name, and again whenever it changes."""
        looking = asyncio.ensure_future(self._look_on()) if request.service else None
        try:
            await super().Watch(request, context)
        finally:
            if looking is not None:
                looking.cancel()

    async def _look_on(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(_WATCH_S)

    async def _look(self) -> None:
        """Probe the dependencies, unless that was just done."""
        if not self._serves or not self._dependencies:
            return
        async with self._looking:
            if time.monotonic() - self._looked_at_s < _FRESH_S:
                return
            found = await asyncio.gather(*(_is_there(each) for each in self._dependencies))
            self._looked_at_s = time.monotonic()
            for each, there in zip(self._dependencies, found, strict=True):
                if self._there.get(each.name, True) != there:
                    event = "dependency_returned" if there else "dependency_away"
                    log.warning(event, dependency=each.name)
                self._there[each.name] = there
            await self._tell()

    async def _tell(self) -> None:
        whole = all(
            self._there.get(each.name, True) for each in self._dependencies if each.essential
        )
        for name in self._names:
            await self.set(name, _status(whole))
        for each in self._dependencies:
            await self.set(f"{self._own}.{each.name}", _status(self._there.get(each.name, True)))


async def _is_there(dependency: Dependency) -> bool:
    try:
        async with asyncio.timeout(_LOOK_MAX_S):
            return await dependency.is_there()
    except Exception as error:  # noqa: BLE001  # whatever it is, the dependency is unavailable
        log.debug("dependency_silent", dependency=dependency.name, fault=type(error).__name__)
        return False


def _status(serves: bool) -> Any:  # noqa: FBT001
    return HealthCheckResponse.SERVING if serves else HealthCheckResponse.NOT_SERVING
