"""The ledger: what attempts really did, kept outside of everything that is tested."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from services.runner.domain.attempts import AttemptRequest
from services.runner.domain.outcome import AttemptError, ErrorType, Outcome, Usage
from tests.simulation import graphs
from tests.simulation.oracle import Reading

if TYPE_CHECKING:
    from tests.simulation.processes import Runner
    from tests.simulation.world import World


_CPU_US: Final = 3  # of each attempt that is not stopped


@dataclass(frozen=True, slots=True)
class Act:
    """What one attempt is about to do."""

    kind: str  # "answer", "fail", "decline" or "kill the runner"
    lasts_s: float
    value: int = 0
    fatal: bool = False

    def outcome(self) -> Outcome:
        """Give what the sandbox says of it."""
        usage = Usage(cpu_us=_CPU_US, memory_peak_bytes=5, wall_us=round(self.lasts_s * 1_000_000))
        if self.kind == "fail":
            error = AttemptError(
                type=ErrorType.USER, message="no", exception="Refused", retryable=not self.fatal
            )
            return Outcome(error=error, usage=usage, progress=str(self.value))
        return Outcome(outputs=[("result", str(self.value).encode())], usage=usage)


class Ledger:
    """All attempts by node row and token."""

    CPU_US: Final = _CPU_US

    def __init__(self, world: World) -> None:
        self._world = world
        self.begun: Counter[tuple[UUID, int]] = Counter()
        self.produced: dict[tuple[UUID, int], bytes] = {}
        self.failed: set[tuple[UUID, int]] = set()
        self._under_way: defaultdict[UUID, dict[int, UUID]] = defaultdict(dict)

    def begin(self, runner: Runner, request: AttemptRequest) -> Act:
        """Write down that an attempt begins, and hold that against what is committed."""
        world, ref, token = self._world, request.attempt_ref, request.token
        incarnation = runner.membership.incarnation
        row = world.store.nodes.get(ref)
        assert row is not None, f"G3: {request.node_id} begins before its row is committed"
        self.begun[ref, token] += 1
        inputs = {each.name: json.loads(bytes(each.value)) for each in request.inputs}  # type: ignore[arg-type]
        if self.holds_lease(incarnation):
            self._check(request, inputs)
        script = world.script(request.execution_id, row["node_id"], row["max_retries"])
        chance = world.chance
        if world.declining and chance.random() < 0.3:
            self.begun[ref, token] -= 1  # nothing of it has: the same may be given out again
            return Act("decline", 0.0)
        self._under_way[ref][token] = incarnation
        if row["delivery_count"] < script.kills and runner.alive:
            return Act("kill the runner", script.lasts_s)
        if row["retry_count"] < script.failures:
            return Act("fail", script.lasts_s, fatal=script.fatal)
        plan = world.plan_of(request.execution_id)
        place = plan.places[plan.index[request.node_id]]
        return Act("answer", script.lasts_s, graphs.answer(place, inputs))

    def end(self, request: AttemptRequest, outcome: Outcome) -> None:
        """Write down what an attempt gave."""
        key = (request.attempt_ref, request.token)
        if outcome.error is None:
            self.produced[key] = outcome.outputs[0][1]
        else:
            self.failed.add(key)

    def over(self, request: AttemptRequest) -> None:
        """Write down that an attempt is no longer under way, however it ended."""
        self._under_way[request.attempt_ref].pop(request.token, None)

    def holds_lease(self, incarnation: UUID) -> bool:
        """Say whether a runner was not fenced, by the rows."""
        row = self._world.store.runners.get(incarnation)
        return row is not None and row.state in ("live", "idle")

    def _check(self, request: AttemptRequest, inputs: dict[str, Any]) -> None:
        world, ref = self._world, request.attempt_ref
        run = world.store.runs[request.execution_id]
        assert not world.store.is_over(run["id"]), "G3: an attempt begins after the run is over"
        assert self.begun[ref, request.token] == 1, "I11: one attempt begins twice"
        for token, other in self._under_way[ref].items():
            assert token == request.token or not self.holds_lease(other), "I11: two at once"
        row = world.store.nodes[ref]
        # What is absent is given as nothing, or not given at all.
        given = Reading(world, row["run_id"]).inputs(row)
        read = {name: inputs.get(name) for name in given.keys() | inputs.keys()}
        assert read == given, f"G3: {row['node_id']} reads {read}, not {given}"
