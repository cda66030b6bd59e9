"""Variables and parameters in a graph, settings against their table, and how all are stored."""

from __future__ import annotations

import json
from dataclasses import replace
from uuid import UUID

import pytest
from qflow.types import SCALARS, Type, to_json

from services.registry.domain.constructs import Requirements
from services.registry.domain.definition import (
    Checked,
    Definition,
    InputSpec,
    Parameter,
    Retry,
    Signature,
    WorkflowNode,
)
from services.registry.domain.graph import check
from services.registry.domain.node_limits import NodeLimits
from services.registry.domain.setting_table import SETTINGS
from services.registry.domain.stored import definition_from_json, definition_to_json
from services.registry.domain.templates import fill_in
from services.registry.gateways import graph_checker
from services.registry.gateways.graph_checker import GraphChecker

INT, FLOAT, STR = (SCALARS[name] for name in ("int", "float", "str"))
NODE_ID = UUID(int=1)
PARAMETER = Parameter(name="by", type=INT, default_json="7", description="how much")


def node(**fields: object) -> WorkflowNode:
    return WorkflowNode(id="a", node_id=NODE_ID, **fields)  # type: ignore[arg-type]


def bound(*parameters: Parameter, **fields: object) -> Definition:
    return Definition(nodes=(node(**fields),), parameters=parameters)


def checked(definition: Definition, *, takes: Type = INT, **variables: Type) -> Checked:
    spec = InputSpec(type=takes, required=True)
    signature = Signature(python_version="3.11", inputs={"x": spec}, outputs={"result": INT})
    return check(definition, {(NODE_ID, 0): signature}, variables)


def found(result: Checked) -> list[tuple[str, str, str]]:
    return [(each.severity, each.place, each.code) for each in result.findings]


READER = bound(variables=(("x", "by"),))
TEMPLATE = bound(PARAMETER, parameters=(("x", "by"),))


def test_a_variable_of_the_inputs_type_feeds_it() -> None:
    assert [] == found(checked(READER, by=INT))


@pytest.mark.parametrize("of", [STR, FLOAT])
def test_a_variable_that_would_need_a_conversion_is_refused(of: Type) -> None:
    place = "nodes[0].variables[0].variable"
    assert [("error", place, "TYPE_REFUTED")] == found(checked(READER, by=of))
    # As an edge these would be converted.
    assert [("error", place, "TYPE_REFUTED")] == found(checked(READER, takes=FLOAT, by=INT))


def test_a_parameter_feeds_its_input_and_keeps_its_type() -> None:
    text = replace(PARAMETER, type=None, type_text=json.dumps(to_json(INT)))
    result = checked(replace(TEMPLATE, parameters=(text,)))
    assert [] == found(result)
    assert (PARAMETER,) == result.definition.parameters


def test_a_parameter_that_feeds_nothing_is_told_and_an_open_one_hinders_the_start() -> None:
    assert [
        ("warning", "parameters[0]", "PARAMETER_OPEN"),
        ("info", "parameters[0]", "PARAMETER_UNUSED"),
    ] == found(checked(bound(replace(PARAMETER, default_json=None), literals=(("x", "1"),))))


def test_what_is_stored_is_read_back_and_plain_graphs_are_stored_as_ever() -> None:
    whole = replace(TEMPLATE, nodes=(node(variables=(("y", "v"),), parameters=(("x", "by"),)),))
    stored = json.loads(json.dumps(definition_to_json(whole)))
    assert whole == definition_from_json(stored)
    assert ["v"] == stored["settings"]["variables"]
    plain = definition_to_json(bound(literals=(("x", "1"),)))
    assert {} == plain["settings"]
    assert not {"variables", "template_parameters"} & {*plain["nodes"][0]}


