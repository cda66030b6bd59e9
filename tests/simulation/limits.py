"""Limits in a world: which there are, who has their places, and that never more have one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from services.orchestrator.domain.status import RUN_FINAL
from services.orchestrator.storage import flush, limit_slots
from tests.simulation.store import Refused, Row, Store

if TYPE_CHECKING:
    from services.orchestrator.domain.plan import Plan
    from tests.simulation.world import World

_UNDER_WAY: Final = ("running", "waiting")


def draw(world: World, plans: Sequence[Plan], owner: UUID) -> None:
    """Set limits in some worlds: on all attempts of the tenant, or on the runs of a workflow."""
    chance = world.chance
    if chance.random() > 0.3:
        return
    workflow_id = chance.choice((None, chance.choice(plans).workflow_id))
    world.store.limits.append(
        {
            "id": world.new_id(),
            "tenant_id": owner,
            "name": "limit",
            "revision": 1,
            "workflow_id": workflow_id,
            "node_id": None,
            "key_expression": "",
            "max_running": chance.randint(1, 3),
        }
    )


def _get(store: Store) -> list[Row]:
    names = ("id", "tenant_id", "name", "revision", "workflow_id", "node_id", "key_expression")
    return [{name: row[name] for name in names} for row in store.limits]


def _held(store: Store, run_ids: Sequence[UUID]) -> list[Row]:
    return [
        {
            "id": slot,
            "limit_id": row["limit_id"],
            "key": row["key"],
            "row_id": row["node_execution_id"] or row["execution_id"],
        }
        for slot, row in store.slots.items()
        if row["execution_id"] in run_ids
    ]


def _take(
    store: Store,
    member_id: UUID,
    epoch: int,
    claims: Sequence[int],
    limits: Sequence[UUID],
    keys: Sequence[str],
    slots: Sequence[UUID],
) -> list[Row]:
    member = store.members[member_id]
    if member.epoch != epoch or member.state != "live":
        raise Refused(flush.FENCED, "fenced")
    most = {row["id"]: row["max_running"] for row in store.limits}
    answers: list[Row] = []
    for claim in sorted(set(claims)):
        asked = [at for at, each in enumerate(claims) if each == claim]
        refused_by = next(
            (limits[at] for at in asked if _taken(store, limits[at], keys[at]) >= most[limits[at]]),
            None,
        )
        if refused_by is None:
            for at in asked:
                store.slots[slots[at]] = {
                    "limit_id": limits[at],
                    "key": keys[at],
                    "member_id": member_id,
                    "epoch": epoch,
                    "execution_id": None,
                    "node_execution_id": None,
                }
        answers.append({"claim": claim, "refused_by": refused_by, "wait_ms": None})
    return answers


def _taken(store: Store, limit_id: UUID, key: str) -> int:
    return sum(row["limit_id"] == limit_id and row["key"] == key for row in store.slots.values())


def _give_back(store: Store, slots: Sequence[UUID]) -> list[Row]:
    unused = [each for each in slots if each in store.slots]
    unused = [each for each in unused if store.slots[each]["execution_id"] is None]
    return _drop(store, unused)


def _sweep(store: Store) -> list[Row]:
    return _drop(store, [slot for slot, row in store.slots.items() if _is_left(store, row)])


def _is_left(store: Store, row: Row) -> bool:
    """Say whether what has a place does not go on any more."""
    if row["execution_id"] is None:
        member = store.members[row["member_id"]]
        return member.epoch != row["epoch"] or member.state not in ("live", "idle")
    node = store.nodes.get(row["node_execution_id"])
    return store.is_over(row["execution_id"]) or (node is not None and node["status"] != "running")


def _drop(store: Store, slots: Sequence[UUID]) -> list[Row]:
    return [{"limit_id": store.slots.pop(each)["limit_id"]} for each in slots]


def _tell(store: Store, told: str) -> None:
    for listen in list(store.limit_listeners.values()):
        asyncio.get_running_loop().call_soon(listen, told)


ANSWERS: Final[dict[str, Callable[..., Any]]] = {
    limit_slots._LIMITS: _get,
    limit_slots._HELD: _held,
    limit_slots._TAKE: _take,
    limit_slots._GIVE_BACK: _give_back,
    limit_slots._SWEEP: _sweep,
    limit_slots._SWEEP_BUCKETS: lambda _: None,  # nobody here limits how often things start
    limit_slots._TELL: _tell,
}


def check(store: Store) -> None:
    """Hold what is under way against what the limits allow."""
    for limit in store.limits:
        if limit["workflow_id"] is None:
            count = sum(row["status"] == "running" for row in store.nodes.values())
        else:
            count = sum(_counts(store, row, limit["workflow_id"]) for row in store.runs.values())
        assert count <= limit["max_running"], f"{count} at once, of {limit['max_running']}"


def _counts(store: Store, run: dict[str, Any], workflow_id: UUID) -> bool:
    """Say whether a run has anything under way; what closes one waits for no place."""
    if run["workflow_id"] != workflow_id or run["status"] in RUN_FINAL:
        return False
    if run["cancel_requested_at"] is not None or run["error_type"] is not None:
        return False
    return any(row["status"] in _UNDER_WAY for row in store.nodes_of[run["id"]].values())
