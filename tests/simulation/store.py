"""The reference store: what PostgreSQL holds, changed as the migrated schema and the flush allow.

A flush is looked at whole against the rows as they were before it, as one statement sees them, and
is then written whole or not at all. Rows are dicts by column; a kind of row that the flush learns
is a method here, and its columns come along by their names.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import Any, Final, NamedTuple, NoReturn
from uuid import UUID

import asyncpg

from services.orchestrator.domain.core import SHARDS
from services.orchestrator.domain.rows import (
    AttemptInsert,
    NodeChange,
    NodeComplete,
    NodeCopy,
    NodeInsert,
    NodePlaced,
    RunInsert,
    SignalWrite,
)
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL
from services.orchestrator.domain.transition import Transition
from services.orchestrator.storage import flush

Row = dict[str, Any]
# Columns of a node's row that its birth may leave as they are here.
_EMPTY: Final[Row] = dict.fromkeys(
    (
        "runner_incarnation",
        "output_data",
        "output_file_id",
        "error_type",
        "error_message",
        "error_stack_trace",
        "error_detail",
        "cpu_us",
        "memory_peak_bytes",
        "io_read_bytes",
        "io_write_bytes",
        "container_id",
        "child_execution_id",
        "cache_hit",
        "started_at",
        "completed_at",
        "due_at",
    )
) | {"retry_count": 0, "delivery_count": 0}
# What the query of open nodes adds, of one that has no attempt behind it and waits for nothing.
_NO_ATTEMPTS: Final[Row] = {
    "earlier_cpu_us": 0,
    "earlier_io_read_bytes": 0,
    "earlier_io_write_bytes": 0,
    "earlier_memory_peak_bytes": 0,
    "progress": None,
    "age_s": 0.0,
    "file_size_bytes": None,
    "hash_sha256": None,
    "due_s": None,
}
_USED: Final = ("nodes", "cpu_us", "gb_us", "moved_bytes", "executions")
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)


class Refused(asyncpg.PostgresError):
    """The server's word on a statement of which nothing was written."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate  # type: ignore[misc]  # the library gives each a class


class Written(NamedTuple):
    """A flush that arrived, and what became of it."""

    batch: Sequence[Transition]
    member_id: UUID
    epoch: int
    live: bool  # whether the fence was open
    refused: str  # SQLSTATE, or empty
    started: frozenset[UUID]
    gone: frozenset[UUID]  # rows that were to be copied, and were not there any more


@dataclass(slots=True)
class Lease:
    """A row of engine_members or runner_members."""

    state: str
    expires_at: datetime | None = None
    epoch: int = 0
    host: str = ""
    address: str | None = None
    updated_at: datetime = EPOCH


