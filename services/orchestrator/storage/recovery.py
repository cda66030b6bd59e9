"""Loads open executions from their rows, for an orchestrator that takes them over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString
from uuid import UUID

import msgspec

from services.kit.pg import Db, Row
from services.orchestrator.domain.children import EndedChild
from services.orchestrator.domain.options import RunOptions
from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.records import Failure, detail_of_class
from services.orchestrator.domain.restore import (
    NodeRow,
    RunRow,
    SignalRow,
    UnfinishedError,
    restore,
)
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.timers import BEGIN
from services.orchestrator.domain.values import FileValue
from services.orchestrator.domain.waits import Refusal
from services.orchestrator.storage import executions
from services.orchestrator.storage.executions import EXCEPTION_TYPE

_FIND: Final[LiteralString] = """
    SELECT id, pins_id
      FROM workflow_executions
     WHERE status IN ('pending', 'running', 'paused') AND engine_format = $1
       AND ($2::uuid[] IS NULL OR id = ANY($2)) AND ($3::smallint[] IS NULL OR shard = ANY($3))
     ORDER BY id
"""


async def find_open(
    db: Db, engine_format: int, *, ids: Sequence[UUID] | None, shards: Sequence[int] | None
) -> dict[UUID, UUID]:
    """Return the pins by open run: of the given ids, or of some shards."""
    rows = await db.fetch(_FIND, engine_format, ids, shards)
    return {row["id"]: row["pins_id"] for row in rows}


_OPEN: Final[LiteralString] = f"""
    SELECT id, tenant_id, created_by, status, pins_id, input_data, request_id, revision, shard,
           created_at, started_at, cancel_requested_at, deadline_at, error_type, error_message,
           error_stack_trace, failed_node_id, business_key, labels, priority, start_at,
           parent_execution_id, relation, node_version_id, ignores_cache, traceparent, budget,
           {EXCEPTION_TYPE},
           EXTRACT(epoch FROM start_at - clock_timestamp())::float8 AS starts_s,
           EXTRACT(epoch FROM deadline_at - clock_timestamp())::float8 AS deadline_s,
           clock_timestamp() AS clock
      FROM workflow_executions
     WHERE status IN ('pending', 'running', 'paused') AND id = ANY($1)
     ORDER BY id
"""
_NODES: Final[LiteralString] = """
    SELECT node.id, node.workflow_execution_id, node.node_id, node.status, node.execution_order,
           node.attempt_token, node.runner_incarnation, node.retry_count, node.delivery_count,
           node.revision, node.output_data, node.output_file_id, node.container_id,
           node.child_execution_id, node.cache_hit,
           node.error_type, node.error_message, node.error_stack_trace, node.error_detail,
           node.started_at, node.completed_at,
           (node.resource_usage ->> 'cpu_us')::bigint AS cpu_us,
           (node.resource_usage ->> 'memory_peak_bytes')::bigint AS memory_peak_bytes,
           (node.resource_usage ->> 'io_read_bytes')::bigint AS io_read_bytes,
           (node.resource_usage ->> 'io_write_bytes')::bigint AS io_write_bytes,
           (SELECT COALESCE(sum((resource_usage ->> 'io_read_bytes')::bigint), 0)::bigint
              FROM node_attempts AS attempt
             WHERE attempt.node_execution_id = node.id AND attempt.token <> node.attempt_token
           ) AS earlier_io_read_bytes,
           (SELECT COALESCE(sum((resource_usage ->> 'io_write_bytes')::bigint), 0)::bigint
              FROM node_attempts AS attempt
             WHERE attempt.node_execution_id = node.id AND attempt.token <> node.attempt_token
           ) AS earlier_io_write_bytes,
           (SELECT COALESCE(sum((resource_usage ->> 'cpu_us')::bigint), 0)::bigint
              FROM node_attempts AS attempt
             WHERE attempt.node_execution_id = node.id AND attempt.token <> node.attempt_token
           ) AS earlier_cpu_us,
           EXTRACT(epoch FROM clock_timestamp() - LEAST(node.started_at, (
               SELECT min(started_at) FROM node_attempts AS attempt
                WHERE attempt.node_execution_id = node.id)))::float8 AS age_s,
           (SELECT COALESCE(max((resource_usage ->> 'memory_peak_bytes')::bigint), 0)
              FROM node_attempts AS attempt
             WHERE attempt.node_execution_id = node.id
           ) AS earlier_memory_peak_bytes,
           (SELECT attempt.progress
              FROM node_attempts AS attempt
             WHERE attempt.node_execution_id = node.id AND attempt.progress IS NOT NULL
             ORDER BY attempt.token DESC
             LIMIT 1
           ) AS progress,
           file.file_size_bytes, file.hash_sha256, file.element_counts,
           EXTRACT(epoch FROM node.due_at - clock_timestamp())::float8 AS due_s
      FROM node_executions AS node
      LEFT JOIN files AS file ON file.id = node.output_file_id
     WHERE node.workflow_execution_id = ANY($1)
     ORDER BY node.workflow_execution_id, node.execution_order
