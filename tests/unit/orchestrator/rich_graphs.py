"""Graphs with every construct there is, drawn at random; every value is an integer or a list."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from typing import Any

from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.plan import Definition, NodeVersion, Plan

INT = {"t": "int"}


@dataclass(slots=True)
class Drawing:
    """A definition that grows node by node."""

    chance: random.Random
    nodes: list[dict[str, Any]] = field(default_factory=list)
    connections: list[dict[str, Any]] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)

    def node(self, **what: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append({"id": name, "node_id": str(uuid.UUID(int=900)), "version": 1, **what})
        return name

    def data(self, source: str, target: str, name: str, output: str = "result") -> None:
        self._edge(source, target, source_output=output, target_input=name, absent="null")

    def order(self, source: str, target: str, kind: str = "order", branch: str = "") -> None:
        self._edge(source, target, kind=kind, branch=branch)

    def _edge(self, source: str, target: str, **what: Any) -> None:
        edge = {"source_output": "", "target_input": "", "conversion": ""}
        self.connections.append({**edge, "source": source, "target": target, **what})

    def plan(self) -> Plan:
        versions = {
            node["id"]: NodeVersion(
                id=uuid.UUID(int=at % 3),
                python_version="3.11",
                output_types=[{"name": "result", "type": INT}],
            )
            for at, node in enumerate(self.nodes)
            if "kind" not in node
        }
        main = [
            node["id"]
            for node in self.nodes
            if not node.get("compensates") and node.get("phase") != "finally"
        ]
        sources = {e["source"] for e in self.connections if e["target"] in main}
        sinks = [name for name in main if name not in sources]
        kinds = {node["id"]: node.get("kind") for node in self.nodes}
        output = {"choice": "branch", "approval": "reply"}
        outputs = [
            {"name": name, "node_id": name, "output": self._output(name, kinds[name], output)}
            for name in sinks
        ]
        definition = Definition(
            workflow_id=uuid.uuid4(),
            version=1,
            nodes=self.nodes,
            connections=self.connections,
            settings={},
            input_types=[{"name": "x", "type": INT, "required": True}],
            output_types=outputs,
        )
        return compile_plan(definition, versions, pins_id=uuid.uuid4(), plans=self.plans)

    def _output(self, name: str, kind: str | None, known: dict[str, str]) -> str:
        if kind == "workflow":
            return self.plans[name].outputs[0].name
        return known.get(kind or "", "result")


def rich_plan(chance: random.Random, *, size: int, depth: int = 1) -> Plan:
    """Draw a graph of all kinds."""
    drawing = Drawing(chance)
    last = drawing.node()
    drawing.data("", last, "x", "x")
    main = [last]
    while len(main) < size:
        main.append(_grow(drawing, main, depth))
    for name in main:
        if chance.random() < 0.1:
            undo = drawing.node(compensates=name)
            if _kind(drawing, name) is None:
                drawing.data(name, undo, "x")
    finals = [drawing.node(phase="finally") for _ in range(chance.choice((0, 0, 0, 1, 2)))]
    for name in finals:
        source = chance.choice(main)
        if _kind(drawing, source) is None:
            drawing.data(source, name, "x")
    if len(finals) > 1:
        drawing.order(finals[0], finals[1])
    return drawing.plan()


def _kind(drawing: Drawing, name: str) -> str | None:
    node = next(node for node in drawing.nodes if node["id"] == name)
    return node.get("kind")


def _grow(drawing: Drawing, main: list[str], depth: int) -> str:
    chance = drawing.chance
    sources = chance.sample(main, min(len(main), chance.choice((1, 1, 1, 2, 3))))
    what = _what(drawing, depth)
    if chance.random() < 0.15:
        policy = chance.choice(("any", "n_of", "all_done"))
        what["join"] = {"policy": policy, "count": chance.randint(1, len(sources))}
    if chance.random() < 0.15:
        what["on_failure"] = "continue"
    if chance.random() < 0.3 and what.get("kind") in (None, "workflow"):
        retry = {"max_retries": chance.randint(0, 3), "initial_delay_ms": 10, "jitter": 0.5}
        what["retry"] = retry | ({"non_retryable": ["bad"]} if chance.random() < 0.3 else {})
    plain = not {"kind", "map", "loop"} & what.keys()
    if plain and chance.random() < 0.1:
        what["condition"] = chance.choice(("x == 1", "x != 1", "x > 'a'"))
    sub = what.pop("sub", None)
    name = drawing.node(**what)
    if sub is not None:
        drawing.plans[name] = sub
    _feed(drawing, name, sources)
    return name


def _what(drawing: Drawing, depth: int) -> dict[str, Any]:  # noqa: PLR0911  # one per kind
    chance = drawing.chance
    roll = chance.random()
    if roll < 0.5:
        return {}
    if roll < 0.6:
        return {
            "kind": "choice",
            "choice": {
                "branches": [{"name": "one", "condition": "x == 1"}],
                "default": chance.choice(("other", None)),
            },
        }
    if roll < 0.66:
        return {"kind": "sleep"}
    if roll < 0.72:
        timeout_ms = chance.choice((None, 500))
        default = chance.choice(("7", None))
        rule = {"name": "word", "type": INT, "timeout_ms": timeout_ms, "default": default}
        return {"kind": "signal", "signal": rule}
    if roll < 0.76:
        return {"kind": "approval", "approval": {"name": "word", "timeout_ms": 900}}
    if roll < 0.88:
        rule = {
            "input": "list",
            "depth": chance.choice((1, 1, 2)),
            "max_in_flight": chance.choice((None, 1, 2)),
            "max_failed": chance.choice((None, 1)),
        }
        return {"map": rule}
    if roll < 0.94 or depth <= 0:
        carry = {"x": "result"} if chance.random() < 0.5 else {}
        condition = chance.choice(("turn < 3", "turn < 9", "result == 1"))
        at_max = chance.choice(("finish", "fail"))
        return {"loop": {"condition": condition, "max_turns": 4, "carry": carry, "at_max": at_max}}
    sub = rich_plan(chance, size=chance.randint(1, 4), depth=depth - 1)
    mapped = {"map": {"input": "list", "max_in_flight": 2}} if chance.random() < 0.3 else {}
    return {"kind": "workflow", "sub": sub, **mapped}


def _feed(drawing: Drawing, name: str, sources: list[str]) -> None:
    """Connect a node to its sources by the edges that they have, and give it values to read."""
    chance = drawing.chance
    node = drawing.nodes[-1]
    literals = {"x": chance.choice(("1", "2"))}
    if node.get("map"):
        deep = node["map"].get("depth") == 2
        lists = ("[[1,2],[],[3]]",) if deep else ("[1,2,3]", "[]")
        literals["list"] = chance.choice(lists)
    if node.get("kind") == "sleep":
        literals = {"seconds": "0.2"}
    if node.get("kind") in ("signal", "approval"):
        literals = {}
    for source in sources:
        kind = _kind(drawing, source)
        if kind == "choice":
            drawing.order(source, name, "branch", chance.choice(("one", "other")))
        elif chance.random() < 0.15:
            drawing.order(source, name, "failure")
        elif kind is None and literals.get("list") and chance.random() < 0.5:
            drawing.data(source, name, "list")
            literals.pop("list")
        elif kind is None and literals.get("x"):
            if chance.random() < (0.2 if _is_grouped(drawing, source) else 0.6):
                drawing.data(source, name, "x")
                literals.pop("x", None)
            else:
                drawing.order(source, name)
        else:
            drawing.order(source, name)
    node["parameters"] = literals


def _is_grouped(drawing: Drawing, name: str) -> bool:
    node = next(node for node in drawing.nodes if node["id"] == name)
    return "map" in node
