"""A process's way to the store: every statement takes its time, and may be lost on it.

Storage modules hand over their SQL constants as they do in production; here each is looked up in
`_ANSWERS`. A statement that nobody answers is an error: whoever adds one says here what it does.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.orchestrator.domain.transition import Transition
from services.orchestrator.storage import (
    definitions,
    flush,
    recovery,
    signals,
)
from services.orchestrator.storage import members as engine_members
from services.orchestrator.storage import shards as engine_shards
from services.runner.storage import environments as runner_environments
from services.runner.storage import members as runner_members
from tests.simulation import cache, limits, quotas
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
        self.slow: dict[str, float] = {}  # statements that take so long
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
        self._time = asyncio.get_running_loop().time

    # --- as a pool ------------------------------------------------------------------------------

    async def fetch(self, sql: str, *arguments: Any) -> Any:
        faults = self.faults
        await asyncio.sleep(faults.chance.random() * 0.002)
        if faults.down or self.cut or faults.draw():
            faults.count("statement lost")
            raise LinkLostError
        self._turn()
        if sql in faults.slow:
            await asyncio.sleep(faults.slow[sql])
        answer = _ANSWERS[sql](self.store, *arguments)
        if faults.draw():
            faults.count("statement done, reported failed")
            raise LinkLostError
        return answer

    fetchval = execute = fetch  # what answers a statement gives what its caller asks for

    def _turn(self) -> None:
        self.store.now_s = self._time()

    # --- as the journal's connection ------------------------------------------------------------

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True

    def add_termination_listener(self, _listener: object) -> None:
        """It breaks in a flush alone, which is told of that by its error."""

    async def prepare(self, sql: str) -> Database:
        assert sql == "flush"
        return self

    async def fetchrow(self, first: Any, *arguments: Any) -> Row:
        """Give one row: of a statement, or of the flush that was prepared."""
        if isinstance(first, str):
            row: Row = await self.fetch(first, *arguments)
            return row
        return await self._flush(first, *arguments)

    async def _flush(
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
                    # follows those is refused as well; and for results that are kept no more.
                    follows = any(t.run_id not in self.store.runs for t in batch)
                    gone = self.store.gone_sources(batch)
                    if gone:
                        self.faults.count("a kept result is gone before it is written")
                    if follows or gone or refused.sqlstate == flush.FENCED:
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

    def _root_of(self, run_id: UUID, parents: dict[UUID, UUID | None]) -> UUID:
        """Give the run that a caller started, of a run in the rows or among those to come."""
        while True:
            row = self.store.runs.get(run_id)
            parent = parents.get(run_id) if row is None else row["parent_execution_id"]
            if parent is None:
                return run_id
            run_id = parent

    def _refuse(self, batch: Sequence[Transition]) -> None:
        if not self.faults.poisoned:
            return
        runs = {t.run_id for t in batch}
        parents = {row.id: row.parent_execution_id for t in batch for row in t.run_inserts}
        for run_id in sorted(self.faults.poisoned.keys() & runs):
            if len({self._root_of(each, parents) for each in runs}) == 1:
                self.faults.count("run refused by the journal")
                self.faults.poisoned[run_id] -= 1
                if not self.faults.poisoned[run_id]:
                    del self.faults.poisoned[run_id]
            raise Refused("22001", "a value that no column takes")


class transaction:  # noqa: N801  # the kit's name
    """Stand in for the kit's: statements are seen one by one, as at READ COMMITTED."""

    def __init__(self, pool: Database, **_: Any) -> None:
        self._pool = pool

    async def __aenter__(self) -> Database:
        return self._pool

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held until now."""


# --- engine_members -----------------------------------------------------------------------------


def _join(store: Store, member_id: UUID, host: str, address: str, _: Any) -> int:
    epoch = 1 + max((each.epoch for each in store.members.values()), default=0)
    store.members[member_id] = Lease(
        "idle", epoch=epoch, host=host, address=address, updated_at=store.clock()
    )
    return epoch


def _mine(store: Store, member_id: UUID, epoch: int, *states: str) -> Lease | None:
    member = store.members[member_id]
    return member if member.epoch == epoch and member.state in states else None


def _advance(store: Store, member_id: UUID, epoch: int) -> int | None:
    member = _mine(store, member_id, epoch, "live", "idle")
    if member is None:
        return None
    member.epoch = 1 + max(each.epoch for each in store.members.values())
    member.updated_at = store.clock()
    return member.epoch


def _fence_dead(store: Store, member_id: UUID, *given: Any) -> list[Row]:
    host, silent_max_s, by_lease = given
    now = store.clock()
    own = store.members[member_id]
    if own.state not in ("live", "idle") or (own.state == "live" and _is_over(own, now)):
        return []
    dead = []
    for other, member in store.members.items():
        if other == member_id or member.state not in ("live", "idle"):
            continue
        silent = member.updated_at < now - timedelta(seconds=silent_max_s)
        if (
            (member.state == "live" and by_lease and _is_over(member, now))
            or (member.state == "idle" and silent)
            or member.host == host
        ):
            member.state, member.updated_at = "fenced", now
            dead.append({"id": other})
    return dead


def _is_over(lease: Lease, now: datetime) -> bool:
    return lease.expires_at is not None and lease.expires_at < now


def _look_in(store: Store, member_id: UUID, epoch: int) -> None:
    member = _mine(store, member_id, epoch, "idle")
    if member is not None:
        member.updated_at = store.clock()


def _renew(store: Store, member_id: UUID, epoch: int, ttl_s: float) -> bool | None:
    member = _mine(store, member_id, epoch, "live", "idle")
    if member is None:
        return None
    member.updated_at = store.clock()
    member.state, member.expires_at = "live", member.updated_at + timedelta(seconds=ttl_s)
    return True


def _rest(store: Store, member_id: UUID, epoch: int, state: str) -> bool | None:
    member = _mine(store, member_id, epoch, "live", "idle")
    if member is None:
        return None
    member.state, member.expires_at, member.updated_at = state, None, store.clock()
    return True


# --- engine_shards ------------------------------------------------------------------------------


def _tell(store: Store, member_id: UUID) -> None:
    for listen in list(store.listeners.values()):
        asyncio.get_running_loop().call_soon(listen, str(member_id))


def _survey(store: Store, _silent_after_s: float) -> list[Row]:
    return [
        {
            "id": member_id,
            "state": member.state,
            "address": member.address,
            "left_s": None
            if member.expires_at is None
            else (member.expires_at - store.clock()).total_seconds(),
            "silent": False,  # nobody here rests for as long as a day
            "shards": _shards_of(store, member_id),
        }
        for member_id, member in sorted(store.members.items())
        if member.state in ("live", "idle")
    ]


def _shards_of(store: Store, member_id: UUID) -> list[int]:
    return [shard for shard, owner in store.shards.items() if owner == member_id]


def _owned(store: Store, member_id: UUID) -> list[Row]:
    return [{"shard": each} for each in _shards_of(store, member_id)]


def _holds(store: Store, member_id: UUID, epoch: int) -> bool | None:
    return True if _mine(store, member_id, epoch, "live") else None


def _take(store: Store, member_id: UUID, shards: Sequence[int]) -> list[Row]:
    for shard in shards:
        store.shards[shard] = member_id
    return [{"shard": each} for each in shards]


def _take_orphans(store: Store, member_id: UUID, count: int, _: Any) -> list[Row]:
    alive = {each for each, row in store.members.items() if row.state in ("live", "idle")}
    orphans = [shard for shard, owner in store.shards.items() if owner not in alive]
    return _take(store, member_id, orphans[:count])


def _rests(store: Store, owner: UUID) -> bool | None:
    return True if store.members[owner].state == "idle" else None


def _take_of(store: Store, member_id: UUID, owner: UUID, count: int) -> list[Row]:
    return _take(store, member_id, sorted(_shards_of(store, owner), reverse=True)[:count])


def _give(store: Store, member_id: UUID, epoch: int, shard: int, taker: UUID) -> bool | None:
    other = store.members[taker]
    alive = other.state == "live" and other.expires_at and other.expires_at > store.clock()
    if not _holds(store, member_id, epoch) or not alive or other.address is None:
        return None
    if store.shards[shard] != member_id:
        return None
    store.shards[shard] = taker
    return True


def _held(store: Store, refs: Sequence[UUID]) -> list[Row]:
    rows = [store.nodes[each] for each in refs if each in store.nodes]
    return [
        {
            "id": row["id"],
            "runner_incarnation": row["runner_incarnation"],
            "member_id": store.shards[store.runs[row["run_id"]]["shard"]],
        }
        for row in rows
        if row["status"] == "running" and not store.is_over(row["run_id"])
    ]


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


def _leave_runner(store: Store, incarnation: UUID, in_order: object) -> None:
    row = store.runners.get(incarnation)
    if row is not None and row.state in ("live", "idle"):
        row.state, row.expires_at = "gone" if in_order else "fenced", None


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


def _states(store: Store, incarnations: Sequence[UUID]) -> list[Row]:
    return [
        {"incarnation": each, "state": store.runners[each].state}
        for each in incarnations
        if each in store.runners
    ]


# --- executions ---------------------------------------------------------------------------------


def _find(
    store: Store, _: int, ids: Sequence[UUID] | None, shards: Sequence[int] | None
) -> list[Row]:
    wanted = store.runs if ids is None else [each for each in ids if each in store.runs]
    found = [store.runs[each] for each in sorted(wanted) if not store.is_over(each)]
    return [each for each in found if shards is None or each["shard"] in shards]


def _children(store: Store, ids: Sequence[UUID]) -> list[Row]:
    names = ("id", "status", "output_data", "error_type", "error_message", "failed_node_id")
    used = ("cpu_us", "memory_peak_bytes", "io_read_bytes", "io_write_bytes")
    over = [store.runs[each] for each in ids if each in store.runs and store.is_over(each)]
    return [
        {name: row[name] for name in (*names, *used)}
        | {"exception_type": store.exception_type(row)}
        for row in over
    ]


def _signals(store: Store, ids: Sequence[UUID]) -> list[Row]:
    return [
        row | {"workflow_execution_id": row["run_id"]}
        for row in store.signals.values()
        if row["run_id"] in ids and row["node_id"] is None
    ]


def _signal(store: Store, ids: Sequence[UUID], sent_by: UUID) -> Row | None:
    row = next((store.signals[each] for each in ids if each in store.signals), None)
    if row is None or row["sent_by"] != sent_by:
        return None
    names = ("name", "payload", "sent_by", "node_id")
    return {"workflow_execution_id": row["run_id"]} | {name: row[name] for name in names}


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
    "DISCARD PLANS": lambda _store: None,
    engine_members._LOCK: lambda _: None,
    engine_members._JOIN: _join,
    engine_members._ADVANCE: _advance,
    engine_members._FENCE_DEAD: _fence_dead,
    engine_members._LOOK_IN: _look_in,
    engine_shards._TELL: _tell,
    engine_shards._SURVEY: _survey,
    engine_shards._OWNED: _owned,
    engine_shards._LOCK: lambda _: None,
    engine_shards._HOLDS: _holds,
    engine_shards._TAKE_ORPHANS: _take_orphans,
    engine_shards._RESTS: _rests,
    engine_shards._TAKE_OF: _take_of,
    engine_shards._GIVE: _give,
    engine_shards._HELD: _held,
    engine_members._RENEW: _renew,
    engine_members._REST: _rest,
    engine_members._IS_FENCED: _is_fenced,
    engine_members._FENCE_RUNNERS: _fence_runners,
    engine_members._STATES: _states,
    runner_members._JOIN: _join_runner,
    runner_members._RENEW: _renew_runner,
    runner_members._REST: _rest_runner,
    runner_members._LEAVE: _leave_runner,
    runner_members._BURY: _bury,
    runner_environments._CLOSE_LEFT: lambda *_: None,  # nobody here builds environments
    recovery._FIND: _find,
    recovery._OPEN: _open,
    recovery._NODES: _nodes,
    recovery._SIGNALS: _signals,
    signals._FIND: _signal,
    recovery._CHILDREN: _children,
    definitions._LOCKS: _locks,
    **cache.ANSWERS,
    **limits.ANSWERS,
    **quotas.ANSWERS,
}
