"""Where a definition is checked: whatever costs more than some tens of milliseconds, in a child."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from qflow.types import SCALARS, Literal, Tuple, Type, to_json

from services.registry.domain.definition import (
    Connection,
    Definition,
    WorkflowInput,
    WorkflowNode,
)
from services.registry.gateways.graph_checker import GraphChecker
from tests.support.cost import counted

INT = SCALARS["int"]
LIST_OF_ANY = '{"t":"list","item":{"t":"any"}}'
WIDE = Tuple(tuple(Literal((f"v{index}",)) for index in range(400)))


def _row(of: Type) -> dict[str, str]:
    parameter = {"name": "x", "type": to_json(of), "required": True, "default_json": None}
    return {
        "python_version": "3.11",
        "input_types": json.dumps([parameter]),
        "output_types": json.dumps([{"name": "result", "type": {"t": "int"}}]),
    }


def _place(index: int, **literals: str) -> WorkflowNode:
    return WorkflowNode(
        id=f"n{index}", node_id=UUID(int=index + 1), literals=tuple(literals.items())
    )


def _fed_by_one_input(count: int) -> Definition:
    edges = [
        Connection(source="", source_output="x", target=f"n{index}", target_input="x")
        for index in range(count)
    ]
    return Definition(nodes=tuple(map(_place, range(count))), connections=tuple(edges))


DEFINITIONS = {
    "literals": Definition(
        nodes=tuple(_place(index, x=f"[{'{},' * 20_000}1]") for index in range(10))
    ),
    "defaults": Definition(
        nodes=(_place(0, x="1"),),
        inputs=tuple(
            WorkflowInput(
                name=f"x{index}", type_text=LIST_OF_ANY, default_json=f"[{'{},' * 20_000}1]"
            )
            for index in range(10)
        ),
    ),
    "types": Definition(
        nodes=(_place(0, x="1"),),
        inputs=tuple(
            WorkflowInput(name=f"x{index}", type_text=json.dumps(to_json(WIDE)))
            for index in range(100)
        ),
    ),
    "types that one input feeds": _fed_by_one_input(90),
}


@pytest.mark.parametrize("what", list(DEFINITIONS))
async def test_costly_work_is_done_by_a_child(what: str) -> None:
    definition = DEFINITIONS[what]
    rows = {
        (node.node_id, 0): _row(Tuple((Literal((f"v{index}",)), *WIDE.items)))
        if definition.connections
        else _row(SCALARS["any"])
        for index, node in enumerate(definition.nodes)
    }
    with counted() as cost:
        checked = await GraphChecker().check(definition, rows)
    assert cost.ms < 250
    assert len(checked.definition.nodes) == len(definition.nodes)


async def test_a_child_answers_as_this_process_does() -> None:
    inputs = (
        WorkflowInput(name="x", type_text='{"t":"int"}', default_json="1"),
        WorkflowInput(name="y", type_text='{"t":"nothing"}', default_json="[1]"),
    )
    small = Definition(nodes=(_place(0, x="1"),), inputs=inputs)
    padded = f"1{' ' * 60_000}"
    large = Definition(nodes=(_place(0, x=padded),), inputs=inputs)
    rows = {(UUID(int=1), 0): _row(INT)}
    here = await GraphChecker().check(small, rows)
    there = await GraphChecker().check(large, rows)
    assert here.findings == there.findings
    assert here.definition.inputs == there.definition.inputs
    assert ("inputs[1].type_json", "TYPE_INVALID") in {
        (each.place, each.code) for each in there.findings
    }
