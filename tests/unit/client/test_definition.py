"""What a place is told in Python stands in the definition that is stored."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import qflow
from qflow.cli.show import graph_of
from qflow.client.definition import definition
from qflow.isolation.v1 import isolation_pb2
from qflow.registry.v1 import workflow_pb2

# What a place has by what it is or where it stands, and not by its options.
_OF_ITS_PLACE = {
    *("id", "node_id", "version", "literals", "variables", "parameters", "phase", "compensates"),
    *("choice", "sleep", "signal", "approval", "sub_workflow", "for_each", "repeat"),
}
_MINUTE = timedelta(minutes=1)


@qflow.node
def echo(n: int) -> int:
    return n


@qflow.node
def total(ns: list[int]) -> int:
    return sum(ns)


def _stored(**options: Any) -> workflow_pb2.WorkflowNode:
    @qflow.workflow
    def alone(n: int) -> int:
        return echo.options(**options)(n)

    [place] = definition(alone, lambda _: ("00000000-0000-4000-8000-000000000001", 1)).nodes
    return place


def test_every_field_of_a_place_can_be_said_in_python() -> None:
    """A field that is added to the contract is missing here until Python can say it."""
    place = _stored(
        retry=qflow.Retry(max_retries=1),
        timeout=_MINUTE,
        queue_timeout=_MINUTE,
        total_timeout=_MINUTE,
        heartbeat_timeout=_MINUTE,
        cache_ttl=_MINUTE,
        memory_bytes=1 << 30,
        cpu_millicores=500,
        processes=16,
        open_files=256,
        temporary_bytes=1 << 20,
        output_bytes=1 << 10,
        network="egress",
        egress_hosts=["example.com"],
        runner=qflow.Runner(
            isolation="T3", labels={"zone": "eu"}, cpus=2, memory_bytes=1 << 30, gpus=1
        ),
        reuse="fork",
        concurrency=2,
        condition="n > 1",
        join="any",
        continue_on_failure=True,
    )
    assert _OF_ITS_PLACE.isdisjoint(_said(place) - {"id", "node_id", "version"})
    assert _names(place) == _said(place) | _OF_ITS_PLACE
    assert _names(place.limits) == _said(place.limits)
    assert _names(place.runner) == _said(place.runner)
    assert (16, 256, 1 << 20, 1 << 10) == (
        place.limits.processes,
        place.limits.open_files,
        place.limits.temporary_bytes,
        place.limits.output_bytes,
    )
    assert ["example.com"] == place.egress_hosts
    assert (isolation_pb2.NETWORK_EGRESS, isolation_pb2.TIER_T3) == (
        place.network,
        place.runner.isolation,
    )
    assert 60 == place.heartbeat_timeout.seconds


def test_what_is_not_said_is_left_to_the_server() -> None:
    assert {"id", "node_id", "version"} == _said(_stored())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"network": "internet"}, "network: 'internet' is none of none, egress, host"),
        ({"reuse": "hot"}, "reuse: 'hot' is none of warm, fork, fresh, container"),
        ({"runner": qflow.Runner(isolation="T9")}, "runner.isolation: 'T9' is none of T0, T1"),  # type: ignore[arg-type]
    ],
)
def test_a_word_that_is_none_is_refused_with_those_there_are(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(qflow.AuthoringError, match=told):
        _stored(**options)


@pytest.mark.parametrize("option", [{"timeout": 600}, {"memory_bytes": "1GiB"}])
def test_what_is_of_another_type_is_refused_with_its_place(option: dict[str, Any]) -> None:
    with pytest.raises(qflow.AuthoringError, match=r"^echo: "):
        _stored(**option)


def _names(message: Any) -> set[str]:
    return {field.name for field in message.DESCRIPTOR.fields}


def _said(message: Any) -> set[str]:
    return {field.name for field, _ in message.ListFields()}


@qflow.workflow
def inner(n: int) -> int:
    return echo(n)


@qflow.workflow
def parts(ns: list[int]) -> list[int]:
    again = inner.repeat(while_="result > 1", max_turns=2, carry={"n": "result"})(1)
    inner.options(id="undo").undoes(again)(again)
    return inner.options(id="all").each(max_in_flight=3).map(ns)


def test_how_a_sub_workflow_runs_is_said_as_of_a_node() -> None:
    stored = definition(parts, lambda _: ("00000000-0000-4000-8000-000000000001", 1))
    again, undo, mapped = stored.nodes
    assert all(each.HasField("sub_workflow") for each in stored.nodes)
    assert ("n", 3) == (mapped.for_each.input, mapped.for_each.max_in_flight)
    assert ("inner", 2) == (undo.compensates, again.repeat.max_turns)


@qflow.workflow
def pictured(ns: list[int]) -> int:
    each = total(echo.map(ns))
    again = echo.repeat(while_="result > 1", max_turns=2, carry={"n": "result"}).options(id="again")
    size = qflow.choice({"large": "n > 1"}, n=again(each))
    echo.options(id="undo").undoes(each)(each)
    with size.branch("large"), qflow.after(qflow.sleep(1), qflow.approval("boss")):
        last = inner(qflow.signal("word", int))
    with qflow.finally_():
        echo.options(id="clean")(each)
    return last


def test_a_picture_says_how_a_place_runs_written_here_or_stored() -> None:
    stored = definition(pictured, lambda _: ("00000000-0000-4000-8000-000000000001", 1))
    _, _, labels, undoing = graph_of(stored)
    assert (labels, undoing) == pictured.graph.picture()[2:]
    assert {"undo"} == undoing
    assert [
        *("echo [each]", "total", "again [loop]", "choice", "undo [undoes total]"),
        *("sleep", "boss [approval]", "word [signal]", "inner [workflow]"),
        "clean [finally]",
    ] == [*labels.values()]
