"""Every statement of the services, held against the migrated schema.

It is prepared there (so its tables, columns, types and parameters exist), planned under a login of
its service (so that login may do it, under row-level security), and writes no table but its
service's own.
"""

from __future__ import annotations

import ast
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest

from migrations.roles import BACKUP, LOGINS
from tests.support.database import Template

_SERVICES = Path(__file__).resolve().parents[2] / "services"
_VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
# Of every flush; the whole ones are made below.
_PARTS: Final = {"orchestrator.storage.flush._FENCE"}

_OWNED: Final = {
    "registry": {
        *("users", "user_sessions", "service_tokens", "tenants"),
        *("python_nodes", "python_node_versions", "node_version_locks"),
        *("python_node_tags", "python_node_tag_relations"),
        *("workflows", "workflow_versions", "workflow_tags", "workflow_tag_relations"),
        *("custom_types", "custom_type_uses", "workflow_node_uses"),
        *("workflow_aliases", "workflow_alias_changes", "variables"),
        *("credential_tokens", "user_service_tokens", "sign_in_attempts", "audit_events"),
        *("tenant_members", "tenant_invitations"),
    },
    "orchestrator": {
        *("workflow_executions", "node_executions", "node_data_flow", "node_attempts"),
        *("execution_pins", "execution_signals", "engine_members", "engine_shards"),
        *("schedules", "schedule_ticks", "schedule_backfills"),
        *("event_subscriptions", "event_deliveries", "triggers"),
        *("execution_limits", "limit_slots", "limit_buckets"),
        *("tenant_quotas", "tenant_usage", "execution_budgets"),
        *("file_uses", "cached_results", "data_keys"),
    },
    "runner": {
        *("containers", "container_dependencies", "files", "file_access_logs"),
        *("environments", "runner_members", "file_uploads", "file_usage"),
        *("execution_logs", "node_logs", "tenant_wheels", "package_rules"),
        *("secrets", "secret_versions", "secret_grants", "package_indexes"),
    },
    "telemetry": {
        *("performance_metrics", "error_logs", "system_health", "telemetry_watermarks"),
        *("metric_rollups", "workflow_rollups", "rolled_up_executions"),
        *("retention_rules", "retention_runs"),
    },
}
# Tables that no service has to itself, and the exceptions that grants name.
_BESIDES: Final = {
    ("registry", "idempotency_keys", "Insert"),
    ("orchestrator", "idempotency_keys", "Insert"),
    ("runner", "idempotency_keys", "Insert"),
    ("telemetry", "idempotency_keys", "Insert"),
    ("orchestrator", "outbox_events", "Update"),
    ("orchestrator", "error_logs", "Insert"),
    ("orchestrator", "runner_members", "Update"),
    ("runner", "outbox_events", "Update"),
    *(
        (service, table, "Insert")
        for service in _OWNED
        for table in ("audit_chains", "audit_records", "audit_seals")
    ),
    ("runner", "idempotency_keys", "Insert"),
}
# Which login runs a module's statements, and where one statement is another's. A module that is
# not named may use any login of its service.
_RUN_BY: Final = {
    "registry.storage.definition_parts": "qflow_registry",
    "registry by kit.idempotency": "qflow_registry",
    "registry.storage.deletion": "qflow_registry",
    "registry.storage.identity": "qflow_registry_auth",
    "registry.storage.teams": "qflow_registry_auth",
    "registry.storage.transfers": "qflow_registry_auth",
    "registry.storage.audit_history": "qflow_registry_auth",
    "registry by kit.audit": "qflow_registry_engine",
    "orchestrator by kit.audit": "qflow_orchestrator_engine",
    "orchestrator by kit.data_keys": "qflow_orchestrator_engine",
    "runner by kit.data_keys": "qflow_runner_engine",
    "runner by kit.audit": "qflow_runner_engine",
    "telemetry by kit.audit": "qflow_telemetry",
    "telemetry by kit.idempotency": "qflow_telemetry",
    "registry.storage.lists": "qflow_registry",
    "registry.storage.candidates": "qflow_registry",
    "registry.storage.candidates by text": "qflow_registry_engine",
    "registry.storage.locks": "qflow_registry_engine",
    "registry.storage.nodes": "qflow_registry",
    "registry.storage.uses": "qflow_registry",
    "registry.storage.versions": "qflow_registry",
    "registry.storage.tags": "qflow_registry",
    "registry.storage.templates": "qflow_registry",
    "registry.storage.variables": "qflow_registry",
    "registry.storage.workflow_aliases": "qflow_registry",
    "registry.storage.sources": "qflow_registry",
    "registry.storage.workflows": "qflow_registry",
    "orchestrator.storage.definitions": "qflow_orchestrator_engine",
    "orchestrator.storage.definitions._ALIASED": "qflow_orchestrator",
    "orchestrator.storage.definitions._HEAD": "qflow_orchestrator",
    "orchestrator.storage.executions": "qflow_orchestrator",
    "orchestrator.storage.node_executions": "qflow_orchestrator",
    "orchestrator.storage.execution_lists": "qflow_orchestrator",
    "orchestrator.storage.execution_lists._BY_LABELS": "qflow_orchestrator_engine",
    "orchestrator.storage.flush": "qflow_orchestrator_engine",
    "orchestrator.storage.agenda": "qflow_orchestrator_engine",
    "orchestrator.storage.event_courier": "qflow_orchestrator_engine",
    "orchestrator.storage.event_subscriptions": "qflow_orchestrator",
    "orchestrator by kit.idempotency": "qflow_orchestrator",
    "runner by kit.idempotency": "qflow_runner",
    "orchestrator.storage.owners": "qflow_orchestrator_engine",
    "orchestrator.storage.trigger_calls": "qflow_orchestrator_engine",
    "orchestrator.storage.triggers": "qflow_orchestrator",
    "orchestrator.storage.backfill_due": "qflow_orchestrator_engine",
    "orchestrator.storage.schedule_due": "qflow_orchestrator_engine",
    "orchestrator.storage.schedule_ticks": "qflow_orchestrator",
    "orchestrator.storage.schedules": "qflow_orchestrator",
    "orchestrator.storage.history": "qflow_orchestrator",
    "orchestrator.storage.history._FACTS": "qflow_orchestrator_engine",
    "orchestrator.storage.limit_slots": "qflow_orchestrator_engine",
    "orchestrator.storage.limits": "qflow_orchestrator",
    "orchestrator.storage.quotas": "qflow_orchestrator",
    "orchestrator.storage.quota_usage": "qflow_orchestrator_engine",
    "orchestrator.storage.members": "qflow_orchestrator_engine",
    "orchestrator.storage.pins": "qflow_orchestrator_engine",
    "orchestrator.storage.pins._NODE_HEAD": "qflow_orchestrator",
    "orchestrator.storage.cached_results": "qflow_orchestrator_engine",
    "orchestrator.storage.recovery": "qflow_orchestrator_engine",
    "orchestrator.storage.shards": "qflow_orchestrator_engine",
    "runner.storage.carried_files": "qflow_runner_engine",
    "runner.storage.containers": "qflow_runner_engine",
    "runner.storage.containers._LIST": "qflow_runner",
    "runner.storage.environments": "qflow_runner_engine",
    "runner.storage.environment_lists": "qflow_runner",
    "runner.storage.package_indexes": "qflow_runner",
    "runner.storage.package_indexes._OF_TENANT": "qflow_runner_engine",
    "runner.storage.package_rules": "qflow_runner",
    "runner.storage.package_rules._OF_TENANT": "qflow_runner_engine",
    "runner.storage.pythons": "qflow_runner",
    "runner.storage.wheels": "qflow_runner",
    "runner.storage.wheels._FILES": "qflow_runner_engine",
    "runner.storage.secrets": "qflow_runner",
    "runner.storage.secrets._GRANTED": "qflow_runner_engine",
    "runner.storage.secrets._UNDER_OTHERS": "qflow_runner_engine",
    "runner.storage.secrets._REWRAP": "qflow_runner_engine",
    "runner.storage.files": "qflow_runner_engine",
    "runner.storage.files._GET": "qflow_runner",
    "runner.storage.files._DELETE": "qflow_runner",
    "runner.storage.files._GET_USAGE": "qflow_runner",
    "runner.storage.files._LIST": "qflow_runner",
    "runner.storage.files._LIST_ACCESSES": "qflow_runner",
    "runner.storage.files._LOG_ACCESS": "qflow_runner",
    "runner.storage.uploads": "qflow_runner",
    "runner.storage.uploads._DELETE_EXPIRED": "qflow_runner_engine",
    "runner.storage.uploads._TO_SWEEP": "qflow_runner_engine",
    "runner.storage.members": "qflow_runner_engine",
    "runner.storage.node_logs": "qflow_runner",
    "runner.storage.node_logs._ADD": "qflow_runner_engine",
    "runner.storage.nodes": "qflow_runner_engine",
    "telemetry.storage.error_groups": "qflow_telemetry",
    "telemetry.storage.derived_metrics": "qflow_telemetry_maint",
    "telemetry.storage.errors": "qflow_telemetry",
    "telemetry.storage.health": "qflow_telemetry",
    "telemetry.storage.health._INSERT_SAMPLE": "qflow_telemetry_maint",
    "telemetry.storage.metric_buckets": "qflow_telemetry",
    "telemetry.storage.metric_points": "qflow_telemetry",
    "telemetry.storage.metric_rollups": "qflow_telemetry",
    "telemetry.storage.tails": "qflow_telemetry",
    "telemetry.storage.metrics": "qflow_telemetry_maint",
    "telemetry.storage.metrics._LIST_METRICS": "qflow_telemetry",
    "telemetry.storage.retention": "qflow_telemetry_maint",
    "telemetry.storage.retention_due": "qflow_telemetry_maint",
    "telemetry.storage.retention_rules": "qflow_telemetry",
    "telemetry.storage.retention_rules._OF_ALL": "qflow_telemetry_maint",
    "telemetry.storage.retention_runs": "qflow_telemetry_maint",
    "telemetry.storage.retention_runs._ASK": "qflow_telemetry",
    "telemetry.storage.retention_runs._GET": "qflow_telemetry",
    "telemetry.storage.retention_runs._LIST": "qflow_telemetry",
    "telemetry.storage.statistics": "qflow_telemetry",
    "telemetry.storage.workflow_rollups": "qflow_telemetry",
    "telemetry.storage.workflow_rollups._ENDED": "qflow_telemetry_maint",
    "telemetry.storage.workflow_rollups._ROLL_UP": "qflow_telemetry_maint",
}


