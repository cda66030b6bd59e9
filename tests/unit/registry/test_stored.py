"""Definitions as the tables keep them, whoever wrote them: what says little says the defaults."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from services.registry.domain.constructs import Approval, Choice, Construct, Loop, Signal
from services.registry.domain.definition import (
    MEMORY_BYTES_DEFAULT,
    TIMEOUT_MS_DEFAULT,
    WorkflowNode,
)
from services.registry.domain.stored import definition_from_json, definition_to_json

NODE = uuid4()


def stored(**place: Any) -> dict[str, Any]:
    """Give a graph of two places of which nothing is said that has a default."""
    first = {"id": "first", "type": "python", "node_id": str(NODE), **place}
    edge = {"source": "first", "source_output": "result", "target": "last", "target_input": "x"}
    return {
        "nodes": [first, {"id": "last", "type": "python", "node_id": str(NODE)}],
        "connections": [edge],
        "settings": None,
        "input_types": [],
        "output_types": [],
    }


def test_a_place_of_which_little_is_stored_has_the_defaults_of_the_rest() -> None:
    place = definition_from_json(stored()).nodes[0]
    assert WorkflowNode(id="first", node_id=NODE) == place
    assert (TIMEOUT_MS_DEFAULT, MEMORY_BYTES_DEFAULT) == (place.timeout_ms, place.memory_bytes)


@pytest.mark.parametrize(
    ("kind", "said", "expected"),
    [
        ("choice", {"branches": []}, Choice()),
        ("signal", {}, Signal()),
        ("approval", {}, Approval()),
    ],
)
def test_a_construct_of_which_little_is_stored_has_the_defaults_of_the_rest(
    kind: str, said: dict[str, Any], expected: Construct
) -> None:
    definition = definition_from_json(stored(kind=kind, **{kind: said}))
    assert expected == definition.nodes[0].construct
    assert definition == definition_from_json(definition_to_json(definition))


def test_a_loop_that_carries_nothing_need_not_say_so() -> None:
    definition = definition_from_json(stored(loop={"condition": "turn < 3", "max_turns": 3}))
    assert Loop(condition="turn < 3", max_turns=3) == definition.nodes[0].loop
