"""A reference store: applies transitions to rows as the flush does, guards included."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from services.orchestrator.domain.plan import Plan
from services.orchestrator.domain.restore import NodeRow, RunRow, restore
from services.orchestrator.domain.rows import Transition
from services.orchestrator.domain.state import Failure, FileValue, Run
from services.orchestrator.domain.status import NODE_FINAL, RUN_FINAL, NodeStatus, RunStatus


class Store:
    """Rows by id. Every write asserts what the database would refuse."""

    def __init__(self) -> None:
        self.runs: dict[UUID, dict[str, Any]] = {}
        self.nodes: dict[UUID, dict[str, Any]] = {}
        self.attempts: list[Any] = []
        self.flows: list[Any] = []
        self.outcomes: dict[UUID, list[int]] = {}  # tokens whose outcome was committed, by node

    def apply(self, t: Transition) -> None:
        """Write a whole transition."""
        for row in t.run_inserts:
            assert row.id not in self.runs
            self.runs[row.id] = {**row._asdict(), "cancelled": False}
        for change in t.run_changes:
            run = self.runs[change.id]
            assert run["status"] not in RUN_FINAL, "a terminal run never changes"
            run |= {"status": change.status, "revision": change.revision, "change": change}
            run["cancelled"] |= change.cancels
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
        for done in t.completes:
            node = self._guarded(done.id, done.token)
            self.outcomes.setdefault(done.id, []).append(done.token)
            output: object = None
            if done.output_data is not None:
                raw = msgspec.json.decode(done.output_data, type=dict[str, msgspec.Raw])
                output = {name: bytes(value) for name, value in raw.items()}
            node |= {
                "status": "completed",
                "output": output,
                "revision": done.revision,
                "failure": None,
                "cpu_us": done.cpu_us,
            }
        for moved in t.changes.values():
            node = self._guarded(moved.id, moved.token)
            failure = None
            if moved.error_type is not None:
                failure = Failure(error_type=moved.error_type, message=moved.error_message or "")
            if moved.status in NODE_FINAL:
                self.outcomes.setdefault(moved.id, []).append(moved.token)
            node |= {
                "status": str(moved.status),
                "token": moved.new_token,
                "runner": moved.runner,
                "retry_count": moved.retry_count,
                "delivery_count": moved.delivery_count,
                "revision": moved.revision,
                "failure": failure,
                "cpu_us": moved.cpu_us,
            }
            assert 0 <= moved.retry_count <= node["max_retries"]
        self.attempts += t.attempts
        self.flows += t.flows

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
        )
        nodes = [self._node_row(node) for node in self.nodes.values() if node["run_id"] == run_id]
        return restore(plan, row, sorted(nodes, key=lambda each: each.order))

    def _node_row(self, node: dict[str, Any]) -> NodeRow:
        earlier = sum(
            each.cpu_us
            for each in self.attempts
            if each.node_execution_id == node["id"] and each.token != node["token"]
        )
        output: Any = copy.copy(node["output"])
        assert not isinstance(output, FileValue)
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
        )


_SOMETIME = datetime(2026, 1, 1, tzinfo=UTC)
