"""The list of executions: what a filter finds, in which order, on how many pages."""

from __future__ import annotations

from typing import Any

import pytest
from qflow.orchestrator.v1 import execution_pb2, rerun_service_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb

from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.control import (
    cancel,
    chain,
    ended,
    refusal,
    reruns,
    start,
)
from tests.integration.orchestrator.test_reruns import retry


def answer(_define: Any, _assign: Any, inputs: dict[str, Any]) -> object:
    if inputs["x"] < 0:
        raise Fail("oom") if inputs["x"] < -1 else Fail(exception="KeyError")
    return inputs["x"]


async def found(orchestra: Orchestra, text: str, **more: Any) -> list[str]:
    """The names of the runs that a filter finds: the label that each was given."""
    request = pb.ListExecutionsRequest(filter=text, **more)
    listed = await orchestra.stub.ListExecutions(request)
    return [each.labels["name"] for each in listed.executions]


_FILTERS = {
    "": "open oom bad child good",
    "status = failed": "oom bad",
    "status != failed": "open child good",
    "status = failed OR status = pending": "open oom bad",
    "error_type = oom": "oom",
    "NOT error_type = oom": "open bad child good",
    "error_type != oom": "open bad child good",
    'error_type : "USER"': "bad",
    "exception_type = KeyError": "bad",
    "exception_type = LookupError": "",
    "exception_type : key": "bad",
    "exception_type != KeyError": "open oom child good",
    "NOT exception_type = KeyError": "open oom child good",
    "failed_node = a": "oom bad",
    "business_key = k1": "good",
    "-business_key : k": "open oom bad child",
    "priority > 2": "good",
    "priority <= -5": "open",
    "labels.env = prod": "oom good",
    "labels.env != prod": "open bad child",
    "labels.env = prod labels.name = oom": "oom",
    "labels.env = nowhere": "",
    "relation = retry": "child",
    'relation = ""': "open oom bad good",
    'error_type = "" status != pending': "child good",
    'failed_node = ""': "open child good",
    "parent = {good}": "child",
    "workflow = {workflow} AND status = completed": "child good",
    'workflow_name = "{name}" AND status = completed': "child good",
    'workflow_name = "{name}x"': "",
    'workflow_name : "{part}"': "open oom bad child good",
    'workflow_name != "{name}"': "",
    "repeated = true": "good",
    "status = failed AND repeated = false": "oom bad",
    "owner = {owner}": "open oom bad child good",
    "create_time > 2020-01-01 AND end_time < 2100-01-01": "oom bad child good",
    "NOT end_time < 2100-01-01": "open",
    "start_time < 2020-01-01": "",
    '"it oom"': "oom",
    "node_version = {good}": "",
}


async def test_a_filter_finds_what_it_says(orchestra: Orchestra) -> None:
    """Each field, each operator, with and without an index of its own."""
    workflow_id = chain(orchestra, "a")
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            good = await start(
                orchestra,
                workflow_id,
                labels={"name": "good", "env": "prod"},
                business_key="k1",
                priority=3,
            )
            await ended(orchestra, good.id)
            child = (await reruns(orchestra).RetryExecution(retry(good.id))).execution
            await ended(orchestra, child.id)
            # A child has its parent's labels and key: here it is to be told from it.
            orchestra.sql.execute("SET session_replication_role = replica")
            await orchestra.change(
                'UPDATE workflow_executions SET labels = \'{"name":"child"}\', priority = 0,'
                " business_key = NULL WHERE id = %s",
                child.id,
            )
            for name, x, env in (("bad", -1, "test"), ("oom", -2, "prod")):
                labels = {"name": name, "env": env}
                run = await start(orchestra, workflow_id, f'{{"x":{x}}}', labels=labels)
                await ended(orchestra, run.id)
        foreign = factories.user(orchestra.sql)
        orchestra.sql.execute(
            "INSERT INTO workflow_executions (workflow_id, workflow_version, status, tenant_id,"
            " created_by, completed_at, labels)"
            " SELECT workflow_id, 1, 'failed', %s, %s, now(), labels FROM workflow_executions",
            (foreign.id, foreign.id),
        )
        await start(orchestra, workflow_id, labels={"name": "open"}, priority=-5)
        [(name,)] = orchestra.sql.execute(
            "SELECT name FROM workflows WHERE id = %s", (workflow_id,)
        ).fetchall()
        facts = {
            "good": good.id,
            "workflow": workflow_id,
            "owner": orchestra.owner.id,
            "name": name,
            "part": name.upper()[1:],
        }
        seen = {text: await found(orchestra, text.format(**facts)) for text in _FILTERS}
        again = await reruns(orchestra).BatchRetryExecutions(
            rerun_service_pb2.BatchRetryExecutionsRequest(
                filter="exception_type = KeyError", validate_only=True
            )
        )
        bad = next(
            each.id
            for each in (
                await orchestra.stub.ListExecutions(
                    pb.ListExecutionsRequest(filter="labels.name = bad")
                )
            ).executions
        )
        later = await found(orchestra, "", order_by="end_time desc")
        first = await found(orchestra, "", order_by="create_time asc")
        by_fields = await found(
            orchestra, "labels.env = prod", statuses=[execution_pb2.EXECUTION_STATUS_FAILED]
        )
    assert {text: names.split() for text, names in _FILTERS.items()} == seen
    assert [bad] == [each.execution_id for each in again.items], "what is changed by a filter"
    assert ["oom", "bad", "child", "good"] == later
    assert ["good", "child", "bad", "oom", "open"] == first
    assert ["oom"] == by_fields


