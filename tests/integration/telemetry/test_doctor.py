"""The doctor: each invariant holds on a healthy database and finds what is planted against it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final
from uuid import UUID

import grpc
import psycopg
import pytest
from google.protobuf import json_format
from psycopg import sql as quoting
from qflow.telemetry.v1 import doctor_service_pb2 as pb
from qflow.telemetry.v1.doctor_service_pb2_grpc import DoctorServiceStub

from services.kit.errors import InvalidArgument, ResourceExhausted
from services.kit.pg import Pool, open_pool
from services.telemetry.__main__ import main
from services.telemetry.domain.invariant import Verdict
from services.telemetry.storage.invariants import all_invariants
from services.telemetry.usecases.doctor import Doctor
from tests import factories
from tests.integration.telemetry.conftest import Runs, Telemetry
from tests.support.database import Database

NAMES: Final = [each.name for each in all_invariants()]
_NODE = "(SELECT id FROM node_executions ORDER BY node_id LIMIT 1)"
_SLOT = (
    "INSERT INTO execution_limits (id, name, max_running, tenant_id, created_by, updated_by)"
    " SELECT '00000000-0000-4000-8000-000000000001', 'l', 1, id, id, id FROM users LIMIT 1;"
    " INSERT INTO limit_slots (limit_id, key, ordinal, id, tenant_id, member_id, epoch,"
    " execution_id) SELECT l.id, '', {ordinal}, gen_random_uuid(), l.tenant_id,"
    " gen_random_uuid(), 1, {execution} FROM execution_limits l"
)
_FLOW = (
    "INSERT INTO node_data_flow (workflow_execution_id, source_node_id, target_node_id, data_type,"
    " data_size_bytes) SELECT id, '{}', '{}', 'json', 1 FROM workflow_executions"
)
# What breaks each of them. Rules of the schema that would refuse it are taken away before.
PLANTED: Final[dict[str, str]] = {
    "I1_runs_and_their_ends": "UPDATE workflow_executions SET status = 'running'",
    "I1_nodes_and_their_ends": "UPDATE node_executions SET status = 'running'",
    "I2_one_row_of_a_node": "DROP INDEX idx_node_executions_node_id;"
    " UPDATE node_executions SET node_id = 'n0'",
    "I3_retries_within_their_limit": "UPDATE node_executions SET retry_count = 9, max_retries = 8",
    "I4_nothing_goes_on_under_a_run_that_is_over": "UPDATE node_executions SET status = 'pending',"
    " started_at = NULL, completed_at = NULL",
    "I5_completed_runs_have_every_node": "DELETE FROM node_executions WHERE node_id = 'n0'",
    "I5_completed_nodes_have_an_output": "UPDATE node_executions SET output_data = NULL",
    "I6_time_goes_forward": "ALTER TABLE workflow_executions ALTER duration_ms DROP EXPRESSION;"
    " UPDATE workflow_executions SET duration_ms = 7",
    "I7_inputs_come_first": _FLOW.format("n0", "n1"),
    "I7_flows_have_both_ends": _FLOW.format("n0", "gone"),
    "I8_nothing_starts_after_the_end": "UPDATE node_executions"
    " SET started_at = now() + interval '1 h', completed_at = now() + interval '1 h'",
    "I9_what_runs_has_a_runner": "UPDATE node_executions SET status = 'running'",
    "I9_shards_with_runs_have_a_member": "UPDATE workflow_executions SET status = 'running'",
    "I9_places_are_held_by_what_goes_on": _SLOT.format(
        ordinal=1, execution="(SELECT id FROM workflow_executions)"
    ),
    "I10_tokens_grow": "INSERT INTO node_attempts (node_execution_id, token, attempt, outcome,"
    f" ended_at) SELECT {_NODE}, 99, 1, 'failed', now();"
    " UPDATE node_executions SET attempt_token = 98",
    "I15_an_author_is_known": "UPDATE workflow_executions SET created_by = NULL",
    "I16_edges_have_both_ends": "UPDATE workflow_versions SET connections ="
    ' \'[{"source": "n0", "target": "nowhere"}]\'',
    "I17_workflow_versions_have_no_gap": "UPDATE workflow_versions SET version = 2",
    "I17_node_versions_have_no_gap": "UPDATE python_nodes SET version = 2",
    "I18_no_sandbox_of_a_lost_runner": "INSERT INTO containers (container_id, python_version,"
    " status, tenant_id, created_by, runner_incarnation)"
    " SELECT 'c', '3.11', 'running', id, id, gen_random_uuid() FROM users LIMIT 1",
    "I21_keys_and_rules_are_kept": "ALTER TABLE users ADD CHECK (email <> '') NOT VALID",
    "I23_failed_attempts_are_logged": "UPDATE node_executions SET status = 'failed',"
    " runner_incarnation = gen_random_uuid()",
    "I24_measures_are_numbers": "INSERT INTO performance_metrics (metric_name, metric_value,"
    " metric_unit, tenant_id) SELECT 'm', 'NaN', 'ms', id FROM users LIMIT 1",
    "I25_credentials_are_digests": "",  # the rules are gone: that is the fault
    "I26_one_owner": "DROP INDEX users_is_owner_key;"
    " UPDATE users SET is_owner = true, role = 'admin'",
    "I27_rows_are_guarded": "ALTER TABLE files NO FORCE ROW LEVEL SECURITY",
    "I27_policies_are_narrow": "CREATE POLICY wide ON files USING (true)",
    "I28_functions_are_nobodys": "CREATE FUNCTION open() RETURNS int LANGUAGE sql RETURN 1",
    "I29_keys_have_an_index": "CREATE TABLE child (id uuid REFERENCES users (id))",
    "I32_no_more_than_a_limit_has": _SLOT.format(ordinal="n", execution="NULL")
    + ", generate_series(1, 2) AS n",
    "I33_events_leave": "INSERT INTO outbox_events (kind, payload, tenant_id, created_at)"
    " SELECT 'file_deleted', '{}', id, now() - interval '2 h' FROM users LIMIT 1",
    "I34_a_tick_has_one_run": "INSERT INTO schedule_ticks (schedule_id, tick_at, kind, state,"
    " tenant_id) SELECT gen_random_uuid(), now(), 'timed', 'started', id FROM users LIMIT 1",
    "I36_deliveries_end": "UPDATE node_executions SET delivery_count = 4",
    "I40_the_schema_has_one_version": "INSERT INTO alembic_version VALUES ('0000')",
}
_RULES = """
    SELECT conrelid::regclass::text, conname FROM pg_constraint
     WHERE connamespace = 'public'::regnamespace AND contype = 'c'
