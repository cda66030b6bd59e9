"""What rows of a run must say of each other: values, joins, parts and causes, told from the graph.

Nothing here asks the engine's memory: it is the graph evaluated once more, over what was committed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from services.orchestrator.domain.plan import FROM_RUN, FROM_TURN, Binding, Kind, Link, Place, Plan
from services.orchestrator.domain.status import NODE_FINAL
from tests.simulation import cache, graphs

if TYPE_CHECKING:
    from tests.simulation.world import World

Row = dict[str, Any]
FAILED: Final = frozenset({"failed", "quarantined"})
DELIVERIES_MAX: Final = 3


# --- names --------------------------------------------------------------------------------------


def group_of(node_id: str) -> str:
    """Give the row that an element or a turn is a part of; empty for a place."""
    if node_id.endswith("]"):
        return node_id[: node_id.rindex("[")]
    return node_id.rpartition("#")[0]


def _path(node_id: str) -> list[int]:
    """Give the indexes of an element: [1, 2] of n3[1][2]."""
    return [int(each) for each in node_id.replace("]", "").split("[")[1:]]


def _turn(node_id: str) -> int:
    return int(node_id.rpartition("#")[2])


def is_group(place: Place, node_id: str) -> bool:
    """Say whether a row is a map or loop as a whole, at some depth."""
    if place.map is not None:
        return len(_path(node_id)) < place.map.depth
    return place.loop is not None and "#" not in node_id


def parts(rows: Mapping[str, Row], place: Place, node_id: str) -> dict[int, Row]:
    """Give the rows of the elements or turns directly under a row, by their numbers."""
    if place.loop is not None:
        found = (rows.get(f"{node_id}#{turn}") for turn in range(1, place.loop.max_turns + 1))
        return {at: row for at, row in enumerate(found, 1) if row is not None}
    depth = len(_path(node_id)) + 1
    return {
        _path(name)[-1]: row
        for name, row in rows.items()
        if name.startswith(f"{node_id}[") and len(_path(name)) == depth
    }


# --- values -------------------------------------------------------------------------------------


@lru_cache(maxsize=1000)
def read(text: str) -> Any:
    """Read JSON that is looked at for every row that reads it; nobody changes what this gives."""
    return json.loads(text)


def result(row: Row, output: str = "result") -> Any:
    """Give what a completed row holds."""
    return read(row["output_data"])[output]


class Reading:
    """The rows of one run, and what its places read of each other."""

    def __init__(self, world: World, run_id: UUID) -> None:
        self.world = world
        self.run_id = run_id
        self.run = world.store.runs[run_id]
        self.plan: Plan = world.plan_of(run_id)
        self.rows: Mapping[str, Row] = world.store.nodes_of[run_id]

    def place(self, row: Row) -> Place:
        """Give the definition of a row."""
        return self.plan.places[self.plan.index[row["definition_node_id"]]]

    def script(self, row: Row) -> Any:
        """Give what its attempts do."""
        return self.world.script(self.run_id, row["node_id"], row["max_retries"])

    def inputs(self, row: Row) -> dict[str, Any]:
        """Give what a row's inputs must be."""
        place, name = self.place(row), row["node_id"]
        turn = _turn(name) if place.loop is not None and "#" in name else 0
        bindings = place.turn_inputs if turn > 1 else place.inputs
        values = {each.name: self._given(each, turn, place) for each in bindings}
        if place.map is not None:
            for index in _path(name):
                values[place.map.input] = values[place.map.input][index]
        return values

    def _given(self, binding: Binding, turn: int, place: Place) -> Any:
        if binding.source == FROM_TURN:
            return result(self.rows[f"{place.id}#{turn - 1}"])
        if binding.source == FROM_RUN:
            return read(self.run["input_data"])[binding.key]
        if binding.source < 0:
            return read(binding.literal)
        source = self.rows.get(self.plan.places[binding.source].id)
        completed = source is not None and source["status"] == "completed"
        return result(source, binding.key) if source is not None and completed else None

    def check_value(self, row: Row) -> None:
        """Hold what a completed row gave against what it read."""
        place, name = self.place(row), row["node_id"]
        by_hand = self.world.by_hand.get((self.run_id, name))
        if by_hand is not None and row["output_data"] == by_hand:
            return
        if is_group(place, name):
            self._check_group(row, place)
            return
        match place.kind:
            case Kind.PYTHON:
                given = graphs.answer(place, self.inputs(row))
                assert result(row) == given, "a value that the graph does not give"
                if row["cache_hit"]:
                    cache.check_hit(self, row)
                    return
                doomed = self.script(row).dooms(row["max_retries"])
                assert not doomed, "completed, and it cannot succeed"
            case Kind.CHOICE:
                taken = graphs.branch(self.inputs(row)["x"])
                assert result(row, "branch") == taken, "another branch than the graph's"
            case Kind.WORKFLOW:
                child = self.world.store.runs[row["child_execution_id"]]
                assert child["status"] == "completed", "its execution did not complete"
                assert json.loads(child["output_data"]) == json.loads(row["output_data"])
            case Kind.SIGNAL | Kind.APPROVAL:
                self._check_word(row, place)
            case Kind.SLEEP:
                pass  # how long it lasts is looked at when it ends

    def _check_word(self, row: Row, place: Place) -> None:
        taken = self.world.store.taken.get((self.run_id, row["node_id"]))
        if taken is not None:
            payload = self.world.store.signals[taken]["payload"]
            said = list(json.loads(row["output_data"]).values())
            assert json.loads(payload) == said, "it gave something else than it was told"
            return
        assert place.wait is not None
        assert place.wait.default is not None, "nothing was said, and it completed"
        assert result(row) == json.loads(place.wait.default)

    def _check_group(self, row: Row, place: Place) -> None:
        """A map's or loop's join: no part is missing, none open, too many failed, none changed."""
        name = row["node_id"]
        found = parts(self.rows, place, name)
        open_ = [each["node_id"] for each in found.values() if each["status"] not in NODE_FINAL]
        assert not open_, f"{name} is over before {open_}"
        if place.loop is not None:
            self._check_loop(row, place, found)
            return
        assert place.map is not None
        elements = self.inputs(row)[place.map.input] or []
        assert found.keys() == set(range(len(elements))), f"{name}: elements {sorted(found)}"
        failed = [each for each in found.values() if each["status"] in FAILED]
        assert len(failed) <= place.map.allowed(len(elements)), "more failed than it tolerates"
        assert all(each["status"] == "quarantined" for each in failed), "failed, not put aside"
        given = [
            result(found[at]) if found[at]["status"] == "completed" else None
            for at in range(len(elements))
        ]
        assert result(row) == given, "not what its elements gave"

    def _check_loop(self, row: Row, place: Place, found: Mapping[int, Row]) -> None:
        assert place.loop is not None
        until = int(place.loop.condition.text.removeprefix("turn < "))
        assert all(each["status"] == "completed" for each in found.values()), "a turn failed"
        assert len(found) == min(until, place.loop.max_turns), f"{len(found)} turns"
        assert until <= place.loop.max_turns or not place.loop.fails_at_max, "it has no end"
        assert result(row) == result(found[len(found)]), "not what the last turn gave"

    # --- joins ----------------------------------------------------------------------------------

    def check_join(self, row: Row, *, begins: bool) -> None:
        """Hold that a place begins, or is skipped, against how its sources ended (I7)."""
        at = self.plan.index[row["definition_node_id"]]
        place = self.plan.places[at]
        left, active, broken = 0, 0, False
        failures: list[bool] = []  # of sources whose failure alone counts: whether it came
        for source, link in _sources_of(self.plan)[at]:
            before = self.rows.get(source)
            status = before["status"] if before is not None else ""
            if link.failure and not link.done and not link.branches:
                failures.append(status in FAILED)
            if status == "completed" and before is not None:
                took = result(before, "branch") if link.branches else ""
                active += link.done or took in link.branches
                broken |= bool(link.branches) and not link.done and took not in link.branches
            elif status == "skipped":
                broken |= bool(link.branches) and not link.done
            elif status in FAILED:
                active += link.failure
                broken |= not link.failure
            else:
                left += 1
        skips = place.condition is not None and not graphs.holds(self.inputs(row)["x"])
        if place.needed is not None:
            assert active >= place.needed or not begins, f"I7: {place.id} begins before its sources"
            assert begins or skips or active + left < place.needed, f"{place.id} could have begun"
            return
        assert not left, f"I7: {place.id} is taken up before {left} of its sources are over"
        broken |= bool(failures) and not any(failures)
        runs = place.all_done or not self.plan.parents[at] or (bool(active) and not broken)
        assert runs or not begins, f"{place.id} begins, and its sources say that it does not"
        assert begins or skips or not runs, f"{place.id} is skipped, and its sources say it runs"


_sources: dict[UUID, tuple[tuple[tuple[str, Link], ...], ...]] = {}


def _sources_of(plan: Plan) -> tuple[tuple[tuple[str, Link], ...], ...]:
    """Give by place what it waits for, and what the end of each means to it."""
    found = _sources.get(plan.pins_id)
    if found is None:
        waits: list[list[tuple[str, Link]]] = [[] for _ in plan.places]
        for source, links in enumerate(plan.links):
            for link in links:
                waits[link.child].append((plan.places[source].id, link))
        found = _sources[plan.pins_id] = tuple(map(tuple, waits))
    return found
