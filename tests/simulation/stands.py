"""What stands in for the world outside: set for the length of one simulation, then put back."""

from __future__ import annotations

import asyncio
from asyncio import events, mixins
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from services.orchestrator.domain import dispatch
from services.orchestrator.domain.transition import Transition
from services.orchestrator.engine import journal, journal_queue, member, outlet, treasury
from services.orchestrator.engine.database_clock import DatabaseClock
from services.orchestrator.loops import limits, members, quotas, result_cache, sweep
from services.orchestrator.storage import flush
from services.orchestrator.usecases import limits as limit_usecases
from services.orchestrator.usecases import recover, runners
from services.runner.gateways import attach
from services.runner.usecases import membership
from tests.simulation.database import transaction
from tests.simulation.store import EPOCH
from tests.simulation.wire import Channel

if TYPE_CHECKING:
    from tests.simulation.world import World


@contextmanager
def stood_in(world: World) -> Iterator[None]:
    """Put the simulation's database, wire, ids and chance in the places of the real ones."""
    loop = world.loop
    with ExitStack() as stack:

        def put(target: Any, name: str, value: Any) -> None:
            stack.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, value)

        # The library asks the kernel which process this is before it says which loop runs there,
        # and is asked that 700 times in a world.
        put(asyncio, "get_running_loop", lambda: loop)
        put(events, "get_running_loop", lambda: loop)
        put(mixins._LoopBoundMixin, "_get_loop", lambda _: loop)

        for module in (
            *(member, members, sweep, recover, runners, limits, limit_usecases),
            *(quotas, treasury, result_cache),
        ):
            put(module, "transaction", transaction)
        put(limits, "uuid7", world.new_id)
        put(journal, "flush", _FLUSH)
        put(outlet, "uuid7", world.new_id)
        put(
            outlet,
            "DatabaseClock",
            lambda: DatabaseClock(lambda: EPOCH + timedelta(seconds=loop.time())),
        )
        put(journal_queue, "uuid7", world.new_id)
        put(dispatch, "datetime", SimpleNamespace(now=lambda _: world.store.clock()))
        put(member, "uuid7", world.new_id)
        put(membership, "uuid", SimpleNamespace(uuid4=world.new_id))
        put(membership, "containers", SimpleNamespace(close_left=_nothing))
        put(
            attach,
            "open_channel",
            lambda address, token, **_: Channel(world.network, address, token),
        )
        put(attach, "AttachServiceStub", world.network.stub)
        yield


async def _nothing(*_: Any) -> None:
    """There are no sandboxes to close."""


def _prepare(batch: Sequence[Transition], _seal: object = None) -> Any:
    return SimpleNamespace(sql="flush", batch=list(batch))


def _arguments(prepared: Any, *fence: Any) -> list[Any]:
    return [prepared.batch, *fence]


_FLUSH = SimpleNamespace(
    prepare=_prepare,
    arguments=_arguments,
    FENCED=flush.FENCED,
    GUARD_MISSED=flush.GUARD_MISSED,
)
