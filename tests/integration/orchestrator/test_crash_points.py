"""Where crash points are: each lies between the two things that its name says.

Tests of `tests/faults` kill processes there. A run outlives that wherever it happens, so that they
would not see a point that is at another place than the one they mean.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from services.kit import crash
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import CANCELLED, COMPLETED, cancel, chain, ended, start
from tests.integration.orchestrator.test_events import Receiver, receiver, subscribe
from tests.integration.orchestrator.test_members import until

__all__ = ["receiver"]  # a fixture

_FLUSHED: Final = {
    "start": "SELECT count(*) > 0 FROM workflow_executions",
    "assign": "SELECT count(*) > 0 FROM node_executions WHERE status = 'running'",
    "retry": "SELECT count(*) > 0 FROM node_executions WHERE status = 'retrying'",
    "complete": "SELECT count(*) > 0 FROM node_executions WHERE status = 'completed'",
    "finish": "SELECT count(*) > 0 FROM workflow_executions WHERE completed_at IS NOT NULL",
    "cancel": "SELECT count(cancel_requested_at) > 0 FROM workflow_executions",
    "stopped": "SELECT count(*) > 0 FROM node_executions WHERE status = 'cancelled'",
}


@dataclass
class Witness:
    """What the database says as each point is reached for the first time."""

    orchestra: Orchestra
    asked: dict[str, str]  # a query by point
    seen: dict[str, tuple[object, ...]] = field(default_factory=dict)

    def reached(self, name: str) -> None:
        if name in self.asked and name not in self.seen:
            [self.seen[name]] = self.orchestra.rows(self.asked[name])


def witness(
    monkeypatch: pytest.MonkeyPatch, orchestra: Orchestra, asked: dict[str, str]
) -> Witness:
    made = Witness(orchestra, asked)
    monkeypatch.setattr(crash, "ARMED", True)
    monkeypatch.setattr(crash, "_reach", made.reached)
    return made


async def test_points_before_and_after_a_flush_are_before_and_after_its_commit(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CP1, CP2, CP4, CP12, CP13, CP16-CP19."""
    asked = {
        f"flush_{what}_{at}": _FLUSHED[what] for what in _FLUSHED for at in ("before", "after")
    }
    seen = witness(monkeypatch, orchestra, asked).seen
    failed: list[int] = []

    def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        if not failed:
            failed.append(1)
            raise Fail
        return inputs["x"] or None  # nothing: it goes on until it is killed

    retry = {"retry": {"max_retries": 1, "initial_delay_ms": 1}}
    workflow = chain(orchestra, "a", node_settings={"a": retry})
    async with orchestra.running():
        runner = await orchestra.runner(answer)
        async with runner.attached():
            run = await start(orchestra, workflow)
            assert COMPLETED == (await ended(orchestra, run.id)).status
            stopped = await start(orchestra, workflow, '{"x":0}')
            await runner.until(lambda: bool(runner.held))
            await cancel(orchestra, stopped.id)
            assert CANCELLED == (await ended(orchestra, stopped.id)).status
    assert {name: (name.endswith("after"),) for name in asked} == seen


async def test_a_plan_is_stored_and_its_run_is_not_at_the_point_between_them(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CP3."""
    query = (
        "SELECT (SELECT count(*) FROM execution_pins), (SELECT count(*) FROM workflow_executions)"
    )
    seen = witness(monkeypatch, orchestra, {"start_pinned": query}).seen
    async with orchestra.running():
        await start(orchestra, chain(orchestra, "a"))
    assert {"start_pinned": (1, 0)} == seen


async def test_a_lease_is_renewed_between_its_two_points(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CP14, CP28."""
    query = "SELECT state FROM engine_members"
    asked = dict.fromkeys(("lease_renewed_before", "lease_renewed_after"), query)
    seen = witness(monkeypatch, orchestra, asked).seen
    async with orchestra.running():
        pass
    assert {"lease_renewed_before": ("idle",), "lease_renewed_after": ("live",)} == seen


async def test_a_runner_is_fenced_and_its_attempt_is_not_taken_of_it_at_the_point_of_a_sweep(
    orchestra: Orchestra, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CP15."""
    query = (
        "SELECT (SELECT state FROM runner_members), status, runner_incarnation FROM node_executions"
    )
    seen = witness(monkeypatch, orchestra, {"sweep_fenced": query}).seen
    async with orchestra.running():
        runner = await orchestra.runner(lambda *_: None)
        async with runner.attached():
            await start(orchestra, chain(orchestra, "a"))
            await runner.until(lambda: bool(runner.assigns))
        await orchestra.renew(runner, ttl_s=0.1)
        await until(lambda: bool(seen))
    assert {"sweep_fenced": ("fenced", "running", runner.incarnation)} == seen


async def test_an_event_is_sent_and_not_marked_at_the_point_between_them(
    orchestra: Orchestra, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CP20."""
    orchestra.more_env["QFLOW_WEBHOOK_LOOPBACK"] = "1"
    seen = witness(
        monkeypatch, orchestra, {"event_posted": "SELECT state FROM event_deliveries"}
    ).seen
    async with orchestra.running(), (await orchestra.runner(lambda *_: 1)).attached():
        await subscribe(orchestra, receiver.url)
        await ended(orchestra, (await start(orchestra, chain(orchestra, "a"))).id)
        async with asyncio.timeout(30):
            while not seen:  # noqa: ASYNC110  # the courier tells nobody
                await asyncio.sleep(0.02)
        assert 1 == len(receiver.got)
    assert {"event_posted": ("pending",)} == seen
