"""Retry policies that name errors, and the class of an error where a run is read."""

from __future__ import annotations

from typing import Any

from qflow.orchestrator.v1 import execution_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import ended, get, start
from tests.support.retry_cases import CASES, KINDS, Case

FAILED = execution_pb2.EXECUTION_STATUS_FAILED
_SOON = {"max_retries": 1, "initial_delay_ms": 1, "factor": 1.0, "max_delay_ms": 1, "jitter": 0.0}


def workflow(orchestra: Orchestra, place: object, **settings: Any) -> str:
    """A workflow of one place."""
    made = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": place},  # type: ignore[dict-item]
        edges=[("", "x", "a", "x")],
        outputs=[("result", "a")],
        node_settings={"a": settings},
    )
    return str(made)


def raising(case: Case) -> Fail:
    return Fail(KINDS.get(case.raised, "user_error"), exception=case.raised.__name__)


async def test_a_retry_names_errors_by_their_type_or_by_the_class_that_was_raised(
    orchestra: Orchestra,
) -> None:
    node = factories.node(orchestra.sql, orchestra.owner)

    def flaky(_define: Any, assign: Any, inputs: dict[str, Any]) -> object:
        if assign.attempt == 1:
            raise raising(CASES[inputs["x"]])
        return inputs["x"]

    seen = []
    async with orchestra.running():
        async with (await orchestra.runner(flaky)).attached():
            for at, case in enumerate(CASES):
                names = {"retryable": case.on, "non_retryable": case.never_on}
                run = await start(
                    orchestra,
                    workflow(orchestra, node, retry=_SOON | names),
                    f'{{"x":{at}}}',
                )
                done = await ended(orchestra, run.id)
                seen.append(case._replace(again=done.status != FAILED))
    assert list(CASES) == seen


async def test_the_class_that_a_sub_workflow_raised_is_that_of_the_place_that_runs_it(
    orchestra: Orchestra,
) -> None:
    """It is told of the run by memory, by its rows, in lists, and after a restart."""
    node = factories.node(orchestra.sql, orchestra.owner)
    inner = workflow(orchestra, node)
    place = {"kind": "workflow", "node_id": inner, "version": 1}
    retry = _SOON | {"max_retries": 2, "retryable": ["ValueError"], "non_retryable": ["KeyError"]}
    outer = workflow(orchestra, place, retry=retry)
    raised = iter(("ValueError", "KeyError"))

    def fails(*_: Any) -> object:
        raise Fail(exception=next(raised))

    async with orchestra.running():
        async with (await orchestra.runner(fails)).attached():
            run = await start(orchestra, outer)
            done = await ended(orchestra, run.id)
            told = [done, await get(orchestra, run.id)]
            listed = await orchestra.stub.ListExecutions(pb.ListExecutionsRequest())
    assert FAILED == done.status
    assert ["KeyError"] * 2 == [each.error.exception_type for each in told]
    assert {"ValueError", "KeyError"} == {e.error.exception_type for e in listed.executions}
    async with orchestra.running():
        again = await get(orchestra, run.id)
    assert ("user_error", "KeyError") == (again.error.error_type, again.error.exception_type)
