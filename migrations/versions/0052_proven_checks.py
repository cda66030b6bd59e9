"""Rows from before the shorter checks pass them too.

Apart from the step that adds them: to look through the rows of years takes its time, and would
hold up every writer if it were done under that step's lock.
"""

from __future__ import annotations

from importlib import import_module

from migrations.sql import run

revision = "0052"
down_revision = "0051"

_ADDED = import_module("migrations.versions.0051_shorter_checks")


def upgrade() -> None:
    run(_ADDED.proof_of(_ADDED.SHORTER))


def downgrade() -> None:
    """Have them as they were, for rows to come alone."""
    run(_ADDED.in_place_of(_ADDED.SHORTER, _ADDED.SHORTER))