async def test_a_child_finds_what_is_found_on_the_spot(monkeypatch: pytest.MonkeyPatch) -> None:
    text = replace(PARAMETER, type=None, type_text='{"t":"str"}', default_json='"a"')
    definition = replace(
        TEMPLATE, nodes=(node(variables=(("x", "by"),), parameters=(("y", "by"),)),)
    )
    definition = replace(definition, parameters=(text,))
    inputs = [
        {"name": name, "type": to_json(INT), "required": True, "default_json": None}
        for name in "xy"
    ]
    row = {
        "python_version": "3.11",
        "input_types": json.dumps(inputs),
        "output_types": json.dumps([{"name": "result", "type": to_json(INT)}]),
    }
    here = await GraphChecker().check(definition, {(NODE_ID, 0): row}, {"by": STR})
    monkeypatch.setattr(graph_checker, "_INLINE_PARTS_MAX", 0)
    there = await GraphChecker().check(definition, {(NODE_ID, 0): row}, {"by": STR})
    assert here == there
    assert {"nodes[0].variables[0].variable", "nodes[0].parameters[0].parameter"} == {
        each.place for each in here.findings
    }


def test_what_is_filled_in_stands_exactly_as_it_was_given() -> None:
    filled = fill_in(TEMPLATE, '{"by": 12345678901234567890}')
    assert () == filled.faults
    assert (("x", "12345678901234567890"),) == filled.definition.nodes[0].literals
    assert () == filled.definition.parameters
    assert (("x", "7"),) == fill_in(TEMPLATE, "").definition.nodes[0].literals


@pytest.mark.parametrize("setting", [each for each in SETTINGS if each.kind != "text"])
def test_a_setting_out_of_its_limits_is_refused_wherever_it_comes_from(setting: object) -> None:
    """B54: the table validates, not the contract alone."""
    outside = {
        "settings.timeout": replace(READER, timeout_ms=0),
        "timeout": bound(timeout_ms=-1),
        "memory_limit_bytes": bound(memory_bytes=1),
        "limits.cpu_millicores": bound(limits=NodeLimits(cpu_millicores=1)),
        "limits.processes": bound(limits=NodeLimits(processes=1)),
        "limits.open_files": bound(limits=NodeLimits(open_files=10**6)),
        "limits.temporary_bytes": bound(limits=NodeLimits(temporary_bytes=1)),
        "limits.output_bytes": bound(limits=NodeLimits(output_bytes=2**40)),
        "queue_timeout": bound(queue_timeout_ms=0),
        "cache_ttl": bound(cache_ttl_ms=999),
        "runner.cpus": bound(runner=Requirements(cpus=-1)),
        "runner.memory_bytes": bound(runner=Requirements(memory_bytes=2**60)),
        "runner.gpus": bound(runner=Requirements(gpus=65)),
        "total_timeout": bound(total_timeout_ms=10**15),
        "heartbeat_timeout": bound(heartbeat_timeout_ms=99),
        "retry.max_retries": bound(retry=Retry(max_retries=10**9)),
        "retry.initial_delay": bound(retry=Retry(initial_delay_ms=-1)),
        "retry.factor": bound(retry=Retry(factor=float("nan"))),
        "retry.max_delay": bound(retry=Retry(max_delay_ms=10**12)),
        "concurrency": bound(concurrency=65),
        "retry.jitter": bound(retry=Retry(jitter=1e99)),
    }[setting.name]  # type: ignore[attr-defined]
    faults = [each for each in checked(outside).findings if each.code == "SETTING_OUT_OF_BOUNDS"]
    [fault] = faults
    assert fault.place.endswith(f".{setting.name}") or fault.place == setting.name  # type: ignore[attr-defined]
    assert "out of bounds" in fault.message


def test_an_argument_that_many_places_take_is_counted_at_each() -> None:
    text = json.dumps("x" * 100_000)
    parameter = Parameter(name="by", type=STR)
    places = tuple(
        WorkflowNode(id=f"n{at}", node_id=NODE_ID, parameters=(("x", "by"),)) for at in range(50)
    )
    filled = fill_in(Definition(nodes=places, parameters=(parameter,)), f'{{"by":{text}}}')
    assert ["ARGUMENTS_TOO_LARGE"] == [each.code for each in filled.faults]
    few = fill_in(Definition(nodes=places[:5], parameters=(parameter,)), f'{{"by":{text}}}')
    assert () == few.faults
