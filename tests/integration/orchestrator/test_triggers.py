"""Triggers: runs started without a session, by whoever has the secret, once per call."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.orchestrator.v1 import trigger_service_pb2 as pb
from qflow.orchestrator.v1 import trigger_service_pb2_grpc

from tests import factories
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_floating import details
from tests.integration.orchestrator.test_schedules import workflow


def stub(orchestra: Orchestra, token: str | None = None) -> Any:
    channel = orchestra.channel(orchestra.owner.token if token is None else token)
    return trigger_service_pb2_grpc.TriggerServiceStub(channel)


def nobody(orchestra: Orchestra) -> Any:
    """A caller without any token."""
    channel = grpc.aio.insecure_channel(orchestra.address)
    orchestra._channels.append(channel)
    return trigger_service_pb2_grpc.TriggerServiceStub(channel)


async def create(orchestra: Orchestra, **fields: Any) -> Any:
    request = pb.CreateTriggerRequest(
        **{"workflow_id": workflow(orchestra), "name": "from outside", **fields}
    )
    return await stub(orchestra).CreateTrigger(request)


def call(made: Any, *, late: float = 0, **fields: Any) -> pb.FireTriggerRequest:
    sent = Timestamp()
    sent.FromDatetime(datetime.now(UTC) - timedelta(seconds=late))
    given = {"payload_json": '{"x":1}', "secret": made.secret, "send_time": sent, **fields}
    return pb.FireTriggerRequest(trigger_id=made.trigger.id, **given)


async def refusal(orchestra: Orchestra, request: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await nobody(orchestra).FireTrigger(request)
    return refused.value.code(), details(refused.value)[0]


def runs(orchestra: Orchestra) -> list[tuple[object, ...]]:
    return orchestra.rows(
        "SELECT id::text, created_by, input_data::text FROM workflow_executions ORDER BY created_at"
    )


async def test_whoever_has_the_secret_starts_a_run_of_its_maker(orchestra: Orchestra) -> None:
    async with orchestra.running():
        made = await create(orchestra)
        answered = await nobody(orchestra).FireTrigger(call(made))
        assert [(answered.execution_id, orchestra.owner.id, '{"x":1}')] == runs(orchestra)
        request = pb.GetTriggerRequest(trigger_id=made.trigger.id)
        shown = (await stub(orchestra).GetTrigger(request)).trigger
        assert (1, True) == (shown.fired_count, shown.HasField("fire_time"))


async def test_a_repeated_call_is_the_same_run(orchestra: Orchestra) -> None:
    """X26: one that was overheard and sent again starts nothing."""
    async with orchestra.running():
        made = await create(orchestra)
        calls = nobody(orchestra)
        first = call(made)
        assert await calls.FireTrigger(first) == await calls.FireTrigger(first)
        keyed = [
            (await calls.FireTrigger(call(made, idempotency_key="order-1"))).execution_id
            for _ in range(2)
        ]
        assert 1 == len(set(keyed))
        assert (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED") == await refusal(
            orchestra, call(made, idempotency_key="order-1", payload_json='{"x":2}')
        )
        with pytest.raises(grpc.aio.AioRpcError, match="idempotency_key was used with another"):
            await calls.FireTrigger(call(made, idempotency_key="order-1", payload_json='{"x":2}'))
        request = pb.GetTriggerRequest(trigger_id=made.trigger.id)
        shown = (await stub(orchestra).GetTrigger(request)).trigger
        assert "" == shown.error_reason, "its user has nothing to mend"
        await calls.FireTrigger(call(made, idempotency_key="order-2"))
    assert 3 == len(runs(orchestra))


async def test_calls_of_another_time_payload_or_trigger_are_runs_of_their_own(
    orchestra: Orchestra,
) -> None:
    """I12: what repeats a call is its key at this trigger; without one its time and its payload."""
    async with orchestra.running():
        one = await create(orchestra)
        other = await create(orchestra, workflow_id=one.trigger.workflow_id)
        first = call(one)
        calls = [
            first,
            call(one, late=1),
            call(one, payload_json='{"x":2}', send_time=first.send_time),
            call(other, send_time=first.send_time),
            call(one, idempotency_key="order-1"),
            call(other, idempotency_key="order-1"),
        ]
        started = [(await nobody(orchestra).FireTrigger(each)).execution_id for each in calls]
    assert len(calls) == len(set(started))


async def test_a_call_that_the_filter_does_not_take_starts_nothing(orchestra: Orchestra) -> None:
    """It is no fault and is counted; a payload over which it cannot be worked out is one."""
    async with orchestra.running():
        made = await create(orchestra, filter="payload.x > 1")
        calls = nobody(orchestra)
        answers = [
            await calls.FireTrigger(call(made, payload_json=payload))
            for payload in ('{"x":1}', '{"x":2}')
        ]
        assert [(True, ""), (False, runs(orchestra)[0][0])] == [
            (each.filtered, each.execution_id) for each in answers
        ]
        wrong = ["{}", '{"x":"a"}', '{"x":2,"y":"' + "a" * 70_000 + '"}']
        for payload in wrong:
            assert (grpc.StatusCode.INVALID_ARGUMENT, "TRIGGER_FILTER_FAILED") == await refusal(
                orchestra, call(made, payload_json=payload)
            )
        request = pb.GetTriggerRequest(trigger_id=made.trigger.id)
        shown = (await stub(orchestra).GetTrigger(request)).trigger
        assert (1, 1, "TRIGGER_FILTER_FAILED") == (
            shown.fired_count, shown.filtered_count, shown.error_reason,
        )  # fmt: skip
        update = pb.UpdateTriggerRequest(
            trigger_id=made.trigger.id, update_mask=FieldMask(paths=["filter"])
        )
        assert "" == (await stub(orchestra).UpdateTrigger(update)).trigger.filter
        assert not (await calls.FireTrigger(call(made))).filtered
        shown = (await stub(orchestra).GetTrigger(request)).trigger
        assert ("", "") == (shown.error_reason, shown.error_message)
    assert 2 == len(runs(orchestra))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("payload.x >", "EXPRESSION_INVALID"),
        ("other.x > 1", "EXPRESSION_INVALID"),
        ("payload.x.matches('[')", "EXPRESSION_INVALID"),
        ("'a' + 'b'", "EXPRESSION_NOT_BOOLEAN"),
        ("1", "EXPRESSION_NOT_BOOLEAN"),
        ("size(payload)", "EXPRESSION_NOT_BOOLEAN"),
        ("(" * 2000 + "true" + ")" * 2000, "EXPRESSION_INVALID"),
        (
            "payload.all(a, payload.all(b, payload.all(c, payload.all(d, a + b + c + d > 1))))",
            "EXPRESSION_INVALID",
        ),
        ("payload == '" + "a" * 4096 + "'", "INVALID_REQUEST"),
    ],
)
async def test_a_filter_that_is_hostile_huge_or_not_boolean_is_refused(
    orchestra: Orchestra, text: str, reason: str
) -> None:
    """B55: when it is made, and when it is changed."""
    async with orchestra.running():
        made = await create(orchestra)
        update = pb.UpdateTriggerRequest(
            trigger_id=made.trigger.id, update_mask=FieldMask(paths=["filter"]), filter=text
        )
        for asked in (create(orchestra, filter=text), stub(orchestra).UpdateTrigger(update)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asked
            assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
            assert reason == details(refused.value)[0]


@pytest.mark.parametrize("late", [301, -301])
async def test_a_call_of_another_time_is_refused(orchestra: Orchestra, late: float) -> None:
    """X26: a window of five minutes."""
    async with orchestra.running():
        made = await create(orchestra)
        assert (grpc.StatusCode.INVALID_ARGUMENT, "TRIGGER_STALE") == await refusal(
            orchestra, call(made, late=late)
        )
        await nobody(orchestra).FireTrigger(call(made, late=late * 0.9))


async def test_a_wrong_secret_and_a_missing_trigger_are_told_the_same(
    orchestra: Orchestra,
) -> None:
    """X26, X14: byte for byte, and whatever else is wrong."""
    async with orchestra.running():
        made = await create(orchestra)
        paused = await create(orchestra)
        update = pb.UpdateTriggerRequest(
            trigger_id=paused.trigger.id, update_mask=FieldMask(paths=["paused"]), paused=True
        )
        await stub(orchestra).UpdateTrigger(update)
        missing = call(made)
        missing.trigger_id = str(uuid.uuid4())
        told = []
        for request in (
            call(made, secret="qft_" + "a" * 43),
            call(made, secret=made.secret + "a"),
            call(made, secret=made.secret[:-1]),
            call(made, secret=paused.secret, late=1000),
            call(paused, secret=made.secret, payload_json="{"),
            missing,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await nobody(orchestra).FireTrigger(request)
            told.append((refused.value.code(), refused.value.details(), details(refused.value)))
        assert [told[0]] * 6 == told
        assert (grpc.StatusCode.UNAUTHENTICATED, "TRIGGER_REFUSED") == (told[0][0], told[0][2][0])
        assert (grpc.StatusCode.FAILED_PRECONDITION, "TRIGGER_PAUSED") == await refusal(
            orchestra, call(paused)
        )
    assert [] == runs(orchestra)


async def test_a_secret_is_shown_once_kept_as_a_digest_and_replaced_at_once(
    orchestra: Orchestra,
) -> None:
    """X26, I37."""
    request_id = str(uuid.uuid4())
    workflow_id = workflow(orchestra)
    async with orchestra.running():
        made = await create(orchestra, workflow_id=workflow_id, request_id=request_id)
        again = await create(orchestra, workflow_id=workflow_id, request_id=request_id)
        assert ("", made.trigger) == (again.secret, again.trigger)
        rotate = pb.RotateTriggerSecretRequest(trigger_id=made.trigger.id)
        rotated = await stub(orchestra).RotateTriggerSecret(rotate)
        code, _ = await refusal(orchestra, call(made))
        assert grpc.StatusCode.UNAUTHENTICATED == code
        await nobody(orchestra).FireTrigger(call(rotated))
    for table in ("triggers", "idempotency_keys"):
        for row in orchestra.rows(f"SELECT * FROM {table}"):
            assert made.secret not in str(row)
            assert rotated.secret not in str(row)


async def test_a_payload_is_an_input_or_all_of_them_and_the_triggers_own_stand(
    orchestra: Orchestra,
) -> None:
    """The texts are kept as they were sent."""
    node = factories.node(orchestra.sql, orchestra.owner, inputs=("x", "y"))
    workflow_id = str(
        factories.workflow(
            orchestra.sql,
            orchestra.owner,
            nodes={"a": node},
            edges=[("", "x", "a", "x"), ("", "y", "a", "y")],
            inputs=("x", "y"),
            outputs=[("out", "a")],
        )
    )
    async with orchestra.running():
        calls = nobody(orchestra)
        one = await create(
            orchestra, workflow_id=workflow_id, input_json='{"y": 7}', payload_input="x"
        )
        await calls.FireTrigger(call(one, payload_json="123456789012345678901234567890"))
        whole = await create(orchestra, workflow_id=workflow_id, input_json='{"y":7}')
        await calls.FireTrigger(call(whole, payload_json='{"x": 1, "y": 99}'))
        for payload in ("[1]", "{", '{"x":NaN}', '{"x":1,"x":2}', "1"):
            code, reason = await refusal(orchestra, call(whole, payload_json=payload))
            assert grpc.StatusCode.INVALID_ARGUMENT == code
            assert "INPUT_INVALID" == reason, payload
        for made, payload, field in (
            (whole, '{"x":"text"}', "payload_json.x"),
            (whole, "{}", "payload_json.x"),
            (one, '"text"', "payload_json"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await calls.FireTrigger(call(made, payload_json=payload))
            assert ("INPUT_INVALID", [field]) == details(refused.value)
            assert (refused.value.details() or "").startswith(f"{field}: ")
        large = '{"x":' + "1" * 262_144 + "}"
        code, _ = await refusal(orchestra, call(whole, payload_json=large))
        assert grpc.StatusCode.INVALID_ARGUMENT == code
    assert ['{"x":123456789012345678901234567890,"y":7}', '{"x":1,"y":7}'] == [
        text for _, _, text in runs(orchestra)
    ]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        ("UPDATE workflows SET is_active = false", "WORKFLOW_INACTIVE"),
        ("UPDATE workflows SET deleted_at = now()", "WORKFLOW_NOT_FOUND"),
        ("UPDATE users SET is_active = false WHERE NOT is_owner", "OWNER_INACTIVE"),
        ("UPDATE users SET role = 'viewer' WHERE NOT is_owner", "NOT_ALLOWED"),
    ],
)
async def test_what_its_maker_may_not_start_is_not_started(
    orchestra: Orchestra, harm: str, reason: str
) -> None:
    """By the rights of the moment; the maker sees why at the trigger."""
    async with orchestra.running():
        made = await create(orchestra)
    orchestra.sql.execute(harm.encode())
    async with orchestra.running():
        assert (grpc.StatusCode.FAILED_PRECONDITION, reason) == await refusal(orchestra, call(made))
    assert [(reason, 0)] == orchestra.rows("SELECT error_reason, fired_count FROM triggers")
    assert [] == runs(orchestra)


async def test_a_trigger_is_changed_listed_and_removed_by_its_tenant_alone(
    orchestra: Orchestra,
) -> None:
    stranger = factories.user(orchestra.sql)
    async with orchestra.running():
        made = (await create(orchestra)).trigger
        theirs = stub(orchestra, stranger.token)
        assert not (await theirs.ListTriggers(pb.ListTriggersRequest())).triggers
        update = pb.UpdateTriggerRequest(
            trigger_id=made.id,
            etag=made.etag,
            update_mask=FieldMask(paths=["name", "workflow_version"]),
            name="other",
            workflow_version=1,
        )
        delete = pb.DeleteTriggerRequest(trigger_id=made.id, request_id=str(uuid.uuid4()))
        for method, request in ((theirs.UpdateTrigger, update), (theirs.DeleteTrigger, delete)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await method(request)
            assert grpc.StatusCode.NOT_FOUND == refused.value.code()
        changed = (await stub(orchestra).UpdateTrigger(update)).trigger
        assert ("other", 1) == (changed.name, changed.workflow_version)
        with pytest.raises(grpc.aio.AioRpcError) as stale:
            await stub(orchestra).UpdateTrigger(update)
        assert grpc.StatusCode.ABORTED == stale.value.code()
        asked = pb.ListTriggersRequest(workflow_id=made.workflow_id)
        assert [changed] == list((await stub(orchestra).ListTriggers(asked)).triggers)
        for _ in range(2):
            await stub(orchestra).DeleteTrigger(delete)
        assert not (await stub(orchestra).ListTriggers(asked)).triggers


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": ""}, "NAME_MISSING"),
        ({"input_json": "[]"}, "INPUT_INVALID"),
        ({"workflow_version": 1, "workflow_alias": "prod"}, "VERSION_NAMED_TWICE"),
    ],
)
async def test_a_trigger_that_cannot_be_is_refused(
    orchestra: Orchestra, fields: dict[str, Any], reason: str
) -> None:
    async with orchestra.running():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await create(orchestra, **fields)
    assert (grpc.StatusCode.INVALID_ARGUMENT, reason) == (
        refused.value.code(),
        details(refused.value)[0],
    )


async def test_a_trigger_names_a_version_that_there_is(orchestra: Orchestra) -> None:
    async with orchestra.running():
        for version in (1, 0):
            made = (await create(orchestra, workflow_version=version)).trigger
        for asked in (
            create(orchestra, workflow_version=7),
            stub(orchestra).UpdateTrigger(
                pb.UpdateTriggerRequest(
                    trigger_id=made.id,
                    workflow_version=7,
                    update_mask=FieldMask(paths=["workflow_version"]),
                )
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asked
            assert grpc.StatusCode.NOT_FOUND == refused.value.code()
            said = "workflow_version: the workflow has versions 1 to 1, not 7"
            assert said == refused.value.details()


async def test_a_trigger_tells_of_a_refused_call_in_the_words_of_its_payload(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running():
        made = await create(orchestra)
        await refusal(orchestra, call(made, payload_json='{"x":"text"}'))
        shown = await stub(orchestra).GetTrigger(pb.GetTriggerRequest(trigger_id=made.trigger.id))
    assert shown.trigger.error_message.startswith("payload_json.x: ")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"payload_input": "nothing"}, "payload_input"),
        ({"input_json": '{"nothing":1}'}, "input_json.nothing"),
        ({"input_json": '{"x":"text"}'}, "input_json.x"),
    ],
)
async def test_a_trigger_whose_own_inputs_no_start_would_take_is_refused(
    orchestra: Orchestra, fields: dict[str, Any], field: str
) -> None:
    """Now, not at its first call; what a payload may bring is not missing."""
    async with orchestra.running():
        made = (await create(orchestra)).trigger
        update = pb.UpdateTriggerRequest(
            trigger_id=made.id, update_mask=FieldMask(paths=list(fields)), **fields
        )
        for asked in (create(orchestra, **fields), stub(orchestra).UpdateTrigger(update)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asked
            assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
            assert ("INPUT_INVALID", [field]) == details(refused.value)


async def test_a_trigger_of_a_draft_is_held_against_no_inputs_yet(orchestra: Orchestra) -> None:
    workflow_id = workflow(orchestra)
    orchestra.sql.execute(b"UPDATE workflows SET is_active = false")
    async with orchestra.running():
        made = await create(orchestra, workflow_id=workflow_id, payload_input="nothing")
    assert "nothing" == made.trigger.payload_input
