"""The schema of Qflow, as alembic migrations of plain SQL, and the logins that use it."""

from __future__ import annotations

from migrations.apply import (
    complaint,
    current,
    downgrade,
    login_environment,
    login_urls,
    upgrade,
)

__all__ = ["complaint", "current", "downgrade", "login_environment", "login_urls", "upgrade"]
