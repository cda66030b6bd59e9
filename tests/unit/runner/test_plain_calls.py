"""Calls without a task: each is told of once, and gives its interpreter back, however it ends."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any, cast

from services.runner.domain.attempts import AttemptRequest, Input
from services.runner.domain.outcome import ErrorType, Outcome
from services.runner.gateways.sandbox.port import Header, OnAnswer, Reply, SandboxDied
from services.runner.usecases.attempt import Attempt
from services.runner.usecases.calls import Calls
from services.runner.usecases.interpreters import InterpreterPool
from services.runner.usecases.node_logs import NodeLogs
from services.runner.usecases.plain_calls import PlainCall
from services.runner.usecases.warm import Warm
from tests.unit.runner.test_waiting_calls import a_need, a_pool


def answer(token: int, body: bytes) -> Reply:
    outputs = [["result", len(body)]]
    return Reply({"op": "result", "id": token, "recycle": "", "outputs": outputs}, body)


class Calling:
    """One interpreter, which the test answers for."""

    def __init__(self, pool: InterpreterPool, warm: Warm) -> None:
        self.pool = pool
        self.asked: list[tuple[Header, bytes, OnAnswer]] = []
        self.told: list[tuple[int, Outcome]] = []
        sandbox = cast("Any", warm.sandbox)
        sandbox.ask = self._ask
        sandbox.output_tails = lambda: ("", "")
        self.calls = Calls(NodeLogs(cast("Any", None)), lambda _attempt, _why: None)
        cast("Any", warm.row).used = lambda _usage: None
        self.warm = warm

    def _ask(
        self, header: Header, body: bytes, on_answer: OnAnswer, *, reply_bytes_max: int
    ) -> None:
        assert reply_bytes_max
        self.asked.append((header, body, on_answer))

    def call(self, token: int) -> tuple[PlainCall, Attempt]:
        attempt = Attempt(
            AttemptRequest(
                attempt_ref=uuid.UUID(int=token),
                token=token,
                execution_id=uuid.UUID(int=1),
                tenant_id=uuid.UUID(int=1),
                node_id="a",
                node_version_id=uuid.UUID(int=2),
                attempt=1,
                inputs=[Input("x", b"1")],
                outputs=["result"],
                timeout_s=60,
            )
        )
        attempt.begun = True
        over: Callable[[Outcome], None] = lambda outcome: self.told.append((token, outcome))  # noqa: E731
        return PlainCall(self.calls, self.pool, attempt, over, lambda: None), attempt


def waits(attempt: Attempt) -> bool:
    return attempt.leave is not None


async def calling() -> Calling:
    pool, _ = a_pool()
    return Calling(pool, await pool.acquire(a_need()))


async def test_a_call_that_waits_is_begun_by_the_end_of_the_one_before_it() -> None:
    test = await calling()
    first, _ = test.call(7)
    second, _ = test.call(8)
    first.begin(test.warm)
    second.wait(a_need())
    [(header, body, answered)] = test.asked
    assert ([("x", 1, ())], b"1") == (header["inputs"], body)
    answered(answer(7, b"2"))
    assert [7] == [token for token, _ in test.told]
    assert [7, 8] == [header["id"] for header, _, _ in test.asked]
    test.asked[1][2](answer(8, b"3"))
    assert [[("result", b"2")], [("result", b"3")]] == [each.outputs for _, each in test.told]
    census = test.pool.census()
    assert (1, 0, 0) == (census["idle"], census["busy"], census["waiting"])
    await test.pool.close()


async def test_a_call_that_leaves_the_line_is_told_of_and_never_begun() -> None:
    test = await calling()
    first, _ = test.call(7)
    first.begin(test.warm)
    second, attempt = test.call(8)
    second.wait(a_need())
    attempt.told = "killed"
    assert waits(attempt)
    cast("Any", attempt).leave()
    assert not waits(attempt)
    [(token, outcome)] = test.told
    assert outcome.error is not None
    assert (8, ErrorType.CANCELLED) == (token, outcome.error.type)
    test.asked[0][2](answer(7, b"2"))
    assert ([8, 7], 1) == ([token for token, _ in test.told], len(test.asked))
    assert 0 == test.pool.census()["waiting"]
    await test.pool.close()


async def test_calls_that_wait_for_an_interpreter_which_never_starts_are_told() -> None:
    pool, _ = a_pool(failing=range(100))
    logs = NodeLogs(cast("Any", None))
    told: list[Outcome] = []
    attempt = Attempt(cast("Any", None))
    call = PlainCall(
        Calls(logs, lambda _attempt, _why: None), pool, attempt, told.append, lambda: None
    )
    call.wait(a_need())
    async with asyncio.timeout(30):
        while not told:  # noqa: ASYNC110  # the pool's tasks take some turns
            await asyncio.sleep(0)
    assert told[0].error is not None
    assert ErrorType.ENVIRONMENT is told[0].error.type
    await pool.close()


async def test_a_sandbox_that_dies_ends_its_call_and_serves_no_other() -> None:
    test = await calling()
    call, _ = test.call(7)
    call.begin(test.warm)
    cast("Any", test.warm.sandbox).up = False
    test.asked[0][2](SandboxDied("gone"))
    [(_, outcome)] = test.told
    assert outcome.error is not None
    assert (ErrorType.EXITED, "gone") == (outcome.error.type, outcome.error.message)
    assert {"idle": 0, "busy": 0, "starting": 0, "waiting": 0} == test.pool.census()
    await test.pool.close()


async def test_a_large_answer_is_looked_at_beside_the_loop_and_told_once() -> None:
    test = await calling()
    call, attempt = test.call(7)
    call.begin(test.warm)
    test.asked[0][2](answer(7, b"[" + b"1," * 20_000 + b"1]"))
    assert [] == test.told
    assert (None, False) == (attempt.task, attempt.looking is None), (
        "whoever kills ends the sandbox"
    )
    async with asyncio.timeout(30):
        await asyncio.wait({attempt.looking} if attempt.looking else ())
    [(_, outcome)] = test.told
    assert (None, 1) == (outcome.error, test.pool.census()["idle"])
    await test.pool.close()


async def test_what_is_no_json_is_told_as_that_and_an_answer_out_of_turn_ends_the_sandbox() -> None:
    test = await calling()
    for token, reply in ((7, answer(7, b"{")), (8, answer(9, b"1"))):
        call, _ = test.call(token)
        call.begin(test.warm)
        test.asked[-1][2](reply)
        if token == 7:
            assert test.warm is test.pool.acquire_open(a_need().key)
    kinds = [outcome.error.type for _, outcome in test.told if outcome.error is not None]
    assert [ErrorType.SERIALIZATION, ErrorType.EXITED] == kinds
    assert {"idle": 0, "busy": 0, "starting": 0, "waiting": 0} == test.pool.census()
    await test.pool.close()


async def test_what_the_runner_itself_cannot_do_is_the_runner_s_fault_and_told() -> None:
    test = await calling()

    heard: list[OnAnswer] = []

    def broken(_header: Header, _body: bytes, on_answer: OnAnswer, **_: object) -> None:
        heard.append(on_answer)
        raise ValueError("cannot be sent")

    cast("Any", test.warm.sandbox).ask = broken
    call, _ = test.call(7)
    call.begin(test.warm)
    assert [] == test.told, "it is told later: whoever begins it may be in the pool's own work"
    await asyncio.sleep(0)
    [(_, outcome)] = test.told
    assert outcome.error is not None
    assert (ErrorType.ENVIRONMENT, 0) == (outcome.error.type, test.pool.census()["idle"])
    heard[0](SandboxDied("ended by the pool"))
    assert 1 == len(test.told)
    await test.pool.close()
