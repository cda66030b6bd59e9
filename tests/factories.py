"""Rows that a test starts from, written as the migrating owner: users, tokens, nodes, workflows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import psycopg

from services.kit.ids import new_token, token_sha256, uuid7

INT = {"t": "int"}


@dataclass(frozen=True, slots=True)
class User:
    """A user with a session."""

    id: UUID
    token: str


def user(db: psycopg.Connection, *, role: str = "user", is_owner: bool = False) -> User:
    """Make a user, its personal tenant and a session."""
    made = User(uuid7(), new_token())
    db.execute(
        "INSERT INTO users (id, email, role, is_owner) VALUES (%s, %s, %s, %s)",
        (made.id, f"{made.id}@example.org", role, is_owner),
    )
    db.execute(
        "INSERT INTO tenants (id, kind, name) VALUES (%s, 'personal', 'personal')"
        " ON CONFLICT DO NOTHING",
        (made.id,),
    )
    db.execute(
        "INSERT INTO user_sessions (user_id, session_token, expires_at)"
        " VALUES (%s, %s, now() + interval '1 day')",
        (made.id, token_sha256(made.token)),
    )
    return made


def team(db: psycopg.Connection, **members: User) -> UUID:
    """Make a team of one member in each role that is named."""
    made = uuid7()
    db.execute("INSERT INTO tenants (id, kind, name) VALUES (%s, 'team', 'team')", (made,))
    for role, member in members.items():
        db.execute(
            "INSERT INTO tenant_members (tenant_id, user_id, role) VALUES (%s, %s, %s)",
            (made, member.id, role),
        )
    return made


def service_token(db: psycopg.Connection, name: str, scopes: Sequence[str]) -> str:
    """Make a service's token."""
    token = new_token()
    db.execute(
        "INSERT INTO service_tokens (name, token_sha256, scopes) VALUES (%s, %s, %s)",
        (name, token_sha256(token), list(scopes)),
    )
    return token


@dataclass(frozen=True, slots=True)
class Node:
    """A Python node at version 1."""

    id: UUID
    version_id: UUID


def node(
    db: psycopg.Connection,
    owner: User,
    *,
    inputs: Sequence[str] = ("x",),
    outputs: Sequence[str] = ("result",),
    code: str = "def main(x: int) -> int:\n    return x + 1\n",
    lock: str = "none",
    python: str = "3.11",
    takes: Mapping[str, Any] = INT,
    gives: Mapping[str, Any] = INT,
) -> Node:
    """Make a node, of integers unless told otherwise, its version and its lock's state."""
    made = Node(uuid7(), uuid7())
    input_types = json.dumps(
        [
            {"name": n, "type": takes, "kind": "positional", "required": True, "default_json": None}
            for n in inputs
        ]
    )
    output_types = json.dumps([{"name": name, "type": gives} for name in outputs])
    common = (code, "main", python, input_types, output_types, owner.id)
    db.execute(
        "INSERT INTO python_nodes (id, name, code, main_function, python_version, input_types,"
        " output_types, created_by, tenant_id) VALUES (%s, 'n', %s, %s, %s, %s, %s, %s, %s)",
        (made.id, *common, owner.id),
    )
    db.execute(
        "INSERT INTO python_node_versions (id, node_id, version, name, code, main_function,"
        " python_version, input_types, output_types, created_by, is_async)"
        " VALUES (%s, %s, 1, 'n', %s, %s, %s, %s, %s, %s, %s)",
        (made.version_id, made.id, *common, "async def main" in code),
    )
    db.execute(
        "INSERT INTO node_version_locks (node_version_id, tenant_id, state) VALUES (%s, %s, %s)",
        (made.version_id, owner.id, lock),
    )
    return made


def workflow(
    db: psycopg.Connection,
    owner: User,
    *,
    nodes: Mapping[str, Node | Mapping[str, Any]],
    edges: Sequence[tuple[str, str, str, str]],
    links: Sequence[Mapping[str, Any]] = (),
    inputs: Sequence[str] = ("x",),
    takes: Mapping[str, Any] = INT,
    outputs: Sequence[tuple[str, str]],
    settings: Mapping[str, Any] | None = None,
    node_settings: Mapping[str, Mapping[str, Any]] | None = None,
    active: bool = True,
) -> UUID:
    """Make a workflow. An edge is (source place or "", output, target place, input).

    `links` are further connections and a node that is a mapping is a built-in, as they are stored.
    """
    workflow_id = uuid7()
    per_node = node_settings or {}
    columns = (
        json.dumps(
            [
                {
                    "id": place,
                    "type": "python",
                    "node_id": str(each.id if isinstance(each, Node) else uuid7()),
                    "version": 1,
                    "parameters": {},
                    "retry": None,
                    **(each if isinstance(each, Mapping) else {}),
                    **per_node.get(place, {}),
                }
                for place, each in nodes.items()
            ]
        ),
        json.dumps(
            [
                {
                    "source": source,
                    "source_output": output,
                    "target": target,
                    "target_input": name,
                    "conversion": "",
                }
                for source, output, target, name in edges
            ]
            + [
                {"source_output": "", "target_input": "", "conversion": "", **each}
                for each in links
            ]
        ),
        json.dumps(settings or {}),
        json.dumps(
            [{"name": n, "type": takes, "required": True, "default_json": None} for n in inputs]
        ),
        json.dumps(
            [
                {"name": name, "node_id": place, "output": "result", "type": INT}
                for name, place in outputs
            ]
        ),
    )
    db.execute(
        "INSERT INTO workflows (id, name, nodes, connections, settings, input_types, output_types,"
        " python_version, is_active, created_by, tenant_id)"
        " VALUES (%s, 'w', %s, %s, %s, %s, %s, '3.11', %s, %s, %s)",
        (workflow_id, *columns, active, owner.id, owner.id),
    )
    db.execute(
        "INSERT INTO workflow_versions (workflow_id, version, name, nodes, connections, settings,"
        " input_types, output_types, python_version, created_by)"
        " VALUES (%s, 1, 'w', %s, %s, %s, %s, %s, '3.11', %s)",
        (workflow_id, *columns, owner.id),
    )
    return workflow_id
