"""Limits in a world: which there are, who has their places, and that never more have one."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from services.orchestrator.domain.status import RUN_FINAL
from services.orchestrator.storage import flush, limit_slots
from tests.simulation import graphs
from tests.simulation.oracle import read
from tests.simulation.store import Refused, Row, Store

if TYPE_CHECKING:
    from services.orchestrator.domain.plan import Plan
    from tests.simulation.world import World

_UNDER_WAY: Final = ("running", "waiting")
_KEYS: Final = 2  # that what a run is given is counted by


def draw(world: World, plans: Sequence[Plan], tenant_id: UUID, owners: Sequence[UUID]) -> None:
    """Set limits in some worlds: on attempts of the tenant or at a node, or on a workflow's runs.

    Some count by a key that is read from what a run is given, some say how often things may start;
    some are about one user's runs, or count those of each user by themselves.
    """
    chance = world.chance
    for _ in range(chance.choice((0, 0, 0, 0, 0, 1, 1, 2))):
        workflow_id, node_id = chance.choice(
            (
                (None, None),
                (chance.choice(plans).workflow_id, None),
                (None, chance.choice(graphs.node_ids())),
            )
        )
        by_rate = chance.random() < 0.25
        owner_id = chance.choice((None, None, None, *owners))
        world.store.limits.append(
            {
                "id": world.new_id(),
                "tenant_id": tenant_id,
                "name": "limit",
                "revision": 1,
                "workflow_id": workflow_id,
                "node_id": node_id,
                "owner_id": owner_id,
                "per_owner": owner_id is None and chance.random() < 0.4,
                "key_expression": chance.choice(("", f"input.x % {_KEYS}")),
                "max_running": None if by_rate else chance.randint(1, 3),
                "max_starts": chance.randint(4, 8) if by_rate else None,
                "period_ms": chance.choice((100, 400)) if by_rate else None,
            }
        )


def _get(store: Store) -> list[Row]:
    names = (
        *("id", "tenant_id", "name", "revision", "workflow_id", "node_id"),
        *("owner_id", "per_owner", "key_expression"),
    )
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
    by_id = {row["id"]: row for row in store.limits}
    answers: list[Row] = []
    for claim in sorted(set(claims)):
        asked = [at for at, each in enumerate(claims) if each == claim]
        refused_by, wait_ms = None, None
        for at in asked:
            limit = by_id[limits[at]]
            if _is_full(store, limit, keys[at]):
                refused_by = limit["id"]
            elif limit["max_starts"] and (left := _left(store, limit, keys[at])) < 1:
                refused_by = limit["id"]
                wait_ms = math.ceil((1 - left) * limit["period_ms"] / limit["max_starts"])
            if refused_by is not None:
                break
        if refused_by is None:
            for at in asked:
                _give(store, by_id[limits[at]], keys[at], slots[at], (member_id, epoch))
        answers.append({"claim": claim, "refused_by": refused_by, "wait_ms": wait_ms})
    return answers


def _give(store: Store, limit: Row, key: str, slot: UUID, fence: tuple[UUID, int]) -> None:
    if limit["max_starts"]:
        left = _left(store, limit, key)
        store.buckets[limit["id"], key] = max(0.0, left - 1), store.clock()
        store.starts[limit["id"], key] += 1
    if limit["max_running"]:
        store.slots[slot] = {
            "limit_id": limit["id"],
            "key": key,
            "member_id": fence[0],
            "epoch": fence[1],
            "execution_id": None,
            "node_execution_id": None,
        }


def _is_full(store: Store, limit: Row, key: str) -> bool:
    if limit["max_running"] is None:
        return False
    rows = store.slots.values()
    count = sum(row["limit_id"] == limit["id"] and row["key"] == key for row in rows)
    return bool(count >= limit["max_running"])


def _left(store: Store, limit: Row, key: str) -> float:
    """Say how many may start now by the rate."""
    most: float = limit["max_starts"]
    tokens, at = store.buckets.get((limit["id"], key), (most, store.clock()))
    since_ms = (store.clock() - at).total_seconds() * 1000
    left: float = min(most, tokens + most * since_ms / limit["period_ms"])
    return left


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
    limit_slots._SWEEP_BUCKETS: lambda _: None,  # one that would be full again is as good as none
    limit_slots._TELL: _tell,
}


# --- what must hold ---------------------------------------------------------------------------


def check(world: World) -> None:
    """Hold what is under way against what the limits allow, key by key."""
    store = world.store
    for limit in store.limits:
        if limit["max_running"] is None:
            continue
        if limit["workflow_id"] is None:
            under_way = [row for row in store.nodes.values() if row["status"] == "running"]
            rows = [row for row in under_way if _is_of(world, row, limit)]
            runs = [store.runs[row["run_id"]] for row in rows]
        else:
            runs = [row for row in store.runs.values() if _counts(store, row, limit["workflow_id"])]
        runs = [row for row in runs if _is_whose(row, limit)]
        for key, count in Counter(_key(row, limit) for row in runs).items():
            most = limit["max_running"]
            assert count <= most, f"{count} at once under {key!r}, of {most}"


def check_end(world: World) -> None:
    """Hold all that ever began against the rates, and find no place that nobody gave back."""
    store = world.store
    held = [row["execution_id"] for row in store.slots.values() if row["execution_id"] is not None]
    assert not held, f"places that nobody gave back: of {held}"
    for limit in store.limits:
        if limit["max_starts"] is None or world.clock_moved:
            continue
        begun: Counter[str] = Counter()
        if limit["workflow_id"] is None:
            for ref, _ in world.ledger.begun:
                row = store.nodes[ref]
                if _is_of(world, row, limit):
                    begun[_key(store.runs[row["run_id"]], limit)] += 1
        else:
            for run in store.runs.values():
                of = run["workflow_id"] == limit["workflow_id"] and _is_whose(run, limit)
                if of and _has_begun(store, run):
                    begun[_key(run, limit)] += 1
        ever = limit["max_starts"] * (2 + store.now_s * 1000 / limit["period_ms"])
        for key, count in begun.items():
            assert count <= ever, f"{count} began under {key!r} by now, of {ever:.0f}"
            known = store.starts[limit["id"], key]
            assert count <= known, f"{count} began under {key!r}, and {known} were let"


def _is_of(world: World, row: Row, limit: Row) -> bool:
    """Say whether an attempt at a row is counted under a limit of attempts."""
    run = world.store.runs[row["run_id"]]
    if not _is_whose(run, limit) or row["runner_incarnation"] is None:
        return False
    return limit["node_id"] in (None, graphs.node_of(row["node_version_id"]))


def _is_whose(run: Row, limit: Row) -> bool:
    """Say whether a run is of whom a limit is about."""
    return bool(
        run["tenant_id"] == limit["tenant_id"] and limit["owner_id"] in (None, run["created_by"])
    )


def _key(run: Row, limit: Row) -> str:
    """Give the key that a run has, told from its row."""
    key = [str(run["created_by"])] if limit["per_owner"] else []
    if limit["key_expression"]:
        given = read(run["input_data"]).get("x")
        key.append(str(given % _KEYS) if isinstance(given, int) else "?")
    return " ".join(key)


def _has_begun(store: Store, run: Row) -> bool:
    """Say whether a run had a place; what closes one that is stopped before waits for none."""
    if run["cancel_requested_at"] is not None or run["error_type"] is not None:
        return False
    return any(row["runner_incarnation"] is not None for row in store.nodes_of[run["id"]].values())


def _counts(store: Store, run: dict[str, Any], workflow_id: UUID) -> bool:
    """Say whether a run has anything under way; what closes one waits for no place."""
    if run["workflow_id"] != workflow_id or run["status"] in RUN_FINAL:
        return False
    if run["cancel_requested_at"] is not None or run["error_type"] is not None:
        return False
    return any(row["status"] in _UNDER_WAY for row in store.nodes_of[run["id"]].values())