@dataclass(frozen=True)
class Statement:
    """One constant, or one form of a statement that is put together."""

    service: str
    module: str
    name: str
    sql: str

    @property
    def place(self) -> str:
        return f"{self.module}.{self.name}"


def _statements() -> Iterator[Statement]:
    for path in sorted(_SERVICES.glob("*/*/**/*.py")):
        module = ".".join(path.relative_to(_SERVICES).with_suffix("").parts)
        for name in _constants(path):
            value = getattr(importlib.import_module(f"services.{module}"), name)
            place = f"{module}.{name}"
            if place not in _PARTS and value.lstrip(" \n(").startswith(_VERBS):
                yield Statement(module.split(".")[0], module, name, _numbered(value))
    yield from _flushes()
    yield from _lists()
    yield from _execution_lists()
    yield from _error_lists()
    yield from _tags()
    yield from _repeated_calls()
    yield from _noted_calls()
    yield from _data_keys()


def _numbered(text: str) -> str:
    """Give psycopg's parameters the numbers by which the server knows them."""
    first, *rest = text.split("%s")
    return first + "".join(f"${at}{each}" for at, each in enumerate(rest, 1))


def _constants(path: Path) -> list[str]:
    """The names that the module annotates as text written in the source: `Final[LiteralString]`."""
    text = path.read_text(encoding="utf-8")
    if "LiteralString" not in text:
        return []
    return [
        node.target.id
        for node in ast.parse(text).body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and ast.unparse(node.annotation) in {"Final[LiteralString]", "LiteralString"}
    ]


