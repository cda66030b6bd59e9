"""Plans of any shape, for tests of the planner."""

from __future__ import annotations

import random
import uuid
from typing import NoReturn

from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.plan import Definition, NodeVersion, Plan

INT = {"t": "int"}


class StrictCore(Core):
    """A core in which no step of a run may go wrong."""

    def fault(self, run_id: uuid.UUID, error: Exception, *, asked: bool = False) -> NoReturn:
        """Let the test fail."""
        raise AssertionError(f"run {run_id}, {asked=}") from error


def plan_of(edges: list[tuple[int, int]], size: int, *, max_retries: int = 0) -> Plan:
    """Compile a graph of integer nodes: roots read the run's input, sinks are its outputs."""
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
    read = {source for source, _ in edges}
    sinks = [at for at in range(size) if at not in read]
    retry = {"max_retries": max_retries, "initial_delay_ms": 10, "jitter": 0.5}
    definition = Definition(
        workflow_id=uuid.uuid4(),
        version=1,
        nodes=[{"id": f"n{at}", "retry": retry} for at in range(size)],
        connections=connections,
        settings={},
        input_types=[{"name": "x", "type": INT, "required": True}],
        output_types=[{"name": f"o{at}", "node_id": f"n{at}", "output": "result"} for at in sinks],
    )
    versions = {
        f"n{at}": NodeVersion(
            id=uuid.UUID(int=at % 3),
            python_version="3.11",
            output_types=[{"name": "result", "type": INT}],
        )
        for at in range(size)
    }
    return compile_plan(definition, versions, pins_id=uuid.uuid4())


def random_plan(chance: random.Random, *, size: int) -> Plan:
    """Draw an acyclic graph."""
    edges = {
        (chance.randrange(target), target)
        for target in range(1, size)
        for _ in range(chance.choice((0, 1, 1, 2, 3)))
    }
    return plan_of(sorted(edges), size, max_retries=chance.choice((0, 0, 1, 3)))


def _edge(source: str, output: str, target: int, name: str) -> dict[str, str]:
    return {
        "source": source,
        "source_output": output,
        "target": f"n{target}",
        "target_input": name,
        "conversion": "",
    }
