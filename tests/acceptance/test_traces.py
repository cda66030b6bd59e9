"""One trace of a run: from the caller's span over the services into the node's code."""

from __future__ import annotations

from typing import Any

from qflow.orchestrator.v1 import execution_service_pb2 as pb

from services.kit import traces
from tests.support.client import COMPLETED, FAILED, Step, connected
from tests.support.collector import Span, collecting
from tests.support.suite_fixtures import SuiteFactory

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PLACE = f"00-{TRACE}-{SPAN}-01"
TELL = "import os\n\ndef main(x: int) -> str:\n    return os.environ.get('TRACEPARENT', '')\n"
BREAK = "def main(x: str) -> int:\n    raise ValueError('a canary of mine')\n"


def _named(spans: list[Span], name: str) -> list[Span]:
    return [each for each in spans if each.name == name and each.trace == TRACE]


async def test_a_run_is_one_trace_over_all_services(suite_factory: SuiteFactory) -> None:
    """X8: and no text of the node's, nor a token, is in it."""
    async with collecting() as collector:
        suite = suite_factory(
            env={"QFLOW_TRACES_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        )
        async with connected(suite) as client:
            tell = await client.create_node("tell", TELL)
            fails = await client.create_node("fails", BREAK)
            good = await client.create_workflow(
                "good", [Step("a", tell)], [".x > a.x"], inputs={"x": "int"}
            )
            bad = await client.create_workflow(
                "bad",
                [Step("a", tell), Step("b", fails)],
                [".x > a.x", "a.result > b.x"],
                inputs={"x": "int"},
            )

            async def run(workflow: Any) -> Any:
                request = pb.StartExecutionRequest(workflow_id=workflow.id, input_json='{"x": 1}')
                answer = await client.executions.StartExecution(
                    request, metadata=((traces.KEY, PLACE),), timeout=20
                )
                return await client.finished(answer.execution.id)

            done = await run(good)
            assert done.status == COMPLETED
            spans = await collector.until(lambda spans: bool(_named(spans, "execution")))
            [rpc] = _named(spans, "qflow.orchestrator.v1.ExecutionService/StartExecution")
            [execution] = _named(spans, "execution")
            spans = await collector.until(lambda spans: bool(_named(spans, "node a")))
            [node] = _named(spans, "node a")
            assert (SPAN, rpc.id, execution.id) == (rpc.parent, execution.parent, node.parent)
            assert ["qflow.orchestrator", "qflow.orchestrator", "qflow.runner"] == [
                each.service for each in (rpc, execution, node)
            ]
            assert execution.began_ns <= node.began_ns < node.ended_ns <= execution.ended_ns
            assert done.id == execution.facts["qflow.execution_id"]
            # The node knows its place: what it does itself hangs below its attempt.
            assert traces.below(PLACE, node.id) in done.output_json

            before = len(_named(collector.spans, "execution"))
            failed = await run(bad)
            assert failed.status == FAILED
            spans = await collector.until(
                lambda spans: (
                    len(_named(spans, "execution")) > before and bool(_named(spans, "node b"))
                )
            )
            assert ["user_error"] == [each.fault for each in _named(spans, "node b")]
            assert "user_error" == _named(spans, "execution")[-1].fault
            # Calls that name no trace begin one each: of the registry too.
            created = [each for each in spans if each.name.endswith("/CreateNode")]
            assert {""} == {each.parent for each in created}
            assert 2 == len({each.trace for each in created} - {TRACE})
            assert "canary" not in repr(spans)
            assert suite.owner_token not in repr(spans)


async def test_a_run_stays_in_its_trace_when_another_orchestrator_goes_on_with_it(
    suite_factory: SuiteFactory,
) -> None:
    """F2: its span is the same for both, since it follows from the row."""
    async with collecting() as collector:
        suite = suite_factory(
            env={"QFLOW_TRACES_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        )
        async with connected(suite) as client:
            wait = await client.create_node(
                "wait",
                "import time\n\ndef main(x: int) -> int:\n    time.sleep(x)\n    return x\n",
            )
            workflow = await client.create_workflow(
                "waits",
                [Step("a", wait), Step("b", wait)],
                [".x > a.x", "a.result > b.x"],
                inputs={"x": "int"},
            )
            answer = await client.executions.StartExecution(
                pb.StartExecutionRequest(workflow_id=workflow.id, input_json='{"x": 3}'),
                metadata=((traces.KEY, PLACE),),
                timeout=20,
            )
            before = suite.kill_service("orchestrator")
            suite.wait_restarted("orchestrator", before)
        async with connected(suite) as client:
            assert COMPLETED == (await client.finished(answer.execution.id)).status
            spans = await collector.until(
                lambda spans: bool(_named(spans, "execution") and _named(spans, "node b"))
            )
            [execution] = _named(spans, "execution")
            nodes = _named(spans, "node a") + _named(spans, "node b")
            assert {execution.id} == {each.parent for each in nodes}
            assert ["node a", "node b"] == sorted({each.name for each in nodes})
