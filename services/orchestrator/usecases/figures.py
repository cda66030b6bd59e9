"""Metrics of the orchestrator: runs, runners and journal."""

from __future__ import annotations

from collections.abc import Iterable

from services.kit.figures import Figure, counter, gauge, histogram
from services.orchestrator.engine.engine import Engine


def figures_of(engine: Engine) -> Iterable[Figure]:
    """Yield the metrics, from memory only."""
    core, journal = engine.core, engine.journal
    runners = core.runners.values()
    yield gauge("qflow_orchestrator_runs_open", "Executions that are not over.", len(core.runs))
    text = "Executions that ended here, by their status."
    ended = [((status.value,), float(count)) for status, count in engine.runs_ended.items()]
    yield Figure("qflow_orchestrator_runs_ended", text, "counter", ("status",), ended)
    text = "Places of executions that could run now, by what they wait for."
    queued = [(("slot",), float(core.ready.size)), (("limit",), float(core.limited.size))]
    yield Figure("qflow_orchestrator_nodes_queued", text, "gauge", ("reason",), queued)
    connected = sum(runner.connected for runner in runners)
    text = "Runners that hold a stream."
    yield gauge("qflow_orchestrator_runners_connected", text, connected)
    text = "Runners that are spoken to over a lane: a unix socket beside their stream."
    by_lane = sum(stream.by_lane for stream in engine.streams.values())
    yield gauge("qflow_orchestrator_runners_by_lane", text, by_lane)
    text = "Attempts that runners grant this orchestrator."
    granted = sum(runner.credits for runner in runners if runner.connected)
    yield gauge("qflow_orchestrator_slots_granted", text, granted)
    text = "Attempts that are in the hands of runners."
    in_flight = sum(len(runner.in_flight) for runner in runners)
    yield gauge("qflow_orchestrator_slots_used", text, in_flight)
    text = "Shards that are this orchestrator's."
    yield gauge("qflow_orchestrator_shards_owned", text, len(engine.member.owned))
    text = "What waits to be written to the journal."
    yield gauge("qflow_orchestrator_journal_queue_bytes", text, journal.pending_bytes)
    text = "How long a flush of the journal took, its commit included."
    yield histogram("qflow_orchestrator_journal_flush_seconds", text, journal.flush_s)
    text = "Steps of executions that a flush of the journal wrote."
    name = "qflow_orchestrator_journal_flush_transitions"
    yield histogram(name, text, journal.flush_transitions)
    text = "How often memory was made anew from the rows."
    yield counter("qflow_orchestrator_recoveries", text, engine.recoveries)
