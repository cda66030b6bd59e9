"""Attempts begin when they are due, whatever else happens to their runs, as callers see it."""

from __future__ import annotations

from typing import Any

from qflow.orchestrator.v1 import control_service_pb2 as pb
from qflow.orchestrator.v1.control_service_pb2_grpc import ControlServiceStub

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import COMPLETED, ended, start

LATER: dict[str, Any] = {"max_retries": 5, "initial_delay_ms": 600_000, "jitter": 0}


def steering(orchestra: Orchestra) -> Any:
    return ControlServiceStub(orchestra.channel(orchestra.owner.token))


async def test_a_join_that_three_words_begin_fails_once_before_its_backoff(
    orchestra: Orchestra,
) -> None:
    calls: list[str] = []

    def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
        calls.append(inputs["x"])
        if inputs["x"] == "joined":
            raise Fail
        return 1

    words = {f"w{at}": {"kind": "signal", "signal": {"name": f"w{at}"}} for at in range(3)}
    node = factories.node(orchestra.sql, orchestra.owner)
    joined = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={**words, "j": node},
        edges=[],
        links=[{"source": name, "target": "j", "kind": "order"} for name in words],
        inputs=(),
        outputs=[],
        node_settings={
            "j": {"join": {"policy": "any"}, "retry": LATER, "parameters": {"x": '"joined"'}}
        },
    )
    other = factories.workflow(
        orchestra.sql, orchestra.owner, nodes={"n": node}, edges=[("", "x", "n", "x")], outputs=[]
    )
    async with orchestra.running():
        run = await start(orchestra, joined, "{}")
        for name in words:
            word = pb.SendSignalRequest(execution_id=run.id, name=name, payload_json="1")
            await steering(orchestra).SendSignal(word)
        behind = await start(orchestra, other, '{"x":1}')
        async with (await orchestra.runner(answer)).attached():
            assert COMPLETED == (await ended(orchestra, behind.id)).status
    assert ["joined", 1] == calls
