"""Events over real PostgreSQL to a real HTTP server: signed, at least once, and nowhere else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from google.protobuf.field_mask_pb2 import FieldMask
from qflow.orchestrator.v1 import event_pb2, event_subscription_service_pb2_grpc
from qflow.orchestrator.v1 import event_subscription_service_pb2 as pb
from qflow.orchestrator.v1 import execution_service_pb2 as execution

from services.kit.env import EnvError
from services.orchestrator.gateways.webhook_key import read_or_make
from services.orchestrator.gateways.webhooks import Webhooks
from tests import factories
from tests.fakes.runner import Fail
from tests.integration.orchestrator.conftest import Orchestra
from tests.integration.orchestrator.test_floating import details
from tests.integration.orchestrator.test_schedules import answer, hold, until, workflow

STARTED = event_pb2.EVENT_TYPE_EXECUTION_STARTED
COMPLETED = event_pb2.EVENT_TYPE_EXECUTION_COMPLETED
FAILED = event_pb2.EVENT_TYPE_EXECUTION_FAILED
CANCELLED = event_pb2.EVENT_TYPE_EXECUTION_CANCELLED
WAITING = event_pb2.EVENT_TYPE_EXECUTION_WAITING


@dataclass
class Receiver:
    """A server that takes events down, and answers as it is told."""

    url: str = ""
    status: Callable[[], int] = lambda: 204
    headers: dict[str, str] = field(default_factory=dict)
    got: list[tuple[dict[str, str], str]] = field(default_factory=list)
    held: asyncio.Event | None = None

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.text()))
        if self.held is not None:
            await self.held.wait()
        return web.Response(status=self.status(), headers=self.headers)

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.got]

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    [address] = runner.addresses
    made.url = f"http://127.0.0.1:{address[1]}/hook"
    yield made
    await runner.cleanup()


@pytest.fixture(autouse=True)
def _own_machine(orchestra: Orchestra) -> None:
    orchestra.more_env["QFLOW_WEBHOOK_LOOPBACK"] = "1"


def stub(orchestra: Orchestra, owner: factories.User | None = None) -> Any:
    channel = orchestra.channel((owner or orchestra.owner).token)
    return event_subscription_service_pb2_grpc.EventSubscriptionServiceStub(channel)


async def subscribe(orchestra: Orchestra, url: str, *types: Any, **fields: Any) -> Any:
    given = {"name": "mine", "event_types": types or (COMPLETED,), **fields}
    request = pb.CreateEventSubscriptionRequest(url=url, **given)
    return await stub(orchestra).CreateEventSubscription(request)


async def run(orchestra: Orchestra, workflow_id: str, *, wait: bool = True) -> str:
    request = execution.StartExecutionRequest(workflow_id=workflow_id, input_json='{"x":1}')
    started: str = (await orchestra.stub.StartExecution(request)).execution.id
    if wait:
        await orchestra.stub.WaitExecution(execution.WaitExecutionRequest(execution_id=started))
    return started


async def make_due(orchestra: Orchestra) -> None:
    await orchestra.change(
        "UPDATE event_deliveries SET due_at = clock_timestamp() WHERE state = 'pending'"
    )
    orchestra.sql.execute("NOTIFY qflow_events")


def states(orchestra: Orchestra) -> list[str]:
    return [str(state) for (state,) in orchestra.rows("SELECT state FROM event_deliveries")]


def fail(_define: Any, _assign: Any, _inputs: Any) -> object:
    raise Fail("user_error", retryable=False)


async def test_a_run_is_told_from_its_start_to_its_end(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    """I33: each once, signed, without any value of the run."""
    workflow_id = workflow(orchestra)
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        made = await subscribe(orchestra, receiver.url, STARTED, COMPLETED, FAILED)
        execution_id = await run(orchestra, workflow_id)
        await until(lambda: ["delivered"] * 2 == states(orchestra))
    assert ["execution.completed", "execution.started"] == sorted(receiver.types)
    secret = base64.b64decode(made.secret.removeprefix("whsec_"))
    for headers, body in receiver.got:
        said = json.loads(body)
        assert {
            "execution_id": execution_id,
            "workflow_id": workflow_id,
            "workflow_version": 1,
        } == (said["data"])
        assert said["timestamp"].endswith("Z")
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
        expected = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
        assert f"v1,{expected}" == headers["webhook-signature"]
    assert 2 == len(set(receiver.ids))
    assert [(0,)] == orchestra.rows("SELECT count(*) FROM outbox_events WHERE sent_at IS NULL")


async def test_failures_and_cancellations_are_events_of_their_own(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    workflow_id = workflow(orchestra)
    async with orchestra.running():
        await subscribe(orchestra, receiver.url, FAILED, CANCELLED)
        async with (await orchestra.runner(fail)).attached():
            await run(orchestra, workflow_id)
        async with (await orchestra.runner(hold)).attached():
            held = await run(orchestra, workflow_id, wait=False)
            cancel = execution.CancelExecutionRequest(execution_id=held)
            await orchestra.stub.CancelExecution(cancel)
            await until(lambda: ["delivered"] * 2 == states(orchestra))
    [failed] = [
        json.loads(body) for _, body in receiver.got if "failed" in json.loads(body)["type"]
    ]
    assert ("user_error", "a") == (failed["data"]["error_type"], failed["data"]["failed_node_id"])
    assert ["execution.cancelled", "execution.failed"] == sorted(receiver.types)


async def test_a_node_that_begins_to_wait_is_told(orchestra: Orchestra, receiver: Receiver) -> None:
    workflow_id = workflow(orchestra)
    async with orchestra.running():
        runner = await orchestra.runner(hold)
        async with runner.attached():
            await subscribe(orchestra, receiver.url, WAITING)
            execution_id = await run(orchestra, workflow_id, wait=False)
            await runner.until(lambda: bool(runner.held))
            await orchestra.change("UPDATE node_executions SET status = 'waiting'")
            await until(lambda: ["delivered"] == states(orchestra))
    [(_, body)] = receiver.got
    data = json.loads(body)["data"]
    assert ("a", execution_id) == (data["node_id"], data["execution_id"])


async def test_nothing_is_queued_that_nobody_has_asked_for(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    """Another tenant's, another workflow's, another type's, a paused one's."""
    workflow_id, other = workflow(orchestra), workflow(orchestra)
    stranger = factories.user(orchestra.sql)
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        await subscribe(orchestra, receiver.url, COMPLETED, workflow_id=other)
        await subscribe(orchestra, receiver.url, FAILED)
        paused = (await subscribe(orchestra, receiver.url, COMPLETED)).subscription
        update = pb.UpdateEventSubscriptionRequest(
            subscription_id=paused.id, update_mask=FieldMask(paths=["paused"]), paused=True
        )
        await stub(orchestra).UpdateEventSubscription(update)
        request = pb.CreateEventSubscriptionRequest(
            name="theirs", url=receiver.url, event_types=[COMPLETED]
        )
        await stub(orchestra, stranger).CreateEventSubscription(request)
        await run(orchestra, workflow_id)
        assert [] == orchestra.rows("SELECT 1 FROM outbox_events")
        await run(orchestra, other)
        await until(lambda: ["delivered"] == states(orchestra))
        # Asked for by one of two: the other gets nothing of it.
        await subscribe(orchestra, receiver.url, COMPLETED, workflow_id=workflow_id)
        await run(orchestra, workflow_id)
        await until(lambda: ["delivered"] * 2 == states(orchestra))
    assert ["execution.completed"] * 2 == receiver.types


def _stands(orchestra: Orchestra, tried: tuple[int, int, str]) -> bool:
    found = orchestra.rows("SELECT attempts, status_code, state FROM event_deliveries")
    return [tried] == found


async def test_a_try_that_fails_is_repeated_with_the_same_id_until_it_is_taken(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    """I33."""
    answers = iter([500, 301, 204])
    receiver.status = lambda: next(answers)
    receiver.headers["location"] = receiver.url
    workflow_id = workflow(orchestra)
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        await subscribe(orchestra, receiver.url)
        await run(orchestra, workflow_id)
        for tried in ((1, 500, "pending"), (2, 301, "pending")):
            await until(partial(_stands, orchestra, tried))
            await make_due(orchestra)
        await until(lambda: ["delivered"] == states(orchestra))
    # A redirect was not followed: three requests, each a try.
    assert 3 == len(receiver.got)
    assert 1 == len(set(receiver.ids))
    assert 1 == len({body for _, body in receiver.got})


async def test_what_was_sent_and_not_written_is_sent_again_with_the_same_id(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    """CP20: whoever sent it is gone before the answer is written."""
    receiver.held = asyncio.Event()
    workflow_id = workflow(orchestra)
    async with orchestra.running():
        async with (await orchestra.runner(answer)).attached():
            await subscribe(orchestra, receiver.url)
            await run(orchestra, workflow_id)
            await until(lambda: 1 == len(receiver.got))
    assert ["pending"] == states(orchestra)
    receiver.held.set()
    receiver.held = None
    await make_due(orchestra)  # as when the claim of the one that died has run out
    async with orchestra.running():
        await until(lambda: ["delivered"] == states(orchestra))
    assert 2 == len(receiver.got)
    assert 1 == len(set(receiver.ids))


async def test_after_the_last_try_it_is_dead_and_may_be_sent_anew(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    receiver.status = lambda: 503
    workflow_id = workflow(orchestra)
    async with orchestra.running(), (await orchestra.runner(answer)).attached():
        made = (await subscribe(orchestra, receiver.url)).subscription
        await run(orchestra, workflow_id)
        await until(lambda: 1 == len(receiver.got) and ["pending"] == states(orchestra))
        await until(
            lambda: bool(orchestra.rows("SELECT 1 FROM event_deliveries WHERE status_code = 503"))
        )
        await orchestra.change("UPDATE event_deliveries SET attempts = 8")
        await make_due(orchestra)
        await until(lambda: ["dead"] == states(orchestra))
        receiver.status = lambda: 200
        listed = await stub(orchestra).ListEventDeliveries(
            pb.ListEventDeliveriesRequest(
                subscription_id=made.id, states=[event_pb2.EVENT_DELIVERY_STATE_DEAD]
            )
        )
        [dead] = listed.deliveries
        assert (9, 503, "answered 503") == (dead.attempt_count, dead.status_code, dead.error)
        resend = pb.ResendEventDeliveryRequest(delivery_id=dead.id, request_id=str(uuid.uuid4()))
        again = await stub(orchestra).ResendEventDelivery(resend)
        assert again == await stub(orchestra).ResendEventDelivery(resend)
        await until(lambda: ["delivered"] == states(orchestra))
    assert 1 == len(set(receiver.ids))


async def test_a_receiver_that_is_busy_is_left_alone_for_as_long_as_it_asks(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    receiver.status = lambda: 429
    receiver.headers["retry-after"] = "3000"
    async with orchestra.running():
        made = (await subscribe(orchestra, receiver.url)).subscription
        test = pb.TestEventSubscriptionRequest(subscription_id=made.id)
        await stub(orchestra).TestEventSubscription(test)
        left = "SELECT due_at - clock_timestamp() > interval '40 minutes' FROM event_deliveries"
        tried = "SELECT 1 FROM event_deliveries WHERE status_code = 429"
        await until(lambda: bool(orchestra.rows(tried)))
        assert [(True,)] == orchestra.rows(left)
    assert 1 == len(receiver.got)


async def test_an_address_that_is_gone_is_not_called_again(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    receiver.status = lambda: 410
    async with orchestra.running():
        made = (await subscribe(orchestra, receiver.url)).subscription
        test = pb.TestEventSubscriptionRequest(subscription_id=made.id)
        await stub(orchestra).TestEventSubscription(test)
        await until(
            lambda: bool(
                orchestra.rows("SELECT 1 FROM event_subscriptions WHERE paused_at IS NOT NULL")
            )
        )
        request = pb.GetEventSubscriptionRequest(subscription_id=made.id)
        shown = (await stub(orchestra).GetEventSubscription(request)).subscription
        assert shown.paused
        assert "410" in shown.pause_reason
        await make_due(orchestra)
        receiver.status = lambda: 200
        update = pb.UpdateEventSubscriptionRequest(
            subscription_id=made.id, update_mask=FieldMask(paths=["paused"])
        )
        assert 1 == len(receiver.got)
        await stub(orchestra).UpdateEventSubscription(update)
        await until(lambda: ["delivered"] == states(orchestra))


async def test_an_answer_of_the_address_before_pauses_no_other(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    """It was on its way while its subscription got another address."""
    async with orchestra.running(), hanging() as old:
        assert old.held is not None
        old.status = lambda: 410
        made = (await subscribe(orchestra, old.url)).subscription
        test = pb.TestEventSubscriptionRequest(subscription_id=made.id)
        await stub(orchestra).TestEventSubscription(test)
        await until(lambda: bool(old.got))
        update = pb.UpdateEventSubscriptionRequest(
            subscription_id=made.id, url=receiver.url, update_mask=FieldMask(paths=["url"])
        )
        await stub(orchestra).UpdateEventSubscription(update)
        old.held.set()
        answered = "SELECT status_code FROM event_deliveries"
        await until(lambda: [(410,)] == orchestra.rows(answered))
        await make_due(orchestra)
        await until(lambda: ["delivered"] == states(orchestra))
        assert old.ids == receiver.ids


@pytest.mark.parametrize("status", [204, 503])
async def test_the_answer_to_a_try_before_is_none_to_what_was_sent_anew(
    orchestra: Orchestra, status: int
) -> None:
    """I33: whoever has it sent anew wants just that, whatever became of the try under way."""
    async with orchestra.running(), hanging() as slow:
        assert slow.held is not None
        slow.status = lambda: status
        slow.headers["retry-after"] = "3000"
        await tell(orchestra, await subscribe(orchestra, slow.url))
        await until(lambda: bool(slow.got))
        [(delivery_id,)] = orchestra.rows("SELECT id::text FROM event_deliveries")
        resend = pb.ResendEventDeliveryRequest(delivery_id=str(delivery_id))
        await stub(orchestra).ResendEventDelivery(resend)
        slow.held.set()
        await until(lambda: 2 == len(slow.got))
        await until(lambda: _answered(orchestra, status))
    assert 1 == len(set(slow.ids))


def _answered(orchestra: Orchestra, status: int) -> bool:
    return [(1, status)] == orchestra.rows("SELECT attempts, status_code FROM event_deliveries")


@contextlib.asynccontextmanager
async def hanging() -> AsyncIterator[Receiver]:
    """A receiver that takes connections, and says nothing until the block ends."""
    slow = Receiver(held=asyncio.Event())
    app = web.Application()
    app.router.add_post("/hook", slow.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    slow.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield slow
    assert slow.held is not None
    slow.held.set()
    await runner.cleanup()


async def tell(orchestra: Orchestra, *subscriptions: Any, owner: Any = None) -> None:
    """Send each a message of its own."""
    for each in subscriptions:
        request = pb.TestEventSubscriptionRequest(subscription_id=each.subscription.id)
        await stub(orchestra, owner).TestEventSubscription(request)


async def test_a_slow_receiver_holds_up_itself_alone(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    async with hanging() as slow, orchestra.running():
        first = await subscribe(orchestra, slow.url)
        second = await subscribe(orchestra, receiver.url)
        for _ in range(30):
            await tell(orchestra, first, second)
        await until(lambda: 30 == len(receiver.got))
        assert 0 < len(slow.got) <= 4


async def test_a_tenants_slow_receivers_hold_up_no_other_tenant(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    """I35."""
    stranger = factories.user(orchestra.sql)
    async with hanging() as slow, orchestra.running():
        hang = [await subscribe(orchestra, slow.url, name=f"slow {at}") for at in range(40)]
        await tell(orchestra, *hang)
        await until(lambda: 8 == len(slow.got))
        request = pb.CreateEventSubscriptionRequest(
            name="mine", url=receiver.url, event_types=[COMPLETED]
        )
        made = await stub(orchestra, stranger).CreateEventSubscription(request)
        await tell(orchestra, made, owner=stranger)
        await until(lambda: 1 == len(receiver.got))
        assert 8 == len(slow.got), "its tenant's share"


async def test_a_rotated_secret_and_the_one_before_both_sign(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    async with orchestra.running():
        made = await subscribe(orchestra, receiver.url)
        rotate = pb.RotateEventSecretRequest(
            subscription_id=made.subscription.id, request_id=str(uuid.uuid4())
        )
        rotated = await stub(orchestra).RotateEventSecret(rotate)
        again = await stub(orchestra).RotateEventSecret(rotate)
        assert ("", rotated.subscription) == (again.secret, again.subscription)
        request = pb.TestEventSubscriptionRequest(subscription_id=made.subscription.id)
        await stub(orchestra).TestEventSubscription(request)
        await until(lambda: ["delivered"] == states(orchestra))
    [(headers, body)] = receiver.got
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
    expected = [
        "v1," + base64.b64encode(hmac.digest(base64.b64decode(each[6:]), signed, "sha256")).decode()
        for each in (rotated.secret, made.secret)
    ]
    assert expected == headers["webhook-signature"].split(" ")


async def test_no_secret_is_in_the_database(orchestra: Orchestra, receiver: Receiver) -> None:
    """I37: also not among the answers that are kept for repeated calls."""
    async with orchestra.running():
        made = await subscribe(orchestra, receiver.url, request_id=str(uuid.uuid4()))
    secret = made.secret.removeprefix("whsec_")
    for table in ("event_subscriptions", "idempotency_keys"):
        for row in orchestra.rows(f"SELECT * FROM {table}"):
            for value in row:
                assert secret not in str(value)
                assert not isinstance(value, bytes) or secret.encode() not in value


async def test_with_another_key_nothing_is_signed_wrongly(
    orchestra: Orchestra, receiver: Receiver
) -> None:
    async with orchestra.running():
        made = (await subscribe(orchestra, receiver.url)).subscription
    (orchestra.home / "secrets" / "webhook.key").write_bytes(b"x" * 32)
    async with orchestra.running():
        request = pb.TestEventSubscriptionRequest(subscription_id=made.id)
        await stub(orchestra).TestEventSubscription(request)
        await until(
            lambda: bool(
                orchestra.rows(
                    "SELECT 1 FROM event_deliveries WHERE error LIKE '%%RotateEventSecret'"
                )
            )
        )
        assert [] == receiver.got
        await stub(orchestra).RotateEventSecret(
            pb.RotateEventSecretRequest(subscription_id=made.id)
        )
        await make_due(orchestra)
        await until(lambda: ["delivered"] == states(orchestra))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"url": "https://169.254.169.254/latest"}, "URL_REFUSED"),
        ({"url": "http://example.com/"}, "URL_REFUSED"),
        ({"name": ""}, "NAME_MISSING"),
        ({"event_types": []}, "EVENT_TYPES_MISSING"),
    ],
)
async def test_a_subscription_that_cannot_be_is_refused(
    orchestra: Orchestra, fields: dict[str, Any], reason: str
) -> None:
    given = {"name": "a", "url": "https://example.com/", "event_types": [COMPLETED], **fields}
    request = pb.CreateEventSubscriptionRequest(**given)
    async with orchestra.running():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(orchestra).CreateEventSubscription(request)
    assert (grpc.StatusCode.INVALID_ARGUMENT, reason) == (
        refused.value.code(),
        details(refused.value)[0],
    )


async def test_an_etag_and_a_deletion_are_kept_to(orchestra: Orchestra, receiver: Receiver) -> None:
    async with orchestra.running():
        made = (await subscribe(orchestra, receiver.url)).subscription
        update = pb.UpdateEventSubscriptionRequest(
            subscription_id=made.id,
            etag=made.etag,
            update_mask=FieldMask(paths=["name"]),
            name="other",
        )
        await stub(orchestra).UpdateEventSubscription(update)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub(orchestra).UpdateEventSubscription(update)
        assert grpc.StatusCode.ABORTED == refused.value.code()
        delete = pb.DeleteEventSubscriptionRequest(subscription_id=made.id)
        await stub(orchestra).DeleteEventSubscription(delete)
        listed = await stub(orchestra).ListEventSubscriptions(pb.ListEventSubscriptionsRequest())
        assert [] == list(listed.subscriptions)


async def test_a_name_that_comes_to_mean_another_address_is_not_called(receiver: Receiver) -> None:
    """X27: DNS rebinding. What is dialled is what was checked; nothing is asked twice."""
    port = int(receiver.url.rpartition(":")[2].partition("/")[0])
    asked: list[str] = []

    def resolver(*answers: list[str]) -> Any:
        following = iter(answers)

        async def ask(host: str, _port: int) -> list[str]:
            asked.append(host)
            return next(following)

        return ask

    url = f"https://rebound.example:{port}/hook"
    for found in (["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"], ["10.0.0.1"]):
        webhooks = Webhooks(loopback=False, resolver=resolver(found))
        got = await webhooks.post(url, "{}", {})
        await webhooks.close()
        assert (0, "not called: its address is not a public one") == (got.status, got.error)
    # Allowed once, it is still asked once alone: the second answer would be another.
    asked.clear()
    webhooks = Webhooks(loopback=True, resolver=resolver(["127.0.0.1"], ["10.0.0.1"]))
    local = f"http://localhost:{port}/hook"
    assert 204 == (await webhooks.post(local, "{}", {})).status
    await webhooks.close()
    assert ["localhost"] == asked
    assert 1 == len(receiver.got)


async def test_a_receiver_that_says_nothing_or_too_much_costs_no_more_than_a_try() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the other side has had enough
        writer.close()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"x-more: " + b"a" * 60_000 + b"\r\n")
                await writer.drain()
        writer.close()

    for behave, said in ((silent, "no answer in time"), (endless, "no HTTP answer")):
        server = await asyncio.start_server(behave, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        webhooks = Webhooks(loopback=True, timeout_s=1)
        got = await webhooks.post(f"http://127.0.0.1:{port}/", "{}", {})
        await webhooks.close()
        server.close()
        assert (0, said) == (got.status, got.error)


async def test_a_receiver_that_shows_no_trusted_certificate_is_not_told(receiver: Receiver) -> None:
    webhooks = Webhooks(loopback=True)
    # Nor is one that was taken by other rules than those of now.
    plain = await webhooks.post("http://8.8.8.8/hook", "{}", {})
    assert (0, "not called: must begin with https://") == (plain.status, plain.error)
    got = await webhooks.post(receiver.url.replace("http:", "https:"), "{}", {})
    await webhooks.close()
    assert 0 == got.status
    assert [] == receiver.got


def test_the_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "webhook.key"
    key = read_or_make(path)
    assert (32, key) == (len(key), read_or_make(path))
    assert (0o600, 0o700) == (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777)
    assert [path] == list(path.parent.iterdir())
    path.write_bytes(b"short")
    with pytest.raises(EnvError, match="QFLOW_WEBHOOK_KEY_FILE"):
        read_or_make(path)
