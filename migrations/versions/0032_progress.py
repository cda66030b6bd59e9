"""How far a failed attempt said it had come: the next one is told."""

from __future__ import annotations

from migrations.sql import run

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    # json, as the tables keep values: the exact text that user code gave. Whoever reads attempts is
    # granted the whole table.
    run(("ALTER TABLE node_attempts ADD COLUMN progress json",))


def downgrade() -> None:
    run(("ALTER TABLE node_attempts DROP COLUMN progress",))
