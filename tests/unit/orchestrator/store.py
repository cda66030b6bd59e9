"""A reference store: applies transitions to rows as the flush does, guards included."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.records import Failure
from services.orchestrator.domain.restore import NodeRow, RunRow, SignalRow, restore
from services.orchestrator.domain.rows import (
    NodeChange,
    NodeCopy,
    NodePlaced,
    RunChange,
    SignalWrite,
)
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus, RunStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.values import FileValue


class Store:
    """Rows by id. Every write asserts what the database would refuse."""

    def __init__(self) -> None:
        self.runs: dict[UUID, dict[str, Any]] = {}
        self.nodes: dict[UUID, dict[str, Any]] = {}
        self.attempts: list[Any] = []
        self.flows: list[Any] = []
        self.signals: dict[UUID, SignalWrite] = {}
        self.files: dict[UUID, FileValue] = {}  # that runners stored
        self.outcomes: dict[UUID, list[int]] = {}  # tokens whose outcome was committed, by node

    def apply(self, t: Transition) -> None:
        """Write a whole transition."""
        for row in t.run_inserts:
            assert row.id not in self.runs
            told = {"cancelled": False, "begun": row.status == "running"}
            self.runs[row.id] = row._asdict() | told
        for placed in t.placed.values():
            self._place(placed)
        for change in t.run_changes:
            run = self.runs[change.id]
            assert run["status"] not in RUN_FINAL, "a terminal run never changes"
            run |= {"status": change.status, "revision": change.revision, "change": change}
            run["cancelled"] |= change.cancels
            assert not (change.starts and run["begun"]), "a run starts once"
            run["begun"] |= change.starts
            assert change.status != "running" or run["begun"], "the table takes no such row"
            assert change.status != "pending" or not run["begun"], "nor such a one"
        for begun in t.node_inserts:
            assert begun.id not in self.nodes
            run = self.runs[begun.run_id]
            assert run["status"] not in RUN_FINAL, "nothing begins in a terminal run"
            assert not any(
                node["run_id"] == begun.run_id and begun.node_id == node["node_id"]
                for node in self.nodes.values()
            ), "one begun per node"
            self.nodes[begun.id] = {
                **begun._asdict(),
                "status": "running",
                "retry_count": 0,
                "delivery_count": 0,
                "failure": None,
                "output": None,
                "cpu_us": 0,
            }
        for signal in t.signals:
            self._take(signal)
        for copied in t.copies:
            self._copy(copied)
        for done in t.completes:
            node = self._guarded(done.id, done.token)
            self.outcomes.setdefault(done.id, []).append(done.token)
            node |= {
                "status": "completed",
                "output": self.files.get(done.output_file_id or _NO_FILE)
                or split(done.output_data),
                "revision": done.revision,
                "failure": None,
                "cpu_us": done.cpu_us,
            }
        for moved in t.changes.values():
            self._move(moved)
        self.attempts += t.attempts
        self.flows += t.flows

    def _place(self, placed: NodePlaced) -> None:
        assert placed.id not in self.nodes
        run = self.runs[placed.run_id]
        assert run["status"] not in RUN_FINAL, "nothing begins in a terminal run"
        assert not any(
            node["run_id"] == placed.run_id and placed.node_id == node["node_id"]
            for node in self.nodes.values()
        ), "one row per node"
        failure = None
        if placed.error_type is not None:
            failure = Failure(error_type=placed.error_type, message=placed.error_message or "")
        self.nodes[placed.id] = {
            **placed._asdict(),
            "runner": None,
            "delivery_count": 0,
            "failure": failure,
            "output": split(placed.output_data),
            "cpu_us": 0,
        }
        if placed.status in NODE_FINAL:
            self.outcomes.setdefault(placed.id, []).append(placed.token)

    def _take(self, signal: SignalWrite) -> None:
        earlier = self.signals.get(signal.id)
        assert earlier is None or earlier.node_id is None, "a word is taken once"
        self.signals[signal.id] = signal

    def _move(self, moved: NodeChange) -> None:
        node = self._guarded(moved.id, moved.token)
        failure = None
        if moved.error_type is not None:
            failure = Failure(error_type=moved.error_type, message=moved.error_message or "")
        if moved.status in NODE_FINAL:
            self.outcomes.setdefault(moved.id, []).append(moved.token)
        node |= {
            "status": str(moved.status),
            "child_id": moved.child_id or node.get("child_id"),
            "token": moved.new_token,
            "runner": moved.runner,
            "retry_count": moved.retry_count,
            "delivery_count": moved.delivery_count,
            "revision": moved.revision,
            "failure": failure,
            "cpu_us": moved.cpu_us,
        }
        assert 0 <= moved.retry_count <= node["max_retries"]

    def _copy(self, copied: NodeCopy) -> None:
        assert copied.id not in self.nodes
        source = self.nodes[copied.source_id]
        assert source["status"] in ("completed", "skipped", "quarantined"), "it has to stand"
        self.nodes[copied.id] = {
            **copied._asdict(),
            "status": source["status"],
            "token": 0,
            "runner": None,
            "max_retries": 0,
            "retry_count": 0,
            "delivery_count": 0,
            "failure": source["failure"],
            "output": source["output"],
            "revision": 1,
            "cpu_us": 0,
        }

    def _guarded(self, node_id: UUID, token: int) -> dict[str, Any]:
        node = self.nodes[node_id]
        assert node["status"] not in NODE_FINAL, "a terminal node never changes"
        assert node["token"] == token, "guard missed: a late writer"
        return node

    def restore(self, run_id: UUID, plan: Plan) -> Run:
        """Build a run from its rows alone."""
        run = self.runs[run_id]
        row = RunRow(
            id=run_id,
            tenant_id=run["tenant_id"],
            created_by=run["created_by"],
            status=RunStatus(run["status"]),
            input_values={"x": b"1"},
            input_text='{"x":1}',
            request_id=None,
            revision=run["revision"],
            created_at=None,
            started_at=None,
            cancel_requested_at=_SOMETIME if run["cancelled"] else None,
            deadline_at=None,
            failure=_failure_of(run.get("change")),
        )
        nodes = [self._node_row(node) for node in self.nodes.values() if node["run_id"] == run_id]
        signals = [
            SignalRow(each.id, each.name, each.sent_by, split_list(each.payload))
            for each in self.signals.values()
            if each.run_id == run_id and each.node_id is None
        ]
        found = restore(plan, row, sorted(nodes, key=lambda each: each.order), signals)
        found.begun = run["begun"]  # no row of these has times
        return found

    def _node_row(self, node: dict[str, Any]) -> NodeRow:
        earlier = sum(
            each.cpu_us
            for each in self.attempts
            if each.node_execution_id == node["id"] and each.token != node["token"]
        )
        output: Any = copy.copy(node["output"])
        return NodeRow(
            id=node["id"],
            node_id=node["node_id"],
            status=NodeStatus(node["status"]),
            order=node["execution_order"],
            token=node["token"],
            runner=node["runner"],
            retry_count=node["retry_count"],
            delivery_count=node["delivery_count"],
            revision=node["revision"],
            output=output,
            failure=node["failure"],
            cpu_us=node["cpu_us"],
            earlier_cpu_us=earlier,
            memory_peak_bytes=0,
            earlier_memory_peak_bytes=0,
            container_id=None,
            started_at=None,
            completed_at=None,
            child=node.get("child_id"),
            progress=next(
                (
                    each.progress
                    for each in reversed(self.attempts)
                    if each.node_execution_id == node["id"] and each.progress
                ),
                None,
            ),
        )


def _failure_of(change: RunChange | None) -> tuple[str, Failure] | None:
    if change is None or change.error_type is None:
        return None
    failure = Failure(error_type=change.error_type, message=change.error_message or "")
    return change.failed_node_id or "", failure


def split(text: str | None) -> dict[str, bytes] | None:
    """Split an object into the texts of its values."""
    if text is None:
        return None
    raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    return {name: bytes(value) for name, value in raw.items()}


def split_list(text: str) -> tuple[bytes, ...]:
    """Split a list into the texts of its values."""
    return tuple(bytes(each) for each in msgspec.json.decode(text, type=list[msgspec.Raw]))


_NO_FILE = UUID(int=0)
_SOMETIME = datetime(2026, 1, 1, tzinfo=UTC)
