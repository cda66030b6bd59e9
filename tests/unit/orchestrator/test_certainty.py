"""What an orchestrator may tell runners while it does not know whether its runs are its own."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from qflow.orchestrator.v1 import attach_service_pb2 as pb

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

    async def requests() -> AsyncIterator[pb.AttachRequest]:
        yield pb.AttachRequest(
            hello=pb.RunnerHello(
                protocol=attach.PROTOCOL,
                incarnation=str(uuid.uuid4()),
                slots=1,
                inventory=[pb.RunnerInventoryItem(attempt_ref=uuid.uuid4().bytes, token=7)],
            )
        )
        await asyncio.sleep(0.3)  # then the runner goes

    monkeypatch.setattr(attach, "admit", admit)
    engine = engine_of(lease)
    writing = asyncio.create_task(engine.journal.run())
    frames = attach.AttachServicer(engine, cast("Any", None)).Attach(requests(), cast("Any", None))
    told = [field.name async for frame in frames for field, _ in frame.ListFields()]
    writing.cancel()
    return told
