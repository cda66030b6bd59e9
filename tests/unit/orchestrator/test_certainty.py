"""What an orchestrator may tell runners while it does not know whether its runs are its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from qflow.orchestrator.v1 import attach_service_pb2 as pb

from services.kit.errors import Unavailable
from services.orchestrator.domain.needs import Offer
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import FencedError
from services.orchestrator.engine.member import Member
from services.orchestrator.rpc import attach

ALL = frozenset(range(64))


class Lease(Member):
    """A member's lease with a clock of the test's, and a database that answers as it says."""

    def __init__(self, *answers: Exception | None) -> None:
        super().__init__(
            cast("Any", None),
            host="here",
            address="here:1",
            proof=True,
            ttl_s=10.0,
            clock=lambda: self.now_s,
        )
        self.now_s = 0.0
        self.answers = list(answers)
        self.owned = ALL
        self.owned_then = ALL  # what its next renewal finds

    async def renew(self) -> None:
        answer = self.answers.pop(0)
        if answer is not None:
            raise answer
        self.live, self.owned, self._certain_until_s = True, self.owned_then, self.now_s + 10.0


async def nothing(**_: Any) -> Any:
    raise AssertionError


def engine_of(lease: Lease) -> Engine:
    engine = Engine(member=lease, connect=nothing, load=nothing)
    engine.shards.put(ALL)
    return engine


async def test_a_lease_that_runs_is_asked_of_nobody() -> None:
    lease = Lease(None)
    await lease.renew()
    lease.now_s = 9.9
    assert await engine_of(lease).knows()
    lease.now_s, lease.answers = 10.1, [OSError(), None]
    assert await engine_of(lease).knows()
    assert [] == lease.answers, "it asks until the database answers"


async def test_who_is_fenced_says_nothing_more_and_ends() -> None:
    """F7, I10."""
    lease = Lease(FencedError())
    lease.live = True
    engine = engine_of(lease)
    engine.shards.look.clear()
    assert not await engine.knows()
    assert engine.shards.look.is_set()


@pytest.mark.parametrize("lost", [frozenset[int](), frozenset({3})])
async def test_who_has_a_new_epoch_speaks_once_it_holds_a_lease_and_all_its_shards(
    lost: frozenset[int],
) -> None:
    """I10: between the two another may have taken over, and have done what memory says is open."""
    lease = Lease(None)
    lease.owned_then = ALL - lost
    engine = engine_of(lease)
    assert await engine.knows() == (not lost)
    assert engine.work.is_set(), "the lease is given back when nothing comes"
    assert engine.journal._doubted == bool(lost), "all is loaded again"


@pytest.mark.parametrize("lost", [frozenset[int](), frozenset({3})])
async def test_who_wakes_without_a_shard_says_nothing_of_what_it_judged_before(
    lost: frozenset[int],
) -> None:
    """I10, I11: a runner that came while it rested has what another gave it since."""
    lease = Lease(None)
    lease.owned_then = ALL - lost
    engine = engine_of(lease)
    held, runner = uuid.uuid4(), uuid.uuid4()
    stream = engine.attach(runner, Offer(pythons=frozenset()), {held: 1})
    await asyncio.sleep(0)
    await engine.wake()
    assert stream.closed == bool(lost)
    assert engine.shards.ready == ALL - lost


async def test_no_shard_is_waited_for_once_for_all_starts_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, waits = engine_of(Lease(None)), 0

    async def draw(_wanted: int) -> int:
        nonlocal waits
        waits += 1
        raise Unavailable("NO_SHARD", "none", retry_after_s=1.0)

    monkeypatch.setattr(engine, "_draw", draw)
    beginnings: Any = [
        SimpleNamespace(run=SimpleNamespace(id=uuid.uuid4()), row=SimpleNamespace(shard=1))
        for _ in range(1_000)
    ]
    refused = await engine.start_many(beginnings)
    assert {each.run.id for each in beginnings} == {*refused}
    assert {Unavailable} == {type(each) for each in refused.values()}
    assert 1 == waits


async def test_what_makes_a_runner_forget_is_asked_of_the_database(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """I10, I11: its clock alone judges leases, and one that was set ahead ends them early."""
    lease = Lease(None)
    await lease.renew()
    lease.answers = [FencedError()]
    assert ["welcome"] == await told_on_attaching(lease, monkeypatch)


async def test_a_stream_ends_where_its_orchestrator_cannot_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """F7: what it remembers would end an attempt that another waits for."""
    assert ["welcome"] == await told_on_attaching(Lease(FencedError()), monkeypatch)


async def test_what_is_superseded_is_told_once_the_database_has_confirmed_who_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lease = Lease(None)
    await lease.renew()
    lease.answers = [OSError(), None]
    assert ["welcome", "superseded"] == await told_on_attaching(lease, monkeypatch)
    assert [] == lease.answers


async def told_on_attaching(lease: Lease, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Attach a runner with an attempt that memory does not know; give the fields of the frames."""

    async def admit(*_: Any) -> None:
        return

    told: list[str] = []
    all_told = asyncio.Event()

    async def requests() -> AsyncIterator[pb.AttachRequest]:
        yield pb.AttachRequest(
            hello=pb.RunnerHello(
                protocol=attach.PROTOCOL,
                incarnation=str(uuid.uuid4()),
                slots=1,
                inventory=[pb.RunnerInventoryItem(attempt_ref=uuid.uuid4().bytes, token=7)],
            )
        )
        await all_told.wait()  # then the runner goes

    monkeypatch.setattr(attach, "admit", admit)
    engine = engine_of(lease)
    writing = asyncio.create_task(engine.journal.run())
    frames = attach.AttachServicer(engine, cast("Any", None)).Attach(requests(), cast("Any", None))
    async for frame in frames:
        told += [field.name for field, _ in frame.ListFields()]
        if "superseded" in told:
            all_told.set()
    writing.cancel()
    return told
