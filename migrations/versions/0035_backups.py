"""Calls to telemetry that change something may be repeated, as those to the other services."""

from __future__ import annotations

from migrations.sql import run

revision = "0035"
down_revision = "0034"

_UP = ("GRANT SELECT, INSERT ON idempotency_keys TO qflow_telemetry",)
_DOWN = ("REVOKE SELECT, INSERT ON idempotency_keys FROM qflow_telemetry",)


def upgrade() -> None:
    """Let it keep answers."""
    run(_UP)


def downgrade() -> None:
    """Take it back."""
    run(_DOWN)
