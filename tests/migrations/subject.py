"""A schema under test, the seed's own or the migrated one, with the same words for both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

_DIGEST = "a" * 64
# How a schema refuses; any other error is a mistake of the check itself.
_REFUSALS = (
    psycopg.IntegrityError,
    psycopg.DataError,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.GeneratedAlways,
)
# What a row needs to be valid in either schema.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "python_nodes": {
        "name": "node",
        "code": "def main(): ...",
        "main_function": "main",
        "python_version": "3.11",
        "input_types": "[]",
        "output_types": "[]",
    },
    "python_node_versions": {
        "version": 1,
        "code": "def main(): ...",
        "main_function": "main",
        "input_types": "[]",
        "output_types": "[]",
    },
    "workflows": {
        "name": "workflow",
        "nodes": "[]",
        "connections": "[]",
        "python_version": "3.11",
    },
    "workflow_versions": {"version": 1, "nodes": "[]", "connections": "[]"},
    "workflow_executions": {"status": "running", "started_at": "now"},
    "node_executions": {
        "node_id": "a",
        "node_type": "python",
        "status": "running",
        "started_at": "now",
    },
    "node_data_flow": {"source_node_id": "a", "target_node_id": "b", "data_type": "json"},
    "type_definitions": {"category": "basic"},
    "custom_types": {"name": "Row", "definition": "{}"},
    "containers": {"python_version": "3.11", "status": "running"},
    "container_dependencies": {"package_name": "numpy", "installation_status": "pending"},
    "files": {"filename": "a", "original_filename": "a", "file_size_bytes": 1},
    "file_access_logs": {"access_type": "read"},
    "performance_metrics": {"metric_name": "duration", "metric_value": 1},
    "error_logs": {"error_type": "runtime_error", "error_message": "no"},
    "user_sessions": {"session_token": _DIGEST, "expires_at": "tomorrow"},
}
# What the mends ask for besides.
_MENDED: dict[str, dict[str, Any]] = {
    "python_node_versions": {"name": "node", "python_version": "3.11"},
    "workflow_versions": {"name": "workflow", "python_version": "3.11"},
    "workflow_executions": {"workflow_version": 1},
}
_TENANT_TABLES = {
    "python_nodes",
    "workflows",
    "workflow_executions",
    "custom_types",
    "files",
    "containers",
    "python_node_tags",
    "workflow_tags",
    "performance_metrics",
    "error_logs",
}
_AUTHORED = {
    "python_nodes",
    "python_node_versions",
    "workflows",
    "workflow_versions",
    "workflow_executions",
    "custom_types",
    "files",
    "python_node_tags",
    "workflow_tags",
}
# The seed's tables have an author on fewer.
_SEED_AUTHORED = {"python_nodes", "workflows", "workflow_executions", "custom_types"}
TABLES = frozenset(_DEFAULTS)


class Subject:
    """A connection of the owner's inside a transaction, and how to make rows in its schema."""

    def __init__(self, db: psycopg.Connection, *, mended: bool) -> None:
        self.db = db
        self.mended = mended

    def user(self, **values: Any) -> UUID:
        values.setdefault("email", f"{uuid4()}@example.com")
        return self.insert("users", **values)

    def workflow(self, owner: UUID, **values: Any) -> UUID:
        """A workflow with its first version."""
        workflow = self.insert("workflows", owner=owner, **values)
        self.insert("workflow_versions", owner=owner, workflow_id=workflow)
        return workflow

    def execution(self, owner: UUID, **values: Any) -> UUID:
        if "workflow_id" not in values:
            values["workflow_id"] = self.workflow(owner)
        return self.insert("workflow_executions", owner=owner, **values)

    def node_execution(self, owner: UUID, **values: Any) -> UUID:
        if "workflow_execution_id" not in values:
            values["workflow_execution_id"] = self.execution(owner)
        return self.insert("node_executions", **values)

    def container(self, owner: UUID, **values: Any) -> UUID:
        values.setdefault("container_id", f"proc:{uuid4()}")
        return self.insert("containers", owner=owner, **values)

    def file(self, owner: UUID, **values: Any) -> UUID:
        return self.insert("files", owner=owner, **values)

    def insert(self, table: str, *, owner: UUID | None = None, **values: Any) -> UUID:
        """Insert a valid row but for the values given; return its id."""
        row = {**_DEFAULTS.get(table, {}), "id": uuid4(), **values}
        if self.mended:
            row = {**_MENDED.get(table, {}), **row}
            if table in _TENANT_TABLES and owner is not None:
                row.setdefault("tenant_id", owner)
        if table == "files":
            row.setdefault("file_path", f"{owner}/{row['id']}")
        if table in (_AUTHORED if self.mended else _SEED_AUTHORED) and owner is not None:
            row.setdefault("created_by", owner)
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(sql.Placeholder() * len(row)),
        )
        self.db.execute(statement, [_parameter(value) for value in row.values()])
        key: UUID = row["id"]
        return key

    def takes(self, table: str, *, owner: UUID | None = None, **values: Any) -> bool:
        """Say whether the schema accepts the row."""
        return self.does(lambda: self.insert(table, owner=owner, **values))

    def does(self, step: Any) -> bool:
        """Say whether the step is accepted; either way the rows stay as they were before it."""
        try:
            with self.db.transaction(force_rollback=True):
                step()
                # Deferred and end-of-statement checks speak now.
                self.db.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except _REFUSALS:
            return False
        return True

    def value(self, query: str, *parameters: Any) -> Any:
        """The first column of the first row."""
        row = self.db.execute(query.encode(), parameters).fetchone()
        return None if row is None else row[0]

    def count(self, query: str, *parameters: Any) -> int:
        """How many rows the statement touched or found."""
        return self.db.execute(query.encode(), parameters).rowcount

    @contextmanager
    def acting(self, user: UUID | None, login: str, *, role: str = "user") -> Iterator[None]:
        """Act as a service does for a caller: its login (in the seed one that may do all)."""
        self.db.execute(
            "SELECT set_config('qflow.user_id', %s, true), set_config('qflow.tenant_id', %s, true),"
            " set_config('qflow.role', %s, true)",
            (str(user or ""), str(user or ""), role if user else ""),
        )
        name = login if self.mended else "seed_app"
        try:
            with self.db.transaction():
                self.db.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(name)))
                yield
                self.db.execute("RESET ROLE")
        finally:
            self.db.execute("SELECT set_config('qflow.user_id', '', true)")


def _parameter(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


def plain_row(s: Subject, table: str) -> dict[str, Any]:
    """What a plain row of the table refers to."""
    owner = s.user()
    row: dict[str, Any] = {"owner": owner}
    match table:
        case "python_node_versions":
            row["node_id"] = s.insert("python_nodes", owner=owner)
        case "workflow_versions" | "workflow_executions":
            row["workflow_id"] = s.workflow(owner)
            row |= {"version": 2} if table == "workflow_versions" else {}
        case "node_executions" | "node_data_flow":
            row["workflow_execution_id"] = s.execution(owner)
        case "type_definitions":
            row["name"] = "new"
        case "containers":
            row["container_id"] = "proc:1"
        case "container_dependencies":
            row["container_id"] = s.container(owner)
        case "user_sessions":
            row["user_id"] = owner
    return row
