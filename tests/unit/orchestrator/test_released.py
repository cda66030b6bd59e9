"""In which order what hangs on a commit is let out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

from services.orchestrator.domain.commands import AckCommand, KillCommand
from services.orchestrator.domain.rows import RunChange
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine.journal import Committed
from services.orchestrator.engine.outlet import Outlet
from services.orchestrator.engine.streams import Outgoing, Stream

RUN, RUNNER = UUID(int=1), UUID(int=2)
AT = datetime(2026, 1, 1, tzinfo=UTC)
ENDED = RunChange(
    id=RUN,
    status="completed",
    starts=False,
    final=True,
    output_data="{}",
    container_id=None,
    revision=2,
    cpu_us=0,
    memory_peak_bytes=0,
)
ACK = AckCommand(RUNNER, UUID(int=3), 1)
KILL = KillCommand(RUNNER, UUID(int=4), 1)


async def _order(*commands: AckCommand | KillCommand) -> list[str]:
    """Let out the end of a run with these commands; give what came in which order."""
    came: list[str] = []

    def say(_commands: Sequence[Outgoing]) -> bool:
        came.append("runner")
        return True

    async def wait() -> None:
        with outlet.hub.subscribed(RUN, ends_only=True) as end:
            await end.next()
            came.append("caller")

    outlet = Outlet(member=cast("Any", SimpleNamespace(epoch=1)))
    stream = outlet.streams[RUNNER] = Stream(RUNNER, say=say)
    taking, waiting = asyncio.create_task(stream.take()), asyncio.create_task(wait())
    await asyncio.sleep(0)
    t = Transition(RUN, run_changes=[ENDED], commands=list(commands), revision=2)
    outlet._released(Committed([t], AT, AT, frozenset()))
    await waiting
    await asyncio.sleep(0)
    taking.cancel()
    return came


async def test_who_waits_for_an_end_is_answered_before_its_result_is_acknowledged() -> None:
    assert ["caller", "runner"] == await _order(ACK)


async def test_what_a_runner_is_to_do_goes_before_every_answer() -> None:
    """Its acknowledgements with it: what is said to a runner keeps its order."""
    assert ["runner", "caller"] == await _order(ACK, KILL)
