"""What a graph has besides: kept by every form in which a workflow is told, seen in pictures."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.etree import ElementTree as ET

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qflow.registry.v1 import workflow_pb2 as pb
from qflow.types import SCALARS, from_text

from services.registry.domain import builtins
from services.registry.domain.chart import chart_of
from services.registry.domain.constructs import (
    Approval,
    Branch,
    Choice,
    Construct,
    Join,
    Loop,
    Map,
    Requirements,
    Signal,
    Sleep,
    SubWorkflow,
)
from services.registry.domain.definition import (
    Connection,
    Definition,
    Retry,
    WorkflowNode,
)
from services.registry.domain.document import DocumentError, read_json, to_json_lines
from services.registry.domain.exchange import Source, bundled, written
from services.registry.domain.exchange_reading import read
from services.registry.domain.mermaid import mermaid
from services.registry.domain.stored import definition_from_json, definition_to_json
from services.registry.domain.svg import svg
from services.registry.domain.workflow_diff import workflow_diff
from services.registry.domain.yaml_text import read_yaml, to_yaml
from services.registry.rpc.workflow_codec import definition_from_pb, definition_to_pb

_EXAMPLES = 200 if os.environ.get("QFLOW_TEST_FULL") else 50
NODE, OTHER = UUID(int=2**100 + 7), UUID(int=2**100 + 8)
INT = SCALARS["int"]
SOURCE = Source(
    name="n", description="", python_version="3.11", main_function="f", digest="sha256:0", code="x"
)

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
conditions = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
spans = st.none() | st.integers(1, 10**9)
types = st.sampled_from([SCALARS["int"], SCALARS["str"], SCALARS["any"]])
constructs: st.SearchStrategy[Construct | None] = st.one_of(
    st.none(),
    st.just(Sleep()),
    st.just(SubWorkflow()),
    st.builds(
        Choice,
        branches=st.lists(st.builds(Branch, names, conditions), max_size=3).map(tuple),
        default=st.none() | names,
    ),
    st.builds(
        Signal,
        name=names,
        type=types,
        timeout_ms=spans,
        default_json=st.none() | st.sampled_from(["1", '"a"', '{"$json": 1}', "[1, 2]"]),
    ),
    st.builds(Approval, name=names, type=st.none() | types, timeout_ms=spans),
)
maps = st.builds(
    Map,
    input=names,
    depth=st.integers(1, 3),
    max_in_flight=st.none() | st.integers(1, 10_000),
    max_failed=st.none() | st.integers(0, 10_000),
    max_failed_ratio=st.none() | st.floats(0, 1),
)
requirements = st.builds(
    Requirements,
    isolation=st.sampled_from(["", "T1", "T3"]),
    labels=st.dictionaries(st.sampled_from(["zone", "disk"]), names).map(
        lambda each: tuple(sorted(each.items()))
    ),
    cpus=st.integers(0, 1024),
    memory_bytes=st.integers(0, 2**40),
    gpus=st.integers(0, 64),
)
loops = st.builds(
    Loop,
    condition=conditions,
    max_turns=st.integers(1, 1_000),
    carry=st.dictionaries(names, names, max_size=3).map(lambda each: tuple(each.items())),
    at_max=st.sampled_from(["finish", "fail"]),
)
retries = st.builds(
    Retry,
    retryable=st.lists(names, max_size=2).map(tuple),
    non_retryable=st.lists(names, max_size=2).map(tuple),
)


@st.composite
def places(draw: st.DrawFn, name: str) -> WorkflowNode:
    construct = draw(constructs)
    node_id, version = NODE, draw(st.sampled_from([0, 1]))
    if isinstance(construct, SubWorkflow):
        node_id = OTHER
    elif construct is not None:
        node_id, version = builtins.BY_KIND[construct.kind].id, 0
    return WorkflowNode(
        id=name,
        node_id=node_id,
        version=version,
        construct=construct,
        retry=draw(st.none() | retries),
        join=draw(
            st.none()
            | st.sampled_from(["all", "any", "all_done"]).map(lambda each: Join(policy=each))
            | st.integers(1, 9).map(lambda each: Join(policy="n_of", count=each))
        ),
        condition=draw(st.just("") | conditions),
        on_failure=draw(st.sampled_from(["", "continue"])),
        phase=draw(st.sampled_from(["", "finally"])),
        compensates=draw(st.sampled_from(["", "a"])),
        mapped=draw(st.none() | maps),
        loop=draw(st.none() | loops),
        queue_timeout_ms=draw(spans),
        total_timeout_ms=draw(spans),
        heartbeat_timeout_ms=draw(spans),
        cache_ttl_ms=draw(spans),
        reuse=draw(st.sampled_from(["", "warm", "fork", "fresh", "container"])),
        runner=draw(st.none() | requirements),
        concurrency=draw(st.sampled_from([0, 1, 64])),
    )


@st.composite
def definitions(draw: st.DrawFn) -> Definition:
    nodes = tuple(draw(places(name)) for name in ("a", "b", "c"))
    bare = Connection(source="a", source_output="", target="b", target_input="")
    edges = [
        replace(bare, source_output="result", target_input="x.y", verdict="exact"),
        replace(bare, kind="order"),
        replace(bare, kind="branch", branch=draw(names)),
        replace(bare, kind="failure"),
        replace(bare, source_output="error", target_input="z", kind="failure"),
        Connection(source="", source_output="n", target="c", target_input="x"),
    ]
    return Definition(nodes=nodes, connections=tuple(draw(st.permutations(edges)))[:4])


def told(definition: Definition) -> Definition:
    """Leave out what only the check says, and read types as a caller's text."""
    nodes = tuple(
        replace(each, construct=replace(each.construct, type_text=""))
        if isinstance(each.construct, Signal | Approval)
        else each
        for each in definition.nodes
    )
    edges = tuple(replace(each, verdict="") for each in definition.connections)
    return replace(definition, nodes=nodes, connections=edges)


