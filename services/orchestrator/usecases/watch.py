"""Waits for and watches executions: a snapshot, then every committed change."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from services.kit.caller import Caller
from services.kit.errors import OutOfRange
from services.kit.pg import as_caller
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.status import NodeStatus
from services.orchestrator.domain.transition import View
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.hub import Change, Moved
from services.orchestrator.gateways.peers import PeerGone
from services.orchestrator.storage import executions, node_executions
from services.orchestrator.storage.executions import Execution
from services.orchestrator.storage.node_executions import NodeExecution
from services.orchestrator.usecases.forward import Router
from services.orchestrator.usecases.read import Reader, rendered

PROGRESS_S: Final = 15.0
_LOOK_AGAIN_S: Final = 0.25  # between checks for the owner of a run without one


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a watch. `kind` is snapshot, bookmark, delta or progress.

    After it a watcher has seen everything up to `revision`; before its last message, up to `seen`.
    """

    kind: str
    revision: int
    seen: int = 0
    execution: Execution | None = None
    plan: Plan | None = None
    nodes: Sequence[NodeExecution] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True)
class Watcher:
    """The dependencies of these use cases."""

    reader: Reader
    engine: Engine
    router: Router

    async def wait(
        self, caller: Caller, execution_id: UUID, *, timeout_s: float, full: bool
    ) -> tuple[Execution, Plan]:
        """Return an execution once it has ended, or as it is on timeout.

        The wait takes place at the owner of the run, and follows it to another member. It ends
        early if this member leaves.
        """
        found = await self.engine.hub.waited(
            self._final(caller, execution_id, timeout_s=timeout_s, full=full)
        )
        return found or await self.reader.get(caller, execution_id, full=full)

    async def _final(
        self, caller: Caller, execution_id: UUID, *, timeout_s: float, full: bool
    ) -> tuple[Execution, Plan]:
        ends_at = self.engine.now() + timeout_s
        while True:
            try:
                return await self._waited(caller, execution_id, ends_at, full=full)
            except Moved:
                continue
            except PeerGone:  # another member takes over
                left_s = ends_at - self.engine.now()
                await asyncio.sleep(max(0.0, min(_LOOK_AGAIN_S, left_s)))

    async def _waited(
        self, caller: Caller, execution_id: UUID, ends_at: float, *, full: bool
    ) -> tuple[Execution, Plan]:
        with self.engine.hub.subscribed(execution_id, ends_only=True) as subscription:
            while True:
                # No need to read the row of a run in memory: its tenant is all that row-level
                # security would check.
                ended = self.engine.ended.find(execution_id, caller.tenant_id, self.engine.now())
                if ended is not None:
                    return (ended[0] if full else executions.without_values(ended[0])), ended[1]
                left_s = ends_at - self.engine.now()
                if left_s <= 0:
                    return await self.reader.get(caller, execution_id, full=full)
                run = self.engine.core.runs.get(execution_id)
                if run is None or run.tenant_id != caller.tenant_id or run.created_at is None:
                    # In this order: if it ends in between, its row shows it.
                    elsewhere = await self.router.address(execution_id)
                    execution, plan = await self.reader.get(caller, execution_id, full=full)
                    if execution.final:
                        return execution, plan
                    if elsewhere is not None:
                        wait_s = min(left_s, PROGRESS_S)
                        await self.router.peers.await_end(elsewhere, execution_id, wait_s)
                        continue
                await subscription.next(min(left_s, PROGRESS_S / 3))

    async def await_end(self, execution_id: UUID, *, timeout_s: float) -> None:
        """Return when a run of this member ends or moves, or on timeout.

        For a run that is not here this returns soon, so that its owner is looked up again.
        """
        with self.engine.hub.subscribed(execution_id, ends_only=True) as subscription:
            if execution_id in self.engine.ended:
                return
            if execution_id not in self.engine.core.runs:
                timeout_s = min(timeout_s, _LOOK_AGAIN_S)
            with suppress(Moved):
                await subscription.next(timeout_s)

    async def watch(
        self, caller: Caller, execution_id: UUID, *, after_revision: int
    ) -> AsyncIterator[Step]:
        """Yield a snapshot, or the changes after a revision, then every change to the end."""
        with self.engine.hub.subscribed(execution_id) as subscription:
            self.engine.watch(execution_id, +1)
            try:
                execution, plan = await self.reader.get(
                    caller, execution_id, full=True, with_input=not after_revision
                )
                if after_revision > execution.revision:
                    raise OutOfRange(
                        "REVISION_AHEAD",
                        f"after_revision {after_revision}: the execution is at revision "
                        f"{execution.revision}; watch again from 0",
                        revision=execution.revision,
                    )
                view = _View(caller, self, execution, plan)
                for step in await view.begin(after_revision):
                    yield step
                while not view.execution.final:
                    change = await subscription.next(PROGRESS_S)
                    if change is None:
                        yield Step("progress", view.revision)
                        if execution_id not in self.engine.core.runs:
                            raise Moved  # maybe just before the subscription
                        continue
                    followed = await view.follow(change)
                    if followed is not None:
                        yield followed
            finally:
                self.engine.watch(execution_id, -1)


