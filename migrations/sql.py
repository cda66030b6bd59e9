"""How a migration runs its statements: one at a time, exactly as written."""

from __future__ import annotations

from collections.abc import Iterable

from alembic import op


def run(statements: Iterable[str]) -> None:
    """Run each statement by itself, with no parameter syntax read into it."""
    bind = op.get_bind().execution_options(no_parameters=True)
    for statement in statements:
        bind.exec_driver_sql(statement)


# To give a function to a group, its giver must be a member of the group, and the group must be
# allowed to create in the schema: both for the length of a transaction.
BORROW_GROUPS = (
    """
    DO $$
    BEGIN
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            EXECUTE format('GRANT qflow_auth, qflow_maint TO %I', current_user);
        END IF;
    END $$
    """,
    "GRANT CREATE ON SCHEMA public TO qflow_auth, qflow_maint",
)
RETURN_GROUPS = (
    "REVOKE CREATE ON SCHEMA public FROM qflow_auth, qflow_maint",
    """
    DO $$
    BEGIN
        IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
            EXECUTE format('REVOKE qflow_auth, qflow_maint FROM %I', current_user);
        END IF;
    END $$
    """,
)
