"""Less beside the rows of a run: one look for events a statement, one index less, room for ends.

- Who listens for events was looked up for each run by itself, at its start and at its end: a call of
  a function each, which cost as much as three of the run's indexes. Now each statement looks once,
  for all runs that it wrote.
- A trigger's condition is read anew for each statement: that a node waits stands there, that it did
  not wait before in the function, which few nodes come to.
- Two indexes had the open runs by their creation, and lists asked one of them alone: it takes the
  name of the other.
- A node's row grows as it completes, to twice its size. Pages that were half full had room for two of
  three; the others went to another page, with a new entry in each index. Pages that are a third full
  have room for all of them, and the table and its indexes become smaller for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

from migrations.sql import BORROW_GROUPS, RETURN_GROUPS, run

revision = "0054"
down_revision = "0053"

# An array is looked through the same way however the session of whoever writes plans its joins.
_OF_STATEMENTS: Final = """
    CREATE OR REPLACE FUNCTION queue_execution_event() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
    AS $$
    DECLARE
        listening uuid[];
        begun uuid[] := '{}';
        over uuid[] := '{}';
    BEGIN
        -- Most tenants have none: all runs of a statement pay this one look.
        listening := ARRAY(
            SELECT DISTINCT tenant_id FROM public.event_subscriptions
             WHERE tenant_id = ANY (ARRAY(SELECT tenant_id FROM written)));
        IF listening = '{}' THEN
            RETURN NULL;
        END IF;
        IF TG_OP = 'UPDATE' THEN
            begun := ARRAY(SELECT id FROM before WHERE started_at IS NOT NULL);
            over := ARRAY(SELECT id FROM before WHERE completed_at IS NOT NULL);
        END IF;
        PERFORM public.queue_event(event.type, event.at, run.id, run.tenant_id, run.workflow_id,
                    jsonb_build_object('workflow_version', run.workflow_version) || event.facts)
           FROM written AS run
          CROSS JOIN LATERAL (VALUES
                ('execution.started', run.started_at, begun, '{}'::jsonb),
                ('execution.' || run.status, run.completed_at, over,
                 CASE WHEN run.status = 'failed' THEN jsonb_build_object(
                     'error_type', run.error_type, 'failed_node_id', run.failed_node_id)
                 ELSE '{}' END)
                ) AS event(type, at, earlier, facts)
          WHERE run.tenant_id = ANY (listening)
            AND event.at IS NOT NULL AND run.id <> ALL (event.earlier);
        RETURN NULL;
    END $$
"""
_DROP_TRIGGERS: Final = (
    "DROP TRIGGER workflow_executions_insert_event ON workflow_executions",
    "DROP TRIGGER workflow_executions_update_event ON workflow_executions",
)
_TRIGGERS_OF_STATEMENTS: Final = (
    """
    CREATE TRIGGER workflow_executions_insert_event AFTER INSERT ON workflow_executions
    REFERENCING NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION queue_execution_event()
    """,
    """
    CREATE TRIGGER workflow_executions_update_event AFTER UPDATE ON workflow_executions
    REFERENCING OLD TABLE AS before NEW TABLE AS written
    FOR EACH STATEMENT EXECUTE FUNCTION queue_execution_event()
    """,
)
_UNLESS_IT_WAITED: Final = """BEGIN
        IF TG_OP = 'UPDATE' AND OLD.status = 'waiting' THEN
            RETURN NULL;
        END IF;"""
_DROP_WAITS: Final = "DROP TRIGGER node_executions_update_event ON node_executions"
_WAITS: Final = """
    CREATE TRIGGER node_executions_update_event AFTER UPDATE ON node_executions
    FOR EACH ROW WHEN (NEW.status = 'waiting') EXECUTE FUNCTION queue_waiting_event()
"""
_EARLIER: Final[tuple[str, ...]] = vars(import_module("migrations.versions.0019_schedules"))[
    "_QUEUE"
]
_FILLFACTOR: Final = "ALTER TABLE node_executions SET (fillfactor = {})"


def _earlier(what: str) -> str:
    """Give a function or trigger as the step that brought it made it."""
    (made,) = [each for each in _EARLIER if f"CREATE {what}" in each]
    return made.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")


def upgrade() -> None:
    run(
        (
            *_DROP_TRIGGERS,
            *BORROW_GROUPS,
            _OF_STATEMENTS,
            *_TRIGGERS_OF_STATEMENTS,
            _DROP_WAITS,
            _earlier("FUNCTION queue_waiting_event()").replace("BEGIN", _UNLESS_IT_WAITED, 1),
            _WAITS,
            *RETURN_GROUPS,
            "DROP INDEX idx_workflow_executions_status_created_at",
            """
            ALTER INDEX workflow_executions_open_idx
            RENAME TO idx_workflow_executions_status_created_at
            """,
            _FILLFACTOR.format(33),
        )
    )


def downgrade() -> None:
    run(
        (
            _FILLFACTOR.format(50),
            """
            ALTER INDEX idx_workflow_executions_status_created_at
            RENAME TO workflow_executions_open_idx
            """,
            """
            CREATE INDEX idx_workflow_executions_status_created_at
                ON workflow_executions (status, created_at)
             WHERE status IN ('pending', 'running', 'paused')
            """,
            *_DROP_TRIGGERS,
            *BORROW_GROUPS,
            _earlier("FUNCTION queue_execution_event()"),
            _earlier("TRIGGER workflow_executions_insert_event"),
            _earlier("TRIGGER workflow_executions_update_event"),
            _DROP_WAITS,
            _earlier("FUNCTION queue_waiting_event()"),
            _earlier("TRIGGER node_executions_update_event"),
            *RETURN_GROUPS,
        )
    )