class _View:
    """The state of one watcher."""

    def __init__(self, caller: Caller, watcher: Watcher, execution: Execution, plan: Plan) -> None:
        self.execution = execution
        self.revision = execution.revision
        self._caller = caller
        self._reader = watcher.reader
        self._engine = watcher.engine
        self._plan = plan
        self._statuses: dict[str, NodeStatus] = {}
        self._counts: Counter[NodeStatus] = Counter()
        self._parts = 0

    async def begin(self, after_revision: int) -> list[Step]:
        """Return the snapshot with the input, or a delta since a revision."""
        rows = await self._rows(0)
        self._note(rows)
        self.revision = max([self.execution.revision, *(row.revision for row in rows)])
        nodes = rendered(self.execution, self._plan, rows, 0, len(self._plan.places))
        nodes += [row for row in rows if row.node_id not in self._plan.index]
        bookmark = Step("bookmark", self.revision)
        if not after_revision:
            snapshot = Step("snapshot", 0, 0, self._counted(), self._plan, nodes)
            self.execution = self.execution._replace(input_data=None)
            return [snapshot, bookmark]
        changed = [node for node in nodes if node.revision > after_revision]
        if changed or self.execution.revision > after_revision:
            return [self._delta(after_revision, changed)]
        return [bookmark]

    async def follow(self, change: Change) -> Step | None:
        """Turn a committed change into a delta; None if it has been seen already.

        The delta depends only on the change and on the revision seen before, so it is made once for
        all watchers with the same.
        """
        if change.complete and not change.final and change.revision <= self.revision:
            return None
        key = (self._caller.tenant_id, self.revision)
        made: Step | None = change.made.get(key)
        if made is None:
            made = await self._followed(change)
            if made is not None:
                change.made[key] = made
            return made
        assert made.execution is not None
        self._note(made.nodes)
        self.execution, self.revision = made.execution, made.revision
        return made

    async def _followed(self, change: Change) -> Step | None:
        if change.row or not change.complete:
            self.execution = await self._as_it_stands(change)
        if change.complete and (change.final or not self.execution.final):
            nodes = [_node(self._plan, each) for each in change.views]
            latest = {node.node_id: node for node in nodes if node.revision > self.revision}
        else:
            # Read after the run's own row: if that is final no change follows, and this delta has
            # to be complete.
            latest = {row.node_id: row for row in await self._rows(self.revision)}
        told = (change.revision if change.complete else 0, self.execution.revision)
        seen = max([self.revision, *told, *(row.revision for row in latest.values())])
        self._note(latest.values())
        moved = seen > self.revision or bool(latest)
        before, self.revision = self.revision, seen
        if not moved and not self.execution.final:
            return None
        nodes = list(latest.values())
        if self.execution.final:  # nodes that never began have a final status now, too
            everything = rendered(self.execution, self._plan, [], 0, len(self._plan.places))
            nodes += [node for node in everything if node.node_id not in self._statuses]
        return self._delta(before, nodes)

    async def _as_it_stands(self, change: Change) -> Execution:
        """Return the run's row, read once for all watchers of a change."""
        execution_id, engine = self.execution.id, self._engine
        if change.final:
            ended = engine.ended.find(execution_id, self._caller.tenant_id, engine.now())
            if ended is not None:
                return ended[0]._replace(input_data=None)
        # Read by the first watcher in a task of its own, as that one may leave.
        key = ("row", self._caller.tenant_id)
        reading = change.made.get(key)
        if reading is None:
            reading = change.made[key] = asyncio.create_task(
                self._reader.get(self._caller, execution_id, full=True, with_input=False)
            )
        execution: Execution = (await asyncio.shield(reading))[0]
        return execution

    def _delta(self, before: int, nodes: Sequence[NodeExecution]) -> Step:
        return Step("delta", self.revision, before, self._counted(), self._plan, nodes)

    async def _rows(self, after_revision: int) -> list[NodeExecution]:
        async with as_caller(self._reader.api_pool, self._caller) as db:
            return await node_executions.list_nodes(
                db, self.execution.id, after_revision=after_revision
            )

    def _note(self, nodes: Iterable[NodeExecution]) -> None:
        """Update the counts by the changed nodes only, as a large run changes often."""
        for node in nodes:
            before = self._statuses.get(node.node_id)
            if before is not None:
                self._counts[before] -= 1
            elif node.node_id not in self._plan.index:
                self._parts += 1
            self._statuses[node.node_id] = node.status
            self._counts[node.status] += 1

    def _counted(self) -> Execution:
        counts: dict[str, int] = {status: n for status, n in self._counts.items() if n}
        return self.execution._replace(counts=counts, parts=self._parts, revision=self.revision)


def _node(plan: Plan, view: View) -> NodeExecution:
    definition, record = plan.places[view.place], view.record
    failure = record.failure
    return NodeExecution(
        node_id=view.node_id,
        definition_node_id=definition.id,
        child_execution_id=record.child,
        status=record.status,
        revision=record.revision,
        id=record.id,
        node_version_id=definition.node_version_id,
        execution_order=record.order,
        retry_count=record.retry_count,
        max_retries=definition.retry.max_retries,
        started_at=record.started_at,
        completed_at=record.completed_at,
        error_type=failure.error_type if failure else None,
        error_message=failure.message if failure else None,
        error_detail=failure.detail if failure else None,
        resource_usage={
            "cpu_us": record.cpu_us,
            "memory_peak_bytes": record.memory_peak_bytes,
            "io_read_bytes": record.io_read_bytes,
            "io_write_bytes": record.io_write_bytes,
        },
        container_id=record.container_id,
        cache_hit=record.cache_hit,
    )