"""


_SIGNALS: Final[LiteralString] = """
    SELECT id, workflow_execution_id, name, sent_by, payload FROM execution_signals
     WHERE workflow_execution_id = ANY($1) AND node_id IS NULL
     ORDER BY created_at, id
"""
_CHILDREN: Final[LiteralString] = f"""
    SELECT id, status, output_data, error_type, error_message, failed_node_id, {EXCEPTION_TYPE},
           COALESCE((resource_usage ->> 'cpu_us')::bigint, 0) AS cpu_us,
           COALESCE((resource_usage ->> 'memory_peak_bytes')::bigint, 0) AS memory_peak_bytes,
           COALESCE((resource_usage ->> 'io_read_bytes')::bigint, 0) AS io_read_bytes,
           COALESCE((resource_usage ->> 'io_write_bytes')::bigint, 0) AS io_write_bytes
      FROM workflow_executions
     WHERE id = ANY($1) AND completed_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run and its timers, in seconds from now by the database's clock."""

    run: Run
    due_s: Mapping[int, float]
    deadline_s: float | None
    clock: datetime  # the database's time when it was read
    ended_children: Sequence[EndedChild] = ()


@dataclass(frozen=True, slots=True)
class LostRun:
    """A run whose rows could not be understood, and what is needed to end it."""

    id: UUID
    revision: int
    reason: str
    open_nodes: Sequence[tuple[UUID, int]]  # rows that are not final, with their tokens
    told: str = ""  # the reason as shown to users


async def open_runs(
    db: Db, ids: Sequence[UUID], plans: Mapping[UUID, Plan]
) -> list[OpenRun | LostRun]:
    """Load runs from their rows. One that cannot be understood does not affect the others."""
    rows = await db.fetch(_OPEN, ids)
    by_run: dict[UUID, list[Row]] = {row["id"]: [] for row in rows}
    for node in await db.fetch(_NODES, list(by_run)):
        by_run[node["workflow_execution_id"]].append(node)
    signals: dict[UUID, list[SignalRow]] = {}
    for word in await db.fetch(_SIGNALS, list(by_run)):
        signals.setdefault(word["workflow_execution_id"], []).append(_to_signal(word))
    children = await _children(db, by_run)
    found: list[OpenRun | LostRun] = []
    for row in rows:
        nodes = by_run[row["id"]]
        try:
            words = signals.get(row["id"], ())
            found.append(_to_open_run(row, nodes, plans[row["pins_id"]], words, children))
        except (KeyError, ValueError, AssertionError, Refusal) as error:
            still_open = [
                (node["id"], node["attempt_token"])
                for node in nodes
                if node["completed_at"] is None
            ]
            revision = max([row["revision"], *(node["revision"] for node in nodes)])
            told = str(error) if isinstance(error, UnfinishedError) else ""
            found.append(LostRun(row["id"], revision, repr(error), still_open, told))
    return found


async def _children(db: Db, by_run: Mapping[UUID, Sequence[Row]]) -> Mapping[UUID, EndedChild]:
    """Return the ends of sub-workflows that nodes still wait for; most have not ended."""
    waited_for = [
        node["child_execution_id"]
        for nodes in by_run.values()
        for node in nodes
        if node["child_execution_id"] is not None and node["completed_at"] is None
    ]
    if not waited_for:
        return {}
    return {row["id"]: _to_child(row) for row in await db.fetch(_CHILDREN, waited_for)}


def _to_child(row: Row) -> EndedChild:
    return EndedChild(**{**row, "status": RunStatus(row["status"])})


def _to_signal(row: Row) -> SignalRow:
    outputs = tuple(bytes(each) for each in _LIST.decode(row["payload"]))
    return SignalRow(row["id"], row["name"], row["sent_by"], outputs)


