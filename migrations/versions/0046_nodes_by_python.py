"""A list by the Python of nodes reads its own tenant's alone.

Under idx_python_nodes_python_version stood the nodes of all tenants: what one asks for by a version
that others use much was looked at row by row, 2,000 of 100,000 for a page that held none.
"""

from __future__ import annotations

from alembic import op

from migrations.sql import run

revision = "0046"
down_revision = "0045"

_NAME = "idx_python_nodes_python_version"  # the seed's name, and its leading column


def upgrade() -> None:
    """Put the tenant behind the version, while rows are written."""
    _replace("python_version, tenant_id")


def downgrade() -> None:
    """Take it away again."""
    _replace("python_version")


def _replace(columns: str) -> None:
    # Repeated as a whole where a migrator was killed in between.
    with op.get_context().autocommit_block():
        run(
            (
                f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}_new",
                f"CREATE INDEX CONCURRENTLY {_NAME}_new ON python_nodes ({columns})",
                f"DROP INDEX CONCURRENTLY IF EXISTS {_NAME}",
                f"ALTER INDEX {_NAME}_new RENAME TO {_NAME}",
            )
        )
