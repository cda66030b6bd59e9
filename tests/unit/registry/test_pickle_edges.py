"""Pickles on edges: what every run would refuse is told by the check."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest
from qflow.types import NONE, SCALARS, Type, union_of

from services.registry.domain.constructs import SubWorkflow
from services.registry.domain.definition import INFO, WARNING, Signature
from tests.unit.registry.test_graph import checked, node, signature

PICKLE = SCALARS["pickle"]
MAKES, OPENS = uuid4(), uuid4()


def told(edges: list[str], makes: Signature, opens: Signature) -> list[tuple[str, str, str]]:
    first = node("a", MAKES)
    if makes.is_workflow:
        first = replace(first, construct=SubWorkflow())
    result = checked([first, node("b", OPENS)], edges, {MAKES: makes, OPENS: opens})
    return [
        (each.severity, each.place, each.code)
        for each in result.findings
        if each.code.startswith("PICKLE")
    ]


def makes(version: str = "3.11", *, is_workflow: bool = False) -> Signature:
    made = signature(inputs={}, outputs={"result": PICKLE})
    return replace(made, python_version=version, is_workflow=is_workflow)


def opens(of: Type = PICKLE) -> Signature:
    return signature(inputs={"x": of}, outputs={"result": SCALARS["int"]})


def test_a_pickle_of_the_same_run_and_python_is_nothing_to_tell() -> None:
    assert [] == told(["a.result -> b.x"], makes(), opens())


@pytest.mark.parametrize(
    ("of", "severity"),
    [(PICKLE, WARNING), (union_of((PICKLE, NONE)), INFO)],
    ids=["only", "or none"],
)
def test_no_caller_can_bring_a_pickle(of: Type, severity: str) -> None:
    expected = [(severity, "connections[0]", "PICKLE_FROM_OUTSIDE")]
    assert expected == told([".n -> b.x"], makes(), opens(of))


def test_a_pickle_does_not_pass_between_workflows() -> None:
    expected = [(WARNING, "connections[0]", "PICKLE_BETWEEN_RUNS")]
    assert expected == told(["a.result -> b.x"], makes("", is_workflow=True), opens())


def test_a_pickle_of_another_python_is_told() -> None:
    expected = [(INFO, "connections[0]", "PICKLE_OTHER_PYTHON")]
    assert expected == told(["a.result -> b.x"], makes("3.13"), opens())
