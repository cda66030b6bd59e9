"""What must hold in the database after any fault: each query gives no row."""

from __future__ import annotations

from typing import Final, LiteralString

import psycopg

INVARIANTS: Final[dict[str, LiteralString]] = {
    "I1 a run is over exactly when it has an end": """
        SELECT id FROM workflow_executions
         WHERE (status IN ('completed', 'failed', 'cancelled')) <> (completed_at IS NOT NULL)
    """,
    "I1 a node is over exactly when it has an end": """
        SELECT id FROM node_executions
         WHERE (status IN ('completed', 'failed', 'skipped', 'cancelled', 'quarantined'))
            <> (completed_at IS NOT NULL)
    """,
    "I2 a node has one row in a run": """
        SELECT workflow_execution_id, node_id FROM node_executions
         GROUP BY workflow_execution_id, node_id HAVING count(*) > 1
    """,
    "I3 retries stay within their limit": """
        SELECT id FROM node_executions WHERE retry_count NOT BETWEEN 0 AND max_retries
    """,
    "I4 no node goes on under a run that is over": """
        SELECT n.id FROM node_executions n
          JOIN workflow_executions w ON w.id = n.workflow_execution_id
         WHERE w.completed_at IS NOT NULL AND n.completed_at IS NULL
    """,
    "I5 a completed run has every node of its version": """
        SELECT w.id, d.node ->> 'id' FROM workflow_executions w
          JOIN workflow_versions v
            ON v.workflow_id = w.workflow_id AND v.version = w.workflow_version
         CROSS JOIN LATERAL jsonb_array_elements(v.nodes) AS d(node)
         WHERE w.status = 'completed'
           AND NOT EXISTS (SELECT 1 FROM node_executions n
                            WHERE n.workflow_execution_id = w.id
                              AND n.definition_node_id = d.node ->> 'id')
    """,
    "I5 a completed node has its output": """
        SELECT id FROM node_executions
         WHERE status = 'completed' AND output_data IS NULL AND output_file_id IS NULL
    """,
    "I6 time goes forward": """
        SELECT id FROM node_executions
         WHERE completed_at < started_at OR duration_ms < 0
            OR abs(duration_ms - extract(epoch FROM completed_at - started_at) * 1000) > 1
        UNION ALL
        SELECT id FROM workflow_executions
         WHERE completed_at < started_at OR duration_ms < 0
            OR abs(duration_ms - extract(epoch FROM completed_at - started_at) * 1000) > 1
    """,
    "I7 a node starts after what it reads is complete": """
        SELECT f.id FROM node_data_flow f
          JOIN node_executions s ON s.workflow_execution_id = f.workflow_execution_id
                                AND s.node_id = f.source_node_id
          JOIN node_executions t ON t.workflow_execution_id = f.workflow_execution_id
                                AND t.node_id = f.target_node_id
         WHERE t.started_at < s.completed_at
    """,
    "I7 a data flow has both its ends": """
        SELECT f.id FROM node_data_flow f
         WHERE (SELECT count(*) FROM node_executions n
                 WHERE n.workflow_execution_id = f.workflow_execution_id
                   AND n.node_id IN (f.source_node_id, f.target_node_id)) <> 2
    """,
    "I8 no node starts after its run is over": """
        SELECT n.id FROM node_executions n
          JOIN workflow_executions w ON w.id = n.workflow_execution_id
         WHERE n.started_at > w.completed_at
    """,
    "I9 what runs has a runner that is not fenced": """
        SELECT n.id FROM node_executions n
          LEFT JOIN runner_members r ON r.incarnation = n.runner_incarnation
         WHERE n.status = 'running' AND (r.incarnation IS NULL OR r.state IN ('fenced', 'gone'))
    """,
    "I9 a shard with open runs has a living member": """
        SELECT DISTINCT w.shard FROM workflow_executions w
          JOIN engine_shards s ON s.shard = w.shard
          LEFT JOIN engine_members m ON m.id = s.member_id AND m.state = 'live'
         WHERE w.status IN ('pending', 'running', 'paused') AND m.id IS NULL
    """,
    "I9 a place under a limit is held by what goes on": """
        SELECT s.id FROM limit_slots s
          LEFT JOIN workflow_executions w ON w.id = s.execution_id
          LEFT JOIN node_executions n ON n.id = s.node_execution_id
         WHERE w.completed_at IS NOT NULL OR n.status <> 'running'
    """,
    "I32 no more have places than a limit has, unless it was lowered": """
        SELECT l.id FROM limit_slots s JOIN execution_limits l ON l.id = s.limit_id
         WHERE l.revision = 1
         GROUP BY l.id, s.key HAVING count(*) > l.max_running
    """,
    "I10 tokens of a node's attempts grow": """
        SELECT n.id FROM node_executions n
          JOIN node_attempts a ON a.node_execution_id = n.id
         WHERE n.status <> 'retrying' AND n.attempt_token < a.token
    """,
    "I15 an author is known and nodes are a list": """
        SELECT id FROM workflow_executions WHERE created_by IS NULL
        UNION ALL
        SELECT id FROM workflow_versions WHERE jsonb_typeof(nodes) <> 'array'
    """,
    "I17 versions are counted without gaps": """
        SELECT workflow_id FROM workflow_versions
         GROUP BY workflow_id HAVING count(*) <> max(version) OR min(version) <> 1
    """,
    "I24 metrics are finite": """
        SELECT id FROM performance_metrics
         WHERE metric_value::text IN ('NaN', 'Infinity', '-Infinity')
    """,
    "I26 there is one owner": """
        SELECT count(*) FROM users WHERE is_owner HAVING count(*) > 1
    """,
}


def broken(connection: psycopg.Connection) -> dict[str, list[tuple[object, ...]]]:
    """Give each invariant that does not hold with the rows that break it."""
    found: dict[str, list[tuple[object, ...]]] = {}
    for name, query in INVARIANTS.items():
        rows = connection.execute(query).fetchall()
        if rows:
            found[name] = rows
    return found
