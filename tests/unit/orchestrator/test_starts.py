"""Who waits for many runs at once: told once, of all, and after what hangs on the same commit."""

from __future__ import annotations

import asyncio
import uuid

from services.kit.errors import Unavailable
from services.orchestrator.domain.options import RunOptions, Wishes
from services.orchestrator.engine.callers import Callers, NotStarted, Starts
from services.orchestrator.engine.streams import Peers, Stream
from services.orchestrator.usecases.start_many import Asked, not_first


async def test_one_wait_ends_with_the_last_of_its_runs_and_names_those_that_did_not_begin() -> None:
    callers, starts = Callers(), Starts(3)
    begun, gone, lost = (uuid.uuid4() for _ in range(3))
    for each in (begun, gone, lost):
        callers.start(each, starts)
    callers.started(begun)
    callers.refused(gone)
    await asyncio.sleep(0)
    assert not starts.done.done()
    callers.all_loaded_again(())
    await asyncio.wait_for(starts.done, 30)
    assert {gone, lost} == set(starts.refused)
    assert isinstance(starts.refused[gone], NotStarted)
    assert isinstance(starts.refused[lost], Unavailable)


async def test_assignments_of_a_commit_go_out_before_its_caller_is_answered() -> None:
    order: list[str] = []
    callers, starts, stream = Callers(), Starts(1), Stream(uuid.uuid4())
    run = uuid.uuid4()
    callers.start(run, starts)

    async def answer() -> None:
        await starts.done
        order.append("answered")

    async def send() -> None:
        await stream.take()
        order.append("sent")

    tasks = [asyncio.create_task(each) for each in (answer(), send())]
    await asyncio.sleep(0)
    callers.started(run)  # as a flush lets them out: the answer first, then what it assigns
    stream.send(Peers(()))
    await asyncio.gather(*tasks)
    assert ["sent", "answered"] == order


async def test_whoever_leaves_before_the_commit_disturbs_nobody() -> None:
    callers, starts = Callers(), Starts(1)
    run = uuid.uuid4()
    callers.start(run, starts)
    waiting = asyncio.ensure_future(starts.done)
    waiting.cancel()
    callers.started(run)
    await asyncio.sleep(0)
    assert waiting.cancelled()


def test_of_a_batch_only_the_first_with_a_business_key_goes_with_the_others() -> None:
    """Whatever the flush makes of that one, those behind it find it done."""
    one, other = uuid.uuid4(), uuid.uuid4()

    def asked(workflow: uuid.UUID, key: str | None) -> Asked:
        return Asked(workflow, 0, "{}", wishes=Wishes(options=RunOptions(business_key=key)))

    starts = [(one, "k"), (other, "k"), (one, None), (one, "k"), (one, None), (other, "k")]
    assert {3, 5} == not_first([asked(*each) for each in starts])