def _flushes() -> Iterator[Statement]:
    """Each part of the flush alone, and all of them at once: as arrays and as values.

    Those alone with what is usual in their rows, those at once with all that rows may have.
    """
    from services.orchestrator.storage import flush

    values = 1 << flush.MASK_BITS - 1
    parts = [1 << bit for bit in range(len(flush.PARTS))]
    for mask in [*parts, *(part | values for part in parts), values - 1, 2 * values - 1]:
        module = "orchestrator.storage.flush"
        yield Statement("orchestrator", module, f"statement({mask})", flush.statement(mask))


def _lists() -> Iterator[Statement]:
    """Each list with each operator of each field, each order and each way to go on, one at a time.

    They are joined by AND, OR, NOT and brackets alone, so what fits by itself fits together.
    """
    from services.kit.filter.language import Comparison, Expression, Word
    from services.kit.filter.order import Order
    from services.registry.storage import candidates, lists

    values = {"owner": str(UUID(int=0)), "create_time": "2026-01-01", "update_time": "2026-01-01"}
    flags = dict.fromkeys(("public", "template", "active"), "true")
    for listed in (lists.NODES, lists.WORKFLOWS):
        asked: dict[str, tuple[Expression | None, Order, bool]] = {
            f"{field.name} {operator}": (
                Comparison(field.name, operator, (values | flags).get(field.name, "x")),
                lists.NEWEST_FIRST,
                False,
            )
            for field in listed.fields.fields
            for operator in field.sql
        }
        asked["a word"] = (Word("x"), lists.NEWEST_FIRST, False)
        for by in listed.orders:
            for descending in (True, False):
                for later in (True, False):
                    name = f"by {by.name} {'desc' if descending else 'asc'} {later=}"
                    asked[name] = (Word("x"), Order(by, descending), later)
        for name, (expression, order, later) in asked.items():
            key = "x" if order.field.key_type is str else datetime.now(UTC)
            question = lists.Question(
                expression=expression,
                order=order,
                after=(key, UUID(int=0)) if later else None,
                limit=1,
                full=False,
            )
            for shape in ("all", "among_ids", "near"):
                walked = lists.WALKED_FIRST if shape == "near" else 0
                text, _ = lists.statement(
                    listed, question, among_ids=shape == "among_ids", walked=walked
                )
                place = f"{listed.table}: {name} {shape}"
                yield Statement("registry", "registry.storage.lists", place, text)
            for short in (True, False):
                text, _ = candidates.by_text_statement(listed, question, short=short)
                place = f"{listed.table}: {name} {short=}"
                yield Statement("registry", "registry.storage.candidates by text", place, text)


