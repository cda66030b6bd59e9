"""The checks of the tables that the journal writes, said in fewer words.

A server keeps a check as text and reads all checks of a table anew for each statement that writes
to it: in a flush of one node that was a quarter of its processor time. So what looks at the same
columns is one check, and a list of values is one constant. They refuse what they refused.
"""

from __future__ import annotations

from typing import Final

from migrations.sql import run

revision = "0051"
down_revision = "0050"

# Table, then each check by name: what took the place of what it was.
SHORTER: Final = {
    # A state that is over has its end; `running` has begun, `pending` has not.
    "workflow_executions": {
        "status": """status = ANY (CASE
            WHEN completed_at IS NOT NULL THEN '{completed,failed,cancelled}'::text[]
            WHEN started_at IS NULL THEN '{pending,paused}'::text[]
            ELSE '{running,paused}'::text[] END)""",
    },
    "node_executions": {
        "status": """status = ANY (CASE
            WHEN completed_at IS NOT NULL
            THEN '{completed,failed,skipped,cancelled,quarantined}'::text[]
            WHEN started_at IS NULL THEN '{pending,retrying,waiting,paused}'::text[]
            ELSE '{running,retrying,waiting,paused}'::text[] END)""",
        "node_type": "node_type = ANY ('{python,builtin}'::text[])",
    },
    # LEAST looks at those that are there.
    "node_data_flow": {
        "data_type": "data_type = ANY ('{json,pickle,file,npy,arrow}'::text[])",
        "amounts": """LEAST(data_size_bytes, serialization_time_ms, transfer_time_ms,
                            serialization_time_us, transfer_time_us) >= 0""",
    },
}
_AS_THEY_WERE: Final = {
    "workflow_executions": {
        "status": """status IN
            ('pending', 'running', 'paused', 'completed', 'failed', 'cancelled')""",
        "completed": "(status IN ('completed', 'failed', 'cancelled')) = (completed_at IS NOT NULL)",
        "started": """(status <> 'pending' OR started_at IS NULL)
            AND (status <> 'running' OR started_at IS NOT NULL)""",
    },
    "node_executions": {
        "status": """status IN
            ('pending', 'running', 'retrying', 'waiting', 'paused',
             'completed', 'failed', 'skipped', 'cancelled', 'quarantined')""",
        "completed": """(status IN ('completed', 'failed', 'skipped', 'cancelled', 'quarantined'))
            = (completed_at IS NOT NULL)""",
        "started": """(status <> 'pending' OR started_at IS NULL)
            AND (status <> 'running' OR started_at IS NOT NULL)""",
        "node_type": "node_type IN ('python', 'builtin')",
    },
    "node_data_flow": {
        "data_type": "data_type IN ('json', 'pickle', 'file', 'npy', 'arrow')",
        **{
            name: f"{name} >= 0"
            for name in (
                *("data_size_bytes", "serialization_time_ms", "transfer_time_ms"),
                *("serialization_time_us", "transfer_time_us"),
            )
        },
    },
}


def in_place_of(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> list[str]:
    """Drop the old ones of each table and add the new ones, which rows that are there need not pass.

    One statement for a table: no row is written that neither has looked at, and the lock is short.
    """
    return [
        f"ALTER TABLE {table} "
        + ", ".join(f"DROP CONSTRAINT {table}_{name}_check" for name in old[table])
        + ", "
        + ", ".join(
            f"ADD CONSTRAINT {table}_{name}_check CHECK ({check}) NOT VALID"
            for name, check in new[table].items()
        )
        for table in new
    ]


def proof_of(checks: dict[str, dict[str, str]]) -> list[str]:
    """Look through the rows that were there before: nobody waits for it."""
    return [
        f"ALTER TABLE {table} VALIDATE CONSTRAINT {table}_{name}_check"
        for table, of_table in checks.items()
        for name in of_table
    ]


def upgrade() -> None:
    run(in_place_of(_AS_THEY_WERE, SHORTER))


def downgrade() -> None:
    run(in_place_of(SHORTER, _AS_THEY_WERE))
    run(proof_of(_AS_THEY_WERE))
