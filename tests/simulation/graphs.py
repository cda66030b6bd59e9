"""Graphs of any shape, and what user code does at each of their places.

What a place gives is a plain function of its inputs, so that a sequential evaluation tells what a
run must give; how its attempts go is drawn per run and known before it starts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from uuid import UUID

from services.kit.ids import uuid_from_bytes
from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.plan import Definition, NodeVersion, Plan

SHAPES: Final = 400
NODES_MIN: Final = 20  # of all graphs of a world
_INT: Final = {"t": "int"}
_ID_BYTES: Final = 16
_VERSIONS: Final = 4  # node versions that all graphs share, each with a lock of its own


def version_ids() -> list[UUID]:
    """Give the node versions that graphs are made of."""
    return [_id(10 + at) for at in range(_VERSIONS)]


def _id(number: int) -> UUID:
    """Give an id of the class that the engine's ids have."""
    return uuid_from_bytes(number.to_bytes(_ID_BYTES))


@dataclass(frozen=True, slots=True)
class Script:
    """What the attempts at one place do, one after another."""

    failures: int = 0  # that come before it succeeds
    fatal: bool = False  # they forbid a retry
    kills: int = 0  # runners that it takes with it before it answers
    lasts_s: float = 0.05

    def dooms(self, max_retries: int) -> bool:
        """Whether it never succeeds, however often it may be tried."""
        return self.failures > (0 if self.fatal else max_retries) or self.kills >= _POISON


_POISON: Final = 99


def draw_script(chance: random.Random, max_retries: int) -> Script:
    """Draw what a place does; most do as they should."""
    lasts_s = chance.choice((0.0, 0.001, 0.02, 0.1, 0.4)) * (0.5 + chance.random())
    roll = chance.random()
    for share, script in (
        (0.84, Script(lasts_s=lasts_s)),
        (0.95, Script(failures=chance.randint(0, max_retries), lasts_s=lasts_s)),
        (0.965, Script(failures=max_retries + 1, lasts_s=lasts_s)),
        (0.975, Script(failures=1, fatal=True, lasts_s=lasts_s)),
        (0.99, Script(kills=1, lasts_s=lasts_s)),
        (0.992, Script(kills=_POISON, lasts_s=lasts_s)),
    ):
        if roll < share:
            return script
    return Script(lasts_s=2.0)


@lru_cache(maxsize=SHAPES)
def shape(number: int) -> Plan:
    """Give one of the graphs; the same number is the same graph in every process."""
    chance = random.Random(f"shape {number}")
    size = chance.choice((1, 2, 5, 8, 12, 20))
    edges = {
        (chance.randrange(target), target)
        for target in range(1, size)
        for _ in range(chance.choice((0, 1, 1, 2, 3)))
    }
    python = chance.choice(("3.11", "3.11", "3.11", "3.12"))
    timeout_ms = chance.choice((None, None, None, None, 1500))
    retry = {
        "max_retries": chance.choice((0, 0, 1, 3)),
        "initial_delay_ms": chance.choice((0, 20, 300)),
        "jitter": 0.5,
    }
    return _compile(number, sorted(edges), size, python, retry, timeout_ms)


def _compile(
    number: int,
    edges: list[tuple[int, int]],
    size: int,
    python: str,
    retry: Mapping[str, object],
    timeout_ms: int | None,
) -> Plan:
    incoming: dict[int, list[int]] = {at: [] for at in range(size)}
    for source, target in edges:
        incoming[target].append(source)
    connections = []
    for target, sources in incoming.items():
        if not sources:
            connections.append(_edge("", "x", target, "x"))
        connections += [
            _edge(f"n{source}", "result", target, f"x{at}") for at, source in enumerate(sources)
        ]
    sinks = [at for at in range(size) if not any(source == at for source, _ in edges)]
    definition = Definition(
        workflow_id=_id(1_000_000 + number),
        version=1,
        nodes=[{"id": f"n{at}", "retry": retry} for at in range(size)],
        connections=connections,
        settings={"timeout_ms": timeout_ms},
        input_types=[{"name": "x", "type": _INT, "required": True}],
        output_types=[{"name": f"o{at}", "node_id": f"n{at}", "output": "result"} for at in sinks],
    )
    versions = {
        f"n{at}": NodeVersion(
            id=version_ids()[(at + number) % _VERSIONS],
            python_version=python,
            output_types=[{"name": "result", "type": _INT}],
        )
        for at in range(size)
    }
    return compile_plan(definition, versions, pins_id=_id(2_000_000 + number))


def _edge(source: str, output: str, target: int, name: str) -> dict[str, str]:
    return {
        "source": source,
        "source_output": output,
        "target": f"n{target}",
        "target_input": name,
        "conversion": "",
    }


def answer(node_id: str, inputs: Mapping[str, int]) -> int:
    """Compute what a node gives for its inputs."""
    total = sum((at + 1) * value for at, (_, value) in enumerate(sorted(inputs.items())))
    return (31 * total + 7 * int(node_id.removeprefix("n")) + 1) % 9973


def evaluate(plan: Plan, given: int) -> dict[str, int]:
    """Run a graph plainly, one place after another; gives each one's value."""
    values: dict[str, int] = {}
    for place in plan.places:  # the graphs above list sources before their readers
        inputs = {
            each.name: values[plan.places[each.source].id] if each.source >= 0 else given
            for each in place.inputs
        }
        values[place.id] = answer(place.id, inputs)
    return values


def output_text(plan: Plan, values: Mapping[str, int]) -> str:
    """Give the output of a run whose places gave these values."""
    parts = [
        f"{json.dumps(each.name)}:{values[plan.places[each.source].id]}" for each in plan.outputs
    ]
    return "{" + ",".join(parts) + "}"
