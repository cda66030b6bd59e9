"""Statistics of recent nodes and runs of a tenant, from a bounded number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, LiteralString
from uuid import UUID

from services.kit.pg import Db, Row
from services.orchestrator.domain.forecast import Past, Times

# There is no index from node versions to their rows, which would cost every insert. The tenant's
# last runs lead to them by existing keys, those of the workflows in question first. The number of
# rows is bounded before they are filtered.
_OF_NODES: Final[LiteralString] = """
    WITH recent AS MATERIALIZED (
        SELECT id, workflow_id, created_at FROM workflow_executions
         WHERE tenant_id = $1 ORDER BY created_at DESC, id DESC LIMIT 1000
    ), chosen AS MATERIALIZED (
        SELECT id, row_number() OVER (
                   ORDER BY (workflow_id = ANY ($2::uuid[])) IS TRUE DESC, created_at DESC, id
               ) AS turn
          FROM recent ORDER BY turn LIMIT 200
    ), looked AS MATERIALIZED (
        SELECT chosen.turn, node.*
          FROM chosen
         CROSS JOIN LATERAL (
               SELECT node_version_id, definition_node_id, status, started_at, completed_at,
                      runner_incarnation IS NULL AS is_whole, copied_from
                 FROM node_executions WHERE workflow_execution_id = chosen.id
                ORDER BY execution_order LIMIT 20000) AS node
         LIMIT 50000
    ), ended AS (
        SELECT node_version_id, CASE WHEN is_whole THEN definition_node_id END AS place, status,
               extract(epoch FROM completed_at - started_at) * 1000000 AS took_us,
               row_number() OVER (
                   PARTITION BY node_version_id, CASE WHEN is_whole THEN definition_node_id END
                       ORDER BY turn, completed_at DESC) AS turn
          FROM looked
         WHERE node_version_id = ANY ($3::uuid[]) AND started_at IS NOT NULL
           AND status IN ('completed', 'failed', 'quarantined') AND copied_from IS NULL
    )
    SELECT node_version_id, place, count(*) AS ended,
           count(*) FILTER (WHERE status <> 'completed') AS failed,
           count(*) FILTER (WHERE status = 'completed') AS samples,
           percentile_cont(0.5) WITHIN GROUP (ORDER BY took_us)
               FILTER (WHERE status = 'completed') AS median_us,
           percentile_cont(0.9) WITHIN GROUP (ORDER BY took_us)
               FILTER (WHERE status = 'completed') AS p90_us
      FROM ended WHERE turn <= 50
     GROUP BY node_version_id, place
"""


async def of_nodes(
    db: Db, tenant_id: UUID, workflow_ids: Iterable[UUID], version_ids: Iterable[UUID]
) -> dict[tuple[UUID, str | None], Past]:
    """Return statistics of node versions, and by place of what runs without a runner."""
    rows = await db.fetch(_OF_NODES, tenant_id, list(workflow_ids), list(version_ids))
    return {
        (row["node_version_id"], row["place"]): Past(
            times=_times(row), samples=row["samples"], ended=row["ended"], failed=row["failed"]
        )
        for row in rows
    }


_OF_RUNS: Final[LiteralString] = """
    WITH recent AS MATERIALIZED (
        SELECT workflow_id, workflow_version, status, started_at, completed_at
          FROM workflow_executions
         WHERE tenant_id = $1 ORDER BY created_at DESC, id DESC LIMIT 1000
    ), alike AS (
        SELECT extract(epoch FROM completed_at - started_at) * 1000000 AS took_us
          FROM recent
         WHERE workflow_id = $2 AND workflow_version = $3 AND status = 'completed' LIMIT 50
    )
    SELECT count(*) AS samples, percentile_cont(0.5) WITHIN GROUP (ORDER BY took_us) AS median_us,
           percentile_cont(0.9) WITHIN GROUP (ORDER BY took_us) AS p90_us
      FROM alike
"""


async def of_runs(db: Db, tenant_id: UUID, workflow_id: UUID, version: int) -> Past:
    """Return the durations of the last completed runs of a workflow version."""
    row = await db.fetchrow(_OF_RUNS, tenant_id, workflow_id, version)
    assert row is not None
    return Past(times=_times(row), samples=row["samples"], ended=row["samples"])


def _times(row: Row) -> Times | None:
    if row["median_us"] is None:
        return None
    return Times(float(row["median_us"]), float(row["p90_us"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFacts:
    """What a plan shows of a node version and the state of its environment."""

    node_id: UUID
    version: int
    name: str
    python_version: str
    lock_state: str  # of node_version_locks; pending where there is no row
    environment_state: str | None  # of the environment that a runner built of the lock, if any
    error: str | None


# Environments belong to a tenant. If several machines have one, the best state is returned.
_FACTS: Final[LiteralString] = """
    SELECT version.id, version.node_id, version.version, version.name, version.python_version,
           COALESCE(lock.state, 'pending') AS lock_state, environment.state AS environment_state,
           COALESCE(lock.error, environment.error) AS error
      FROM python_node_versions AS version
      LEFT JOIN node_version_locks AS lock ON lock.node_version_id = version.id
      LEFT JOIN (SELECT DISTINCT ON (lock_digest, python_version)
                        lock_digest, python_version, state, error
                   FROM environments WHERE tenant_id = $1
                  ORDER BY lock_digest, python_version, state = 'ready' DESC, created_at DESC)
             AS environment ON environment.lock_digest = lock.lock_digest
                           AND environment.python_version = version.python_version
     WHERE version.id = ANY ($2::uuid[])
"""


async def facts_of_versions(
    db: Db, tenant_id: UUID, version_ids: Iterable[UUID]
) -> Mapping[UUID, VersionFacts]:
    """Return what a plan shows of node versions, which the tenant is known to be able to read."""
    rows = await db.fetch(_FACTS, tenant_id, list(version_ids))
    return {
        row["id"]: VersionFacts(**{key: each for key, each in row.items() if key != "id"})
        for row in rows
    }