def with_types(definition: Definition) -> Definition:
    """Do what the check does to types that were read as texts."""
    nodes = []
    for each in definition.nodes:
        construct = each.construct
        if isinstance(construct, Signal | Approval) and construct.type_text:
            construct = replace(construct, type=from_text(construct.type_text), type_text="")
        nodes.append(replace(each, construct=construct))
    return told(replace(definition, nodes=tuple(nodes)))


@settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(definitions())
def test_a_stored_graph_is_the_same_after_a_document(definition: Definition) -> None:
    stored = definition_to_json(definition)
    assert definition == definition_from_json(stored)
    keys = {(each.node_id, each.version) for each in definition.nodes if each.construct is None}
    bundle = bundled("w", "", definition, dict.fromkeys(keys, SOURCE))
    document = written(bundle)
    for read_back in (read(read_yaml(to_yaml(document))), read(read_json(to_json_lines(document)))):
        again = with_types(read_back.bundle.definition)
        assert told(bundle.definition) == again
        once_more = replace(bundle, definition=again)
        assert document == written(once_more)


@settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(definitions())
def test_a_stored_graph_is_the_same_after_a_message(definition: Definition) -> None:
    message = definition_to_pb(definition)
    again = pb.WorkflowDefinition.FromString(message.SerializeToString())
    assert told(definition) == with_types(definition_from_pb(again))


