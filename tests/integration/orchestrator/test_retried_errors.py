"""Retry policies that name errors."""

from __future__ import annotations

from typing import Any

from qflow.orchestrator.v1 import execution_pb2

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import ended, start
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
