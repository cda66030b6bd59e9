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


# -- graphs with more than nodes that run once

LIST_OF_INT: Json = {"t": "list", "item": INT}


def graph(
    nodes: list[Json], connections: list[Json], outputs: Sequence[Json] = (), of: Json = INT
) -> Definition:
    return Definition(
        workflow_id=uuid.uuid4(),
        version=1,
        nodes=[{"parameters": {}, **node} for node in nodes],
        connections=connections,
        settings={},
        input_types=[{"name": "x", "type": of, "required": True, "default_json": None}],
        output_types=list(outputs),
    )


def said(of: Definition, versions: Mapping[str, NodeVersion]) -> list[tuple[str, str]]:
    return [(fault.field, fault.reason) for fault in find_faults(of, versions)]


CHOICE: Json = {
    "id": "c",
    "kind": "choice",
    "choice": {"branches": [{"name": "big", "condition": "x > 1"}], "default": None},
}
BARE: Json = edge("c", "", "a", "")


def test_edges_that_carry_nothing_and_built_in_nodes_are_let_pass() -> None:
    nodes: list[Json] = [
        CHOICE,
        {"id": "a"},
        {"id": "s", "kind": "signal", "signal": {"name": "s", "type": INT}},
        {"id": "n", "kind": "sleep", "sleep": {}, "parameters": {"seconds": "1.0"}},
        {"id": "p", "kind": "approval", "approval": {"name": "p", "type": None}},
        {"id": "b"},
    ]
    edges = [
        edge("", "x", "c", "anything"),
        BARE | {"kind": "branch", "branch": "big"},
        edge("s", "", "n", "") | {"kind": "order"},
        edge("a", "", "p", "") | {"kind": "failure"},
        edge("s", "result", "a", "x"),
        edge("", "x", "b", "y"),
        edge("s", "result", "b", "by"),
    ]
    outputs = [{"name": "o", "node_id": "p", "output": "reply", "type": INT}]
    assert [] == said(graph(nodes, edges, outputs), {"a": A, "b": B})
    wrong = version({"x": STR}, {"result": INT})
    assert [("connections[4]", "TYPE_REFUTED")] == said(graph(nodes, edges), {"a": wrong, "b": B})


def test_a_mapped_place_is_held_against_lists_by_their_elements() -> None:
    nodes: list[Json] = [{"id": "a", "map": {"input": "x", "depth": 1, "max_failed": None}}]
    edges = [edge("", "x", "a", "x")]
    assert [] == said(graph(nodes, edges, of=LIST_OF_INT), {"a": A})
    floats = version({"x": FLOAT}, {"result": FLOAT})
    # The elements would need a conversion that the stored edge lacks.
    faults = said(graph(nodes, edges, of=LIST_OF_INT), {"a": floats})
    assert [("connections[0]", "TYPE_REFUTED")] == faults
    converted = [edge("", "x", "a", "x", "int_to_float")]
    assert [] == said(graph(nodes, converted, of=LIST_OF_INT), {"a": floats})
    assert [("connections[0]", "TYPE_REFUTED")] == said(graph(nodes, edges), {"a": A})


def test_the_outputs_of_a_map_are_lists() -> None:
    tolerant: Json = {"id": "a", "map": {"input": "x", "depth": 1, "max_failed": 3}}
    taker = version(
        {"y": {"t": "list", "item": {"t": "union", "any_of": [INT, {"t": "none"}]}}}, {}
    )
    edges = [edge("", "x", "a", "x"), edge("a", "result", "b", "y")]
    nodes = [tolerant, {"id": "b"}]
    assert [] == said(graph(nodes, edges, of=LIST_OF_INT), {"a": A, "b": taker})
    strict = version({"y": LIST_OF_INT}, {})
    faults = said(graph(nodes, edges, of=LIST_OF_INT), {"a": A, "b": strict})
    assert [("connections[1]", "TYPE_REFUTED")] == faults


def test_the_error_of_a_failure_is_a_mapping_of_texts() -> None:
    nodes: list[Json] = [{"id": "a"}, {"id": "h"}]
    edges = [edge("", "x", "a", "x"), edge("a", "error", "h", "e") | {"kind": "failure"}]
    takes = version({"e": {"t": "dict", "key": STR, "value": STR}}, {})
    assert [] == said(graph(nodes, edges), {"a": A, "h": takes})
    wrong = version({"e": INT}, {})
    assert [("connections[1]", "TYPE_REFUTED")] == said(graph(nodes, edges), {"a": A, "h": wrong})


def test_an_input_that_takes_no_none_any_more_is_told_of() -> None:
    nodes: list[Json] = [CHOICE, {"id": "a"}, {"id": "b"}]
    edges = [edge("", "x", "a", "x"), edge("a", "result", "b", "x") | {"absent": "null"}]
    maybe = version({"x": {"t": "union", "any_of": [INT, {"t": "none"}]}}, {})
    assert [] == said(graph(nodes, edges), {"a": A, "b": maybe})
    faults = said(graph(nodes, edges), {"a": A, "b": A})
    assert [("connections[1]", "INPUT_MAY_BE_ABSENT")] == faults


def test_a_loop_is_held_against_what_its_node_became() -> None:
    nodes: list[Json] = [
        {
            "id": "a",
            "loop": {
                "condition": "result < 3 && turn < 9",
                "max_turns": 9,
                "carry": {"x": "result"},
                "at_max": "finish",
            },
        }
    ]
    edges = [edge("", "x", "a", "x")]
    assert [] == said(graph(nodes, edges), {"a": A})
    renamed = version({"x": INT}, {"sum": INT})
    assert [
        ("nodes[0].repeat.carry[0]", "UNKNOWN_OUTPUT"),
        ("nodes[0].repeat.condition", "EXPRESSION_INVALID"),
    ] == said(graph(nodes, edges), {"a": renamed})
    wider = version({"x": INT}, {"result": FLOAT})
    assert [("nodes[0].repeat.carry[0]", "TYPE_REFUTED")] == said(graph(nodes, edges), {"a": wider})


def test_a_sub_workflow_is_held_against_its_own_nodes_and_not_here() -> None:
    nodes: list[Json] = [{"id": "w", "kind": "workflow", "parameters": {"n": "1"}}, {"id": "a"}]
    edges = [edge("w", "out", "a", "x")]
    outputs = [{"name": "o", "node_id": "w", "output": "out", "type": INT}]
    assert [] == said(graph(nodes, edges, outputs), {"a": A})
    known = version({"n": INT}, {"out": STR})
    faults = said(graph(nodes, edges, outputs), {"a": A, "w": known})
    assert [("connections[0]", "TYPE_REFUTED")] == faults
