"""Reruns that give new inputs to places of any kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import COMPLETED, chain, ended, refusal, reruns, start
from tests.integration.orchestrator.test_constructs import answer, nodes_of
from tests.integration.orchestrator.test_reruns import fork, node, rerun

CHOICE = {"branches": [{"name": "big", "condition": "x > 5"}], "default": "small"}


@pytest.fixture
def kinds(orchestra: Orchestra) -> str:
    """A choice with its branches, a sleep, a sub-workflow and a map."""
    one = factories.node(orchestra.sql, orchestra.owner)
    inner = chain(orchestra, "in")
    links = [("small", "a"), ("big", "b")]
    made = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={
            "pick": {"kind": "choice", "choice": CHOICE},
            "a": one,
            "b": one,
            "rest": {"kind": "sleep", "parameters": {"seconds": "0"}},
            "s": {"kind": "workflow", "node_id": inner},
            "m": one,
        },
        edges=[("", "x", each, "x") for each in ("pick", "a", "b", "s")],
        links=[
            {"source": "pick", "target": target, "kind": "branch", "branch": branch}
            for branch, target in links
        ],
        node_settings={"m": {"map": {"input": "x"}, "parameters": {"x": "[1,2]"}}},
        outputs=[("a", "a"), ("b", "b"), ("m", "m")],
    )
    return str(made)


async def test_a_place_of_any_kind_runs_again_with_another_input(
    orchestra: Orchestra, kinds: str
) -> None:
    edits = {"pick": {"x": 9}, "rest": {"seconds": 0.01}, "s": {"x": 4}, "m": {"x": [5, 6, 7]}}
    named = [node(name, input_json=json.dumps(inputs)) for name, inputs in edits.items()]
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            first = await ended(orchestra, (await start(orchestra, kinds)).id)
            assert {"a": 2, "b": None, "m": [2, 3]} == json.loads(first.output_json)
            made = await reruns(orchestra).RerunExecution(rerun(first.id, *named))
            done = await ended(orchestra, made.execution.id)
            forked = await reruns(orchestra).ForkExecution(fork(first.id, *named))
            assert COMPLETED == (await ended(orchestra, forked.execution.id)).status
            nodes = await nodes_of(orchestra, done.id)
    assert {"a": None, "b": 2, "m": [6, 7, 8]} == json.loads(done.output_json)
    assert ("SKIPPED", "COMPLETED", "COMPLETED") == (nodes["a"], nodes["rest"], nodes["s"])
    inside = orchestra.rows(
        "SELECT output_data::text FROM workflow_executions WHERE parent_execution_id = %s", done.id
    )
    assert [('{"out":5}',)] == inside


_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "pick", "input_json": '{"x":"z"}'}, "INPUT_INVALID"),
    ({"name": "pick", "input_json": '{"q":1}'}, "INPUT_INVALID"),
    ({"name": "rest", "input_json": '{"until":"2020-01-01T00:00:00Z"}'}, "INPUT_INVALID"),
    ({"name": "s", "input_json": '{"x":"z"}'}, "INPUT_INVALID"),
    ({"name": "m", "input_json": '{"x":5}'}, "INPUT_INVALID"),
    ({"name": "pick", "node_version": 1}, "VERSION_NOT_HERE"),
    ({"name": "s", "node_version": 1}, "VERSION_NOT_HERE"),
]


async def test_what_does_not_fit_a_place_of_any_kind_is_refused(
    orchestra: Orchestra, kinds: str
) -> None:
    """B57: as the caller's mistake."""
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            first = await ended(orchestra, (await start(orchestra, kinds)).id)
            refused = [
                await refusal(reruns(orchestra).RerunExecution(rerun(first.id, node(**wrong))))
                for wrong, _ in _WRONG
            ]
    assert [("INVALID_ARGUMENT", reason) for _, reason in _WRONG] == [each[:2] for each in refused]
