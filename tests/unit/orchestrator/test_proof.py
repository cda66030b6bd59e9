"""New inputs and versions held against what stands at places, and what was recorded."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from services.kit.errors import FailedPrecondition, InvalidArgument
from services.orchestrator.domain import reuse
from services.orchestrator.domain.plan import Definition
from services.orchestrator.domain.proof import RUN, new_inputs, prove
from services.orchestrator.domain.reuse import FromNode
from tests.unit.orchestrator.test_compatibility import FLOAT, INT, STR, edge, version

CHOICE = {"branches": [{"name": "yes", "condition": "n > 5"}], "default": None}
LOOP = {"condition": "turn < 3", "max_turns": 3, "carry": {"x": "result"}, "at_max": "stop"}
GRAPH = Definition(
    workflow_id=uuid.uuid4(),
    version=1,
    nodes=[
        {"id": "a"},
        {"id": "pick", "kind": "choice", "choice": CHOICE, "parameters": {"word": '"w"'}},
        {"id": "rest", "kind": "sleep"},
        {"id": "ask", "kind": "approval", "approval": {"name": "ask"}},
        {"id": "wait", "kind": "signal", "signal": {"name": "go"}},
        {"id": "sub", "kind": "workflow", "node_id": str(uuid.uuid4())},
        {"id": "m", "map": {"input": "x", "depth": 2}},
        {"id": "l", "loop": LOOP},
        {"id": "rescue"},
    ],
    connections=[
        edge("", "x", "a", "x"),
        edge("a", "result", "pick", "n"),
        edge("", "s", "rest", "seconds"),
        edge("", "x", "sub", "x"),
        edge("", "lists", "m", "x"),
        edge("", "x", "l", "x"),
        {**edge("a", "error", "rescue", "error"), "kind": "failure"},
    ],
    settings={},
    input_types=[
        {"name": "x", "type": INT},
        {"name": "s", "type": FLOAT},
        {"name": "lists", "type": {"t": "list", "item": {"t": "list", "item": INT}}},
    ],
    output_types=[],
)
ONE = version({"x": INT}, {"result": INT})
ERROR = version({"error": {"t": "dict", "key": STR, "value": STR}}, {"result": INT})
VERSIONS = {**dict.fromkeys(("a", "m", "l", "sub"), ONE), "rescue": ERROR}
RECORDED = {RUN: {"x": b"1", "s": b"0", "lists": b"[[1]]"}, "a": {"result": b"2"}}


@pytest.mark.parametrize(
    ("place", "inputs"),
    [
        ("pick", '{"n":9}'),
        ("pick", '{"word":null}'),
        ("rest", '{"seconds":0.5}'),
        ("ask", '{"subject":[1]}'),
        ("sub", '{"x":4}'),
        ("m", '{"x":[[5],[],[6,7]]}'),
        ("l", '{"x":3}'),
    ],
)
def test_any_kind_of_place_takes_new_inputs(place: str, inputs: str) -> None:
    """They are then proven as whatever is written into a place."""
    edits = new_inputs([FromNode(node_id=place, input_json=inputs)], GRAPH, VERSIONS)
    [(name, value)] = json.loads(inputs).items()
    assert (place, name) == (next(iter(edits)), next(iter(edits[place])))
    assert value == json.loads(edits[place][name])
    prove(reuse.edited(GRAPH, edits), VERSIONS, {}, RECORDED)


@pytest.mark.parametrize(
    ("place", "inputs", "said"),
    [
        ("pick", '{"n":"z"}', "n: is text; int was expected"),
        ("pick", '{"q":1}', "q: is no input of pick; it takes word, n"),
        ("rest", '{"seconds":"z"}', "seconds: is text; float was expected"),
        ("rest", '{"until":"2020-01-01T00:00:00Z"}', "until: is no input of rest; it takes sec"),
        ("wait", '{"x":1}', "x: is no input of wait; it takes none"),
        ("sub", '{"x":"z"}', "x: is text; int was expected"),
        ("m", '{"x":5}', "x: is an integer; list[list[int]] was expected"),
        ("m", '{"x":[5]}', "x[0]: is an integer; list[int] was expected"),
    ],
)
def test_what_does_not_fit_a_place_is_told_by_its_field(place: str, inputs: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        new_inputs([FromNode(node_id=place, input_json=inputs)], GRAPH, VERSIONS)
    assert str(refused.value).startswith(f"from_nodes[0].input_json.{said}")


def test_what_runs_after_a_failure_still_does_with_another_error() -> None:
    edits = {"rescue": {"error": "{}"}}
    links = [each for each in reuse.edited(GRAPH, edits).connections if each["target"] == "rescue"]
    assert [("failure", "")] == [(each["kind"], each["target_input"]) for each in links]


def test_a_version_that_its_types_refute_fits_what_was_recorded() -> None:
    """Of a node, and of the run itself."""
    two: dict[str, Any] = {"t": "literal", "values": [1]}
    versions = VERSIONS | {"a": version({"x": two}, {"result": INT})}
    prove(GRAPH, versions, {}, RECORDED)
    with pytest.raises(FailedPrecondition, match=r"connections\[0\]"):
        prove(GRAPH, versions, {}, {RUN: {"x": b"7"}})


def test_a_turn_of_a_loop_that_does_not_take_what_the_last_gave_is_refused() -> None:
    versions = VERSIONS | {"l": version({"x": INT}, {"result": STR})}
    with pytest.raises(FailedPrecondition, match=r"nodes\[7\]\.repeat\.carry\[0\]"):
        prove(GRAPH, versions, {}, RECORDED)
