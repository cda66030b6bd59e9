"""The values of one metric of a tenant in the order of their time, read from an index alone."""

from __future__ import annotations

from migrations.sql import run

revision = "0031"
down_revision = "0030"

_UP = (
    """
    CREATE INDEX performance_metrics_tenant_id_metric_name_idx
        ON performance_metrics (tenant_id, metric_name, recorded_at) INCLUDE (metric_value)
    """,
)
_DOWN = ("DROP INDEX performance_metrics_tenant_id_metric_name_idx",)


def upgrade() -> None:
    """Add the index."""
    run(_UP)


def downgrade() -> None:
    """Remove it."""
    run(_DOWN)
