"""The cache of results in some worlds: what is found in it, what befalls it, and what it may give.

Nodes there give a plain function of their code and their inputs, so that a result is another's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from services.orchestrator.storage import cached_results
from tests.simulation import graphs
from tests.simulation.store import Row, Store

if TYPE_CHECKING:
    from tests.simulation.oracle import Reading
    from tests.simulation.world import World

_EVERY: Final = 5  # of so many worlds one has a cache
_SHAPES: Final = 2  # that such a world draws from: what runs once more finds what it gave
_WEARS_MAX: Final = 4
_WEARS_S: Final = 3.0
_SLOW_S: Final = 2.5  # longer than it is waited for

# What befalls what is kept; the last one befalls a result that was given already.
WEARS: Final = (
    "a kept result's run is purged",
    "a kept result is damaged",
    "a kept result expires",
    "a cached node is deleted",
    "the cache is slow",
    "a kept result is gone before it is written",
)


def is_in(world: World) -> bool:
    """Say whether a world has one."""
    return world.seed % _EVERY == _EVERY - 1


def is_ignored_by(request: UUID) -> bool:
    """Say whether the run of a request takes nothing from it."""
    return request.int % _EVERY == 0


def draw(world: World) -> list[int]:
    """Draw the graphs that run in such a world, and what befalls what is kept."""
    chance = world.chance
    for _ in range(chance.randint(1, _WEARS_MAX)):
        wear = chance.choice((_purge, _purge_as_given, _garble, _expire, _delete_node, _slow))
        world.loop.call_later(chance.random() * _WEARS_S, wear, world)
    return chance.sample(range(graphs.CACHED), _SHAPES)


# --- what befalls it ----------------------------------------------------------------------------


def _purge(world: World) -> None:
    """Have retention remove a run of which a result is kept."""
    store = world.store
    runs = dict.fromkeys(store.nodes[each["id"]]["run_id"] for each in store.cached.values())
    over = [each for each in runs if store.is_over(each)]
    if over:
        world.faults.count("a kept result's run is purged")
        store.purged.add(world.chance.choice(over))


def _purge_as_given(world: World) -> None:
    """Have the run be removed whose result is given next, before that can be written."""
    world.store.purges_next = True


def _garble(world: World) -> None:
    """Have a kept result be of other outputs than its node has."""
    if world.store.cached:
        world.faults.count("a kept result is damaged")
        world.chance.choice(list(world.store.cached.values()))["damaged"] = True


def _expire(world: World) -> None:
    for each in world.store.cached.values():
        world.faults.count("a kept result expires")
        each["expires_at"] = world.store.clock()


def _delete_node(world: World) -> None:
    """Have a node deleted: nothing of it is given, and nothing is kept."""
    world.faults.count("a cached node is deleted")
    world.store.gone_nodes.add(world.chance.choice(graphs.node_ids()))


def _slow(world: World) -> None:
    world.faults.count("the cache is slow")
    world.faults.slow[cached_results._FIND] = _SLOW_S
    world.loop.call_later(0.5, world.faults.slow.clear)


# --- statements ---------------------------------------------------------------------------------


def _find(
    store: Store,
    asks: Sequence[int],
    tenants: Sequence[UUID],
    versions: Sequence[UUID],
    inputs: Sequence[str],
    ttls_ms: Sequence[int],
) -> list[Row]:
    rows = []
    for at, tenant, version, given, ttl_ms in zip(
        asks, tenants, versions, inputs, ttls_ms, strict=True
    ):
        lock = store.locks[version]
        if lock not in ("locked", "none") or graphs.node_of(version) in store.gone_nodes:
            continue
        digest = f"{graphs.code_of(version)} {lock} {given}"
        found = _entry(store, tenant, digest, timedelta(milliseconds=ttl_ms))
        rows.append({"at": at, "digest": digest, "file_id": None, "output_data": None} | found)
    return rows


def _entry(store: Store, tenant: UUID, digest: str, ttl: timedelta) -> Row:
    kept, now = store.cached.get((tenant, digest)), store.clock()
    if kept is None or not ttl or kept["expires_at"] <= now or kept["created_at"] <= now - ttl:
        return {"id": None}
    source = store.nodes[kept["id"]]
    deleted = graphs.node_of(kept["version_id"]) in store.gone_nodes
    if source["status"] != "completed" or source["run_id"] in store.purged or deleted:
        return {"id": None}
    output = '{"other":1}' if kept["damaged"] else source["output_data"]
    store.handed.setdefault(source["id"], []).append(now - kept["created_at"])
    if store.purges_next and store.is_over(source["run_id"]):
        store.purges_next = False
        store.purged.add(source["run_id"])
    return {"id": source["id"], "output_data": output}


def _keep(
    store: Store,
    ids: Sequence[UUID],
    versions: Sequence[UUID],
    tenants: Sequence[UUID],
    digests: Sequence[str],
    ttls_ms: Sequence[int],
) -> None:
    given = list(zip(ids, versions, tenants, digests, ttls_ms, strict=True))
    given = [each for each in given if store.nodes[each[0]]["status"] == "completed"]
    given.sort(key=lambda each: store.nodes[each[0]]["completed_at"])  # of equal ones the latest
    now = store.clock()
    for node, version, tenant, digest, ttl_ms in given:
        store.cached[tenant, digest] = {
            "id": node,
            "version_id": version,
            "created_at": now,
            "expires_at": now + timedelta(milliseconds=ttl_ms),
            "damaged": False,
        }


ANSWERS: Final[dict[str, Callable[..., Any]]] = {
    cached_results._FIND: _find,
    cached_results._KEEP: _keep,
}


# --- what must hold -----------------------------------------------------------------------------


def check_hit(reading: Reading, row: Row) -> None:
    """Hold a result that was taken from the cache against what it was made of, and its age."""
    world, place = reading.world, reading.place(row)
    store = world.store
    world.faults.count("a kept result is given")
    source = store.nodes[row["source_id"]]
    assert source["status"] == "completed", "a result of a node that did not complete"
    before = type(reading)(world, source["run_id"])
    codes = [graphs.code_of(each["node_version_id"]) for each in (row, source)]
    assert codes[0] == codes[1], "a result of other code"
    assert before.inputs(source) == reading.inputs(row), "a result of other inputs"
    assert before.run["tenant_id"] == reading.run["tenant_id"], "another tenant's result"
    assert not reading.run["ignores_cache"], "its run ignores what is kept"
    assert place.cache_ttl_ms is not None, "its result may not be another's"
    most = timedelta(milliseconds=place.cache_ttl_ms)
    assert min(store.handed[source["id"]]) < most, "a result that is too old for it"