def _to_open_run(
    row: Row,
    nodes: Sequence[Row],
    plan: Plan,
    signals: Sequence[SignalRow],
    children: Mapping[UUID, EndedChild],
) -> OpenRun:
    failure = _to_failure(row, detail_of_class(row["exception_type"]))
    run = restore(
        plan,
        RunRow(
            id=row["id"],
            tenant_id=row["tenant_id"],
            created_by=row["created_by"],
            status=RunStatus(row["status"]),
            input_values=split_object(row["input_data"] or "{}"),
            input_text=row["input_data"] or "{}",
            request_id=row["request_id"],
            revision=row["revision"],
            created_at=row["created_at"],
            started_at=row["started_at"],
            cancel_requested_at=row["cancel_requested_at"],
            deadline_at=row["deadline_at"],
            shard=row["shard"] or 0,
            failure=None if failure is None else (row["failed_node_id"] or "", failure),
            options=RunOptions(
                business_key=row["business_key"],
                labels=row["labels"],
                priority=row["priority"],
                start_at=row["start_at"],
                parent_execution_id=row["parent_execution_id"],
                relation=row["relation"],
                node_version_id=row["node_version_id"],
                ignores_cache=bool(row["ignores_cache"]),
                traceparent=row["traceparent"],
                budget=executions.to_amounts(row["budget"]),
            ),
        ),
        [_to_node_row(node) for node in nodes],
        signals,
    )
    due_s_by_row = {node["id"]: node["due_s"] for node in nodes if node["due_s"] is not None}
    due_s = {
        slot: due_s_by_row[record.id]
        for slot, record in enumerate(run.records)
        if record is not None and record.id in due_s_by_row
    }
    ended = [
        children[record.child]
        for record in run.records
        if record is not None and record.child is not None and record.child in children
    ]
    if (row["starts_s"] or 0) > 0 and _waits_for_its_time(run):
        due_s[BEGIN] = row["starts_s"]
    return OpenRun(run, due_s, row["deadline_s"], row["clock"], ended)


def _waits_for_its_time(run: Run) -> bool:
    """Return whether no node of a run has begun yet; a run that is being closed does not wait."""
    if run.cancelling or run.failure is not None:
        return False
    return not any(
        each is not None and (each.runner is not None or each.status is NodeStatus.WAITING)
        for each in run.records
    )


def _to_failure(row: Row, detail: str | None) -> Failure | None:
    if row["error_type"] is None:
        return None
    return Failure(
        error_type=row["error_type"],
        message=row["error_message"] or "",
        stack_trace=row["error_stack_trace"] or "",
        detail=detail,
    )


def _to_node_row(node: Row) -> NodeRow:
    output: dict[str, bytes] | FileValue | None = None
    if node["output_file_id"] is not None:
        output = FileValue(
            node["output_file_id"],
            node["file_size_bytes"] or 0,
            bytes.fromhex(node["hash_sha256"] or ""),
            node["element_counts"] or {},
        )
    elif node["output_data"] is not None:
        output = split_object(node["output_data"])
    return NodeRow(
        id=node["id"],
        node_id=node["node_id"],
        status=NodeStatus(node["status"]),
        order=node["execution_order"],
        token=node["attempt_token"],
        runner=node["runner_incarnation"],
        retry_count=node["retry_count"],
        delivery_count=node["delivery_count"],
        revision=node["revision"],
        output=output,
        failure=_to_failure(node, node["error_detail"]),
        cpu_us=node["cpu_us"] or 0,
        earlier_cpu_us=node["earlier_cpu_us"],
        memory_peak_bytes=node["memory_peak_bytes"] or 0,
        earlier_memory_peak_bytes=node["earlier_memory_peak_bytes"],
        io_read_bytes=node["io_read_bytes"] or 0,
        io_write_bytes=node["io_write_bytes"] or 0,
        earlier_io_read_bytes=node["earlier_io_read_bytes"],
        earlier_io_write_bytes=node["earlier_io_write_bytes"],
        container_id=node["container_id"],
        started_at=node["started_at"],
        completed_at=node["completed_at"],
        child=node["child_execution_id"],
        age_s=node["age_s"] or 0.0,
        cache_hit=bool(node["cache_hit"]),
        progress=node["progress"],
    )


_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])
_SPLIT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])


def split_object(text: str | bytes) -> dict[str, bytes]:
    """Split a JSON object into the exact texts of its values, by name."""
    return {name: bytes(raw) for name, raw in _SPLIT.decode(text).items()}


def join_object(values: Mapping[str, bytes]) -> str:
    """Write a JSON object of the exact texts of its values."""
    fields = [f"{json.dumps(name)}:{text.decode()}" for name, text in values.items()]
    return "{" + ",".join(fields) + "}"
