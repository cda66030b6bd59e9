"""A process's way to the store: every statement takes its time, and may be lost on it.

Storage modules hand over their SQL constants as they do in production; here each is looked up in
`_ANSWERS`. A statement that nobody answers is an error: whoever adds one says here what it does.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.orchestrator.domain.rows import Transition
from services.orchestrator.storage import definitions, flush, recovery
from services.orchestrator.storage import members as engine_members
from services.runner.storage import members as runner_members
from tests.simulation.store import Lease, Refused, Row, Store

FATES: Final = (
    "flush lost",
    "flush done, reported failed",
    "flush of an older epoch",
    "flush refused in passing",
)
_TRANSIENT: Final = ("40001", "53300", "57014")


class LinkLostError(OSError):
    """The connection broke: whether the statement was carried out is not known."""


class Faults:
    """What the network between a process and PostgreSQL does to its statements."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.rate = 0.0  # of statements that meet a fault
        self.forced: deque[str] = deque()  # what befalls the next flushes
        self.down = False
        self.hit: dict[str, int] = {}
        self.poisoned: dict[UUID, int] = {}  # runs whose rows are refused, so many times

    def count(self, name: str) -> None:
        self.hit[name] = self.hit.get(name, 0) + 1

    def draw(self) -> bool:
        return self.rate > 0 and self.chance.random() < self.rate


class Database:
    """Pool and connection in one, of one process; `cut` when that process is gone."""

    def __init__(self, store: Store, faults: Faults) -> None:
        self.store = store
        self.faults = faults
        self.closed = False
        self.cut = False  # this process alone does not reach the server

    # --- as a pool ------------------------------------------------------------------------------

    async def fetch(self, sql: str, *arguments: Any) -> Any:
        await self._travel()
        answer = _ANSWERS[sql](self.store, *arguments)
        await self._return()
        return answer

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        return await self.fetch(sql, *arguments)

    async def execute(self, sql: str, *arguments: Any) -> Any:
        return await self.fetch(sql, *arguments)

    async def _travel(self) -> None:
        await asyncio.sleep(self.faults.chance.random() * 0.002)
        if self.faults.down or self.cut or self.faults.draw():
            self.faults.count("statement lost")
            raise LinkLostError
        self._turn()

    async def _return(self) -> None:
        if self.faults.draw():
            self.faults.count("statement done, reported failed")
            raise LinkLostError

    def _turn(self) -> None:
        self.store.now_s = asyncio.get_running_loop().time()

    # --- as the journal's connection ------------------------------------------------------------

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True

    async def prepare(self, sql: str) -> Database:
        assert sql == "flush"
        return self

    async def fetchrow(
        self, batch: Sequence[Transition], member_id: UUID, epoch: int, last: datetime
    ) -> Row:
        """Carry a flush out, or lose it on one side or the other of its commit."""
        chance = self.faults.chance
        await asyncio.sleep(0.0005 + chance.random() * 0.002)
        if self.faults.down or self.cut:
            raise self._broken("flush lost")
        self._refuse(batch)
        fate = self._fate()
        match fate:
            case "":
                self._turn()
                try:
                    return self.store.flush(batch, member_id, epoch, last)
                except Refused as refused:
                    # Its memory was what the rows said, but for starts that were refused: what
                    # follows those is refused as well.
                    follows = any(t.run_id not in self.store.runs for t in batch)
                    if follows or refused.sqlstate == flush.FENCED:
                        raise
                    raise AssertionError(f"refused: {refused}") from refused
            case "flush lost":
                raise self._broken(fate)
            case "flush done, reported failed":
                self._turn()
                self.store.flush(batch, member_id, epoch, last)
                raise self._broken(fate)
            case "flush of an older epoch":
                delay_s = chance.random() * 0.2
                loop = asyncio.get_running_loop()
                loop.call_later(delay_s, self._arrive_late, list(batch), member_id, epoch, last)
                raise self._broken(fate)
            case _:
                self.faults.count(fate)
                raise Refused(chance.choice(_TRANSIENT), "try again")

    def _fate(self) -> str:
        if self.faults.forced:
            return self.faults.forced.popleft()
        return self.faults.chance.choice(FATES) if self.faults.draw() else ""

    def _arrive_late(self, *arguments: Any) -> None:
        self._turn()
        try:
            self.store.flush(*arguments)
        except Refused:
            self.faults.count("late flush refused")

    def _broken(self, name: str) -> LinkLostError:
        self.closed = True
        self.faults.count(name)
        return LinkLostError(name)

    def _refuse(self, batch: Sequence[Transition]) -> None:
        runs = {t.run_id for t in batch}
        for run_id in self.faults.poisoned.keys() & runs:
            if len(runs) == 1:
                self.faults.count("run refused by the journal")
                self.faults.poisoned[run_id] -= 1
                if not self.faults.poisoned[run_id]:
                    del self.faults.poisoned[run_id]
            raise Refused("22001", "a value that no column takes")


@asynccontextmanager
async def transaction(pool: Database, **_: Any) -> AsyncIterator[Database]:
    """Stand in for the kit's: statements are seen one by one, as at READ COMMITTED."""
    yield pool


# --- engine_members -----------------------------------------------------------------------------


def _join(store: Store, member_id: UUID, host: str, *_: Any) -> int:
    epoch = 1 + max((each.epoch for each in store.members.values()), default=0)
    store.members[member_id] = Lease("idle", epoch=epoch, host=host)
    return epoch


