"""What a caller may give in a node's stead, and that nothing else stops a run's rows."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from services.kit.errors import InvalidArgument
from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.ends import branch_of
from services.orchestrator.domain.plan import Definition, NodeVersion, Plan
from services.orchestrator.usecases.by_hand import read_outputs

CALLER = UUID(int=7)
INT = {"t": "int"}
TEXT = {"t": "str"}
CHOICE = {"branches": [{"name": "big", "condition": "true"}], "default": "small"}
NODES: tuple[dict[str, Any], ...] = (
    {"id": "python"},
    {"id": "map", "map": {"input": "x", "depth": 2}},
    {"id": "tolerant", "map": {"input": "x", "max_failed": 1}},
    {"id": "loop", "loop": {"condition": "turn < 2", "max_turns": 3}},
    {"id": "choice", "kind": "choice", "choice": CHOICE},
    {"id": "bare", "kind": "choice", "choice": {"branches": CHOICE["branches"]}},
    {"id": "sleep", "kind": "sleep"},
    {"id": "signal", "kind": "signal", "signal": {"type": INT}},
    {"id": "any", "kind": "signal", "signal": {}},
    {"id": "approval", "kind": "approval", "approval": {"type": INT}},
    {"id": "sub", "kind": "workflow"},
    {"id": "subs", "kind": "workflow", "map": {"input": "x"}},
)
APPROVAL = {"approved": True, "comment": "", "reply": 1}


def plan_of(nodes: tuple[dict[str, Any], ...], plans: dict[str, Plan], *outputs: Any) -> Plan:
    version = NodeVersion(
        id=UUID(int=1), python_version="3.11", output_types=[{"name": "result", "type": INT}]
    )
    definition = Definition(
        workflow_id=UUID(int=2),
        version=1,
        nodes=nodes,
        connections=(),
        settings={},
        input_types=(),
        output_types=outputs,
    )
    versions = {node["id"]: version for node in nodes if "kind" not in node}
    return compile_plan(definition, versions, pins_id=UUID(int=3), plans=plans)


INNER = plan_of(
    ({"id": "a"},),
    {},
    {"name": "n", "node_id": "a", "output": "result", "type": INT},
    {"name": "unknown", "node_id": "a", "output": "result", "type": None},
)
PLAN = plan_of(NODES, {"sub": INNER, "subs": INNER})


def read(place: str, values: object) -> dict[str, Any]:
    rule = PLAN.places[PLAN.index[place]]
    found = read_outputs(rule, json.dumps(values), CALLER)
    return dict(zip(rule.outputs, map(json.loads, found), strict=True))


@pytest.mark.parametrize(
    ("place", "values", "field", "expected"),
    [
        ("python", {"result": "1"}, "result", "int was expected"),
        ("map", {"result": [1]}, "result[0]", "list[int] was expected"),
        ("tolerant", {"result": ["1"]}, "result[0]", "int | None was expected"),
        ("loop", {"result": None}, "result", "int was expected"),
        ("choice", {"branch": {"x": 1}}, "branch", "Literal['big', 'small'] was expected"),
        ("choice", {"branch": ["big"]}, "branch", "Literal['big', 'small'] was expected"),
        ("choice", {"branch": "nope"}, "branch", "Literal['big', 'small'] was expected"),
        ("choice", {"branch": 5}, "branch", "Literal['big', 'small'] was expected"),
        ("choice", {"branch": ""}, "branch", "Literal['big', 'small'] was expected"),
        ("bare", {"branch": "small"}, "branch", "Literal['big', ''] was expected"),
        ("sleep", {"result": [1]}, "result", "datetime was expected"),
        ("signal", {"result": "q"}, "result", "int was expected"),
        ("approval", APPROVAL | {"approved": "yes"}, "approved", "bool was expected"),
        ("approval", APPROVAL | {"comment": 5}, "comment", "str was expected"),
        ("approval", APPROVAL | {"reply": "q"}, "reply", "int was expected"),
        ("approval", APPROVAL | {"reply": None}, "reply", "int was expected"),
        ("approval", APPROVAL | {"approver": []}, "approver", "str was expected"),
        ("approval", APPROVAL | {"approver": "the boss"}, "approver", str(CALLER)),
        ("sub", {"n": "not an int", "unknown": 1}, "n", "int was expected"),
        ("subs", {"n": 1, "unknown": []}, "n", "list[int] was expected"),
        ("sub", {"n": 1}, "", "all its outputs: n, unknown"),
        ("approval", {"approved": True}, "", "approved, comment, approver, reply"),
        ("sleep", [1], "", "all its outputs: result"),
    ],
)
def test_an_output_that_is_not_the_nodes_is_refused_with_its_field_and_type(
    place: str, values: object, field: str, expected: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        read(place, values)
    [violation] = refused.value.fields
    assert f"output_json.{field}".rstrip(".") == violation.field
    assert expected in violation.description


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("python", {"result": 1}),
        ("map", {"result": [[1], []]}),
        ("tolerant", {"result": [1, None]}),
        ("loop", {"result": 1}),
        ("choice", {"branch": "small"}),
        ("bare", {"branch": ""}),
        ("sleep", {"result": "2026-01-01T00:00:00Z"}),
        ("signal", {"result": 1}),
        ("any", {"result": None}),
        ("approval", APPROVAL | {"approver": str(CALLER)}),
        ("approval", {"approved": False, "comment": "no", "approver": str(CALLER), "reply": None}),
        ("sub", {"n": 1, "unknown": "x"}),
        ("subs", {"n": [1], "unknown": ["x"]}),
    ],
)
def test_an_output_of_its_types_is_taken(place: str, values: dict[str, Any]) -> None:
    assert values == read(place, values)


def test_an_approval_that_is_ended_by_hand_is_answered_by_the_caller() -> None:
    assert APPROVAL | {"approver": str(CALLER)} == read("approval", APPROVAL)


@pytest.mark.parametrize("stored", ['{"x": 1}', '["big"]', "5", "null", '""'])
def test_a_row_in_which_a_choice_names_no_branch_took_none(stored: str) -> None:
    """Rows may have what is refused now; a run is read from them all the same."""
    choice = PLAN.places[PLAN.index["choice"]]
    assert ["", "big"] == [branch_of(choice, (each,)) for each in (stored.encode(), b'"big"')]
