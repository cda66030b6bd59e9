"""The roles of a cluster: policy groups, service logins, and who is in which group.

Roles belong to the whole server while Qflow's databases may be many, so everything here may be
repeated at any time, and nothing here ever drops a role.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Final, LiteralString, TypeVar

import psycopg
from psycopg import errors, sql

GROUPS: Final = ("qflow_api", "qflow_engine", "qflow_maint", "qflow_auth", "qflow_doctor")

# A login is in exactly one group: in two it would see the union of both.
LOGINS: Final[Mapping[str, str]] = {
    "qflow_registry": "qflow_api",
    "qflow_registry_auth": "qflow_auth",
    "qflow_registry_engine": "qflow_engine",
    "qflow_orchestrator": "qflow_api",
    "qflow_orchestrator_engine": "qflow_engine",
    "qflow_runner": "qflow_api",
    "qflow_runner_engine": "qflow_engine",
    "qflow_telemetry": "qflow_api",
    "qflow_telemetry_maint": "qflow_maint",
    "qflow_telemetry_doctor": "qflow_doctor",
}
BACKUP: Final = "qflow_backup"

_Result = TypeVar("_Result")
_ATTEMPTS = 40
_EXISTING: Final[LiteralString] = "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s)"
_MEMBERSHIPS: Final[LiteralString] = """
    SELECT m.rolname, g.rolname
      FROM pg_auth_members a
      JOIN pg_roles m ON m.oid = a.member
      JOIN pg_roles g ON g.oid = a.roleid
     WHERE m.rolname = ANY(%s)
"""
_MAY: Final[LiteralString] = """
    SELECT rolsuper OR rolcreaterole AS may_create, rolsuper AS may_create_backup
      FROM pg_roles WHERE rolname = current_user
"""


class RolesRefused(Exception):  # noqa: N818 - says what happened
    """The migrating role may not do what is needed; the message says what to run."""


def retried(connection: psycopg.Connection, step: Callable[[], _Result]) -> _Result:
    """Run one transaction over cluster-wide catalogues, again when another migrator was first.

    The advisory lock is one database's; two databases of one server meet in pg_authid.
    """
    for attempt in range(_ATTEMPTS):
        try:
            with connection.transaction():
                return step()
        except (
            errors.UniqueViolation,
            errors.DuplicateObject,
            errors.InternalError_,  # "tuple concurrently updated"
            errors.DeadlockDetected,
            errors.LockNotAvailable,
        ):
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(random.uniform(0.01, 0.1))  # noqa: S311 - jitter, not a secret
    raise AssertionError("unreachable")


# A service needs none, and a full disk is everybody's. An owner of the database may revoke it.
_FREE_TEMPORARY: Final[LiteralString] = """
    SELECT current_database() FROM pg_database
     WHERE datname = current_database() AND pg_has_role(current_user, datdba, 'USAGE')
       AND has_database_privilege('public', oid, 'TEMPORARY')
"""


def ensure_roles(connection: psycopg.Connection) -> None:
    """Make the groups and logins that are missing, and leave no login what none needs.

    Logins get no password here.
    """
    retried(connection, lambda: _ensure(connection))
    retried(connection, lambda: _close_temporary(connection))


def _close_temporary(connection: psycopg.Connection) -> None:
    for (database,) in connection.execute(_FREE_TEMPORARY).fetchall():
        connection.execute(
            sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))
        )


def _ensure(connection: psycopg.Connection) -> None:
    names = [*GROUPS, *LOGINS]
    present = {name for (name,) in connection.execute(_EXISTING, (names,))}
    members = set(connection.execute(_MEMBERSHIPS, (list(LOGINS),)).fetchall())
    missing = [name for name in names if name not in present]
    unjoined = [pair for pair in LOGINS.items() if pair not in members]
    if not missing and not unjoined:
        return
    may = connection.execute(_MAY).fetchone()
    if may is None or not may[0]:
        raise RolesRefused(
            "the migrating role may not create roles; as a superuser run: "
            + " ".join(_creation(name) for name in missing)
            + " ".join(f"GRANT {group} TO {login};" for login, group in unjoined)
        )
    for name in missing:
        connection.execute(sql.SQL(_creation(name)))
    for login, group in unjoined:
        connection.execute(
            sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(login))
        )


def _creation(name: str) -> str:
    return f"CREATE ROLE {name} {'LOGIN' if name in LOGINS else 'NOLOGIN'};"


def ensure_backup(connection: psycopg.Connection) -> bool:
    """Make the backup login where the migrating role may; say whether it is there.

    BYPASSRLS is not inherited from a group and REPLICATION reads every byte: only a superuser
    gives them. Elsewhere: CREATE ROLE qflow_backup LOGIN REPLICATION BYPASSRLS;
    GRANT pg_read_all_data TO qflow_backup.
    """

    def step() -> bool:
        if connection.execute(_EXISTING, ([BACKUP],)).fetchone():
            return True
        may = connection.execute(_MAY).fetchone()
        if may is None or not may[1]:
            return False
        connection.execute("CREATE ROLE qflow_backup LOGIN REPLICATION BYPASSRLS")
        connection.execute("GRANT pg_read_all_data TO qflow_backup")
        return True

    return retried(connection, step)


def set_password(connection: psycopg.Connection, *, login: str, password: str) -> None:
    """Set a login's password; only its SCRAM verifier travels, so no log can show it."""
    verifier = connection.pgconn.encrypt_password(
        password.encode(), login.encode(), b"scram-sha-256"
    )
    statement = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(
        sql.Identifier(login), sql.Literal(verifier.decode())
    )
    retried(connection, lambda: connection.execute(statement))