class Store:
    """All tables that the engine reads or writes."""

    def __init__(self, *, recording: bool = False) -> None:
        self.now_s = 0.0  # turned by the world
        self.skew_s = 0.0  # the server's clock may be set
        self._shown_s, self._shown = 0.0, EPOCH
        self.members: dict[UUID, Lease] = {}
        self.runners: dict[UUID, Lease] = {}
        self.shards: dict[int, UUID | None] = dict.fromkeys(range(SHARDS))
        self.listeners: dict[UUID, Callable[[str], None]] = {}  # of what members tell, by member
        self.signals: dict[UUID, Row] = {}
        self.runs: dict[UUID, Row] = {}
        self.nodes: dict[UUID, Row] = {}
        self.nodes_of: defaultdict[UUID, dict[str, Row]] = defaultdict(dict)
        self.attempts: dict[tuple[UUID, int], Row] = {}
        self.attempts_of: defaultdict[UUID, list[Row]] = defaultdict(list)
        self.errors: dict[UUID, Row] = {}
        self.flows: dict[UUID, Row] = {}
        self.requests: dict[tuple[UUID, UUID], UUID] = {}
        self.locks: dict[UUID, str] = {}
        self.limits: list[Row] = []
        self.slots: dict[UUID, Row] = {}  # places under them
        self.buckets: dict[tuple[UUID, str], tuple[float, datetime]] = {}  # what is left of rates
        self.starts: Counter[tuple[UUID, str]] = Counter()  # that rates let
        self.quotas: dict[UUID, Row] = {}  # by tenant
        self.usage: dict[tuple[UUID, date, UUID], Row] = {}  # by tenant, day and member
        self.budgets: dict[UUID, Row] = {}  # by run
        self.past_budgets: dict[UUID, Row] = {}  # that were swept
        self.limit_listeners: dict[UUID, Callable[[str], None]] = {}
        self.gone_workflows: set[UUID] = set()
        self.gone_nodes: set[UUID] = set()
        self.cached: dict[tuple[UUID, str], Row] = {}  # results by tenant and digest
        self.handed: dict[UUID, list[timedelta]] = {}  # how old each was when it was given
        self.purged: set[UUID] = set()  # runs of which nothing can be copied any more
        self.purges_next = False  # the run of the result that is given next is
        self.children_of: defaultdict[UUID, list[UUID]] = defaultdict(list)  # runs by their parent
        self.taken: dict[tuple[UUID, str], UUID] = {}  # signals by the run and node that took each
        self.paused: set[UUID] = set()  # runs, as those who look at flushes have seen them
        self.flushes = 0
        self.observers: list[Callable[[Sequence[Transition]], None]] = []
        self.history: list[Written] | None = [] if recording else None

    def clock(self) -> datetime:
        """Give clock_timestamp()."""
        seconds = self.now_s + self.skew_s
        if seconds != self._shown_s:  # it is looked at many times in a moment
            self._shown_s, self._shown = seconds, EPOCH + timedelta(seconds=seconds)
        return self._shown

    # --- the flush ------------------------------------------------------------------------------

    def flush(
        self, batch: Sequence[Transition], member_id: UUID, epoch: int, last: datetime
    ) -> dict[str, Any]:
        """Write a batch whole, or raise `Refused` and write nothing."""
        member = self.members[member_id]
        live = member.epoch == epoch and member.state == "live"
        refused, started = "", set[UUID]()
        try:
            if not live:
                _refuse(flush.FENCED, "fenced")
            started = self._look(batch)
        except Refused as problem:
            refused = problem.sqlstate or ""
            raise
        finally:
            if self.history is not None:
                gone = frozenset(self.gone_sources(batch))
                told = Written(batch, member_id, epoch, live, refused, frozenset(started), gone)
                self.history.append(told)
        at = max(self.clock(), last)
        self.flushes += 1
        for t in batch:
            self._write(t, at, started, member_id)
        for observer in self.observers:
            observer(batch)
        return {"at": at, "clock": self.clock(), "started": list(started)}

    def _look(self, batch: Sequence[Transition]) -> set[UUID]:  # noqa: C901  # as `_write`
        """Hold a batch against the rows as they are; returns the runs that it starts."""
        started = self._look_at_starts(batch)
        touched: set[UUID] = set()
        begun: set[tuple[UUID, object]] = set()
        for t in batch:
            for change in t.run_changes:
                row = self.runs.get(change.id)
                if row is None or row["status"] in RUN_FINAL or change.id in touched:
                    _refuse(flush.GUARD_MISSED, f"run {change.id} moved")
                touched.add(change.id)
            born: list[NodeInsert | NodePlaced | NodeCopy] = [*t.node_inserts]
            born += [*t.placed.values(), *t.copies]
            for node in born:
                if not node.first or node.run_id in started:
                    self._look_at_insert(node, started, begun)
            for done in t.completes:
                self._look_at_guard(done, touched)
            for moved in t.changes.values():
                self._look_at_guard(moved, touched)
            for attempt in t.attempts:
                self._look_at_attempt(attempt)
            for signal in t.signals:
                known = self.signals.get(signal.id)
                if known is not None and (known["node_id"], known["run_id"]) != (
                    None,
                    signal.run_id,
                ):
                    _refuse(flush.GUARD_MISSED, f"signal {signal.id} is taken")
            uses = [each for each in t.uses if each.id in self.slots]
            named = {each.run_id for each in uses} | {each.run_id for each in t.errors}
            for run_id in named | {each.run_id for each in t.flows}:
                if run_id not in self.runs and run_id not in started:
                    _refuse("23503", f"run {run_id} is not there")
        return started

    def _look_at_starts(self, batch: Sequence[Transition]) -> set[UUID]:
        started: set[UUID] = set()
        asked: set[tuple[UUID, UUID]] = set()
        for run in chain.from_iterable(t.run_inserts for t in batch):
            request = run.request_id and (run.created_by, run.request_id)
            gone = run.workflow_id in self.gone_workflows and run.parent_node_id is None
            if run.id in self.runs or gone:
                continue
            if request and (request in self.requests or request in asked):
                continue
            started.add(run.id)
            if request:
                asked.add(request)
        return started

    def _look_at_attempt(self, attempt: AttemptInsert) -> None:
        key = (attempt.node_execution_id, attempt.token)
        if key in self.attempts:
            _refuse("23505", f"attempt {key} twice")
        if attempt.node_execution_id not in self.nodes:
            _refuse(flush.GUARD_MISSED, f"attempt {key} of no node")
        if attempt.attempt < 1:
            _refuse("23514", f"attempt {attempt.attempt}")

    def _look_at_insert(
        self,
        node: NodeInsert | NodePlaced | NodeCopy,
        started: set[UUID],
        begun: set[tuple[UUID, object]],
    ) -> None:
        if node.run_id not in self.runs and node.run_id not in started:
            _refuse("23503", f"run {node.run_id} is not there")
        rows = self.nodes_of[node.run_id]
        names = {(node.run_id, node.node_id), (node.run_id, node.execution_order)}
        orders = {row["execution_order"] for row in rows.values()}
        if node.node_id in rows or node.execution_order in orders or names & begun:
            _refuse("23505", f"node {node.node_id} of {node.run_id} twice")
        if isinstance(node, NodeCopy) and self._is_gone(node):
            _refuse(flush.GUARD_MISSED, f"node {node.source_id} is gone, which is to be copied")
        begun |= names

    def _look_at_guard(self, each: NodeComplete | NodeChange, touched: set[UUID]) -> None:
        row = self.nodes.get(each.id)
        if (
            row is None
            or each.id in touched
            or row["attempt_token"] != each.token
            or row["completed_at"] is not None
        ):
            _refuse(flush.GUARD_MISSED, f"node {each.id} with token {each.token}")
        touched.add(each.id)
        if isinstance(each, NodeChange) and not 0 <= each.retry_count <= row["max_retries"]:
            _refuse("23514", f"{each.retry_count} retries of {row['max_retries']}")

    def _write(  # noqa: C901, PLR0912  # a line for each kind of row
        self, t: Transition, at: datetime, started: set[UUID], member_id: UUID
    ) -> None:
        for run in t.run_inserts:
            if run.id in started:
                self._insert_run(run)
        for change in t.run_changes:
            self._change_run(change, at)
        for node in t.node_inserts:
            if not node.first or node.run_id in started:
                self._insert_node(node, at)
        for copied in t.copies:
            self._copy(copied, at)
        for placed in t.placed.values():
            if not placed.first or placed.run_id in started:
                self._place(placed, at)
        for signal in t.signals:
            self._take_signal(signal)
        for use in t.uses:
            slot = self.slots.get(use.id)
            if slot is not None and slot["execution_id"] is None:
                slot.update(execution_id=use.run_id, node_execution_id=use.node_execution_id)
        for free in t.frees:
            self.slots.pop(free.id, None)
        for done in t.completes:
            self._complete(done, at)
        for moved in t.changes.values():
            self._change(moved, at)
        for attempt in t.attempts:
            self._insert_attempt(attempt)
        for error in t.errors:
            self.errors[error.id] = error._asdict()
        for flow in t.flows:
            self.flows[flow.id] = flow._asdict()
        for charge in t.charges:
            key = (charge.tenant_id, at.date(), member_id)
            used = self.usage.setdefault(key, dict.fromkeys(_USED, 0))
            _add(used, {"nodes": 1} | charge._asdict())
        for spend in t.spends:
            budget = self.budgets.get(spend.execution_id)
            if budget is not None:
                _add(budget, {f"{name}_used": getattr(spend, name) for name in _USED[:-1]})
                budget["over"] |= spend.over

    def _take_signal(self, signal: SignalWrite) -> None:
        self.signals[signal.id] = signal._asdict()
        if signal.node_id is not None:
            taker = (signal.run_id, signal.node_id)
            assert taker not in self.taken, f"{signal.node_id} took two words"
            self.taken[taker] = signal.id

    def _insert_run(self, run: RunInsert) -> None:
        if run.request_id:
            self.requests[run.created_by, run.request_id] = run.id
        if run.parent_execution_id is not None:
            self.children_of[run.parent_execution_id].append(run.id)
        at = self.clock()
        timeout, begins = run.timeout_ms, max(at, run.start_at or at)
        self.runs[run.id] = {
            **run._asdict(),
            "labels": json.loads(run.labels),
            "error_message": None,
            "error_stack_trace": None,
            "created_at": at,
            "started_at": at if run.status == "running" else None,
            "completed_at": None,
            "cancel_requested_at": None,
            "deadline_at": None if timeout is None else begins + timedelta(milliseconds=timeout),
            "output_data": None,
            "error_type": None,
            "failed_node_id": None,
        }

    def _change_run(self, change: Any, at: datetime) -> None:
        row = self.runs[change.id]
        started = at if change.starts else row["started_at"]
        assert not (change.starts and row["started_at"]), "a run starts once"
        assert change.status != "running" or started, "the table takes no such row"
        assert change.status != "pending" or not started, "nor such a one"
        asked = row["cancel_requested_at"]
        row.update(change._asdict())
        row["error_stack_trace"] = change.stack_trace
        row["started_at"] = started
        row["completed_at"] = max(at, started or at) if change.final else None
        row["cancel_requested_at"] = (asked or at) if change.cancels else asked

    def _insert_node(self, node: NodeInsert, at: datetime) -> None:
        self._put_node(
            node,
            {"status": "running", "runner_incarnation": node.runner, "started_at": at},
        )

    def _place(self, placed: NodePlaced, at: datetime) -> None:
        due_ms = placed.due_ms
        self._put_node(
            placed,
            {
                "started_at": at if placed.starts else None,
                "completed_at": at if placed.status in NODE_FINAL else None,
                "due_at": None if due_ms is None else self.clock() + timedelta(milliseconds=due_ms),
                "child_execution_id": placed.child_id,
            },
        )

    def _copy(self, copied: NodeCopy, at: datetime) -> None:
        self._put_node(
            copied,
            {
                "status": "completed",
                "max_retries": 0,
                "token": 0,
                "started_at": at,
                "completed_at": at,
                "output_data": self.nodes[copied.source_id]["output_data"],
            },
        )

    def gone_sources(self, batch: Sequence[Transition]) -> list[UUID]:
        """Give the rows that a batch copies and that were removed."""
        return [each.source_id for t in batch for each in t.copies if self._is_gone(each)]

    def _is_gone(self, copied: NodeCopy) -> bool:
        return self.nodes[copied.source_id]["run_id"] in self.purged

    def _put_node(self, node: NodeInsert | NodePlaced | NodeCopy, columns: Row) -> None:
        row = {
            **_EMPTY,
            **node._asdict(),
            "workflow_execution_id": node.run_id,
            **columns,
        }
        row["attempt_token"] = row["token"]
        row["began_at"] = row["started_at"]  # of the first attempt
        self.nodes[node.id] = self.nodes_of[node.run_id][node.node_id] = row

    def _insert_attempt(self, attempt: AttemptInsert) -> None:
        row = attempt._asdict()
        self.attempts[attempt.node_execution_id, attempt.token] = row
        self.attempts_of[attempt.node_execution_id].append(row)

    def _complete(self, done: NodeComplete, at: datetime) -> None:
        row = self.nodes[done.id]
        row.update(done._asdict())
        row.update(
            status="completed",
            started_at=row["started_at"] or at,
            completed_at=max(at, row["started_at"] or at),
            error_type=None,
            error_message=None,
            error_stack_trace=None,
            error_detail=None,
            due_at=None,
        )

    def _change(self, moved: NodeChange, at: datetime) -> None:
        row = self.nodes[moved.id]
        began = at if moved.starts else row["started_at"]
        assert moved.status != "pending" or began is None, "the table takes no such row"
        row.update(moved._asdict())
        row.update(
            status=str(moved.status),
            attempt_token=moved.new_token,
            runner_incarnation=moved.runner,
            started_at=began,
            began_at=row["began_at"] or began,
            completed_at=max(at, began or at) if moved.final else None,
            child_execution_id=moved.child_id or row["child_execution_id"],
            due_at=(
                None
                if moved.due_ms is None
                else self.clock() + timedelta(milliseconds=moved.due_ms)
            ),
            error_stack_trace=moved.stack_trace,
        )

    # --- what is read ---------------------------------------------------------------------------

    def open_run(self, run: Row) -> Row:
        """Lay a run out as the query of open runs gives it."""
        deadline = run["deadline_at"]
        left = None if deadline is None else (deadline - self.clock()).total_seconds()
        start_at = run["start_at"]
        starts = None if start_at is None else (start_at - self.clock()).total_seconds()
        named = {"exception_type": self.exception_type(run)}
        return run | named | {"deadline_s": left, "starts_s": starts, "clock": self.clock()}

    def exception_type(self, run: Row) -> str | None:
        """Give the class that the node raised which failed the run."""
        failed = self.nodes_of[run["id"]].get(run["failed_node_id"] or "")
        return exception_of(failed) if failed else None

    def open_nodes(self, run_id: UUID) -> list[Row]:
        """Lay a run's nodes out as the query of their rows gives them."""
        rows = sorted(self.nodes_of[run_id].values(), key=_in_order)
        return [self._open_node(row) for row in rows]

    def _open_node(self, row: Row) -> Row:
        attempts = self.attempts_of.get(row["id"])
        due_at, began_at = row["due_at"], row["began_at"]
        of = row | _NO_ATTEMPTS
        if began_at is not None:
            of["age_s"] = (self.clock() - began_at).total_seconds()
        of["due_s"] = None if due_at is None else (due_at - self.clock()).total_seconds()
        for each in attempts or ():
            if each["token"] != row["attempt_token"]:
                for name in ("cpu_us", "io_read_bytes", "io_write_bytes"):
                    of[f"earlier_{name}"] += each[name]
            peak_bytes = max(of["earlier_memory_peak_bytes"], each["memory_peak_bytes"])
            of["earlier_memory_peak_bytes"] = peak_bytes
            of["progress"] = each["progress"] or of["progress"]
        return of

    def root_of(self, run_id: UUID) -> UUID:
        """Give the run that a caller started, of which a run is a part or which it is itself."""
        while (parent := self.runs[run_id]["parent_execution_id"]) is not None:
            run_id = parent
        return run_id

    def is_over(self, run_id: UUID) -> bool:
        """Say whether a run is over for good."""
        return self.runs[run_id]["status"] in RUN_FINAL


def exception_of(node: Row) -> str | None:
    """Give the class that a node's failure names."""
    detail = node["error_detail"]
    return json.loads(detail)["exception"] or None if detail else None


def _add(row: Row, more: Mapping[str, Any]) -> None:
    for name, amount in more.items():
        if name in row and isinstance(amount, int):
            row[name] += amount


def _in_order(row: Row) -> Any:
    return row["execution_order"]


def _refuse(sqlstate: str, message: str) -> NoReturn:
    raise Refused(sqlstate, message)
