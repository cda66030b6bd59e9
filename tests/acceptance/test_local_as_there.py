"""A workflow of any shape ends here as on a Qflow, and so do its reruns, forks and retries."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import pytest
import qflow
from qflow.authoring.workflow import Workflow
from qflow.client.client import Client

from tests.support.any_flow import WORD, any_flow, waits
from tests.support.suite import Suite

_AT_ONCE: Final = 6
_BATCHES: Final = 50 if os.environ.get("QFLOW_TEST_FULL") else 4
_INPUTS: Final = (0, 1, 2, 5, 8)
_SAID: Final = 6
_FAILED: Final = "it failed"


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[Client]:
    async with qflow.connect(home=str(suite.home.root)) as one:
        yield one


@pytest.mark.parametrize("first", range(0, _BATCHES * _AT_ONCE, _AT_ONCE))
async def test_a_workflow_of_any_shape_ends_there_as_here(client: Client, first: int) -> None:
    """Its nodes depend on nothing but their inputs, so that every run of it ends alike."""
    numbers = range(first, first + _AT_ONCE)
    stored = await asyncio.gather(*(compare(client, number) for number in numbers))
    assert any(stored)


async def compare(client: Client, number: int) -> bool:
    """Run it here and there; gives whether the registry takes it: a list may be absent."""
    flow = any_flow(number)
    x = _INPUTS[number % len(_INPUTS)]
    try:
        here = qflow.Local(signals={WORD: _SAID}).run(flow, x)
    except qflow.ExecutionFailedError:
        here = _FAILED
    try:
        run = await client.start(flow, x)
    except qflow.InvalidArgumentError as error:
        if error.reason != "INPUT_MAY_BE_ABSENT":
            raise
        return False
    assert here == await end_of(run, flow), f"any flow {number} of {x}: {run}"
    chance = random.Random(number)
    places = [each.id for each in flow.graph.places if not each.finally_]
    for again in (run.rerun, run.fork):
        some = chance.sample(places, min(len(places), 2))
        other = await again(some)
        assert here == await end_of(other, flow), f"{other}, of {some} of {run}"
    other = await run.retry()
    assert here == await end_of(other, flow), f"{other}, again {run}"
    return True


async def end_of(run: qflow.Run[Any], flow: Workflow[[int], Any]) -> Any:
    """Say to it what it waits for, as often as it may; gives what it ends with."""
    with suppress(qflow.FailedPreconditionError):  # it is over without
        for _ in range(waits(flow)):
            await run.signal(WORD, _SAID)
    try:
        return await run.result(timeout_s=60)
    except qflow.ExecutionFailedError:
        return _FAILED
