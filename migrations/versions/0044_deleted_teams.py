"""Teams that are deleted: nobody is in one any more, and nobody comes into it again."""

from __future__ import annotations

from migrations.sql import BORROW_GROUPS, RETURN_GROUPS, run

revision = "0044"
down_revision = "0043"

_IS_FOUNDER = """
    CREATE OR REPLACE FUNCTION is_founder(of_tenant uuid) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
        SELECT EXISTS (SELECT 1 FROM public.tenants t
                        WHERE t.id = of_tenant AND t.kind = 'team'{alive}
                          AND t.created_by = public.current_user_id())
           AND NOT EXISTS (SELECT 1 FROM public.tenant_members m WHERE m.tenant_id = of_tenant)
    $$
"""


def upgrade() -> None:
    run(
        (
            "ALTER TABLE tenants ADD COLUMN deleted_at timestamptz",
            "GRANT UPDATE (deleted_at) ON tenants TO qflow_registry_auth",
            # Whether a team has nodes still is asked before it goes.
            "GRANT SELECT (deleted_at) ON python_nodes TO qflow_registry_auth",
            *BORROW_GROUPS,  # the function is theirs
            _IS_FOUNDER.format(alive=" AND t.deleted_at IS NULL"),
            *RETURN_GROUPS,
        )
    )


def downgrade() -> None:
    run(
        (
            *BORROW_GROUPS,
            _IS_FOUNDER.format(alive=""),
            *RETURN_GROUPS,
            "REVOKE SELECT (deleted_at) ON python_nodes FROM qflow_registry_auth",
            "REVOKE UPDATE (deleted_at) ON tenants FROM qflow_registry_auth",
            "ALTER TABLE tenants DROP COLUMN deleted_at",
        )
    )
