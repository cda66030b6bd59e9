"""Environments built ahead of the first run, on request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import NotFound, QflowError
from services.kit.pg import Pool, as_caller
from services.runner.domain.environments import Package
from services.runner.domain.limits import Limits
from services.runner.domain.pooling import WarmKey
from services.runner.storage import environment_lists
from services.runner.storage.environment_lists import StoredEnvironment
from services.runner.storage.nodes import NodeVersion
from services.runner.usecases.container_rows import ContainerRow
from services.runner.usecases.environments import EnvironmentFailed, Environments
from services.runner.usecases.loading import Loader
from services.runner.usecases.node_versions import NodeVersions

_BUILDS_AT_ONCE: Final = 2
_UNSETTLED: Final = "the dependencies are not resolved yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A node version, and the state of its environment."""

    node_version_id: UUID
    environment: StoredEnvironment | None
    problem: str


class Preparer:
    """Builds environments on request, and reports their progress."""

    def __init__(
        self,
        pool: Pool,
        *,
        versions: NodeVersions,
        environments: Environments,
        sandboxes: Loader,
    ) -> None:
        self._pool = pool
        self._versions = versions
        self._environments = environments
        self._sandboxes = sandboxes
        self._building = asyncio.Semaphore(_BUILDS_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[str]] = {}

    async def prepare(
        self,
        caller: Caller,
        *,
        node_id: UUID | None,
        workflow_id: UUID | None,
        version: int,
        wait_s: float,
    ) -> tuple[list[Prepared], bool]:
        """Start the builds that nodes need and wait; return their states, and whether all are done.

        NotFound for what the caller cannot read. Builds continue after the wait.
        """
        ids = await self._wanted(caller, node_id, workflow_id, version)
        found = [await self._versions.get(each) for each in ids]
        versions = [each for each in found if each is not None]
        tasks = {each.id: self._task(caller.tenant_id, each) for each in versions}
        running = {task for task in tasks.values() if task is not None and not task.done()}
        if running and wait_s > 0:
            await asyncio.wait(running, timeout=wait_s)
        keys = {each.id: self._key(caller.tenant_id, each) for each in versions}
        async with as_caller(self._pool, caller) as db:
            known = await environment_lists.by_keys(
                db, caller.tenant_id, [key for key in keys.values() if key]
            )
        prepared = [
            Prepared(
                node_version_id=each.id,
                environment=known.get(keys[each.id]),
                problem=_problem(each, tasks[each.id]),
            )
            for each in versions
        ]
        return prepared, not any(task is not None and not task.done() for task in tasks.values())

    async def _wanted(
        self, caller: Caller, node_id: UUID | None, workflow_id: UUID | None, version: int
    ) -> list[UUID]:
        async with as_caller(self._pool, caller) as db:
            if node_id is not None:
                ids = await environment_lists.wanted_versions(db, [(node_id, version)])
                if not ids:
                    raise _missing("node", node_id)
                return ids
            assert workflow_id is not None, "the contract asks for one of them"
            if not await environment_lists.has_workflow(db, workflow_id, version):
                raise _missing("workflow", workflow_id)
            nodes = await environment_lists.nodes_of(db, workflow_id, version)
            return await environment_lists.wanted_versions(db, nodes)

    def _key(self, tenant_id: UUID, version: NodeVersion) -> str:
        return self._environments.key_of(
            tenant_id=tenant_id,
            python_version=version.python_version,
            digest=version.lock_digest if version.lock else "",
        )

    def _task(self, tenant_id: UUID, version: NodeVersion) -> asyncio.Task[str] | None:
        """Return the build of a version's environment, started if needed; None without packages."""
        key = self._key(tenant_id, version)
        if not key:
            return None
        task = self._tasks.get(key)
        if task is None:
            task = asyncio.create_task(self._build(key, tenant_id, version))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
        return task

    async def _build(self, key: str, tenant_id: UUID, version: NodeVersion) -> str:
        """Build; return an error text, or "". A row for a future sandbox shows the progress."""
        row: ContainerRow | None = None

        def on(packages: Sequence[Package], status: str, time_ms: int | None) -> None:
            nonlocal row
            if row is None:
                warm = WarmKey(tenant_id, version.id, key, Limits())
                row = self._sandboxes.new_row(warm, version)
            row.packages(packages, status, lock_digest=version.lock_digest, time_ms=time_ms)

        status = "error"
        try:
            async with self._building:
                await self._environments.ensure(
                    key, version.lock, version.lock_digest, version.python_version, tenant_id, on
                )
            status = "removed"  # it only ever stood for the installation
        except (EnvironmentFailed, QflowError) as failed:
            return str(failed)
        finally:
            if row is not None:
                row.ended(status)
        return ""


def _problem(version: NodeVersion, task: asyncio.Task[str] | None) -> str:
    if version.lock_state == "failed":
        return version.lock_error or "the dependencies could not be resolved"
    if version.lock_state == "pending":
        return _UNSETTLED
    if task is None or not task.done() or task.cancelled():
        return ""
    fault = task.exception()
    return task.result() if fault is None else "it could not be built"


def _missing(kind: str, missing_id: UUID) -> NotFound:
    return NotFound(
        f"{kind.upper()}_NOT_FOUND", f"there is no such {kind}", resource=(kind, str(missing_id))
    )
