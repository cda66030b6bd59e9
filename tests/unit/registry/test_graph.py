from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from qflow.types import NONE, SCALARS, Collection, Literal, Named, Tuple, Type, expression

from services.registry.domain.definition import (
    Checked,
    Connection,
    Definition,
    InputSpec,
    Signature,
    WorkflowInput,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.graph import check
from services.registry.domain.stored import definition_from_json, definition_to_json
from tests.support.cost import counted

INT, FLOAT, STR, ANY = (SCALARS[name] for name in ("int", "float", "str", "any"))
NODE = uuid4()


def signature(
    inputs: dict[str, Type] | None = None,
    outputs: dict[str, Type] | None = None,
    optional: dict[str, tuple[Type, str]] | None = None,
) -> Signature:
    required = {"x": INT} if inputs is None else inputs
    specs = {name: InputSpec(type=of, required=True) for name, of in required.items()}
    for name, (of, default) in (optional or {}).items():
        specs[name] = InputSpec(type=of, required=False, default_json=default)
    return Signature(python_version="3.11", inputs=specs, outputs=outputs or {"result": INT})


def node(name: str, node_id: UUID = NODE, **literals: str) -> WorkflowNode:
    return WorkflowNode(id=name, node_id=node_id, literals=tuple(literals.items()))


def edge(text: str, conversion: str = "") -> Connection:
    source, target = (each.strip().rsplit(".", 1) for each in text.split("->"))
    return Connection(
        source=source[0],
        source_output=source[1],
        target=target[0],
        target_input=target[1],
        conversion=conversion,
    )


def checked(
    nodes: list[WorkflowNode],
    edges: list[str] | list[Connection],
    signatures: dict[UUID, Signature] | None = None,
    **fields: object,
) -> Checked:
    definition = Definition(
        nodes=tuple(nodes),
        connections=tuple(edge(each) if isinstance(each, str) else each for each in edges),
        **fields,  # type: ignore[arg-type]
    )
    known = {NODE: signature()} if signatures is None else signatures
    return check(definition, {(node_id, 0): each for node_id, each in known.items()})


def found(result: Checked) -> list[tuple[str, str]]:
    return [(each.place, each.code) for each in result.findings]


def test_a_sound_graph_has_no_findings_and_all_its_types() -> None:
    result = checked([node("a"), node("b")], [".n -> a.x", "a.result -> b.x"])
    assert found(result) == []
    assert result.activatable
    assert [(each.name, each.type, each.required) for each in result.definition.inputs] == [
        ("n", INT, True)
    ]
    assert [(each.name, each.node, each.output) for each in result.definition.outputs] == [
        ("b", "b", "result")
    ]
    assert [each.verdict for each in result.definition.connections] == ["exact", "exact"]


@pytest.mark.parametrize(
    ("edges", "findings"),
    [
        (["a.result -> a.x"], [("connections[0]", "SELF_EDGE")]),
        (["nope.result -> a.x"], [("connections[0].source_node", "UNKNOWN_NODE")]),
        (["a.result -> nope.x"], [("connections[0].target_node", "UNKNOWN_NODE")]),
        (["a.nope -> b.x"], [("connections[0].source_output", "UNKNOWN_OUTPUT")]),
        (["a.result -> b.nope"], [("connections[0].target_input", "UNKNOWN_INPUT")]),
        (["a.result -> b.x"] * 2, [("connections[1]", "DUPLICATE_EDGE")]),
        (["a.result -> b.x", ".n -> b.x"], [("connections[1]", "TWO_WRITERS")]),
    ],
)
def test_an_edge_that_cannot_be_has_its_place(
    edges: list[str], findings: list[tuple[str, str]]
) -> None:
    """B45, B46, B48, B51."""
    result = checked([node("a"), node("b")], edges)
    errors = [(each.place, each.code) for each in result.findings if each.severity == "error"]
    assert errors == findings
    assert not result.storable


def test_a_cycle_is_named() -> None:
    """B44."""
    two = uuid4()
    signatures = {NODE: signature(), two: signature({"x": INT, "y": INT})}
    edges = ["a.result -> b.x", "b.result -> c.x", "c.result -> b.y", "c.result -> d.x"]
    nodes = [node("a"), node("b", two), node("c"), node("d")]
    result = checked(nodes, edges, signatures)
    cycle = next(each for each in result.findings if each.code == "CYCLE")
    assert "b → c → b" in cycle.message
    assert cycle.place == "connections[2]"


def test_an_id_stands_once() -> None:
    """B47."""
    result = checked([node("a", x="1"), node("b", x="1"), node("a", x="1")], [])
    assert found(result) == [("nodes[2].id", "DUPLICATE_NODE_ID")]


def test_all_faults_are_told_at_once() -> None:
    result = checked(
        [node("a"), node("a"), node("b", uuid4()), node("c", x='"text"', z="1")],
        ["a.result -> a.x", "a.nope -> c.x"],
    )
    assert {code for _, code in found(result)} == {
        "DUPLICATE_NODE_ID",
        "NODE_NOT_FOUND",
        "SELF_EDGE",
        "UNKNOWN_OUTPUT",
        "UNKNOWN_INPUT",
        "VALUE_NOT_OF_TYPE",
        "TWO_WRITERS",
        "INPUT_MISSING",
    }


def test_what_hinders_a_run_is_a_warning() -> None:
    """B50."""
    result = checked(
        [node("a", x="1"), node("b")],
        [],
        outputs=(WorkflowOutput(name="out", node="a", output="result"),),
    )
    assert result.storable
    assert not result.activatable
    assert found(result) == [("nodes[1]", "INPUT_MISSING"), ("nodes[1]", "NODE_UNREACHABLE")]


def test_what_gives_nothing_runs_for_what_it_does() -> None:
    """B50: a node that posts something at the end of a run is not told to show its work."""
    posts = uuid4()
    signatures = {NODE: signature(), posts: signature(outputs={"result": NONE})}
    shown = (WorkflowOutput(name="out", node="a", output="result"),)
    nodes = [node("a", x="1"), node("post", posts)]
    sound = checked(nodes, ["a.result -> post.x"], signatures, outputs=shown)
    assert [] == found(sound)
    assert sound.activatable
    idle = checked([*nodes, node("b", x="2")], ["a.result -> post.x"], signatures, outputs=shown)
    assert [("nodes[2]", "NODE_UNREACHABLE")] == found(idle)


def test_types_that_do_not_fit_are_refuted_by_a_value() -> None:
    """B52."""
    text = uuid4()
    signatures = {NODE: signature(), text: signature({"x": INT}, {"result": STR})}
    result = checked([node("a", text, x="1"), node("b")], ["a.result -> b.x"], signatures)
    assert found(result) == [("connections[0]", "TYPE_REFUTED")]
    assert "str_to_int" in result.findings[0].message
    named = [edge("a.result -> b.x", "str_to_int")]
    again = checked([node("a", text, x="1"), node("b")], named, signatures)
    assert again.activatable
    assert found(again) == [("connections[0]", "CONVERSION_LOSSY")]


def test_a_lossless_conversion_is_inserted_and_stays() -> None:
    real = uuid4()
    signatures = {NODE: signature(), real: signature({"x": FLOAT})}
    nodes = [node("a", x="1"), node("b", real)]
    first = checked(nodes, ["a.result -> b.x"], signatures)
    assert first.definition.connections[0].conversion == "int_to_float"
    assert first.definition.connections[0].verdict == "conversion"
    again = check(first.definition, {(key, 0): each for key, each in signatures.items()})
    assert again == first
    assert definition_from_json(definition_to_json(first.definition)) == first.definition


def test_an_input_takes_the_type_that_fits_all_it_feeds() -> None:
    real, text, some = uuid4(), uuid4(), uuid4()
    signatures = {
        NODE: signature(),
        real: signature({"x": FLOAT}),
        text: signature({"x": Collection("list", INT)}),
        some: signature({}, optional={"x": (INT, "7")}),
    }
    result = checked([node("a"), node("b", real)], [".n -> b.x", ".n -> a.x"], signatures)
    assert result.definition.inputs[0].type == INT
    conversions = [each.conversion for each in result.definition.connections]
    assert conversions == ["int_to_float", ""]

    conflict = checked([node("a"), node("c", text)], [".n -> a.x", ".n -> c.x"], signatures)
    assert ("inputs", "INPUT_TYPES_CONFLICT") in found(conflict)

    defaulted = checked([node("d", some)], [".n -> d.x"], signatures)
    assert (defaulted.definition.inputs[0].default_json, defaulted.activatable) == ("7", True)
    decided = checked([node("a"), node("d", some)], [".n -> a.x", ".n -> d.x"], signatures)
    assert decided.definition.inputs[0].default_json is None


def test_an_input_that_feeds_too_many_types_is_told_so() -> None:
    """Each type would be compared with each other one."""
    kinds = [uuid4() for _ in range(400)]
    signatures = {
        each: signature({"x": Tuple((Literal((f"v{index}",)), INT))})
        for index, each in enumerate(kinds)
    }
    nodes = [node(f"n{index}", each) for index, each in enumerate(kinds)]
    edges = [f".n -> n{index}.x" for index in range(400)]
    with counted() as cost:
        result = checked(nodes, edges, signatures)
    assert cost.ms < 5000
    assert found(result)[0] == ("inputs", "TOO_MANY_TYPES")

    several = checked(nodes[:90], edges[:90], signatures)
    assert found(several)[0] == ("inputs", "INPUT_TYPES_CONFLICT")


def test_types_that_would_not_fit_an_answer_are_refused() -> None:
    wide = Tuple((INT,) * 900)
    nodes = [node(f"n{index}", x="1") for index in range(60)]
    result = checked(nodes, [], {NODE: signature({"x": INT}, {"result": wide})})
    assert found(result) == [("outputs", "TYPES_TOO_LARGE")]
    assert not result.definition.outputs


def test_declared_inputs_are_held_to_their_types() -> None:
    inputs = (
        WorkflowInput(name="n", type=INT, default_json='"one"'),
        WorkflowInput(name="n", type=INT),
        WorkflowInput(name="idle", type=STR),
    )
    result = checked([node("a"), node("b")], [".n -> a.x", ".other -> b.x"], inputs=inputs)
    assert set(found(result)) == {
        ("inputs[0].default_json", "VALUE_NOT_OF_TYPE"),
        ("inputs[1].name", "DUPLICATE_INPUT"),
        ("inputs[2]", "INPUT_UNUSED"),
        ("connections[1].source_output", "UNKNOWN_INPUT"),
    }


def test_declared_outputs_are_found_and_typed() -> None:
    outputs = tuple(
        WorkflowOutput(name=name, node=where, output=which)
        for name, where, which in [
            ("good", "a", "result"),
            ("good", "a", "result"),
            ("lost", "z", "result"),
            ("gone", "a", "nope"),
        ]
    )
    result = checked([node("a", x="1")], [], outputs=outputs)
    assert found(result) == [
        ("outputs[1].name", "DUPLICATE_OUTPUT"),
        ("outputs[2].source_node", "UNKNOWN_NODE"),
        ("outputs[3].source_output", "UNKNOWN_OUTPUT"),
    ]
    assert result.definition.outputs[0].type == INT


def test_a_sink_with_several_outputs_gives_each_by_name() -> None:
    signatures = {NODE: signature({}, {"left": INT, "right": STR})}
    result = checked([node("a")], [], signatures)
    assert [each.name for each in result.definition.outputs] == ["a.left", "a.right"]


def test_opaque_values_stay_within_a_node() -> None:
    frame = Named("pandas.DataFrame")
    signatures = {NODE: signature({"x": frame}, {"result": frame})}
    result = checked([node("a"), node("b")], ["a.result -> b.x"], signatures)
    assert ("connections[0]", "TYPE_NOT_CARRIED") in found(result)
    assert ("nodes[0]", "OUTPUT_NOT_CARRIED") in found(result)


def test_an_unannotated_pair_may_be_joined_but_not_with_a_type() -> None:
    loose = uuid4()
    signatures = {NODE: signature(), loose: signature({"x": ANY}, {"result": ANY})}
    nodes = [node("a", loose, x="1"), node("b", loose), node("c")]
    result = checked(nodes, ["a.result -> b.x", "b.result -> c.x"], signatures)
    assert found(result) == [("connections[1]", "TYPE_REFUTED")]
    assert "annotate" in result.findings[0].message


SIZE = 10_000


@pytest.mark.parametrize("shape", ["chain", "star"])
def test_ten_thousand_nodes_are_checked_without_recursion(shape: str) -> None:
    """B49."""
    nodes = [node("n0", x="1"), *(node(f"n{i}") for i in range(1, SIZE))]
    edges = [edge(f"n{i - 1 if shape == 'chain' else 0}.result -> n{i}.x") for i in range(1, SIZE)]
    with counted() as cost:
        result = checked(nodes, edges)
    assert cost.ms < 5000
    assert result.findings == ()
    assert len(result.definition.outputs) == (1 if shape == "chain" else SIZE - 1)


def test_a_cycle_of_ten_thousand_nodes_is_found() -> None:
    """B44, B49."""
    nodes = [node(f"n{i}") for i in range(SIZE)]
    result = checked(nodes, [edge(f"n{i - 1}.result -> n{i}.x") for i in range(SIZE)][1:])
    assert [code for _, code in found(result)] == ["INPUT_MISSING"]
    closed = [edge(f"n{(i - 1) % SIZE}.result -> n{i}.x") for i in range(SIZE)]
    cycle = next(each for each in checked(nodes, closed).findings if each.code == "CYCLE")
    assert "…" in cycle.message


def test_one_node_more_is_refused() -> None:
    """B49."""
    nodes = [node(f"n{i}", x="1") for i in range(SIZE + 1)]
    assert found(checked(nodes, [])) == [("nodes", "TOO_MANY_NODES")]


def test_an_inferred_type_reads_well() -> None:
    result = checked([node("a")], [".n -> a.x"])
    of = result.definition.inputs[0].type
    assert of is not None
    assert expression(of) == "int"


def test_a_refuted_edge_has_its_counter_example_and_what_would_mend_it() -> None:
    two = uuid4()
    signatures = {NODE: signature(), two: signature({"x": INT}, {"result": SCALARS["str"]})}
    refuted = checked([node("a", two, x="1"), node("b")], ["a.result -> b.x"], signatures)
    finding = refuted.findings[0]
    assert (finding.code, finding.counter_example) == ("TYPE_REFUTED", '"text"')
    assert set(finding.mended_by) == {"str_to_int", "json_to_value"}
    assert refuted.definition.connections[0].counter_example == '"text"'
    mended = checked(
        [node("a", two, x="1"), node("b")], [edge("a.result -> b.x", "str_to_int")], signatures
    )
    assert mended.storable
    assert [(each.verdict, each.is_lossless) for each in mended.definition.connections] == [
        ("conversion", False)
    ]
