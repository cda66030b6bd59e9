"""Writes the states of sandboxes to the database: newest only, in batches, never awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import structlog

from services.kit.ids import uuid7
from services.kit.pg import Pool, transaction
from services.runner.domain.environments import Package
from services.runner.storage import containers
from services.runner.storage.containers import ContainerChange, DependencyChange
from services.runner.usecases.patience import passing

log = structlog.get_logger()

_RETRY_S: Final = 1.0
_KEPT_MAX: Final = 10_000
_USAGE_EVERY_S: Final = 2.0  # maximum age of the usage in a live sandbox's row


class ContainerRows:
    """Collects changes of rows; only one write runs at a time, later changes wait for the next."""

    def __init__(
        self,
        pool: Pool,
        incarnation: Callable[[], UUID],
        *,
        usage_every_s: float = _USAGE_EVERY_S,
    ) -> None:
        self._incarnation = incarnation
        self._pool = pool
        self._usage_every_s = usage_every_s
        self._used: set[ContainerRow] = set()
        self._open: set[UUID] = set()
        self._containers: dict[UUID, ContainerChange] = {}
        self._dependencies: dict[tuple[UUID, str], DependencyChange] = {}
        self._changed = asyncio.Event()

    @property
    def open(self) -> AbstractSet[UUID]:
        """The rows whose sandboxes are starting or running."""
        return self._open

    def begin(self, row: ContainerRow) -> None:
        """Track a row until its sandbox has ended."""
        self._open.add(row.id)

    def end(self, row: ContainerRow) -> None:
        """Stop tracking a row."""
        self._open.discard(row.id)

    def put(self, change: ContainerChange) -> None:
        """Queue the newest state of a sandbox."""
        self._containers[change.id] = change
        self._changed.set()

    def put_dependency(self, change: DependencyChange) -> None:
        """Queue the newest state of a package in a sandbox."""
        self._dependencies[change.container_id, change.package_name] = change
        self._changed.set()

    def put_usage(self, row: ContainerRow) -> None:
        """Queue the usage of a sandbox: all that changed are written together, seconds later."""
        if not self._used:
            asyncio.get_running_loop().call_later(self._usage_every_s, self._tell_usage)
        self._used.add(row)

    def _tell_usage(self) -> None:
        used, self._used = self._used, set()
        for row in used:
            row.tell_usage()

    async def write_until(self, stop: asyncio.Event) -> None:
        """Write changes as they come, until `stop` is set."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                changed = asyncio.create_task(self._changed.wait())
                await asyncio.wait({changed, stopping}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if not await self.flush():
                    await asyncio.wait({stopping}, timeout=_RETRY_S)
        finally:
            stopping.cancel()

    async def flush(self) -> bool:
        """Write all queued changes; False if the database was unavailable, and they are kept."""
        self._changed.clear()
        states, self._containers = self._containers, {}
        packages, self._dependencies = self._dependencies, {}
        if not states and not packages:
            return True
        try:
            async with transaction(self._pool) as db:
                if states:
                    await containers.save(db, self._incarnation(), list(states.values()))
                if packages:
                    await containers.save_dependencies(db, list(packages.values()))
        except Exception as problem:
            if not passing(
                problem
            ):  # they would never be accepted, and are only informative: drop them
                log.exception("container_rows_refused", rows=len(states))
                return True
            log.warning("container_rows_delayed", fault=type(problem).__name__, rows=len(states))
            if len(self._containers) + len(states) < _KEPT_MAX:
                self._containers = {**states, **self._containers}
                self._dependencies = {**packages, **self._dependencies}
                self._changed.set()
            return False
        return True


class ContainerRow:
    """The row of one sandbox, from intent to end."""

    def __init__(
        self,
        rows: ContainerRows,
        *,
        tenant_id: UUID,
        node_version_id: UUID,
        python_version: str,
        limits: Mapping[str, Any],
    ) -> None:
        self.id = uuid7()
        self.taken = False  # whether a sandbox was started under this row, or tried to
        self._rows = rows
        self._tenant_id = tenant_id
        self._node_version_id = node_version_id
        self._python_version = python_version
        self._limits = dict(limits)
        self._created_at = datetime.now(UTC)
        self._started_at: datetime | None = None
        self._usage: Callable[[], Mapping[str, Any]] | None = None
        self._over = False
        self._name = f"pending:{self.id}"
        rows.begin(self)
        self._put("creating")

    def running(self, name: str) -> None:
        """Record that the sandbox runs, under this name on the machine."""
        self._started_at = datetime.now(UTC)
        self._name = name
        self._put("running")

    def used(self, usage: Callable[[], Mapping[str, Any]]) -> None:
        """Record that the usage changed; `usage` is called when the row is written."""
        self._usage = usage
        self._rows.put_usage(self)

    def tell_usage(self) -> None:
        """Queue the current usage, unless the final state is already queued."""
        if not self._over and self._usage is not None:
            self._put("running", usage=self._usage())

    def ended(self, status: str, usage: Mapping[str, Any] | None = None) -> None:
        """Record the end: `stopped`, `error`, or `removed` if it never existed."""
        self._over = True
        self._rows.end(self)
        self._put(status, stopped_at=datetime.now(UTC), usage=usage)

    def packages(
        self, packages: Sequence[Package], status: str, *, lock_digest: str, time_ms: int | None
    ) -> None:
        """Record the installation status of the sandbox's packages."""
        for package in packages:
            self._rows.put_dependency(
                DependencyChange(
                    container_id=self.id,
                    package_name=package.name,
                    version=package.version,
                    status=status,
                    lock_digest=lock_digest,
                    time_ms=time_ms,
                )
            )

    def _put(
        self,
        status: str,
        *,
        stopped_at: datetime | None = None,
        usage: Mapping[str, Any] | None = None,
    ) -> None:
        self._rows.put(
            ContainerChange(
                id=self.id,
                tenant_id=self._tenant_id,
                node_version_id=self._node_version_id,
                python_version=self._python_version,
                container_id=self._name,
                status=status,
                created_at=self._created_at,
                started_at=self._started_at,
                stopped_at=stopped_at,
                resource_limits=self._limits,
                resource_usage=dict(usage) if usage is not None else None,
            )
        )