def _execution_lists() -> Iterator[Statement]:
    """The list of executions with each operator of each field, each order, each way to go on."""
    from services.kit.filter.language import Comparison, Expression, Word
    from services.kit.filter.order import Order
    from services.orchestrator.storage import execution_lists as lists

    nobody = str(UUID(int=0))
    values = dict.fromkeys(("workflow", "node_version", "owner", "parent"), nobody)
    values |= dict.fromkeys(("create_time", "start_time", "end_time"), "2026-01-01")
    values |= {"status": "failed", "priority": "1", "repeated": "true"}
    label = lists.FIELDS.find("labels.x")
    assert label is not None
    fields = [*lists.FIELDS.fields, label]
    asked: dict[str, tuple[Expression, Order, bool]] = {
        f"{field.name} {operator}": (
            Comparison(field.name, operator, values.get(field.name, "x")),
            lists.NEWEST_FIRST,
            False,
        )
        for field in fields
        for operator in field.sql
    }
    for by in lists.ORDERS:
        for descending in (True, False):
            for later in (True, False):
                name = f"by {by.name} {'desc' if descending else 'asc'} {later=}"
                asked[name] = (Word("x"), Order(by, descending), later)
    for name, (expression, order, later) in asked.items():
        question = lists.Question(
            expression=expression,
            order=order,
            after=(datetime.now(UTC), UUID(int=0)) if later else None,
            limit=1,
        )
        for among_ids in (True, False):
            text, _ = lists.statement(question, among_ids=among_ids)
            module = "orchestrator.storage.execution_lists"
            yield Statement("orchestrator", module, f"{name} {among_ids=}", text)


def _error_lists() -> Iterator[Statement]:
    """The list of errors with each operator of each field, of all runs and of one."""
    from services.kit.filter.language import Comparison, Word
    from services.telemetry.storage import errors

    values = {"severity": "error", "workflow": str(UUID(int=0)), "create_time": "2026-01-01"}
    asked = {
        f"{field.name} {operator}": Comparison(field.name, operator, values.get(field.name, "x"))
        for field in errors.FIELDS.fields
        for operator in field.sql
    }
    for execution_id in (None, UUID(int=0)):
        for name, expression in {"all": None, "a word": Word("x"), **asked}.items():
            text, _ = errors.statement(expression, execution_id)
            yield Statement("telemetry", "telemetry.storage.errors", name, text)


def _tags() -> Iterator[Statement]:
    """Each statement of each of the two pairs of tables."""
    from services.registry.storage import tags

    for tables in (tags.NODE_TAGS, tags.WORKFLOW_TAGS):
        for name, each in vars(tags.TagTables).items():
            if isinstance(each, property):
                place = f"{tables.tags}: {name}"
                module = "registry.storage.tags"
                yield Statement("registry", module, place, getattr(tables, name))


