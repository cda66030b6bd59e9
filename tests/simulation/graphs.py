"""Graphs of any shape and of every kind of node; the same number is the same graph everywhere.

What a place gives is a plain function of its inputs, so that the rows of a run can be held against
each other: `oracle.py` does.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Final
from uuid import UUID

from services.kit.ids import uuid_from_bytes
from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.plan import Definition, NodeVersion, Place, Plan

SHAPES: Final = 400
CACHED: Final = 60  # graphs of which nodes may take results from the cache
_AGES_MS: Final = (250, 1000, 4000)  # that those may have
NODES_MIN: Final = 20  # of a world
WORDS: Final = ("first word", "second word")  # that signals are sent under
BRANCH: Final = "even"  # of a choice, where its input is so
MAPPED: Final = "list"  # the input that maps run over
# A condition of nodes, and the one of choices, as CEL has them; `holds` and `branch` say the same.
_CONDITION: Final = "x == null || x % 4 != 1"
_IS_EVEN: Final = "x == null || x % 2 == 0"
_INT: Final = {"t": "int"}
_ID_BYTES: Final = 16
_VERSIONS: Final = 4  # node versions that all graphs share, each with a lock of its own
_PLAIN_SHARE: Final = 0.4  # of graphs that have nothing but nodes and edges
_INNER: Final = 24  # graphs that serve as sub-workflows
_LISTS: Final = {1: ("[1,2,3]", "[]", "[4,5]"), 2: ("[[1,2],[],[3]]", "[[4]]")}
_ANSWERS: Final = {"choice": "branch", "approval": "reply"}
_VALUED: Final = (None, "signal", "workflow")  # kinds whose answer the oracle can tell


@cache
def version_ids() -> Sequence[UUID]:
    """Give the node versions that graphs are made of."""
    return [id_of(10 + at) for at in range(_VERSIONS)]


@cache
def node_ids() -> Sequence[UUID]:
    """Give the nodes of which those are versions, which limits may name: two of each."""
    return [id_of(100 + at) for at in range(_VERSIONS // 2)]


@cache
def node_of(version_id: UUID) -> UUID:
    """Give the node that a version is of."""
    return node_ids()[version_ids().index(version_id) % (_VERSIONS // 2)]


@cache
def code_of(version_id: UUID) -> int:
    """Say which code a version has: one of each node has the same."""
    return version_ids().index(version_id) // 2


def id_of(number: int) -> UUID:
    """Give an id of the class that the engine's ids have, which is quicker than the library's."""
    return uuid_from_bytes(number.to_bytes(_ID_BYTES))


@lru_cache(maxsize=SHAPES)
def shape(number: int) -> Plan:
    """Give one of the graphs."""
    chance = random.Random(f"shape {number}")
    drawing = _Drawing(chance, number)
    size = chance.choice((1, 2, 5, 8, 12, 20))
    if chance.random() < _PLAIN_SHARE:
        drawing.draw_plain(size)
        return drawing.plan(timeout_ms=chance.choice((None, None, None, None, 1500)))
    drawing.draw(size, inner=True)
    drawing.draw_later_phases()
    return drawing.plan(timeout_ms=chance.choice((None, None, None, None, None, 2500)))


@lru_cache(maxsize=CACHED)
def cached_shape(number: int) -> Plan:
    """Give one of the graphs that take results from the cache."""
    chance = random.Random(f"cached {number}")
    drawing = _Drawing(chance, SHAPES + _INNER + number, cached=True)
    size = chance.choice((2, 5, 8))
    if chance.random() < _PLAIN_SHARE:
        drawing.draw_plain(size)
    else:
        drawing.draw(size, inner=True)
        drawing.draw_later_phases()
    return drawing.plan(timeout_ms=chance.choice((None, None, None, 2500)))


@lru_cache(maxsize=_INNER)
def _inner(number: int) -> Plan:
    """Give a graph that serves as a sub-workflow."""
    chance = random.Random(f"inner {number}")
    drawing = _Drawing(chance, SHAPES + number)
    drawing.draw(chance.choice((1, 2, 3)), inner=number % 4 == 0)
    return drawing.plan(timeout_ms=None, single=True)


@dataclass(slots=True)
class _Drawing:
    """A definition that grows node by node."""

    chance: random.Random
    number: int
    cached: bool = False
    nodes: list[dict[str, Any]] = field(default_factory=list)
    connections: list[dict[str, Any]] = field(default_factory=list)
    inner: dict[str, Plan] = field(default_factory=dict)
    retry: Mapping[str, object] = field(init=False)
    python: str = field(init=False)

    def __post_init__(self) -> None:
        chance = self.chance
        self.python = chance.choice(("3.11", "3.11", "3.11", "3.12"))
        self.retry = {
            "max_retries": chance.choice((0, 0, 1, 3)),
            "initial_delay_ms": chance.choice((0, 20, 300)),
            "jitter": 0.5,
        }

    # --- nodes ----------------------------------------------------------------------------------

    def draw_plain(self, size: int) -> None:
        """Draw nodes that run once, on runners, and nothing but edges between them."""
        for at in range(size):
            name = self._node()
            tries = self.chance.choice((0, 1, 1, 2, 3)) if at else 0
            for source in sorted({self.chance.randrange(at) for _ in range(tries)}):
                self._data(f"n{source}", name, f"x{source}")
            if not any(each["target"] == name for each in self.connections):
                self._data("", name, "x", "x")

    def draw(self, size: int, *, inner: bool) -> None:
        """Draw nodes of every kind."""
        self._data("", self._node(), "x", "x")
        for at in range(1, size):
            self._grow(at, inner=inner)

    def draw_later_phases(self) -> None:
        """Add what undoes nodes, and what runs at the very end."""
        chance, main = self.chance, [each["id"] for each in self.nodes]
        for name in main:
            if chance.random() < 0.08:
                undo = self._node(compensates=name, parameters={"x": "1"})
                if self._kind(name) in _VALUED:
                    self._data(name, undo, f"x{name[1:]}")
        for _ in range(chance.choice((0, 0, 0, 1, 2))):
            last = self._node(phase="finally", parameters={"x": "2"})
            source = chance.choice(main)
            if self._kind(source) in _VALUED:
                self._data(source, last, f"x{source[1:]}")

    def _grow(self, at: int, *, inner: bool) -> None:
        chance = self.chance
        count = min(at, chance.choice((1, 1, 1, 2, 3)))
        sources = [f"n{each}" for each in sorted(chance.sample(range(at), count))]
        what = self._what(inner=inner)
        if chance.random() < 0.15:
            policy = chance.choice(("any", "n_of", "all_done"))
            what["join"] = {"policy": policy, "count": chance.randint(1, count)}
        if chance.random() < 0.15:
            what["on_failure"] = "continue"
        sub = what.pop("sub", None)
        name = self._node(**what)
        if sub is not None:
            self.inner[name] = sub
        self._feed(self.nodes[-1], sources)

    def _node(self, **what: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append({"id": name, "retry": self.retry, "parameters": {}, **what})
        return name

    def _what(self, *, inner: bool) -> dict[str, Any]:
        """Draw of which kind a node is."""
        chance = self.chance
        kinds = (self._python, self._map, self._loop, self._choice, self._sleep, self._signal)
        kind = chance.choices((*kinds, self._approval, self._sub), (50, 14, 8, 7, 5, 7, 2, 8))[0]
        return self._python() if kind == self._sub and not inner else kind()

    def _python(self) -> dict[str, Any]:
        chance, roll = self.chance, self.chance.random()
        if roll < 0.1:
            return {"condition": _CONDITION}
        if roll < 0.16:
            return {"total_timeout_ms": chance.choice((150, 600))}
        return {"queue_timeout_ms": chance.choice((200, 800))} if roll < 0.22 else {}

    def _map(self) -> dict[str, Any]:
        chance = self.chance
        rule = {
            "input": MAPPED,
            "depth": chance.choice((1, 1, 2)),
            "max_in_flight": chance.choice((None, 1, 2)),
            "max_failed": chance.choice((None, 1, 1)),
        }
        return {"map": rule} | ({"queue_timeout_ms": 500} if chance.random() < 0.1 else {})

    def _loop(self) -> dict[str, Any]:
        chance = self.chance
        turns = chance.choice((1, 2, 3, 9))
        return {
            "loop": {
                "condition": f"turn < {turns}",
                "max_turns": 3,
                "carry": {"x": "result"} if chance.random() < 0.7 else {},
                "at_max": chance.choice(("finish", "fail")),
            }
        }

    def _choice(self) -> dict[str, Any]:
        branches = [{"name": BRANCH, "condition": _IS_EVEN}]
        return {"kind": "choice", "choice": {"branches": branches, "default": "odd"}}

    def _sleep(self) -> dict[str, Any]:
        seconds = self.chance.choice(("0.05", "0.4", "1.2"))
        return {"kind": "sleep", "parameters": {"seconds": seconds}}

    def _signal(self) -> dict[str, Any]:
        chance = self.chance
        rule = {
            "name": chance.choice(WORDS),
            "type": _INT,
            "timeout_ms": chance.choice((None, 300, 900)),
            "default": chance.choice((None, "7", "7")),
        }
        return {"kind": "signal", "signal": rule}

    def _approval(self) -> dict[str, Any]:
        return {"kind": "approval", "approval": {"timeout_ms": self.chance.choice((None, 900))}}

    def _sub(self) -> dict[str, Any]:
        mapped = {"map": {"input": "x", "max_in_flight": 2}} if self.chance.random() < 0.25 else {}
        limited = {"total_timeout_ms": 700} if self.chance.random() < 0.15 else {}
        return {"kind": "workflow", "sub": _inner(self._an_inner()), **mapped, **limited}

    def _an_inner(self) -> int:
        """Draw a sub-workflow; those that have others inside are not drawn by each other."""
        number = self.chance.randrange(_INNER)
        return number + 1 if self.number >= SHAPES and number % 4 == 0 else number

    # --- edges ----------------------------------------------------------------------------------

    def _feed(self, node: dict[str, Any], sources: list[str]) -> None:
        """Connect a node to its sources, and give it values to read."""
        chance, name, kind = self.chance, node["id"], node.get("kind")
        wanted = {None: "x", "choice": "x", "workflow": "x"}.get(kind, "")
        if node.get("map"):
            wanted = node["map"]["input"]
        early = node.get("join", {}).get("policy") in ("any", "n_of")  # before all sources are over
        for source in sources:
            of = self._kind(source)
            if of == "choice":
                self._order(source, name, "branch", chance.choice((BRANCH, "odd")))
            elif chance.random() < 0.12:
                self._order(source, name, "failure")
            elif early or not wanted or self._misfits(node, source) or chance.random() < 0.2:
                self._order(source, name)
            else:
                several = kind is None and not node.get("map")
                self._data(source, name, wanted if wanted != "more" else f"x{source[1:]}")
                wanted = "more" if several else ""  # the first is what conditions and turns read
        reads = {each["target_input"] for each in self.connections if each["target"] == name}
        depth = node["map"].get("depth") or 1 if node.get("map") else 0
        if depth and node["map"]["input"] not in reads:
            node["parameters"][node["map"]["input"]] = chance.choice(_LISTS[depth])
        elif kind in (None, "choice", "workflow") and not depth and "x" not in reads:
            node["parameters"]["x"] = chance.choice(("1", "2"))

    def _kind(self, name: str) -> str | None:
        kind: str | None = self.nodes[int(name[1:])].get("kind")
        return kind

    def _gives_list(self, name: str) -> bool:
        return "map" in self.nodes[int(name[1:])]

    def _misfits(self, node: dict[str, Any], source: str) -> bool:
        """Say whether a node cannot read what a source gives, or it is not known what that is."""
        if self._kind(source) not in _VALUED:
            return True
        if node.get("map"):
            return not self._gives_list(source) or node["map"].get("depth") == 2
        return self._gives_list(source) and bool(node.get("kind") or node.get("condition"))

    def _data(self, source: str, target: str, name: str, output: str = "result") -> None:
        absent = {"absent": "null"} if source else {}
        self._edge(source, target, source_output=output, target_input=name, **absent)

    def _order(self, source: str, target: str, kind: str = "order", branch: str = "") -> None:
        self._edge(source, target, kind=kind, branch=branch)

    def _edge(self, source: str, target: str, **what: Any) -> None:
        edge = {"source_output": "", "target_input": "", "conversion": ""}
        self.connections.append({**edge, "source": source, "target": target, **what})

    # --- the whole ------------------------------------------------------------------------------

    def plan(self, *, timeout_ms: int | None, single: bool = False) -> Plan:
        """Compile it; `single` has one output, which is the last node's."""
        main = [each for each in self.nodes if not {"compensates", "phase"} & each.keys()]
        names = {each["id"] for each in main}
        read = {each["source"] for each in self.connections if each["target"] in names}
        sinks = [each for each in main if each["id"] not in read]
        outputs = [
            {
                "name": f"o{each['id'][1:]}",
                "node_id": each["id"],
                "output": _ANSWERS.get(each.get("kind", ""), "result"),
            }
            for each in sinks
        ]
        if single:
            numbers = [each for each in main if each.get("kind") in _VALUED and "map" not in each]
            last = numbers[-1]["id"]
            outputs = [{"name": "result", "node_id": last, "output": "result"}]
        definition = Definition(
            workflow_id=id_of(1_000_000 + self.number),
            version=1,
            nodes=self.nodes,
            connections=self.connections,
            settings={"timeout_ms": timeout_ms},
            input_types=[{"name": "x", "type": _INT, "required": True}],
            output_types=outputs,
        )
        versions = {}
        for at, each in enumerate(self.nodes):
            if "kind" in each:
                continue
            version_id = version_ids()[(at + self.number) % _VERSIONS]
            each["node_id"] = str(node_of(version_id))
            if self.cached and not {"map", "loop"} & each.keys():
                each["cache_ttl_ms"] = _AGES_MS[(at + self.number) % len(_AGES_MS)]
            versions[each["id"]] = NodeVersion(
                id=version_id,
                python_version=self.python,
                output_types=[{"name": "result", "type": _INT}],
            )
        pins_id = id_of(2_000_000 + self.number)
        return compile_plan(definition, versions, pins_id=pins_id, plans=self.inner)


# --- what places give ---------------------------------------------------------------------------


def answer(place: Place, inputs: Mapping[str, Any]) -> int:
    """Compute what user code gives for its inputs: each place has code of its own, or is cached."""
    cached = place.cache_ttl_ms is not None
    code = code_of(place.node_version_id) if cached else int(place.id.removeprefix("n"))
    total = sum((at + 1) * _number(value) for at, (_, value) in enumerate(sorted(inputs.items())))
    return (31 * total + 7 * code + 1) % 9973


def _number(value: Any) -> int:
    """Make a number of anything: of a list its sum, of nothing none."""
    if isinstance(value, list):
        return sum(map(_number, value)) + len(value)
    return value if isinstance(value, int) else 0


def holds(x: Any) -> bool:
    """Say whether the condition of nodes holds."""
    return x is None or x % 4 != 1


def branch(x: Any) -> str:
    """Give the branch that a choice takes."""
    return BRANCH if x is None or x % 2 == 0 else "odd"