async def test_pages_go_on_where_the_one_before_ended(orchestra: Orchestra) -> None:
    """B62g, B62h: a token is of its filter, order and view."""
    workflow_id = chain(orchestra, "a")
    async with orchestra.running():
        for name in range(5):
            run = await start(orchestra, workflow_id, labels={"name": str(name), "all": "yes"})
            await cancel(orchestra, run.id)
        for order_by in ("", "end_time asc"):
            seen: list[str] = []
            request = pb.ListExecutionsRequest(
                page_size=2, filter="labels.all = yes", order_by=order_by
            )
            while True:
                page = await orchestra.stub.ListExecutions(request)
                seen += [each.labels["name"] for each in page.executions]
                if not page.next_page_token:
                    break
                request.page_token = page.next_page_token
            assert sorted(seen, reverse=not order_by) == seen
            assert 5 == len(seen)
        page = await orchestra.stub.ListExecutions(pb.ListExecutionsRequest(page_size=2))
        for more in ({"filter": "status = failed"}, {"order_by": "end_time"}, {"view": 2}):
            request = pb.ListExecutionsRequest(page_token=page.next_page_token, **more)
            assert "INVALID_ARGUMENT" == (await refusal(orchestra.stub.ListExecutions(request)))[0]


async def test_a_whole_view_has_what_a_basic_one_leaves_out(orchestra: Orchestra) -> None:
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            await ended(orchestra, (await start(orchestra, chain(orchestra, "a"))).id)
        full, basic = [
            (await orchestra.stub.ListExecutions(pb.ListExecutionsRequest(view=view))).executions[0]
            for view in (execution_pb2.EXECUTION_VIEW_FULL, execution_pb2.EXECUTION_VIEW_BASIC)
        ]
    assert ('{"x":1}', '{"out":1}') == (full.input_json, full.output_json)
    assert ("", "") == (basic.input_json, basic.output_json)


_HOSTILE = [
    "status = bogus",
    "status > failed",
    "labels. = x",
    "labels = x",
    "labels.Env = x",
    "labels.1 = x",
    f"labels.{'a' * 64} = x",
    "labels.env > a",
    "tenant_id = x",
    "owner = me",
    "priority = 1e9",
    "priority = 99999999999999999999",
    "create_time > yesterday",
    "create_time > 9999-99-99",
    "' OR 1=1 --",
    "status = 'failed'; DROP TABLE workflow_executions; --",
    "a" * 2001,
    "(" * 400,
    "a " * 100,
    "labels.env = 'x\0y'",
]


@pytest.mark.parametrize("text", _HOSTILE, ids=range(len(_HOSTILE)))
async def test_a_hostile_filter_is_refused_with_its_place(orchestra: Orchestra, text: str) -> None:
    """B78, B79."""
    async with orchestra.running():
        call = orchestra.stub.ListExecutions(pb.ListExecutionsRequest(filter=text))
        assert "INVALID_ARGUMENT" == (await refusal(call))[0]


@pytest.mark.parametrize("order_by", ["status", "create_time; DROP TABLE x", "create_time up"])
async def test_a_hostile_order_is_refused(orchestra: Orchestra, order_by: str) -> None:
    """B80."""
    async with orchestra.running():
        call = orchestra.stub.ListExecutions(pb.ListExecutionsRequest(order_by=order_by))
        assert ("INVALID_ARGUMENT", "ORDER_BY_INVALID") == (await refusal(call))[:2]


async def test_what_a_label_holds_is_only_ever_text(orchestra: Orchestra) -> None:
    """B27: quotes, braces and signs of patterns stand for themselves."""
    values = ['"}', "%", "a_b", "'; --", "\\", "é\u202e"]
    async with orchestra.running():
        workflow_id = chain(orchestra, "a")
        for value in values:
            await start(orchestra, workflow_id, labels={"name": value})
        for value in values:
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            assert [value] == await found(orchestra, f'labels.name = "{quoted}"')