def _noted_calls() -> Iterator[Statement]:
    """The kit's statements of the audit history, as each service: they all add to it."""
    from services.kit import audit

    for service in _OWNED:
        for name in _constants(Path(audit.__file__)):
            yield Statement(service, f"{service} by kit.audit", name, getattr(audit, name))


def _repeated_calls() -> Iterator[Statement]:
    """The kit's statements on the answers that are kept, as each service that keeps any."""
    from services.kit import idempotency

    for service in _OWNED:
        for name in _constants(Path(idempotency.__file__)):
            module = f"{service} by kit.idempotency"
            yield Statement(service, module, name, getattr(idempotency, name))


def _data_keys() -> Iterator[Statement]:
    """The statements on data keys, of which the runner only reads."""
    from services.kit import at_rest, data_keys

    read = {"_ANY": at_rest._ANY, "_LIST": data_keys._LIST}
    written = {name: getattr(data_keys, name) for name in ("_LOCK", "_INSERT", "_REWRAP")}
    for service, found in (("orchestrator", read | written), ("runner", read)):
        for name, text in found.items():
            yield Statement(service, f"{service} by kit.data_keys", name, text)


STATEMENTS = list(_statements())


def _logins(statement: Statement) -> list[str]:
    known = _RUN_BY.get(statement.place) or _RUN_BY.get(statement.module)
    if known:
        return [known]
    if statement.service == "standalone":
        return [BACKUP]
    if statement.service == "kit":
        return [login for login, group in LOGINS.items() if group == "qflow_api"]
    return [login for login in LOGINS if login.split("_")[1] == statement.service]


@pytest.fixture(scope="module")
def planning(migrated_template: Template) -> Iterator[psycopg.Connection]:
    """One connection for all, which knows the schema by then: planning changes nothing."""
    with migrated_template.clone() as fresh, fresh.connect() as db:
        yield db


def _planned(db: psycopg.Connection, statement: Statement, login: str) -> dict[str, Any]:
    """Plan the statement under the login; planning asks for its rights and changes nothing."""
    db.execute("DEALLOCATE ALL")
    with db.transaction(force_rollback=True):
        db.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        db.execute(f"PREPARE planned AS {statement.sql}".encode())
        parameters = db.execute(
            "SELECT cardinality(parameter_types) FROM pg_prepared_statements WHERE name = 'planned'"
        ).fetchone()
        assert parameters is not None
        db.execute(f"SET LOCAL ROLE {login}".encode())
        arguments = ", ".join(["NULL"] * parameters[0])
        call = f"planned({arguments})" if arguments else "planned"
        row = db.execute(f"EXPLAIN (FORMAT json) EXECUTE {call}".encode()).fetchone()
        assert row is not None
    plan: dict[str, Any] = (row[0] if isinstance(row[0], list) else json.loads(row[0]))[0]["Plan"]
    return plan


def _written(plan: dict[str, Any]) -> set[tuple[str, str]]:
    found = set()
    if plan["Node Type"] == "ModifyTable":
        found.add((plan["Relation Name"], plan["Operation"]))
    for child in plan.get("Plans", []):
        found |= _written(child)
    return found


def test_every_login_named_above_has_its_statements() -> None:
    assert set(_RUN_BY) <= {s.module for s in STATEMENTS} | {s.place for s in STATEMENTS}


def test_there_are_statements_of_every_service() -> None:
    services = {statement.service for statement in STATEMENTS}
    assert {"registry", "orchestrator", "runner", "telemetry"} <= services


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: s.place)
def test_a_statement_fits_the_schema_its_login_and_its_service(
    statement: Statement, planning: psycopg.Connection
) -> None:
    refusals = []
    for login in _logins(statement):
        try:
            plan = _planned(planning, statement, login)
        except psycopg.errors.InsufficientPrivilege as error:
            refusals.append(f"{login}: {error}")
            continue
        assert not _foreign(statement.service, _written(plan))
        return
    raise AssertionError(f"no login may run it: {refusals}")


def _foreign(service: str, written: set[tuple[str, str]]) -> set[tuple[str, str]]:
    return {
        (table, operation)
        for table, operation in written
        if table not in _OWNED.get(service, ()) and (service, table, operation) not in _BESIDES
    }