def _advance(store: Store, member_id: UUID, epoch: int) -> int | None:
    member = store.members[member_id]
    if member.epoch != epoch or member.state not in ("live", "idle"):
        return None
    member.epoch = 1 + max(each.epoch for each in store.members.values())
    return member.epoch


def _fence_dead(store: Store, member_id: UUID, host: str, proof: bool) -> None:  # noqa: FBT001
    now = store.clock()
    for other, member in store.members.items():
        if other == member_id or member.state not in ("live", "idle"):
            continue
        ended = member.expires_at is not None and member.expires_at < now
        if member.state == "idle" or ended or (proof and member.host == host):
            member.state = "fenced"


def _wait_s(store: Store, member_id: UUID) -> float | None:
    ends = [
        each.expires_at
        for other, each in store.members.items()
        if other != member_id and each.state == "live" and each.expires_at is not None
    ]
    return (max(ends) - store.clock()).total_seconds() if ends else None


def _take_shards(store: Store, member_id: UUID) -> None:
    store.shards_of = member_id


def _renew(store: Store, member_id: UUID, epoch: int, ttl_s: float) -> bool | None:
    member = store.members[member_id]
    if member.epoch != epoch or member.state not in ("live", "idle"):
        return None
    member.state, member.expires_at = "live", store.clock() + timedelta(seconds=ttl_s)
    return True


def _rest(store: Store, member_id: UUID, epoch: int, state: str) -> bool | None:
    member = store.members[member_id]
    if member.epoch != epoch or member.state not in ("live", "idle"):
        return None
    member.state, member.expires_at = state, None
    return True


# --- runner_members -----------------------------------------------------------------------------


def _join_runner(store: Store, incarnation: UUID, host: str, *_: Any) -> None:
    store.runners[incarnation] = Lease("idle", host=host)


def _renew_runner(store: Store, incarnation: UUID, ttl_s: float) -> bool | None:
    row = store.runners.get(incarnation)
    if row is None or row.state not in ("live", "idle"):
        return None
    row.state, row.expires_at = "live", store.clock() + timedelta(seconds=ttl_s)
    return True


def _rest_runner(store: Store, incarnation: UUID) -> bool | None:
    row = store.runners.get(incarnation)
    if row is None or row.state not in ("live", "idle"):
        return None
    row.state, row.expires_at = "idle", None
    return True


def _leave_runner(store: Store, incarnation: UUID) -> None:
    row = store.runners.get(incarnation)
    if row is not None:
        row.state, row.expires_at = "gone", None


def _bury(store: Store, host: str, incarnation: UUID) -> None:
    for other, row in store.runners.items():
        if other != incarnation and row.host == host and row.state in ("live", "idle"):
            row.state = "fenced"


def _is_fenced(store: Store, incarnation: UUID) -> bool | None:
    row = store.runners.get(incarnation)
    return None if row is None else row.state == "fenced"


def _fence_runners(store: Store, incarnations: Sequence[UUID], silent: Sequence[UUID]) -> None:
    now = store.clock()
    for each in incarnations:
        row = store.runners.get(each)
        if row is None:
            continue
        ended = row.expires_at is not None and row.expires_at < now
        if (row.state == "live" and ended) or (row.state == "idle" and each in silent):
            row.state = "fenced"


def _live_runners(store: Store, incarnations: Sequence[UUID]) -> list[Row]:
    return [
        {"incarnation": each}
        for each in incarnations
        if each in store.runners and store.runners[each].state in ("live", "idle")
    ]


# --- executions ---------------------------------------------------------------------------------


def _find(store: Store, _: int, ids: Sequence[UUID] | None) -> list[Row]:
    wanted = store.runs if ids is None else [each for each in ids if each in store.runs]
    return [store.runs[each] for each in sorted(wanted) if not store.is_over(each)]


def _open(store: Store, ids: Sequence[UUID]) -> list[Row]:
    return [store.open_run(store.runs[each]) for each in sorted(ids) if not store.is_over(each)]


def _nodes(store: Store, ids: Sequence[UUID]) -> list[Row]:
    return [row for each in sorted(ids) for row in store.open_nodes(each)]


def _locks(store: Store, ids: Sequence[UUID]) -> list[Row]:
    return [
        {"node_version_id": each, "state": store.locks[each], "error": "no such package"}
        for each in sorted(ids)
    ]


_ANSWERS: Final[dict[str, Callable[..., Any]]] = {
    engine_members._LOCK: lambda _: None,
    engine_members._JOIN: _join,
    engine_members._ADVANCE: _advance,
    engine_members._FENCE_DEAD: _fence_dead,
    engine_members._WAIT_S: _wait_s,
    engine_members._TAKE_SHARDS: _take_shards,
    engine_members._RENEW: _renew,
    engine_members._REST: _rest,
    engine_members._IS_FENCED: _is_fenced,
    engine_members._FENCE_RUNNERS: _fence_runners,
    engine_members._LIVE_RUNNERS: _live_runners,
    runner_members._JOIN: _join_runner,
    runner_members._RENEW: _renew_runner,
    runner_members._REST: _rest_runner,
    runner_members._LEAVE: _leave_runner,
    runner_members._BURY: _bury,
    recovery._FIND: _find,
    recovery._OPEN: _open,
    recovery._NODES: _nodes,
    definitions._LOCKS: _locks,
}
