"""The client for Python against a running suite: pushed, run, watched, cut off, refused."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
import qflow
from buf.validate import validate_pb2
from qflow.client import contexts, starting
from qflow.client.blocking import BlockingRun
from qflow.client.client import Client
from qflow.client.files import Files
from qflow.orchestrator.v1.execution_service_pb2 import BatchStartExecutionsRequest
from qflow.registry.v1.workflow_service_pb2 import DeleteWorkflowRequest
from qflow.registry.v1.workflow_service_pb2_grpc import WorkflowServiceStub

from tests.support.suite import Suite


@qflow.node(name="client test: big")
def big(n: int) -> int:
    return n * 2**60


@qflow.node(name="client test: add")
def add(a: int, b: int, ok: bool) -> int:  # noqa: FBT001  # an input is no flag of a call
    return a + b if ok else 0


@qflow.node(name="client test: fail")
def fail(n: int) -> int:
    raise ValueError(f"no {n}, ümlaut")


@qflow.node(name="client test: wide")
def wide(n: int) -> str:
    return "é" * n


@qflow.node(name="client test: when")
def when(at: datetime, pay: Decimal) -> dict[str, Decimal]:
    return {at.isoformat(): pay}


@qflow.workflow(name="client test: bigger")
def bigger(n: int) -> int:
    return big(big(n))


@qflow.workflow(name="client test: waits")
def waits(n: int) -> int:
    k = qflow.signal("k", int)
    return add(n, k, qflow.approval("ok", subject=n)["approved"])


@qflow.workflow(name="client test: fails")
def fails(n: int) -> int:
    return fail(n)


@qflow.node(name="client test: picky")
def picky(n: int) -> int:
    if n > 9:
        raise ValueError(f"no {n}")
    return n + 1


@qflow.workflow(name="client test: part")
def part(n: int) -> int:
    return picky(picky(n))


@qflow.workflow(name="client test: parts")
def parts(ns: list[int]) -> dict[str, Any]:
    some = part.each(max_in_flight=2, max_failed=1).map(ns)
    until = part.repeat(while_="result < 6", max_turns=9, carry={"n": "result"})(1)
    return {"some": some, "until": until}


@qflow.workflow(name="client test: wide")
def widely(n: int) -> str:
    return wide(n)


@qflow.workflow(name="client test: dated")
def dated(at: datetime, pay: Decimal) -> dict[str, Decimal]:
    return when(at, pay)


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[Client]:
    async with qflow.connect(home=str(suite.home.root)) as one:
        yield one


async def test_it_gives_what_a_local_run_gives_beyond_53_bits(client: Client) -> None:
    assert bigger.run_local(7) == await client.run(bigger, 7) == 7 * 2**120


async def test_many_begin_in_one_call_and_what_is_wrong_hinders_no_other(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = BatchStartExecutionsRequest.DESCRIPTOR.fields_by_name["starts"].GetOptions()
    assert starting._STARTS_MAX == taken.Extensions[validate_pb2.field].repeated.max_items
    monkeypatch.setattr(starting, "_STARTS_MAX", 50)  # more calls than one of fewer runs
    same = client.options(request_id=str(uuid.uuid4()), labels={"from": "many"})
    inputs: list[dict[str, Any]] = [{"n": n} for n in range(120)]
    runs = await same.start_many(bigger, inputs)
    again = await same.start_many(bigger, inputs)
    begun = [each for each in runs if isinstance(each, qflow.Run)]
    assert 120 == len(begun)
    assert [each.id for each in begun] == [getattr(each, "id", "") for each in again]
    assert 119 * 2**120 == await begun[-1].result()
    stored = await client.push(waits)
    first, second = await client.start_many_stored(
        stored.id, [{"n": 1}, {"n": 1}], business_keys=["many"] * 2
    )
    assert isinstance(first, qflow.Run)
    assert isinstance(second, qflow.AlreadyExistsError)
    assert ("BUSINESS_KEY_IN_USE", first.id) == (second.reason, second.facts["execution_id"])
    assert str(second).endswith(first.id)  # also where no facts are shown, as in a shell
    await first.cancel()
    with pytest.raises(qflow.AuthoringError, match="one run's"):
        await client.options(business_key="k").start_many(bigger, [{"n": 1}])


async def test_inputs_that_cannot_be_written_hinder_no_other(client: Client) -> None:
    wrong: list[dict[str, Any]] = [{"n": 1}, {"n": "one"}, {}, {"m": 1}, {"n": 2}]
    first, *refused, last = await client.start_many(bigger, wrong)
    assert isinstance(first, qflow.Run)
    assert isinstance(last, qflow.Run)
    assert (2**120, 2 * 2**120) == (await first.result(), await last.result())
    kinds = [(type(each), getattr(each, "reason", "")) for each in refused]
    assert [(qflow.InvalidArgumentError, "INPUT_INVALID")] * 3 == kinds
    assert "input n" in str(refused[0])
    stored = await client.push(bigger)
    of_stored = await client.start_many_stored(stored.id, wrong)
    assert [True, False, False, False, True] == [isinstance(each, qflow.Run) for each in of_stored]
    assert ["INPUT_INVALID"] * 3 == [getattr(each, "reason", "") for each in of_stored[1:-1]]


async def test_values_keep_their_declared_types(client: Client) -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    expected = {at.isoformat(): Decimal("9.900")}
    assert expected == dated.run_local(at, Decimal("9.900"))
    assert expected == await client.run(dated, at, Decimal("9.900"))


async def test_the_example_gives_the_same_here_and_there(client: Client) -> None:
    order: Any = importlib.import_module("examples.client.orders").order
    lines = ["tea;2;3.50", "pot;1;24.00"]
    here = order.run_local(lines)
    there = await client.run(order, lines)
    assert (Decimal("31.00"), "free shipping") == (here.total, here.note)
    assert here == there


async def test_a_sub_workflow_runs_for_each_and_again_as_it_does_here(client: Client) -> None:
    expected = {"some": [3, None, 5], "until": 7}
    assert expected == parts.run_local([1, 9, 3])
    assert expected == await client.run(parts, [1, 9, 3])


async def test_pushing_the_same_again_changes_nothing_and_a_change_makes_a_version(
    client: Client,
) -> None:
    first = await client.push(bigger)
    assert first.version == (await client.push(bigger)).version

    @qflow.workflow(name=bigger.name)
    def other(n: int) -> int:
        return big(n)

    changed = await client.push(other)
    assert (first.id, first.version + 1) == (changed.id, changed.version)


async def test_pushes_at_once_make_one_of_each(client: Client) -> None:
    @qflow.workflow(name="client test: at once")
    def flow(n: int) -> int:
        return big(n)

    stored = await asyncio.gather(*(client.push(flow) for _ in range(4)))
    assert 1 == len({each.id for each in stored})


async def test_two_nodes_of_one_name_are_told_apart(client: Client) -> None:
    other = qflow.Node[[int], str](wide.function, name=big.name)

    @qflow.workflow(name="client test: one name")
    def flow(n: int) -> str:
        return other(big(n))

    with pytest.raises(qflow.AuthoringError, match="are not the same"):
        await client.push(flow)


async def test_what_was_deleted_is_stored_anew(client: Client) -> None:
    @qflow.workflow(name="client test: deleted")
    def flow(n: int) -> int:
        return big(n)

    first = await client.push(flow)
    stub = client.connection.stub("registry", WorkflowServiceStub)
    deleted = DeleteWorkflowRequest(workflow_id=first.id, etag=first.etag)
    await client.connection.call(stub.DeleteWorkflow, deleted)
    assert first.id != (await client.push(flow)).id


async def test_a_start_that_is_repeated_is_one_run(client: Client) -> None:
    again = client.options(request_id="6f0f6f4e-6a39-4c5e-9d7e-0a2f4b7f1a10")
    first, second = await again.start(bigger, 1), await again.start(bigger, 1)
    assert first.id == second.id
    with pytest.raises(qflow.AlreadyExistsError) as refused:
        await again.start(bigger, 2)
    assert "REQUEST_ID_REUSED" == refused.value.reason


async def test_a_watch_sees_it_wait_and_end_and_signals_reach_it(client: Client) -> None:
    run = await client.start(waits, 4)
    waiting, seen = asyncio.Event(), list[str]()

    async def look() -> None:
        async for change in run.watch():
            seen.extend(f"{node.node_id}:{node.status}" for node in change.nodes)
            if change.execution.node_counts.waiting == 2:
                waiting.set()

    looking = asyncio.create_task(look())
    await asyncio.wait_for(waiting.wait(), 30)
    await run.signal("k", 5)
    await run.answer("ok", approved=True)
    assert 9 == await run.result(timeout_s=60)
    await asyncio.wait_for(looking, 30)
    assert "add:6" in seen


async def test_a_failure_names_the_place_and_the_frames_of_user_code(client: Client) -> None:
    with pytest.raises(qflow.ExecutionFailedError, match="no 3, ümlaut") as failed:
        await client.run(fails, 3)
    assert ("fail", "user_error") == (failed.value.node_id, failed.value.error_type)
    assert "raise ValueError" in failed.value.stack_trace


async def test_a_cancelled_run_is_an_error_of_its_own(client: Client) -> None:
    run = await client.start(waits, 4)
    await run.cancel()
    with pytest.raises(qflow.ExecutionFailedError, match="cancelled") as failed:
        await run.result(timeout_s=60)
    assert "cancelled" == failed.value.error_type


async def test_waiting_no_longer_leaves_the_run(client: Client) -> None:
    run = await client.start(waits, 4)
    with pytest.raises(qflow.DeadlineExceededError, match="is not over after"):
        await run.result(timeout_s=0.05)
    assert not (await run.get()).HasField("end_time")
    await run.cancel()


async def test_a_value_too_large_for_a_row_comes_whole(client: Client) -> None:
    assert "é" * 100_000 == await client.run(widely, 100_000)


async def test_a_stored_workflow_is_started_by_its_id(client: Client) -> None:
    stored = await client.push(bigger)
    run = await client.start_stored(stored.id, {"n": 2}, version=stored.version)
    assert {"result": 2 * 2**120} == await run.result(timeout_s=60)
    with pytest.raises(qflow.AuthoringError, match="has no input 'm'"):
        await client.start_stored(stored.id, {"m": 2})


async def test_a_refusal_says_which_field_and_what_to_do(client: Client) -> None:
    with pytest.raises(qflow.NotFoundError) as missing:
        await client.node("00000000-0000-4000-8000-000000000000")
    assert "NODE_NOT_FOUND" == missing.value.reason
    with pytest.raises(qflow.InvalidArgumentError) as wrong:
        await client.node("nothing")
    assert ["node_id"] == [each.field for each in wrong.value.violations]


async def test_a_refuted_edge_is_refused_with_every_finding(client: Client) -> None:
    @qflow.workflow(name="client test: refuted")
    def flow(text: str) -> int:
        return big(text)  # type: ignore[arg-type]

    with pytest.raises(qflow.InvalidArgumentError, match="str is not int"):
        await client.push(flow)


async def test_a_wrong_token_and_no_server_are_told_apart(suite: Suite) -> None:
    here = contexts.of_home(suite.home.root)
    async with Client(replace(here, token="qft_nobody")) as client:
        with pytest.raises(qflow.UnauthenticatedError):
            await client.caller()
    async with Client(replace(here, registry="127.0.0.1:1")) as client:
        with pytest.raises(qflow.UnavailableError, match=r"no Qflow answers at 127\.0\.0\.1:1"):
            await client.caller()


async def test_files_go_there_and_back(client: Client, tmp_path: Path) -> None:
    sent = tmp_path / "größe 📦.bin"
    sent.write_bytes(bytes(range(256)) * 4000)
    told: list[int] = []
    file = await client.files.upload(sent, progress=lambda done, _all: told.append(done))
    await client.files.download(file.id, tmp_path / "back.bin")
    assert sent.read_bytes() == (tmp_path / "back.bin").read_bytes()
    assert sent.stat().st_size == told[-1]
    assert "größe 📦.bin" == (await client.files.about(file.id)).filename
    with pytest.raises(qflow.NotFoundError):
        await client.files.download("00000000-0000-4000-8000-000000000000", tmp_path / "none")
    assert ["back.bin", "größe 📦.bin"] == sorted(os.listdir(tmp_path))  # noqa: PTH208


async def test_an_empty_file_is_a_file(client: Client, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    file = await client.files.upload(tmp_path / "empty")
    assert b"" == await Files(client.connection).read(file.id)


def test_the_blocking_client_does_the_same(suite: Suite) -> None:
    with qflow.connect_blocking(home=str(suite.home.root)) as client:
        begun, refused = client.start_many(waits, [{"n": 1}] * 2, business_keys=["blocks"] * 2)
        assert isinstance(begun, BlockingRun)
        assert isinstance(refused, qflow.AlreadyExistsError)
        begun.cancel()
        run = client.start(waits, 1)
        run.signal("k", 2)
        run.answer("ok", approved=True)
        assert 3 == run.result(timeout_s=60)
        assert run.wait().status == list(run.watch())[-1].execution.status
        assert any(each.name == waits.name for each in client.workflows())
        with contextlib.closing(_some(client.runs())) as runs:
            assert next(runs).id


def test_the_blocking_client_starts_as_it_is_told(suite: Suite) -> None:
    with qflow.connect_blocking(home=str(suite.home.root)) as client:
        with client.options(labels={"from": "blocking"}, priority=7) as told:
            run = told.start(bigger, 1).wait(timeout_s=60)
        assert (7, {"from": "blocking"}) == (run.priority, dict(run.labels))
        assert 0 == client.start(bigger, 1).wait(timeout_s=60).priority  # open, and as it was


def test_a_blocking_client_may_attach_before_anything_else(suite: Suite) -> None:
    with qflow.connect_blocking(home=str(suite.home.root)) as client:
        with pytest.raises(qflow.NotFoundError):
            client.attach(str(uuid.uuid4())).wait(timeout_s=60)


def test_what_no_call_takes_is_refused_in_a_sentence(suite: Suite) -> None:
    with qflow.connect_blocking(home=str(suite.home.root)) as client:
        with pytest.raises(qflow.AuthoringError, match="add is no workflow: call it in"):
            client.run(cast("Any", add), 1)
        run = client.attach(str(uuid.uuid4()))
        with pytest.raises(qflow.ResourceExhaustedError, match="bring large values as files"):
            run.signal("k", "a" * 5_000_000)


def _some(items: Iterator[Any]) -> Any:
    return (each for each in items)