@settings(max_examples=_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(definitions())
def test_every_graph_is_drawn_and_is_no_other_than_itself(definition: Definition) -> None:
    chart = chart_of("w", definition, ["n"] * 3)
    assert ET.fromstring(svg(chart)) is not None
    assert mermaid(chart).startswith("---")
    assert [] == list(workflow_diff(definition, definition))


DRAWN = Definition(
    nodes=(
        WorkflowNode(
            id="which",
            node_id=builtins.CHOICE.id,
            construct=Choice(branches=(Branch("big", "x > 1"),)),
        ),
        WorkflowNode(id="each", node_id=NODE, mapped=Map(input="x")),
        WorkflowNode(id="turns", node_id=NODE, loop=Loop(condition="turn < 3", max_turns=9)),
        WorkflowNode(id="inner", node_id=OTHER, construct=SubWorkflow()),
        WorkflowNode(id="mend", node_id=NODE),
    ),
    connections=(
        Connection(source="", source_output="n", target="which", target_input="x"),
        Connection(
            source="which",
            source_output="",
            target="each",
            target_input="",
            kind="branch",
            branch="big",
        ),
        Connection(source="each", source_output="", target="mend", target_input="", kind="failure"),
        Connection(source="each", source_output="", target="turns", target_input="", kind="order"),
    ),
)
CALLED = ["Choice", "one", "two", "three", "four"]


def test_a_picture_shows_what_a_graph_does() -> None:
    image = svg(chart_of("w", DRAWN, CALLED))
    root = ET.fromstring(image)
    space = "{http://www.w3.org/2000/svg}"
    assert 1 == len(root.findall(f".//{space}polygon"))  # the choice is a diamond
    dashed = [p for p in root.iter(f"{space}path") if p.get("stroke-dasharray")]
    assert {"#dc2626", "#94a3b8"} >= {each.get("stroke") for each in dashed}
    texts = {each.text for each in root.iter(f"{space}text")}
    assert {"one · for each of x", "two · up to 9 turns", "three · workflow", "big"} <= texts
    assert {"on failure", "runs after", "branch"} <= texts
    text = mermaid(chart_of("w", DRAWN, CALLED))
    assert 'b1{"which<br/>Choice"}:::choice' in text
    assert 'b1 -->|"big"| b2' in text
    assert 'b2 -.->|"on failure"| b5' in text


def test_a_diff_tells_each_part_of_what_changed() -> None:
    each = DRAWN.nodes[1]
    changed = replace(
        DRAWN,
        nodes=(
            replace(
                DRAWN.nodes[0],
                construct=Choice(branches=(Branch("big", "x > 2"),), default="rest"),
            ),
            replace(each, mapped=Map(input="x", max_failed=3), condition="x != []"),
            *DRAWN.nodes[2:],
        ),
        connections=DRAWN.connections[:3],
    )
    assert [
        ("changed", "nodes.which.choice.branches.0.condition", "x > 1", "x > 2"),
        ("added", "nodes.which.choice.default", "", "rest"),
        ("added", "nodes.each.condition", "", "x != []"),
        ("added", "nodes.each.map.max_failed", "", "3"),
        ("removed", "connections.each>turns (order)", "", ""),
    ] == [(e.kind, e.place, e.before, e.after) for e in workflow_diff(DRAWN, changed)]


@pytest.mark.parametrize(
    ("node", "path", "code"),
    [
        ({}, "nodes.a", "KEY_MISSING"),
        ({"sleep": {}, "signal": {}}, "nodes.a", "KEY_MISSING"),
        ({"sleep": {"x": "1"}}, "nodes.a.sleep.x", "KEY_UNKNOWN"),
        ({"workflow": {"id": "no"}}, "nodes.a.workflow.id", "VALUE_INVALID"),
        ({"workflow": {}}, "nodes.a.workflow", "KEY_MISSING"),
        ({"choice": {"branches": [{"name": "x"}]}}, "nodes.a.choice.branches[0]", "KEY_MISSING"),
        ({"sleep": {}, "phase": "first"}, "nodes.a.phase", "VALUE_INVALID"),
        ({"sleep": {}, "join": {"policy": "most"}}, "nodes.a.join.policy", "VALUE_INVALID"),
        ({"sleep": {}, "loop": {"condition": "x"}}, "nodes.a.loop", "KEY_MISSING"),
        ({"sleep": {}, "map": {"input": "x", "depth": "y"}}, "nodes.a.map.depth", "VALUE_INVALID"),
    ],
)
def test_a_fault_in_a_document_has_its_place(node: dict[str, Any], path: str, code: str) -> None:
    text = to_json_lines({"format": "qflow.workflow/1", "name": "w", "nodes": {"a": node}})
    with pytest.raises(DocumentError) as caught:
        read(read_json(text))
    assert (path, code) in [(each.path, each.code) for each in caught.value.faults]


@pytest.mark.parametrize(
    ("edge", "path"),
    [
        ({"from": "a", "to": "b", "kind": "maybe"}, "connections[0].kind"),
        ({"from": "a", "to": "b"}, "connections[0].from"),
        ({"from": "a", "to": "b", "branch": "x", "kind": "order"}, "connections[0].kind"),
    ],
)
def test_a_fault_of_an_edge_in_a_document_has_its_place(edge: dict[str, Any], path: str) -> None:
    nodes: dict[str, Any] = {"a": {"sleep": {}}, "b": {"sleep": {}}}
    document: Any = {
        "format": "qflow.workflow/1",
        "name": "w",
        "nodes": nodes,
        "connections": [edge],
    }
    with pytest.raises(DocumentError) as caught:
        read(read_json(to_json_lines(document)))
    assert path in [each.path for each in caught.value.faults]


def test_the_text_of_the_guide_is_the_one_that_is_exported() -> None:
    guide = (Path(__file__).parents[3] / "docs/graphs.md").read_text(encoding="utf-8")
    text = guide.split("```yaml\n")[1].split("```")[0]
    bundle = read(read_yaml(text)).bundle
    inputs = tuple(
        replace(each, type=from_text(each.type_text)) for each in bundle.definition.inputs
    )
    definition = replace(with_types(bundle.definition), inputs=inputs)
    assert text == to_yaml(written(replace(bundle, definition=definition)))
