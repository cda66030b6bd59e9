"""A definition held against what its nodes became."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from services.kit.errors import FailedPrecondition
from services.orchestrator.domain.compatibility import check, find_faults
from services.orchestrator.domain.plan import Definition, NodeVersion

Json = dict[str, Any]
INT: Json = {"t": "int"}
FLOAT: Json = {"t": "float"}
STR: Json = {"t": "str"}


def version(
    inputs: Mapping[str, Json], outputs: Mapping[str, Json], optional: Sequence[str] = ()
) -> NodeVersion:
    return NodeVersion(
        id=uuid.uuid4(),
        python_version="3.11",
        output_types=[{"name": name, "type": of} for name, of in outputs.items()],
        input_types=[
            {
                "name": name,
                "type": of,
                "kind": "positional",
                "required": name not in optional,
                "default_json": None,
            }
            for name, of in inputs.items()
        ],
    )


def edge(source: str, output: str, target: str, name: str, conversion: str = "") -> Json:
    return {
        "source": source,
        "source_output": output,
        "target": target,
        "target_input": name,
        "conversion": conversion,
    }


def definition(conversion: str = "") -> Definition:
    """x → a → b, b also with a literal, b's result given out."""
    return Definition(
        workflow_id=uuid.uuid4(),
        version=1,
        nodes=[{"id": "a", "parameters": {}}, {"id": "b", "parameters": {"by": "2"}}],
        connections=[edge("", "x", "a", "x"), edge("a", "result", "b", "y", conversion)],
        settings={},
        input_types=[{"name": "x", "type": INT, "required": True, "default_json": None}],
        output_types=[{"name": "out", "node_id": "b", "output": "result", "type": INT}],
    )


A = version({"x": INT}, {"result": INT})
B = version({"y": INT, "by": INT}, {"result": INT})


def found(a: NodeVersion = A, b: NodeVersion = B, conversion: str = "") -> list[tuple[str, str]]:
    faults = find_faults(definition(conversion), {"a": a, "b": b})
    return [(fault.field, fault.reason) for fault in faults]


def test_what_fits_passes() -> None:
    assert [] == found()
    check(definition(), {"a": A, "b": B})


def test_a_new_optional_input_and_a_new_output_change_nothing() -> None:
    wider = version({"x": INT, "more": STR}, {"result": INT, "rest": STR}, optional=["more"])
    assert [] == found(a=wider)


@pytest.mark.parametrize(
    ("a", "b", "conversion", "expected"),
    [
        pytest.param(
            version({"x": INT}, {"other": INT}),
            B,
            "",
            [("connections[1]", "UNKNOWN_OUTPUT")],
            id="an output that vanished",
        ),
        pytest.param(
            A,
            version({"z": INT, "by": INT}, {"result": INT}),
            "",
            [("connections[1]", "UNKNOWN_INPUT"), ("nodes[1]", "INPUT_MISSING")],
            id="an input that was renamed",
        ),
        pytest.param(
            version({"x": INT}, {"result": STR}),
            B,
            "",
            [("connections[1]", "TYPE_REFUTED")],
            id="an output of another type",
        ),
        pytest.param(
            version({"x": STR}, {"result": INT}),
            version({"y": STR, "by": INT}, {"result": INT}),
            "int_to_str",
            [("connections[0]", "TYPE_REFUTED")],
            id="a workflow input that no longer fits what it feeds",
        ),
        pytest.param(
            version({"x": INT}, {"result": FLOAT}),
            version({"y": FLOAT, "by": INT}, {"result": INT}),
            "int_to_float",
            [("connections[1]", "TYPE_REFUTED")],
            id="a conversion that is stale",
        ),
        pytest.param(
            A,
            version({"y": FLOAT, "by": INT}, {"result": INT}),
            "",
            [("connections[1]", "TYPE_REFUTED")],
            id="a conversion that is needed now",
        ),
        pytest.param(
            version({"x": INT}, {"result": {"t": "named", "name": "pandas.DataFrame"}}),
            version({"y": {"t": "named", "name": "pandas.DataFrame"}, "by": INT}, {"result": INT}),
            "",
            [("connections[1]", "TYPE_REFUTED")],
            id="a type that is not carried",
        ),
        pytest.param(
            version({"x": INT, "extra": INT}, {"result": INT}),
            B,
            "",
            [("nodes[0]", "INPUT_MISSING")],
            id="a new required input",
        ),
        pytest.param(
            A,
            version({"y": INT}, {"result": INT}),
            "",
            [("nodes[1].literals[0]", "UNKNOWN_INPUT")],
            id="a literal whose input vanished",
        ),
        pytest.param(
            A,
            version({"y": INT, "by": STR}, {"result": INT}),
            "",
            [("nodes[1].literals[0]", "VALUE_NOT_OF_TYPE")],
            id="a literal of another type",
        ),
        pytest.param(
            A,
            version({"y": INT, "by": INT}, {"total": INT}),
            "",
            [("outputs[0]", "UNKNOWN_OUTPUT")],
            id="an output of the workflow that vanished",
        ),
    ],
)
def test_each_fault_is_found_where_it_is(
    a: NodeVersion, b: NodeVersion, conversion: str, expected: list[tuple[str, str]]
) -> None:
    assert expected == found(a, b, conversion)


def test_a_lossy_conversion_that_the_edge_names_still_stands() -> None:
    assert [] == found(a=version({"x": INT}, {"result": STR}), conversion="str_to_int")


def test_an_input_of_a_draft_without_a_type_is_a_fault() -> None:
    draft = Definition(
        workflow_id=uuid.uuid4(),
        version=1,
        nodes=[{"id": "a"}],
        connections=[edge("", "x", "a", "x")],
        settings={},
        input_types=[{"name": "x", "type": None, "required": True, "default_json": None}],
        output_types=[],
    )
    assert ["connections[0]"] == [fault.field for fault in find_faults(draft, {"a": A})]


def test_the_refusal_names_the_first_fault_counts_the_rest_and_says_what_to_do() -> None:
    nothing = version({}, {})
    with pytest.raises(FailedPrecondition) as refused:
        check(definition(), {"a": nothing, "b": nothing})
    error = refused.value
    assert "NODE_INCOMPATIBLE" == error.reason
    expected = "connections[0]: x → a.x: a has no input x (it has no inputs) (and 4 more); update"
    assert error.message.startswith(expected)
    assert "name a version of the node" in error.message
    assert [
        "connections[0]",
        "connections[1]",
        "connections[1]",
        "nodes[1].literals[0]",
        "outputs[0]",
    ] == [fault.field for fault in error.fields]


def test_ten_thousand_places_of_one_node_are_checked_by_one_judgement_per_pair_of_types() -> None:
    size = 10_000
    chain = Definition(
        workflow_id=uuid.uuid4(),
        version=1,
        nodes=[{"id": f"n{at}"} for at in range(size)],
        connections=[edge("", "x", "n0", "x")]
        + [edge(f"n{at - 1}", "result", f"n{at}", "x") for at in range(1, size)],
        settings={},
        input_types=[{"name": "x", "type": INT, "required": True, "default_json": None}],
        output_types=[{"name": "o", "node_id": f"n{size - 1}", "output": "result", "type": INT}],
    )
    assert [] == find_faults(chain, {f"n{at}": A for at in range(size)})