"""


@pytest.fixture
def healthy(sql: psycopg.Connection, runs: Runs) -> UUID:
    """A finished run as the engine leaves one, and a second user."""
    factories.user(sql)
    return runs.finished()


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    pool = await open_pool(
        database.url("qflow_telemetry_doctor"), application_name="test", size_max=1
    )
    yield pool
    pool.terminate()


def plant(sql: psycopg.Connection, fault: str) -> None:
    """Break something that the schema would refuse to break."""
    for table, name in sql.execute(_RULES).fetchall():
        sql.execute(
            quoting.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
                quoting.Identifier(table), quoting.Identifier(name)
            )
        )
    sql.execute("SET session_replication_role = replica")  # no trigger and no key refuses it
    sql.execute("ALTER TABLE schedule_ticks ALTER try_at DROP NOT NULL")
    sql.execute("ALTER TABLE workflow_executions ALTER created_by DROP NOT NULL")
    if fault:
        sql.execute(fault.encode())


def lose_outputs(sql: psycopg.Connection) -> None:
    """Break I5 alone, with every rule of the schema in place."""
    sql.execute("SET session_replication_role = replica")
    sql.execute("UPDATE node_executions SET output_data = NULL")


async def test_every_invariant_holds_where_a_run_is_finished(pool: Pool, healthy: UUID) -> None:
    found = await Doctor(pool).examine([], rows_max=5, settle_s=0)
    assert [] == [each for each in found if each.verdict is not Verdict.HOLDS]
    assert NAMES == [each.invariant.name for each in found]


def test_something_is_planted_against_every_invariant() -> None:
    assert sorted(NAMES) == sorted(PLANTED)


@pytest.mark.parametrize("name", NAMES)
async def test_what_is_planted_is_found(
    name: str, pool: Pool, healthy: UUID, sql: psycopg.Connection
) -> None:
    plant(sql, PLANTED[name])
    (found,) = await Doctor(pool).examine([name], rows_max=5, settle_s=0)
    assert found.verdict is Verdict.BROKEN
    assert all(each.place and each.what for each in found.breaches)


async def test_an_id_names_all_of_its_invariants_and_what_is_unknown_is_refused(
    pool: Pool, healthy: UUID
) -> None:
    found = await Doctor(pool).examine(["I5"], rows_max=5, settle_s=0)
    assert {"I5"} == {each.invariant.id for each in found}
    assert 2 == len(found)
    with pytest.raises(InvalidArgument) as refused:
        await Doctor(pool).examine(["I4", "I99"], rows_max=5, settle_s=0)
    assert "INVARIANT_UNKNOWN" == refused.value.reason


async def test_what_passes_before_the_second_look_is_no_fault(
    pool: Pool, healthy: UUID, sql: psycopg.Connection
) -> None:
    plant(sql, PLANTED["I9_what_runs_has_a_runner"])
    doctor = Doctor(pool)
    looking = asyncio.create_task(
        doctor.examine(["I9_what_runs_has_a_runner"], rows_max=5, settle_s=1.0)
    )
    while not doctor.settling:  # noqa: ASYNC110  # its first look is another task's
        await asyncio.sleep(0.005)
    with pytest.raises(ResourceExhausted):
        await doctor.examine([], rows_max=5, settle_s=0)
    sql.execute("UPDATE node_executions SET status = 'completed'")
    (found,) = await looking
    assert found.verdict is Verdict.HOLDS


async def test_a_question_that_takes_too_long_is_left_undecided(
    database: Database, healthy: UUID, sql: psycopg.Connection
) -> None:
    pool = await open_pool(
        database.url("qflow_telemetry_doctor"),
        application_name="test",
        size_max=1,
        statement_timeout_s=0.2,
    )
    sql.execute("BEGIN; LOCK TABLE limit_slots IN ACCESS EXCLUSIVE MODE")
    found = await Doctor(pool).examine(["I4", "I32"], rows_max=5, settle_s=0)
    sql.execute("ROLLBACK")
    assert [Verdict.HOLDS, Verdict.UNDECIDED] == [each.verdict for each in found]
    pool.terminate()


async def test_an_administrator_asks_and_others_may_not(
    telemetry: Telemetry, healthy: UUID, sql: psycopg.Connection
) -> None:
    admin = factories.user(sql, role="admin")
    lose_outputs(sql)
    answer = await _asked(telemetry, admin, pb.CheckInvariantsRequest(max_breaches=1))
    assert not answer.healthy
    (broken,) = (each for each in answer.findings if each.verdict != pb.INVARIANT_VERDICT_HOLDS)
    assert ("I5", pb.INVARIANT_VERDICT_BROKEN, True) == (
        broken.invariant_id,
        broken.verdict,
        broken.has_more,
    )
    (breach,) = broken.breaches
    assert "node_executions" == breach.place
    assert "n" == breach.facts[0]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _asked(telemetry, factories.user(sql), pb.CheckInvariantsRequest())
    assert grpc.StatusCode.PERMISSION_DENIED is refused.value.code()
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await _asked(telemetry, admin, pb.CheckInvariantsRequest(invariants=["I5", "x"]))
    assert grpc.StatusCode.INVALID_ARGUMENT is unknown.value.code()


async def _asked(telemetry: Telemetry, user: factories.User, request: Any) -> Any:
    stub: Any = DoctorServiceStub(telemetry.channel(user))
    return await stub.CheckInvariants(request, timeout=20)


def test_the_command_tells_every_invariant_and_its_code_says_whether_all_hold(
    database: Database, healthy: UUID, sql: psycopg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {
        "QFLOW_TELEMETRY_DOCTOR_DATABASE_URL": database.url("qflow_telemetry_doctor"),
    }
    assert 0 == main(["doctor"], env)
    said = capsys.readouterr().out
    assert f"{len(NAMES)} of {len(NAMES)} invariants hold" in said
    lose_outputs(sql)
    assert 1 == main(["doctor", "I5", "--settle=0", "--rows=1"], env)
    said = capsys.readouterr().out
    assert "BROKEN  I5" in said
    assert "… and more" in said
    assert 1 == main(["doctor", "I5", "--settle=0", "--rows=1", "--json"], env)
    document = json_format.Parse(capsys.readouterr().out, pb.CheckInvariantsResponse())
    assert {"I5"} == {each.invariant_id for each in document.findings}
    assert not document.healthy
    [broken] = [e for e in document.findings if e.verdict == pb.INVARIANT_VERDICT_BROKEN]
    assert (1, True) == (len(broken.breaches), broken.has_more)
    assert 2 == main(["doctor", "nothing"], env)
    assert "no invariant 'nothing'" in capsys.readouterr().err


async def test_its_login_writes_nothing_and_reads_no_credential(
    database: Database, sql: psycopg.Connection
) -> None:
    factories.user(sql)
    with database.connect("qflow_telemetry_doctor") as doctor:
        for statement in (
            "UPDATE users SET first_name = 'x'",
            "DELETE FROM files",
            "CREATE TABLE mine (id int)",
            "SELECT password_hash FROM users",
            "SELECT session_token FROM user_sessions",
            "SELECT token_sha256 FROM service_tokens",
            "SELECT secret_sha256 FROM triggers",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                doctor.execute(statement.encode())
        (count,) = sql.execute("SELECT count(*) FROM users").fetchone() or (0,)
        assert (count,) == doctor.execute("SELECT count(*) FROM users").fetchone()


def test_its_login_reads_every_table_but_those_of_accounts(sql: psycopg.Connection) -> None:
    """A migration that makes a table grants it, or says here why the doctor has no eye on it."""
    unread = sql.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'p')"
        " AND NOT has_any_column_privilege('qflow_telemetry_doctor', oid, 'SELECT')"
    )
    assert {
        "audit_chains",
        "audit_checkpoints",
        "audit_events",
        "audit_records",
        "audit_seals",
        "credential_tokens",
        "data_keys",
        "execution_budgets",
        "idempotency_keys",
        "package_indexes",
        "service_tokens",
        "sign_in_attempts",
        "secret_grants",
        "secret_versions",
        "secrets",
        "tenant_invitations",
        "tenant_members",
        "tenant_quotas",
        "tenant_usage",
        "user_service_tokens",
        "user_sessions",
    } == {name for (name,) in unread}
    blind = sql.execute(
        "SELECT c.relname FROM pg_class c WHERE c.relrowsecurity AND c.relkind IN ('r', 'p')"
        " AND has_any_column_privilege('qflow_telemetry_doctor', c.oid, 'SELECT')"
        " AND NOT EXISTS (SELECT 1 FROM pg_policies p WHERE p.tablename = c.relname"
        " AND p.roles = ARRAY['qflow_doctor']::name[] AND p.qual = 'true')"
    )
    assert [] == blind.fetchall()
