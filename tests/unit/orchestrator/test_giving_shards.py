"""A shard is given away when nothing of it is in memory, nor on its way there."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Any

from services.orchestrator.domain.commands import SupersededCommand
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import Committed
from services.orchestrator.engine.loaded import Loaded
from services.orchestrator.engine.owner import _held
from services.orchestrator.engine.streams import Owned
from tests.unit.orchestrator.test_certainty import ALL, Lease, nothing
from tests.unit.orchestrator.test_core import ONE, start
from tests.unit.orchestrator.test_found_by_worlds import answer, plan_of
from tests.unit.orchestrator.test_holding_what_closes import a_core

TAKER = uuid.uuid4()
SHARD = 3


class Giving(Lease):
    """A member whose shards go to whoever is named."""

    def __init__(self) -> None:
        super().__init__(None)
        self.given: list[int] = []

    async def give(self, shard: int, _: uuid.UUID) -> bool:
        self.given.append(shard)
        return True


def a_run() -> Run:
    return Run(
        id=uuid.uuid4(),
        plan=plan_of({"kind": "signal", "signal": {"name": "go"}}),
        tenant_id=uuid.uuid4(),
        created_by=uuid.uuid4(),
        status=RunStatus.RUNNING,
        input_values={},
        shard=SHARD,
    )


async def test_a_shard_waits_for_a_run_of_it_that_is_read_again() -> None:
    """I10: else two members would drive that run."""
    run, member, may_load = a_run(), Giving(), asyncio.Event()

    async def load(**_: Any) -> Loaded:
        await may_load.wait()
        loaded = Loaded()
        loaded.runs.append((run, {}, None))
        return loaded

    engine = Engine(member=member, connect=nothing, load=load)
    engine.shards.put(ALL)
    engine.journal.written = written  # type: ignore[method-assign]
    reading = asyncio.create_task(engine._take_out([run.id], "a fault", 1))
    giving = asyncio.create_task(engine.release(SHARD, TAKER))
    for _ in range(10):
        await asyncio.sleep(0)
    assert [] == member.given
    may_load.set()
    await reading
    assert await giving
    assert [SHARD] == member.given
    assert run.id not in engine.core.runs


async def test_a_run_that_comes_back_while_its_last_words_are_written_is_forgotten_again() -> None:
    run, member = a_run(), Giving()

    async def load(**_: Any) -> Loaded:
        loaded = Loaded()
        loaded.runs.append((run, {}, None))
        return loaded

    engine = Engine(member=member, connect=nothing, load=load)
    engine.shards.put(ALL)
    engine.core.adopt(run, now=0.0, due_s={}, deadline_s=None)
    refused: list[bool] = []

    async def refusing() -> bool:
        if run.id not in engine.core.runs and not refused:
            refused.append(True)  # a flush of what was queued for it
            await engine._refused(run.id, "too large")
        return True

    engine.journal.written = refusing  # type: ignore[method-assign]
    assert await engine.release(SHARD, TAKER)
    assert [True] == refused
    assert run.id not in engine.core.runs


async def test_a_cancel_of_a_run_that_is_over_is_answered_when_its_shard_goes() -> None:
    """Its end was on its way to disk: the rows say how it stands, here as there."""
    run, member = a_run(), Giving()

    async def nothing(**_: Any) -> Any:
        raise AssertionError

    engine = Engine(member=member, connect=nothing, load=nothing)
    engine.shards.put(ALL)
    engine.core.adopt(run, now=0.0, due_s={}, deadline_s=None)
    engine.journal.written = written  # type: ignore[method-assign]
    run.status = RunStatus.COMPLETED
    cancelling = asyncio.create_task(engine.cancel(run.id))
    await asyncio.sleep(0)
    assert await engine.release(SHARD, TAKER)
    await cancelling


async def written() -> bool:
    return True


async def test_a_word_to_a_runner_is_no_sign_that_a_run_can_be_written() -> None:
    """Else what cannot be written is tried without end: its runner comes back in between."""
    engine = Engine(member=Giving(), connect=nothing, load=nothing)
    run = a_run()
    engine._refusals[run.id] = 1
    word = Transition(run.id, commands=[SupersededCommand(TAKER, uuid.uuid4(), 1)])
    engine._released(Committed([word], datetime.now(UTC), None, frozenset()))
    assert {run.id: 1} == engine._refusals


def test_a_runner_is_told_who_has_what_it_runs_by_the_tokens_that_it_knows() -> None:
    """I10: of what is being killed it has the token from before that."""
    core = a_core()
    run = start(core, plan_of({}, {}, {}))
    answer(core, run, 1)
    dying, _, going = run.records
    assert dying is not None
    assert going is not None
    dying.killing, dying.token = dying.token, dying.token + 9
    assert dying.killing is not None
    assert [
        (ONE, Owned(dying.id, dying.killing, TAKER)),
        (ONE, Owned(going.id, going.token, TAKER)),
    ] == _held(run, TAKER)


async def test_who_listens_to_a_run_of_a_shard_that_was_given_is_told_at_once() -> None:
    """I13: and not with the next look, a quarter of a minute later."""
    run = a_run()
    engine = Engine(member=Giving(), connect=nothing, load=nothing)
    engine.shards.put(ALL)
    engine.core.adopt(run, now=0.0, due_s={}, deadline_s=None)
    engine.journal.written = written  # type: ignore[method-assign]
    with engine.hub.subscribed(run.id) as one:
        assert await engine.release(SHARD, TAKER)
        assert one.moved
