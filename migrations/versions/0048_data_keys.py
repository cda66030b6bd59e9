"""Data keys: what inputs and outputs at rest are under, each wrapped under a root key.

They are few and the deployment's own: a root key that is replaced means that these are wrapped anew,
while what they seal stays as it is, in rows that never change. Here nothing is opened: no root key
enters the database.
"""

from __future__ import annotations

from migrations.sql import run

revision = "0048"
down_revision = "0047"

_UP = (
    """
    CREATE TABLE data_keys (
        id uuid PRIMARY KEY,
        key_id varchar(63) NOT NULL,
        wrapped_key bytea NOT NULL
            CONSTRAINT data_keys_wrapped_key_check
            CHECK (octet_length(wrapped_key) BETWEEN 32 AND 1024),
        created_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    *(f"ALTER TABLE data_keys {what} ROW LEVEL SECURITY" for what in ("ENABLE", "FORCE")),
    *(
        f"CREATE POLICY data_keys_engine_{verb.lower()} ON data_keys FOR {verb} TO qflow_engine {how}"
        for verb, how in (
            ("SELECT", "USING (true)"),
            ("INSERT", "WITH CHECK (true)"),
            ("UPDATE", "USING (true) WITH CHECK (true)"),
        )
    ),
    "GRANT SELECT, INSERT, UPDATE (key_id, wrapped_key) ON data_keys TO qflow_orchestrator_engine",
    "GRANT SELECT ON data_keys TO qflow_runner_engine",
)


def upgrade() -> None:
    run(_UP)


def downgrade() -> None:
    run(("DROP TABLE data_keys",))
