"""What a place or an edge says besides: every fault has its place and its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from qflow.types import (
    NONE,
    SCALARS,
    Collection,
    Dict,
    Field,
    Named,
    Record,
    Type,
    expression,
    union_of,
)

from services.registry.domain import builtins
from services.registry.domain.constructs import (
    Approval,
    Branch,
    Choice,
    Construct,
    Join,
    Loop,
    Map,
    Signal,
    Sleep,
    SubWorkflow,
)
from services.registry.domain.definition import (
    Checked,
    Connection,
    Definition,
    InputSpec,
    Retry,
    Signature,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.graph import check
from services.registry.domain.stored import definition_from_json, definition_to_json
from services.registry.domain.sub_workflows import DEPTH_MAX, Known, sub_workflow_findings

INT, FLOAT, STR, ANY, BOOL = (SCALARS[name] for name in ("int", "float", "str", "any", "bool"))
INTS = Collection("list", INT)
MAYBE = union_of((INT, NONE))
ONE, TWO, PAIR, OPTIONAL, NULLABLE, TEXT, FLAG, FLOATS, SUB, MANY = (uuid4() for _ in range(10))
TOLD = uuid4()


def signature(
    inputs: dict[str, Type], result: Type = INT, *, optional: bool = False, **more: Any
) -> Signature:
    specs = {
        name: InputSpec(type=of, required=not optional, default_json="1" if optional else None)
        for name, of in inputs.items()
    }
    return Signature(python_version="3.11", inputs=specs, outputs={"result": result}, **more)


SIGNATURES = {
    ONE: signature({"x": INT}),
    TWO: signature({"x": INT, "y": INT}),
    PAIR: signature({"x": INTS}, INTS),
    OPTIONAL: signature({"x": INT}, optional=True),
    NULLABLE: signature({"x": MAYBE}),
    TEXT: signature({"x": STR}, STR),
    FLAG: signature({"x": BOOL}, BOOL),
    FLOATS: signature({"x": FLOAT}, FLOAT),
    MANY: signature({"x": Record("typeddict", "R", (Field("a", union_of((INT, FLOAT, STR))),))}),
    SUB: signature({"n": INT}, STR, is_workflow=True),
    TOLD: signature({"x": Dict(STR, STR)}),
}


def node(name: str, on: UUID = ONE, **fields: Any) -> WorkflowNode:
    literals = fields.pop("literals", {})
    return WorkflowNode(id=name, node_id=on, literals=tuple(literals.items()), **fields)


def built_in(name: str, construct: Construct, **fields: Any) -> WorkflowNode:
    described = builtins.BY_KIND[construct.kind]
    return node(name, described.id, construct=construct, **fields)


def choice(name: str, **conditions: str) -> WorkflowNode:
    branches = tuple(Branch(*each) for each in conditions.items())
    return built_in(name, Choice(branches=branches))


def edge(text: str, kind: str = "", branch: str = "") -> Connection:
    ends: list[str] = []
    for each in text.split("->"):
        owner, _, port = each.strip().partition(".")
        ends += [owner, port]
    return Connection(
        source=ends[0],
        source_output=ends[1],
        target=ends[2],
        target_input=ends[3],
        kind=kind,
        branch=branch,
    )


def order(text: str) -> Connection:
    return edge(text, "order")


def on_branch(text: str, branch: str) -> Connection:
    return edge(text, "branch", branch)


def on_failure(text: str) -> Connection:
    return edge(text, "failure")


def checked(
    nodes: list[WorkflowNode],
    edges: list[str | Connection],
    *,
    signatures: Mapping[UUID, Signature] = SIGNATURES,
    **fields: Any,
) -> Checked:
    definition = Definition(
        nodes=tuple(nodes),
        connections=tuple(edge(each) if isinstance(each, str) else each for each in edges),
        **fields,
    )
    return check(definition, {(node_id, 0): each for node_id, each in signatures.items()})


def errors(result: Checked) -> list[tuple[str, str]]:
    return [(each.place, each.code) for each in result.findings if each.severity == "error"]


def hindering(result: Checked) -> list[tuple[str, str]]:
    return [(each.place, each.code) for each in result.findings if each.severity != "info"]


def outputs(result: Checked) -> dict[str, str]:
    return {e.name: expression(e.type) for e in result.definition.outputs if e.type is not None}


SPLIT = choice("c", big="x > 10", small="x <= 10")


# -- choices and branches


def test_a_choice_takes_what_is_connected_and_its_branches_lead_on() -> None:
    result = checked(
        [SPLIT, node("a"), node("b")],
        [
            ".n -> c.x",
            on_branch("c -> a", "big"),
            ".n -> a.x",
            on_branch("c -> b", "small"),
            ".n -> b.x",
        ],
    )
    assert [] == hindering(result)
    # Either may be skipped, so a run may have neither.
    assert {"a": "int | None", "b": "int | None"} == outputs(result)


@pytest.mark.parametrize(
    ("construct", "expected"),
    [
        (Choice(), ("nodes[0].choice.branches", "CHOICE_EMPTY")),
        (
            Choice(branches=(Branch("a", "x > 1"), Branch("a", "x > 2"))),
            ("nodes[0].choice.branches[1].name", "DUPLICATE_BRANCH"),
        ),
        (
            Choice(branches=(Branch("a", "x >"),)),
            ("nodes[0].choice.branches[0].condition", "EXPRESSION_INVALID"),
        ),
        (
            Choice(branches=(Branch("a", "z > 1"),)),
            ("nodes[0].choice.branches[0].condition", "EXPRESSION_INVALID"),
        ),
        (
            Choice(branches=(Branch("a", "x.all(i, x.all(j, i == j))"),)),
            ("nodes[0].choice.branches[0].condition", "EXPRESSION_INVALID"),
        ),
        (
            Choice(branches=(Branch("a", "x > 1 || string(x).matches('[')"),)),
            ("nodes[0].choice.branches[0].condition", "EXPRESSION_INVALID"),
        ),
        (
            Choice(branches=(Branch("a", "x + 1"),)),
            ("nodes[0].choice.branches[0].condition", "EXPRESSION_NOT_BOOLEAN"),
        ),
    ],
)
def test_a_choice_that_cannot_choose_has_its_place(
    construct: Choice, expected: tuple[str, str]
) -> None:
    """B55: an expression that is hostile, unknown or not boolean."""
    assert [expected] == errors(checked([built_in("c", construct)], [".n -> c.x"]))


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (on_branch("c -> a", "no"), ("connections[2].branch", "UNKNOWN_BRANCH")),
        (on_branch("b -> a", "big"), ("connections[2].source_node", "NOT_A_CHOICE")),
        (edge("c -> a", "order", "big"), ("connections[2].branch", "UNKNOWN_BRANCH")),
        (on_branch("c.branch -> a", "big"), ("connections[2]", "EDGE_WITH_PORTS")),
        (order("b.result -> a"), ("connections[2]", "EDGE_WITH_PORTS")),
        (order("b -> a.x"), ("connections[2]", "EDGE_WITH_PORTS")),
        (order(" -> a"), ("connections[2].source_node", "UNKNOWN_NODE")),
        (on_failure("b.result -> a.x"), ("connections[2].source_output", "UNKNOWN_OUTPUT")),
        (on_failure("b.error -> a"), ("connections[2].target_input", "PORT_MISSING")),
        (edge("b -> a.x"), ("connections[2].source_output", "PORT_MISSING")),
        (edge("b.result -> a"), ("connections[2].target_input", "PORT_MISSING")),
        (
            replace(order("b -> a"), conversion="int_to_float"),
            ("connections[2].conversion", "CONVERSION_UNUSED"),
        ),
        (edge("b.result -> c.not-a-name"), ("connections[2].target_input", "INPUT_NAME_INVALID")),
    ],
)
def test_an_edge_that_is_none_of_its_kind_has_its_place(
    wrong: Connection, expected: tuple[str, str]
) -> None:
    nodes = [SPLIT, node("b"), node("a", OPTIONAL)]
    assert [expected] == errors(checked(nodes, [".n -> c.x", ".n -> b.x", wrong]))


def test_a_choice_may_have_a_branch_for_when_no_condition_holds() -> None:
    construct = Choice(branches=(Branch("big", "x > 10"),), default="else")
    nodes = [built_in("c", construct), node("a", OPTIONAL)]
    assert [] == hindering(checked(nodes, [".n -> c.x", on_branch("c -> a", "else")]))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"node_id": ONE}, ("nodes[0].node_id", "BUILTIN_MISMATCH")),
        ({"version": 2}, ("nodes[0].version", "NODE_VERSION_NOT_FOUND")),
        ({"construct": None}, ("nodes[0].node_id", "CONSTRUCT_MISSING")),
    ],
)
def test_a_built_in_node_is_named_by_its_construct_and_its_id(
    change: dict[str, Any], expected: tuple[str, str]
) -> None:
    place = replace(built_in("s", Sleep(), literals={"seconds": "1"}), **change)
    assert [expected] == errors(checked([place], []))


# -- waits


def test_waits_have_outputs_of_the_types_that_they_state() -> None:
    signal = Signal(name="go", type_text='{"t":"int"}', default_json="3")
    approval = Approval(name="ok", type_text='{"t":"str"}')
    result = checked(
        [
            built_in("s", signal),
            built_in("p", approval),
            built_in("w", Sleep(), literals={"seconds": "1.5"}),
            node("a"),
        ],
        ["s.result -> a.x", "a.result -> p.subject"],
    )
    assert [] == hindering(result)
    assert {
        "p.approved": "bool",
        "p.approver": "str",
        "p.comment": "str",
        "p.reply": "str",
        "w": "datetime",
    } == outputs(result)


@pytest.mark.parametrize(
    ("construct", "expected"),
    [
        (Signal(name="s"), ("nodes[0].signal.type_json", "TYPE_MISSING")),
        (Signal(name="s", type_text="{"), ("nodes[0].signal.type_json", "TYPE_INVALID")),
        (Approval(name="s", type_text="7"), ("nodes[0].approval.type_json", "TYPE_INVALID")),
        (
            Signal(name="s", type=Named("pandas.DataFrame")),
            ("nodes[0].signal.type_json", "TYPE_NOT_CARRIED"),
        ),
        (
            Signal(name="s", type=INT, default_json='"x"'),
            ("nodes[0].signal.default_json", "VALUE_NOT_OF_TYPE"),
        ),
    ],
)
def test_a_wait_for_what_cannot_come_has_its_place(
    construct: Construct, expected: tuple[str, str]
) -> None:
    assert [expected] == errors(checked([built_in("s", construct)], []))


@pytest.mark.parametrize(
    ("types", "at"),
    [
        ((INT, STR), 1),
        ((INT, MAYBE, STR), 2),
        ((MAYBE, INT, STR), 2),
        ((INT, FLOAT, INTS), 2),
        ((INT, INT), None),
        ((ANY, MAYBE, INT), None),
    ],
)
@pytest.mark.parametrize("kind", [Signal, Approval])
def test_waits_of_one_name_take_a_value_in_common(
    kind: type[Signal | Approval], types: tuple[Type, ...], at: int | None
) -> None:
    waits = [built_in(f"w{i}", kind(name="go", type=of)) for i, of in enumerate(types)]
    place = f"nodes[{at}].{kind.kind}.type_json"
    assert ([] if at is None else [(place, "WAIT_TYPES_DIFFER")]) == errors(checked(waits, []))


def test_waits_of_two_types_are_both_named() -> None:
    waits = [built_in("a", Signal(name="go", type=INT)), built_in("b", Signal(name="go", type=STR))]
    (found,) = checked(waits, []).findings
    assert "b (nodes[1]) waits for go as str, a (nodes[0]) as int" in found.message
    assert found.hint
    waits[1] = built_in("b", Approval(name="go", type=STR))
    assert [] == errors(checked(waits, []))


def test_a_sleep_is_fed_one_of_its_inputs() -> None:
    assert [("nodes[0]", "INPUT_MISSING")] == hindering(checked([built_in("s", Sleep())], []))
    both = built_in("s", Sleep(), literals={"seconds": "1.0", "until": '"2026-01-01T00:00:00"'})
    assert ("nodes[0]", "SLEEP_AMBIGUOUS") in errors(checked([both], []))


@pytest.mark.parametrize(
    ("seconds", "refused"),
    [
        ("-1", "SLEEP_NEGATIVE"),
        ("-0.5", "SLEEP_NEGATIVE"),
        ("0", ""),
        ("31622400", ""),
        ("31622401", "SLEEP_TOO_LONG"),
        ("1e12", "SLEEP_TOO_LONG"),
    ],
)
def test_a_sleep_is_not_written_down_as_less_than_none_or_longer_than_the_engine_lets_it(
    seconds: str, refused: str
) -> None:
    asleep = built_in("s", Sleep(), literals={"seconds": seconds})
    expected = [("nodes[0].literals[0].value_json", refused)] if refused else []
    assert expected == errors(checked([asleep], []))


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"queue_timeout_ms": 5}, "queue_timeout"),
        ({"total_timeout_ms": 5}, "total_timeout"),
        ({"heartbeat_timeout_ms": 500}, "heartbeat_timeout"),
        ({"cache_ttl_ms": 5000}, "cache_ttl"),
        ({"network": "egress"}, "network"),
        ({"mapped": Map(input="subject")}, "for_each"),
        ({"loop": Loop(condition="true", max_turns=2)}, "repeat"),
    ],
)
def test_what_has_no_effect_upon_a_built_in_node_is_refused(
    fields: dict[str, Any], part: str
) -> None:
    place = built_in("p", Approval(name="p"), **fields)
    assert (f"nodes[0].{part}", "SETTING_NOT_HERE") in errors(checked([place], []))


@pytest.mark.parametrize("host", ["https://a.b", "A.b", "a..b", "*.*.b", "a b", "a:0", "[::1]", ""])
def test_hosts_are_named_in_one_way(host: str) -> None:
    found = errors(checked([node("m", network="egress", egress_hosts=("a.b", host))], []))
    assert ("nodes[0].egress_hosts[1]", "EGRESS_HOST_INVALID") in found


def test_hosts_are_named_where_the_network_is_egress_alone() -> None:
    found = errors(checked([node("m", network="host", egress_hosts=("a.b",))], []))
    assert ("nodes[0].egress_hosts[0]", "SETTING_NOT_HERE") in found


def test_calls_meet_where_the_function_is_async_and_keeps_its_interpreter() -> None:
    signatures = {
        **SIGNATURES,
        ONE: signature({"x": INT}, is_async=True),
        TEXT: signature({"x": STR}, SCALARS["file"], is_async=True),
    }
    place = "nodes[0].concurrency", "CALLS_NOT_TOGETHER"
    for refused in (
        node("p", PAIR, concurrency=2),  # no async def
        node("p", concurrency=2, reuse="fork"),
        node("p", TEXT, concurrency=2),  # gives a file
        built_in("p", Approval(name="p"), concurrency=2),
    ):
        assert place in errors(checked([refused], [], signatures=signatures)), refused
    bounds = errors(checked([node("o"), node("p", concurrency=65)], [], signatures=signatures))
    assert ("nodes[1].concurrency", "SETTING_OUT_OF_BOUNDS") in bounds
    for taken in (node("p", concurrency=64, reuse="warm"), node("p", PAIR, concurrency=1)):
        assert place not in errors(checked([taken], [], signatures=signatures)), taken


@pytest.mark.parametrize(
    "again", [{"mapped": Map(input="x")}, {"loop": Loop(condition="turn < 3", max_turns=4)}]
)
def test_what_runs_more_than_once_is_not_cached(again: dict[str, Any]) -> None:
    places = checked([node("m", cache_ttl_ms=5000, **again)], [])
    assert ("nodes[0].cache_ttl", "SETTING_NOT_HERE") in errors(places)


# -- joins and conditions


@pytest.mark.parametrize(
    ("join", "fits"),
    [
        (Join(policy="n_of", count=2), True),
        (Join(policy="n_of", count=3), False),
        (Join(policy="n_of"), False),
        (Join(policy="any"), True),
        (Join(policy="any", count=1), False),
        (Join(policy="all_done"), True),
        (Join(), True),
    ],
)
def test_a_join_waits_for_no_more_sources_than_there_are(join: Join, fits: bool) -> None:  # noqa: FBT001
    nodes = [node("a"), node("b"), node("c", OPTIONAL, join=join)]
    result = checked(nodes, [".n -> a.x", ".n -> b.x", order("a -> c"), order("b -> c")])
    assert ([] if fits else [("nodes[2].join", "JOIN_COUNT")]) == errors(result)


def test_a_join_of_any_needs_a_source() -> None:
    result = checked([node("a", join=Join(policy="any"))], [".n -> a.x"])
    assert [("nodes[0].join", "JOIN_COUNT")] == errors(result)


@pytest.mark.parametrize(
    ("on", "condition", "code"),
    [
        (ONE, "x > 3", None),
        (ONE, "y > 3", "EXPRESSION_INVALID"),
        (ONE, "x", "EXPRESSION_NOT_BOOLEAN"),
        (ONE, "x > 1 ? 1 : 2", "EXPRESSION_NOT_BOOLEAN"),
        (TEXT, "size(x)", "EXPRESSION_NOT_BOOLEAN"),
        (ONE, 'x > "a"', "EXPRESSION_TYPES"),
        (ONE, "x.y", "EXPRESSION_TYPES"),
        (ONE, "x.y > 1", "EXPRESSION_TYPES"),
        (ONE, "!x", "EXPRESSION_TYPES"),
        (NULLABLE, 'x > "a"', "EXPRESSION_TYPES"),
        (PAIR, "x[0]", None),  # which fails for another reason where there is none
        (MANY, 'x.a > "z"', None),
        (PAIR, 'x.all(each, each > "a")', None),  # of none it holds
        (NULLABLE, "x > 1", None),
        (ONE, "x % 2 == 0", None),
        (ONE, 'x == "a"', None),
        (ONE, 'x > 7 && x > "a"', None),
        (FLOATS, "x % 2 == 0", None),  # 4 is a float, too
        (FLOATS, "x + 0.5 > 1.0", None),
        (TEXT, "int(x) > 7", None),
        (TEXT, "timestamp(x).getFullYear() > 2000", None),
        (TEXT, "x > 1", "EXPRESSION_TYPES"),
        (FLAG, "x", None),
        (ONE, "x" * 5000, "EXPRESSION_INVALID"),
        (ONE, "x.matches(string(x))", "EXPRESSION_INVALID"),
    ],
)
def test_a_condition_reads_what_feeds_its_node(on: UUID, condition: str, code: str | None) -> None:
    result = checked([node("a", on, condition=condition)], [".n -> a.x"])
    assert ([("nodes[0].condition", code)] if code else []) == errors(result)


def test_a_choice_is_held_to_the_types_that_arrive() -> None:
    asked = choice("c", big='n > "a"', odd="m.x", sum="n + m > 1", other="n > 1")
    edges = [".n -> a.x", "a.result -> c.n", ".m -> b.x", "b.result -> c.m"]
    result = checked([asked, node("a"), node("b", TEXT)], [*edges])
    wrong = [f"nodes[0].choice.branches[{at}].condition" for at in range(3)]
    assert [(each, "EXPRESSION_TYPES") for each in wrong] == errors(result)
    assert "(n: int)" in result.findings[0].message
    assert result.findings[0].hint


def test_a_condition_reads_no_input_that_nothing_feeds() -> None:
    result = checked([node("a", OPTIONAL, condition="x > 3")], [])
    assert [("nodes[0].condition", "EXPRESSION_INVALID")] == errors(result)


# -- values that may be absent

WAYS: list[str | Connection] = [".n -> c.x", on_branch("c -> a", "big"), ".n -> a.x"]


@pytest.mark.parametrize(
    ("on", "codes", "absent"),
    [
        (TWO, ["INPUT_MAY_BE_ABSENT"], ""),
        (OPTIONAL, [], ""),
        (NULLABLE, [], "null"),
    ],
)
def test_an_input_without_a_default_takes_none_where_its_source_may_be_skipped(
    on: UUID, codes: list[str], absent: str
) -> None:
    """B49: b runs for its other source where a was skipped."""
    edges = [*WAYS, ".n -> d.x", order("d -> b"), "a.result -> b.x"]
    if on is TWO:
        edges.append(".n -> b.y")
    nodes = [SPLIT, node("a"), node("d"), node("b", on)]
    result = checked(nodes, edges)
    assert codes == [code for _, code in errors(result)]
    carried = next(e for e in result.definition.connections if (e.source, e.target) == ("a", "b"))
    assert absent == carried.absent


def test_what_follows_on_one_branch_is_absent_together() -> None:
    nodes = [SPLIT, node("a"), node("b"), node("e", TWO), node("f")]
    edges: list[str | Connection] = [
        *WAYS,
        on_branch("c -> b", "big"),
        ".n -> b.x",
        "a.result -> e.x",
        "b.result -> e.y",
        "e.result -> f.x",
    ]
    result = checked(nodes, edges)
    assert [] == errors(result)
    assert {"f": "int | None"} == outputs(result)


def test_two_branches_that_meet_do_not_have_both_values() -> None:
    nodes = [SPLIT, node("a"), node("b"), node("e", TWO)]
    edges: list[str | Connection] = [
        *WAYS,
        on_branch("c -> b", "small"),
        ".n -> b.x",
        "a.result -> e.x",
        "b.result -> e.y",
    ]
    codes = [code for _, code in errors(checked(nodes, edges))]
    assert ["INPUT_MAY_BE_ABSENT"] * 2 == codes


@pytest.mark.parametrize(
    ("within", "codes"),
    [("b e f", []), ("b f", []), ("b", []), ("e f", ["INPUT_MAY_BE_ABSENT"])],
)
def test_a_chain_after_what_may_be_skipped_runs_whenever_that_does(
    within: str, codes: list[str]
) -> None:
    """B49: its first value may be absent, those within it are there together."""
    nodes = [node("p", condition="x > 3"), node("a", condition="x > 5")]
    nodes += [node("b", OPTIONAL), node("e"), node("f")]
    edges: list[str | Connection] = [".n -> p.x", ".n -> a.x"]
    edges += ["a.result -> b.x", "b.result -> e.x", "e.result -> f.x"]
    edges += [order(f"p -> {name}") for name in within.split()]
    assert codes == [code for _, code in errors(checked(nodes, edges))]


def test_a_chain_that_more_joins_runs_whenever_its_beginning_does() -> None:
    nodes = [node(name, condition="x > 3") for name in "paq"]
    nodes += [node("b", OPTIONAL), node("e", TWO), node("f"), node("k", OPTIONAL)]
    edges: list[str | Connection] = [".n -> p.x", ".n -> a.x", ".n -> q.x"]
    edges += ["a.result -> b.x", "b.result -> e.x", ".n -> e.y", order("q -> e")]
    edges += ["e.result -> f.x", order("p -> b"), order("p -> e"), order("p -> f")]
    found = [place for place, _ in errors(checked(nodes[:-1], edges))]
    assert ["connections[4]"] == found  # where q alone ran, b did not


@pytest.mark.parametrize(
    ("join", "codes"),
    [
        (None, []),
        (Join(policy="all_done"), []),
        (Join(policy="n_of", count=2), []),
        (Join(policy="n_of", count=1), ["INPUT_MAY_BE_ABSENT"] * 2),
        (Join(policy="any"), ["INPUT_MAY_BE_ABSENT"] * 2),
    ],
)
def test_what_is_not_waited_for_may_be_absent(join: Join | None, codes: list[str]) -> None:
    nodes = [node("a"), node("b"), node("e", TWO, join=join)]
    edges: list[str | Connection] = [".n -> a.x", ".n -> b.x", "a.result -> e.x", "b.result -> e.y"]
    assert codes == [code for _, code in errors(checked(nodes, edges))]


def test_a_failure_that_stops_nothing_leaves_no_value_to_whoever_waits_for_the_end() -> None:
    for join, codes in ((None, []), (Join(policy="all_done"), ["INPUT_MAY_BE_ABSENT"])):
        nodes = [node("a", on_failure="continue"), node("b", join=join)]
        result = checked(nodes, [".n -> a.x", "a.result -> b.x"])
        assert codes == [code for _, code in errors(result)]


def test_a_failure_edge_carries_what_is_said_of_the_failure() -> None:
    nodes = [node("a"), node("h", OPTIONAL), node("k", TEXT)]
    result = checked(
        nodes, [".n -> a.x", on_failure("a -> h"), on_failure("a.error -> k.x"), order("a -> h")]
    )
    assert [("connections[2]", "TYPE_REFUTED")] == errors(result)
    assert "a" in outputs(result)  # to handle its failure is not to use its value


@pytest.mark.parametrize(("others", "codes"), [("", []), ("b", ["INPUT_MAY_BE_ABSENT"])])
def test_what_one_failure_leads_to_knows_that_it_came(others: str, codes: list[str]) -> None:
    """Of two it may have been the other, whatever else feeds the place."""
    nodes = [node("a"), node("b"), node("d"), node("k", TOLD)]
    edges = [order("d -> k"), on_failure("a.error -> k.x")]
    edges += [on_failure(f"{name} -> k") for name in others]
    result = checked(nodes, [".n -> a.x", ".n -> b.x", ".n -> d.x", *edges])
    assert codes == [code for _, code in errors(result)]


def test_the_conversion_of_a_failure_says_what_it_reads() -> None:
    as_text = replace(edge("a.error -> k.x", "failure"), conversion="to_json")
    result = checked([node("a"), node("k", TEXT)], [".n -> a.x", as_text])
    judged = result.definition.connections[1]
    if judged.conversion:  # where the types' own table has such a conversion
        assert expression(judged.source_type) == "dict[str, str]"  # type: ignore[arg-type]


# -- the end, and what undoes


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        (["f.result -> a.x"], [("connections[0]", "FINALLY_FEEDS_MAIN")]),
        ([".n -> a.x", order("f -> a")], [("connections[1]", "FINALLY_FEEDS_MAIN")]),
        ([".n -> a.x", on_failure("a -> f")], [("connections[1]", "FINALLY_CONDITIONAL")]),
        ([".n -> a.x", "a.result -> f.x"], []),
        ([".n -> a.x", order("a -> f")], []),
    ],
)
def test_nothing_waits_for_what_runs_last(
    edges: list[str | Connection], expected: list[tuple[str, str]]
) -> None:
    result = checked([node("a"), node("f", OPTIONAL, phase="finally")], edges)
    assert expected == errors(result)
    assert "f" not in outputs(result)


@pytest.mark.parametrize(
    ("reader", "edges", "expected"),
    [
        (node("r", OPTIONAL, phase="finally"), ["a.result -> r.x"], {"a": "int"}),
        (node("r", compensates="a"), ["a.result -> r.x"], {"a": "int"}),
        (
            node("r", OPTIONAL, join=Join(policy="n_of", count=2)),
            ["a.result -> r.x", on_failure("b -> r")],
            {"a": "int", "b": "int | None", "r": "int | None"},
        ),
        (
            node("r", OPTIONAL),
            ["a.result -> r.x", on_failure("b -> r")],  # it runs where b fails
            {"a": "int", "b": "int | None", "r": "int | None"},
        ),
        (node("r", OPTIONAL), ["a.result -> r.x", order("b -> r")], {"r": "int"}),
        (
            node("r", NULLABLE),
            ["a.result -> r.x", on_failure("a -> r")],
            {"r": "int"},
        ),
    ],
)
def test_the_last_that_a_run_works_out_is_its_answer_whoever_else_reads_it(
    reader: WorkflowNode, edges: list[str | Connection], expected: dict[str, str]
) -> None:
    nodes = [node("a"), node("b"), reader]
    result = checked(nodes, [".n -> a.x", ".n -> b.x", *edges])
    assert [] == errors(result)
    assert {"b": "int", **expected} == outputs(result)


def test_what_a_failure_leads_to_shows_its_own_last_alone() -> None:
    nodes = [node("a"), node("h", OPTIONAL), node("k")]
    result = checked(nodes, [".n -> a.x", on_failure("a -> h"), "h.result -> k.x"])
    assert {"a": "int | None", "k": "int | None"} == outputs(result)


@pytest.mark.parametrize("last", [{"phase": "finally"}, {"compensates": "s"}])
def test_a_workflow_in_a_workflow_is_the_answer_though_something_runs_last(
    last: dict[str, str],
) -> None:
    nodes = [node("s", SUB, construct=SubWorkflow()), node("r", TEXT, **last)]
    edges: list[str | Connection] = [".n -> s.n"]
    if "phase" in last:
        nodes[1] = node("r", OPTIONAL, **last)
        edges.append(order("s -> r"))
    else:
        edges.append("s.result -> r.x")
    result = checked(nodes, edges)
    assert ([], {"s": "str"}) == (errors(result), outputs(result))


def test_what_runs_last_reads_what_may_not_be_there() -> None:
    nodes = [node("a"), node("f", phase="finally")]
    result = checked(nodes, [".n -> a.x", "a.result -> f.x"])
    assert [("connections[1]", "INPUT_MAY_BE_ABSENT")] == errors(result)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"compensates": "a"}, []),
        ({"compensates": "z"}, [("nodes[2].compensates", "UNKNOWN_NODE")]),
        ({"compensates": "u"}, [("nodes[2].compensates", "COMPENSATES_ITSELF")]),
        ({"compensates": "f"}, [("nodes[2].compensates", "COMPENSATES_NOT_MAIN")]),
        ({"compensates": "a", "phase": "finally"}, [("nodes[2].phase", "PHASE_CONFLICT")]),
    ],
)
def test_what_undoes_names_a_main_node(
    fields: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    nodes = [
        node("a"),
        node("f", OPTIONAL, phase="finally"),
        node("u", OPTIONAL, **fields),
        node("b", OPTIONAL),
    ]
    assert expected == errors(checked(nodes, [".n -> a.x", order("a -> b")]))


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (edge("a.result -> u.x"), None),
        (edge("b.result -> u.x"), "COMPENSATION_SOURCE"),
        (order("a -> u"), "COMPENSATION_SOURCE"),
        (edge("u.result -> b.x"), "COMPENSATION_FEEDS"),
    ],
)
def test_what_undoes_reads_only_what_it_undoes(wrong: Connection, code: str | None) -> None:
    nodes = [node("a"), node("b", OPTIONAL), node("u", OPTIONAL, compensates="a")]
    expected = [("connections[1]", code)] if code else []
    assert expected == errors(checked(nodes, [".n -> a.x", wrong]))


def test_a_cycle_of_any_kinds_of_edges_is_found() -> None:
    """B44."""
    nodes = [SPLIT, node("a", OPTIONAL), node("b", OPTIONAL)]
    edges: list[str | Connection] = [
        on_branch("c -> a", "big"),
        on_failure("a -> b"),
        order("b -> c"),
        ".n -> c.x",
    ]
    codes = {each.code: each.message for each in checked(nodes, edges).findings}
    assert "c → a → b → c" in codes["CYCLE"]


# -- maps


def test_a_map_takes_a_list_by_its_elements_and_gives_lists() -> None:
    result = checked(
        [node("a", PAIR), node("m", FLOATS, mapped=Map(input="x")), node("z", PAIR)],
        [".n -> a.x", "a.result -> m.x"],
    )
    assert "list[float]" == outputs(result)["m"]
    judged = result.definition.connections[1]
    # Each element is converted, which so says what it reads.
    assert ("int_to_float", INT) == (judged.conversion, judged.source_type)


def test_the_conversion_of_a_mapped_output_reads_lists() -> None:
    nodes = [node("m", mapped=Map(input="x")), node("b", FLOATS, mapped=Map(input="x"))]
    result = checked(nodes, [".n -> m.x", "m.result -> b.x"])
    assert ["list[int]"] == [expression(e.type) for e in result.definition.inputs if e.type]
    assert INT == result.definition.connections[1].source_type


@pytest.mark.parametrize(
    ("mapped", "expected"),
    [
        (Map(input="x", max_failed=1), "list[int | None]"),
        (Map(input="x", max_failed_ratio=0.1), "list[int | None]"),
        (Map(input="x", max_failed=0), "list[int]"),
        (Map(input="x", depth=3), "list[list[list[int]]]"),
        (Map(input="x", depth=2, max_failed=1), "list[list[int | None]]"),
    ],
)
def test_elements_that_may_fail_may_be_none(mapped: Map, expected: str) -> None:
    assert {"m": expected} == outputs(checked([node("m", mapped=mapped)], [".n -> m.x"]))


@pytest.mark.parametrize(
    ("fields", "edges", "expected"),
    [
        ({"mapped": Map(input="x")}, ["b.result -> m.x"], ("connections[1]", "MAP_NOT_A_LIST")),
        (
            {"mapped": Map(input="x", depth=2)},
            ["a.result -> m.x"],
            ("connections[1]", "MAP_NOT_A_LIST"),
        ),
        (
            {"mapped": Map(input="q")},
            [".n -> m.x"],
            ("nodes[2].for_each.input", "UNKNOWN_INPUT"),
        ),
        (
            {"mapped": Map(input="x"), "literals": {"x": "3"}},
            [],
            ("nodes[2].literals[0].value_json", "VALUE_NOT_OF_TYPE"),
        ),
        (
            {"mapped": Map(input="x"), "loop": Loop(condition="turn < 3", max_turns=3)},
            ["a.result -> m.x"],
            ("nodes[2].repeat", "MAP_AND_LOOP"),
        ),
    ],
)
def test_a_map_over_what_is_no_list_has_its_place(
    fields: dict[str, Any], edges: list[str], expected: tuple[str, str]
) -> None:
    nodes = [node("a", PAIR), node("b"), node("m", **fields)]
    assert expected in errors(checked(nodes, [".n -> a.x", *edges, ".k -> b.x"]))


def test_a_mapped_input_has_to_be_fed() -> None:
    result = checked([node("m", OPTIONAL, mapped=Map(input="x"))], [])
    assert [("nodes[0]", "INPUT_MISSING")] == hindering(result)


# -- loops


@pytest.mark.parametrize(
    ("on", "loop", "expected"),
    [
        (ONE, Loop(condition="result < 9 && turn < x", max_turns=9, carry=(("x", "result"),)), []),
        (
            ONE,
            Loop(condition="turn < 3", max_turns=9, carry=(("q", "result"), ("x", "no"))),
            [("carry[0].input", "UNKNOWN_INPUT"), ("carry[1].output", "UNKNOWN_OUTPUT")],
        ),
        (
            ONE,
            Loop(condition="turn < 3", max_turns=9, carry=(("x", "result"),) * 2),
            [("carry[1].input", "DUPLICATE_CARRY")],
        ),
        (ONE, Loop(condition="z < 3", max_turns=9), [("condition", "EXPRESSION_INVALID")]),
        (ONE, Loop(condition="turn + 1", max_turns=9), [("condition", "EXPRESSION_NOT_BOOLEAN")]),
        (ONE, Loop(condition='turn > "a"', max_turns=9), [("condition", "EXPRESSION_TYPES")]),
        (ONE, Loop(condition="x + result > 1", max_turns=9), []),
        (ONE, Loop(condition="result", max_turns=9), [("condition", "EXPRESSION_NOT_BOOLEAN")]),
    ],
)
def test_a_loop_carries_outputs_into_inputs(
    on: UUID, loop: Loop, expected: list[tuple[str, str]]
) -> None:
    found = errors(checked([node("a", on, loop=loop)], [".n -> a.x"]))
    assert [(f"nodes[0].repeat.{part}", code) for part, code in expected] == found


def test_what_a_loop_carries_fits_as_it_stands() -> None:
    turned = signature({"x": INT}, FLOAT)
    loop = Loop(condition="turn < 3", max_turns=3, carry=(("x", "result"),))
    definition = Definition(nodes=(node("a", loop=loop, literals={"x": "1"}),))
    result = check(definition, {(ONE, 0): turned})
    assert [("nodes[0].repeat.carry[0]", "TYPE_REFUTED")] == errors(result)


# -- sub-workflows


def test_a_workflow_stands_in_another_with_its_inputs_and_outputs() -> None:
    result = checked([node("s", SUB, construct=SubWorkflow())], [".k -> s.n"])
    assert [] == hindering(result)
    assert {"s": "str"} == outputs(result)


@pytest.mark.parametrize(
    ("place", "code"),
    [
        (node("s", ONE, construct=SubWorkflow()), "SUB_WORKFLOW_NOT_FOUND"),
        (node("s", SUB), "NODE_NOT_FOUND"),
        (node("s", uuid4(), version=3, construct=SubWorkflow()), "SUB_WORKFLOW_VERSION_NOT_FOUND"),
    ],
)
def test_a_node_is_no_workflow_and_a_workflow_no_node(place: WorkflowNode, code: str) -> None:
    assert [code] == [each for _, each in errors(checked([place], []))]


def known(*runs: tuple[int, int], active: bool = True) -> dict[tuple[UUID, int], Known]:
    """Workflows by number, each at version 1, with those that they run."""
    numbers = {each for pair in runs for each in pair}
    return {
        (UUID(int=at), 1): Known(
            f"w{at}", active, [(UUID(int=to), 1) for owner, to in runs if owner == at]
        )
        for at in numbers
    }


def runs_first(**fields: Any) -> Definition:
    return Definition(nodes=(node("s", UUID(int=1), version=1, construct=SubWorkflow(), **fields),))


@pytest.mark.parametrize(
    ("runs", "code"),
    [
        ([(1, 2), (2, 9)], "SUB_WORKFLOW_CYCLE"),
        ([(1, 2), (2, 3), (3, 2)], "SUB_WORKFLOW_CYCLE"),
        ([(at, at + 1) for at in range(1, DEPTH_MAX + 1)], "SUB_WORKFLOW_TOO_DEEP"),
        ([(at, at + 1) for at in range(1, DEPTH_MAX)], None),
        ([(1, 2), (1, 3), (2, 4), (3, 4)], None),
    ],
)
def test_a_run_neither_contains_itself_nor_goes_too_deep(
    runs: list[tuple[int, int]], code: str | None
) -> None:
    """B56: w9 is the workflow that is checked."""
    workflow_id = UUID(int=9) if code == "SUB_WORKFLOW_CYCLE" else None
    found = sub_workflow_findings(runs_first(), workflow_id, known(*runs))
    assert ([("nodes[0]", code)] if code else []) == [(each.place, each.code) for each in found]


def test_a_draft_is_not_run_by_another() -> None:
    found = sub_workflow_findings(runs_first(), None, known((1, 2), active=False))
    assert [("warning", "SUB_WORKFLOW_INACTIVE")] == [(e.severity, e.code) for e in found]


# -- sizes, and what is stored


@pytest.mark.parametrize("policy", ["continue", "order"])
def test_a_chain_of_ten_thousand_that_may_each_fail_is_checked_in_little_memory(
    policy: str,
) -> None:
    count = 10_000
    nodes = [node(f"n{at}", OPTIONAL, on_failure="continue") for at in range(count)]
    link = order if policy == "order" else (lambda text: edge(text.replace(" ->", ".result ->")))
    edges: list[str | Connection] = [
        link(f"n{at} -> n{at + 1}" + ("" if policy == "order" else ".x")) for at in range(count - 1)
    ]
    assert [] == errors(checked(nodes, edges))


def test_the_stored_form_has_no_key_that_is_not_used() -> None:
    stored = definition_to_json(checked([node("a")], [".n -> a.x"]).definition)
    assert {
        "id",
        "type",
        "node_id",
        "version",
        "parameters",
        "retry",
        "timeout_ms",
        "memory_bytes",
    } == set(stored["nodes"][0])
    assert {
        "source",
        "source_output",
        "target",
        "target_input",
        "conversion",
        "verdict",
    } == set(stored["connections"][0])


def test_the_stored_form_is_what_the_engine_reads() -> None:
    nodes = [
        choice("c", big="x > 10"),
        node("m", mapped=Map(input="x", max_failed=2), join=Join(policy="n_of", count=1)),
        node("l", loop=Loop(condition="turn < 3", max_turns=4, carry=(("x", "result"),))),
        node("u", OPTIONAL, compensates="l", total_timeout_ms=5),
        node("f", OPTIONAL, phase="finally"),
        built_in("s", Signal(name="go", type=INT, timeout_ms=7, default_json="1")),
        node("w", SUB, version=0, construct=SubWorkflow(), on_failure="continue"),
    ]
    edges: list[str | Connection] = [
        ".n -> c.x",
        on_branch("c -> m", "big"),
        ".ns -> m.x",
        ".n -> l.x",
        ".n -> w.n",
    ]
    stored = definition_to_json(checked(nodes, edges).definition)
    by_id = {each["id"]: each for each in stored["nodes"]}
    assert {"branches": [{"name": "big", "condition": "x > 10"}], "default": None} == by_id["c"][
        "choice"
    ]
    assert "choice" == by_id["c"]["kind"]
    assert {
        "input": "x",
        "depth": 1,
        "max_in_flight": None,
        "max_failed": 2,
        "max_failed_ratio": None,
    } == by_id["m"]["map"]
    assert {"policy": "n_of", "count": 1} == by_id["m"]["join"]
    assert {
        "condition": "turn < 3",
        "max_turns": 4,
        "carry": {"x": "result"},
        "at_max": "finish",
    } == by_id["l"]["loop"]
    assert ("l", 5) == (by_id["u"]["compensates"], by_id["u"]["total_timeout_ms"])
    assert "finally" == by_id["f"]["phase"]
    assert {"name": "go", "type": {"t": "int"}, "timeout_ms": 7, "default": "1"} == by_id["s"][
        "signal"
    ]
    assert ("workflow", "continue") == (by_id["w"]["kind"], by_id["w"]["on_failure"])
    branch = next(each for each in stored["connections"] if each.get("kind") == "branch")
    assert ("big", "", "") == (branch["branch"], branch["source_output"], branch["target_input"])
    assert stored == definition_to_json(definition_from_json(stored))


def test_outputs_of_what_may_be_skipped_are_optional_where_declared_too() -> None:
    shown = (WorkflowOutput(name="a", node="a", output="result"),)
    result = checked([SPLIT, node("a")], WAYS, outputs=shown)
    assert {"a": "int | None"} == outputs(result)


def test_a_first_wait_that_the_longest_cuts_short_is_told() -> None:
    crossed = Retry(max_retries=1, initial_delay_ms=100_000, max_delay_ms=1_000)
    told = [
        (each.place, each.code, each.message)
        for each in checked([node("a", retry=crossed, literals={"x": "1"})], []).findings
        if each.code == "RETRY_DELAYS_CROSSED"
    ]
    said = "a never waits its initial_delay of 100 s: max_delay allows 1 s"
    assert [("nodes[0].retry", "RETRY_DELAYS_CROSSED", said)] == told


@pytest.mark.parametrize("at", [0, 1])
def test_what_is_undone_is_not_cached_and_neither_is_what_undoes_it(at: int) -> None:
    """Another run would be given a payment that was given back."""
    places = [node("pay"), node("refund", compensates="pay")]
    places[at] = replace(places[at], cache_ttl_ms=5000)
    found = errors(checked(places, []))
    assert [(f"nodes[{at}].cache_ttl", "SETTING_NOT_HERE")] == [
        each for each in found if each[1] == "SETTING_NOT_HERE"
    ]
