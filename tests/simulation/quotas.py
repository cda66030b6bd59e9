"""Budgets of runs, quotas of a tenant: who has them, and that all that is used of them counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from services.orchestrator.domain.amounts import NOTHING, Amounts
from services.orchestrator.domain.plan import Phase
from services.orchestrator.domain.transition import Transition
from services.orchestrator.storage import quota_usage
from tests.simulation import graphs
from tests.simulation.store import Row, Store

if TYPE_CHECKING:
    from tests.simulation.world import World

LIMITED: Final = graphs.id_of(8)  # the tenant with a quota, where there is one
_ABANDONED_S: Final = 60.0
_COUNTED: Final = ("nodes", "cpu_us", "gb_us", "moved_bytes")


def draw(world: World) -> None:
    """Give a tenant a quota in some worlds."""
    chance = world.chance
    if chance.random() < 0.15:
        world.store.quotas[LIMITED] = {
            "tenant_id": LIMITED,
            **dict.fromkeys(("cpu_s_per_day", "gb_s_per_day", "moved_bytes_per_day")),
            "nodes_per_day": chance.choice((6, 12, 40)),
            "execution_nodes": chance.choice((None, None, 10)),
            **dict.fromkeys(("execution_cpu_s", "execution_gb_s", "execution_moved_bytes")),
        }


def draw_of_run(world: World, owner: UUID) -> tuple[UUID, Amounts]:
    """Draw whose a run is, and what it may consume."""
    chance = world.chance
    tenant_id = LIMITED if world.store.quotas and chance.random() < 0.5 else owner
    if chance.random() > 0.1:
        return tenant_id, NOTHING
    nodes = chance.choice((2, 5, 9))
    return tenant_id, chance.choice((Amounts(nodes=nodes), Amounts(cpu_us=3 * nodes)))


# --- statements ---------------------------------------------------------------------------------


def _reserve(
    store: Store, tenant_id: UUID, member_id: UUID, run_id: UUID, *wanted: int | None
) -> Row:
    now = store.clock()
    for each, row in list(store.budgets.items()):
        is_open = each in store.runs and not store.is_over(each)
        abandoned = (now - row["created_at"]).total_seconds() > _ABANDONED_S and not is_open
        if row["tenant_id"] == tenant_id and (row["over"] or abandoned):
            store.past_budgets[each] = store.budgets.pop(each)
    quota = store.quotas.get(tenant_id)
    held = Amounts(*wanted)
    if quota is not None:
        most = Amounts(nodes=quota["execution_nodes"])
        held = Amounts(*(_least(a, b) for a, b in zip(held, most, strict=True)))
        used = _used(store, tenant_id).nodes or 0
        asked = 1 if held.nodes is None else held.nodes
        if used + asked > quota["nodes_per_day"]:
            return {"refused_by": "nodes_per_day", "most": quota["nodes_per_day"], "used": used}
    store.budgets[run_id] = {
        "execution_id": run_id,
        "tenant_id": tenant_id,
        "created_at": now,
        "over": False,
        **held._asdict(),
        **{f"{name}_used": 0 for name in _COUNTED},
    }
    _usage(store, tenant_id, member_id)["executions"] += 1
    return {"refused_by": None} | {f"held_{name}": of for name, of in held._asdict().items()}


def _least(one: int | None, other: int | None) -> int | None:
    known = [each for each in (one, other) if each is not None]
    return min(known) if known else None


def _usage(store: Store, tenant_id: UUID, member_id: UUID) -> Row:
    key = (tenant_id, store.clock().date(), member_id)
    return store.usage.setdefault(key, dict.fromkeys((*_COUNTED, "executions"), 0))


def _release(store: Store, run_id: UUID, member_id: UUID) -> None:
    row = store.budgets.pop(run_id, None)
    if row is not None:
        key = (row["tenant_id"], row["created_at"].date(), member_id)
        if key in store.usage:
            store.usage[key]["executions"] -= 1


def _used(store: Store, tenant_id: UUID) -> Amounts:
    """Sum up what a tenant used today, with what its open runs may still take."""
    today = store.clock().date()
    rows = [row for key, row in store.usage.items() if key[:2] == (tenant_id, today)]
    sums = {name: sum(row[name] for row in rows) for name in _COUNTED}
    for row in store.budgets.values():
        if row["tenant_id"] == tenant_id and not row["over"]:
            for name in _COUNTED:
                sums[name] += max(0, (row[name] or 0) - row[f"{name}_used"])
    return Amounts(**sums)


def _all_used(store: Store, tenant_ids: Sequence[UUID]) -> list[Row]:
    return [{"tenant_id": each, **_used(store, each)._asdict()} for each in tenant_ids]


def _get(store: Store, run_ids: Sequence[UUID]) -> list[Row]:
    return [store.budgets[each] for each in run_ids if each in store.budgets]


ANSWERS: Final[dict[str, Callable[..., Any]]] = {
    quota_usage._QUOTAS: lambda store: list(store.quotas.values()),
    quota_usage._BUDGETS: _get,
    quota_usage._RESERVE: _reserve,
    quota_usage._RELEASE: _release,
    quota_usage._USED: _all_used,
}


# --- what must hold -----------------------------------------------------------------------------


class Accounts:
    """What attempts consumed by the ledger of runners and the rows, beside what the engine sums."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.cpu_us: dict[UUID, int] = {}  # by the run that a caller started
        self.used_up: set[UUID] = set()  # such runs, with the flush before
        self._taken: set[tuple[UUID, int]] = set()  # attempts whose end was written

    def written(self, batch: Sequence[Transition]) -> None:
        """Look at what has just been written: nothing begins of a budget that was used up."""
        store = self._world.store
        if not (store.budgets or store.quotas):
            return
        for t in batch:
            if t.run_id not in store.runs:
                continue  # a word to a runner on what is gone
            cpu_us = self._answered(t)
            if cpu_us:
                root = store.root_of(t.run_id)
                self.cpu_us[root] = self.cpu_us.get(root, 0) + cpu_us
            if self.used_up and (t.node_inserts or t.placed or t.changes):
                self._check_begins(t)
        for run_id, row in store.budgets.items():
            if _is_used_up(row):
                self.used_up.add(run_id)

    def _answered(self, t: Transition) -> int:
        """Add up what the runners said that they used, of attempts whose end was written."""
        ledger, store = self._world.ledger, self._world.store
        took = {(each.id, each.token) for each in t.completes} & ledger.produced.keys()
        took -= store.attempts.keys()  # of one that was lost nobody heard: its node ended by hand
        took |= {
            (each.node_execution_id, each.token) for each in t.attempts if each.outcome == "failed"
        } & ledger.failed
        cpu_us = ledger.CPU_US * len(took)
        for each in t.changes.values():  # what was stopped has no row of its own
            ended = each.status in ("cancelled", "failed")
            of_runner = store.nodes[each.id]["runner_incarnation"] is not None
            if ended and of_runner and (each.id, each.token) not in took | self._taken:
                cpu_us += each.cpu_us or 0
        self._taken |= took
        return cpu_us

    def _check_begins(self, t: Transition) -> None:
        store = self._world.store
        if store.root_of(t.run_id) not in self.used_up:
            return
        plan = self._world.plan_of(t.run_id)
        begun = [each.id for each in t.node_inserts] + [each.id for each in t.placed.values()]
        begun += [each.id for each in t.changes.values() if each.starts]
        for ref in begun:
            row = store.nodes.get(ref)
            if row is None or row["status"] not in ("running", "waiting"):
                continue
            place = plan.places[plan.index[row["definition_node_id"]]]
            assert place.phase is not Phase.MAIN, f"{row['node_id']} begins, and all is used up"

    def check(self) -> None:
        """Hold the sums of the rows against what runners said (each attempt counts once)."""
        store = self._world.store
        rows = {**store.past_budgets, **store.budgets}
        for run_id, row in rows.items():
            if run_id in store.runs:
                said = self.cpu_us.get(run_id, 0)
                assert row["cpu_us_used"] == said, f"{row['cpu_us_used']} us used, {said} said"
        for tenant_id in store.quotas:
            runs = [each for each in self.cpu_us if store.runs[each]["tenant_id"] == tenant_id]
            said = sum(self.cpu_us[each] for each in runs)
            summed = sum(row["cpu_us"] for key, row in store.usage.items() if key[0] == tenant_id)
            assert summed == said, f"{summed} us of the tenant's day used, {said} said"

    def check_cause(self, run: Row) -> None:
        """Hold that a run ended for a budget or a quota against what was used of it."""
        store = self._world.store
        rows = {**store.past_budgets, **store.budgets}
        if run["error_type"] == "budget_exceeded":
            row = rows.get(store.root_of(run["id"]))
            assert row is not None, "it had no budget"
            assert _is_used_up(row), "its budget was not used up"
            return
        tenant_id = run["tenant_id"]
        used = sum(row["nodes"] for key, row in store.usage.items() if key[0] == tenant_id)
        promised = [row["nodes"] or 0 for row in rows.values() if row["tenant_id"] == tenant_id]
        most = store.quotas[tenant_id]["nodes_per_day"]
        assert used + sum(promised) >= most, f"{used} of {most} used, and its tenant's day was over"


def _is_used_up(row: Row) -> bool:
    return any(row[name] is not None and row[f"{name}_used"] >= row[name] for name in _COUNTED)
