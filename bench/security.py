"""What security costs: the same work with walls and without, and how long a refusal takes."""

from __future__ import annotations

import socket
from typing import Any, Final

from bench.figures import figure
from bench.flow import Flow, running
from bench.metrics import diamond, rate
from tests.contracts.test_fuzz import fuzzing_of

_ROUNDS: Final = 10
_MESSAGES: Final = 5_000
_REFUSED_MS: Final = 100.0
_TABLES: Final = """
    SELECT format('ALTER TABLE %I DISABLE ROW LEVEL SECURITY', relname) FROM pg_class
     WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND relrowsecurity
"""


async def secure_cost() -> dict[str, Any]:
    """How much of its throughput the engine keeps with TLS and row-level security, by turns.

    TLS is between users and services, and mutual between runner and orchestrator. Who calls is
    asked in both: a service that does not is none.
    """
    tls = {"QFLOW_TLS": "1", "QFLOW_ORCHESTRATOR_ATTACH_LISTEN": f"127.0.0.1:{_free_port()}"}
    async with running(tls) as secure, running() as bare:
        assert secure.suite.trust is not None
        _let_all_through(bare)
        ids = [await diamond(each) for each in (secure, bare)]
        for flow, workflow_id in zip((secure, bare), ids, strict=True):
            await rate(flow, workflow_id)
        ratios = []
        for number in range(_ROUNDS):
            turns = [(secure, ids[0]), (bare, ids[1])]
            rates = {}
            for flow, workflow_id in turns if number % 2 else reversed(turns):
                rates[workflow_id] = await rate(flow, workflow_id)
            ratios.append(rates[ids[0]] / rates[ids[1]])
    return figure(ratios, "of the throughput", "higher", target=0.9, floor=1.0)


async def refusals() -> dict[str, Any]:
    """Milliseconds until a wrong message to any RPC is refused, one after another: the p99."""
    async with running() as flow:
        fuzzing = await fuzzing_of(flow.suite)
        await fuzzing.one_by_one(_MESSAGES // 10)
        fuzzing.refused_ms.clear()
        await fuzzing.one_by_one(_MESSAGES)
        await fuzzing.close()
    assert not fuzzing.faults, fuzzing.faults[0]
    spans = sorted(fuzzing.refused_ms)
    p99 = spans[int(len(spans) * 0.99)]
    found = figure(spans, "ms (p99)", "lower", target=_REFUSED_MS, floor=0.0, value=p99)
    return found | {"median": round(spans[len(spans) // 2], 3)}


def _let_all_through(flow: Flow) -> None:
    with flow.suite.sql() as db:
        for (statement,) in db.execute(_TABLES).fetchall():
            db.execute(statement)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port
