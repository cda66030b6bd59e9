"""What differs between versions, and whether it can break an edge."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from qflow.types import from_json

from services.registry.domain import definition as definitions
from services.registry.domain.definition import (
    Connection,
    Definition,
    Retry,
    WorkflowInput,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.node_diff import (
    Change,
    inputs_diff,
    outputs_diff,
    requirements_diff,
)
from services.registry.domain.requirements import Requirement
from services.registry.domain.source import Output, Parameter
from services.registry.domain.workflow_diff import workflow_diff
from tests.support.cost import counted

INT, STR, ANY = (from_json({"t": each}) for each in ("int", "str", "any"))
INT_OR_STR = from_json({"t": "union", "any_of": [{"t": "int"}, {"t": "str"}]})
X = Parameter("x", INT, "positional", required=True, default_json=None)
Y = Parameter("y", STR, "keyword", required=False, default_json='"a"')


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([X], [X], []),
        ([X], [], [Change("removed", "inputs.x", "int", "", can_break=True)]),
        ([], [X], [Change("added", "inputs.x", "", "int", can_break=True)]),
        ([], [Y], [Change("added", "inputs.y", "", 'str = "a"')]),
        (
            [X],
            [replace(X, type=INT_OR_STR)],
            [Change("changed", "inputs.x.type", "int", "int | str")],
        ),
        (
            [replace(X, type=INT_OR_STR)],
            [X],
            [Change("changed", "inputs.x.type", "int | str", "int", can_break=True)],
        ),
        (
            [Y],
            [replace(Y, required=True, default_json=None)],
            [Change("changed", "inputs.y.default", '"a"', "none", can_break=True)],
        ),
        (
            [Y],
            [replace(Y, default_json=None)],
            [Change("changed", "inputs.y.default", '"a"', "computed")],
        ),
        (
            [Y],
            [replace(Y, kind="positional")],
            [Change("changed", "inputs.y.kind", "keyword", "positional")],
        ),
        ([X, Y], [Y, X], [Change("changed", "inputs", "x, y", "y, x")]),
    ],
)
def test_inputs_are_compared_by_name(
    before: list[Parameter], after: list[Parameter], expected: list[Change]
) -> None:
    assert expected == list(inputs_diff(before, after))


def test_an_output_may_narrow_and_may_not_widen() -> None:
    wide, narrow = Output("result", INT_OR_STR), Output("result", INT)
    assert [False] == [each.can_break for each in outputs_diff([wide], [narrow])]
    assert [True] == [each.can_break for each in outputs_diff([narrow], [wide])]
    assert [
        Change("removed", "outputs.result", "int", can_break=True),
        Change("added", "outputs.total", after="int"),
    ] == list(outputs_diff([narrow], [Output("total", INT)]))


def test_records_of_one_name_are_told_by_their_fields() -> None:
    one, two = (
        from_json(
            {
                "t": "record",
                "kind": "dataclass",
                "name": "Row",
                "fields": [{"name": name, "type": {"t": "int"}, "required": True}],
            }
        )
        for name in ("a", "b")
    )
    [change] = outputs_diff([Output("result", one)], [Output("result", two)])
    assert change.before != change.after
    assert change.can_break


def test_requirements_are_compared_by_distribution() -> None:
    old = [Requirement("NumPy>=1", "pep723", ""), Requirement("rich", "pep723", "")]
    new = [Requirement("numpy>=2", "pep723", ""), Requirement("orjson[x]", "pep723", "")]
    assert [
        Change("changed", "requirements.numpy", "NumPy>=1", "numpy>=2"),
        Change("added", "requirements.orjson", after="orjson[x]"),
        Change("removed", "requirements.rich", "rich"),
    ] == list(requirements_diff(old, new))


def test_every_part_of_a_workflow_is_compared() -> None:
    edge = Connection(source="a", source_output="r", target="b", target_input="x", verdict="exact")
    a, b = (WorkflowNode(id=each, node_id=UUID(int=1)) for each in "ab")
    before = Definition(
        nodes=(a, b),
        connections=(edge,),
        inputs=(WorkflowInput(name="n", type=INT),),
        outputs=(WorkflowOutput(name="y", node="b", output="r", type=INT),),
    )
    after = Definition(
        nodes=(
            replace(
                a,
                version=3,
                literals=(("k", "1"),),
                variables=(("v", "rate"),),
                parameters=(("p", "by"),),
                retry=Retry(),
            ),
            WorkflowNode(id="c", node_id=UUID(int=2)),
        ),
        connections=(replace(edge, conversion="int_to_float", verdict="conversion"),),
        inputs=(WorkflowInput(name="n", type=INT, default_json="1"),),
        outputs=(WorkflowOutput(name="y", node="c", output="r", type=INT),),
        timeout_ms=5,
        parameters=(definitions.Parameter(name="by", type=INT, default_json="7"),),
    )
    found = {
        each.place: (each.kind, each.before, each.after) for each in workflow_diff(before, after)
    }
    retry = "3 times, 1000 ms growing by 2 to 60000 ms, 0.1 of it drawn"
    assert found == {
        "settings.timeout_ms": ("changed", "none", "5"),
        "inputs.n.default": ("changed", "none", "1"),
        "nodes.a.version": ("changed", "current version", "version 3"),
        "nodes.a.literals.k": ("added", "", "1"),
        "nodes.a.variables.v": ("added", "", "rate"),
        "nodes.a.parameters.p": ("added", "", "by"),
        "parameters.by": ("added", "", "int = 7"),
        "nodes.a.retry": ("changed", "never", retry),
        "nodes.b": ("removed", f"{UUID(int=1)} current version", ""),
        "nodes.c": ("added", "", f"{UUID(int=2)} current version"),
        "connections.a.r>b.x.conversion": ("changed", "none", "int_to_float"),
        "connections.a.r>b.x.verdict": ("changed", "exact", "conversion"),
        "outputs.y.source": ("changed", "b.r", "c.r"),
    }
    assert [] == list(workflow_diff(before, before))


def test_a_long_value_is_cut() -> None:
    long = Parameter("x", STR, "positional", required=False, default_json='"' + "x" * 9_000 + '"')
    [change] = inputs_diff([Y, long], [Y])
    assert (len(change.before), change.before[-1]) == (1_000, "…")


def test_types_too_large_to_compare_count_as_what_can_break() -> None:
    one, two = (
        from_json({"t": "literal", "values": [f"{sign}{n}" for n in range(400)]}) for sign in "ab"
    )
    with counted() as cost:
        [change] = outputs_diff([Output("result", one)], [Output("result", two)])
    assert change.can_break
    assert cost.ms < 1000
