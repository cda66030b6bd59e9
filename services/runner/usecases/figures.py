"""Metrics of the runner's slots, sandboxes and environments."""

from __future__ import annotations

from collections.abc import Iterable

from services.kit.figures import Figure, counter, gauge, histogram
from services.runner.usecases.desk import Desk
from services.runner.usecases.environments import Environments
from services.runner.usecases.interpreters import InterpreterPool


def figures_of(
    desk: Desk, pool: InterpreterPool, environments: Environments, *, slots: int
) -> Iterable[Figure]:
    """Yield the metrics, read from memory."""
    running, finished = desk.inventory()
    yield gauge("qflow_runner_slots", "Attempts that may run at once.", slots)
    text = "Attempts that were taken and are not over."
    yield gauge("qflow_runner_attempts_running", text, len(running))
    text = "Attempts that are over and whose result no orchestrator has acknowledged yet."
    yield gauge("qflow_runner_attempts_unacknowledged", text, len(finished))
    text = "Attempts that are over, by how they ended."
    ended = [((how,), float(count)) for how, count in desk.ended.items()]
    yield Figure("qflow_runner_attempts_ended", text, "counter", ("outcome",), ended)
    text = "Interpreters in sandboxes, by state; waiting are the calls that have none yet."
    states = [((state,), float(count)) for state, count in pool.census().items()]
    yield Figure("qflow_runner_interpreters", text, "gauge", ("state",), states)
    text = "Environments, by state: held ones are in place and in use."
    census = [((state,), float(count)) for state, count in environments.census().items()]
    yield Figure("qflow_runner_environments", text, "gauge", ("state",), census)
    text = "How long environments took to be built."
    yield histogram("qflow_runner_environment_build_seconds", text, environments.build_s)
    text = "Environments that could not be built."
    yield counter("qflow_runner_environment_build_failures", text, environments.builds_failed)
