"""The audit history over the API: what is noted of calls, and how a change of it is found."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from qflow.auth.v1 import auth_pb2
from qflow.registry.v1 import audit_service_pb2 as pb
from qflow.registry.v1 import node_service_pb2 as nodes
from qflow.registry.v1 import user_service_pb2 as users
from qflow.registry.v1.audit_service_pb2_grpc import AuditServiceStub

from services.kit.audit import Record, Recorder
from services.kit.errors import Unavailable
from services.kit.pg import open_pool
from tests.integration.registry.accounts import PASSWORD, Account, again, signed_in
from tests.integration.registry.conftest import Registry, change_rows, refused
from tests.support.database import Database

CODE = "def one() -> int:\n    return 1\n"
NODES = "/qflow.registry.v1.NodeService"


@pytest.fixture
async def admin(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "admin", role="admin")


@pytest.fixture
async def ada(registry: Registry, database: Database) -> Account:
    return await signed_in(registry, database, "ada")


def history(registry: Registry, account: Account) -> Any:
    return AuditServiceStub(registry.client(account.token).channel)


async def listed(
    registry: Registry, account: Account, *, least: int, **asked: Any
) -> list[pb.AuditRecord]:
    """The records, once so many are written: that takes a moment."""
    stub = history(registry, account)
    async with asyncio.timeout(30):
        while True:
            answer = await stub.ListAuditRecords(pb.ListAuditRecordsRequest(**asked))
            if len(answer.records) >= least:
                return [*answer.records]
            await asyncio.sleep(0.05)


async def test_a_call_that_changes_something_is_noted_and_one_that_reads_is_not(
    registry: Registry, admin: Account, ada: Account
) -> None:
    client = registry.client(ada.token)
    node = await client.node(CODE)
    await client.nodes.GetNode(nodes.GetNodeRequest(node_id=node.id))
    await client.nodes.UpdateNode(
        nodes.UpdateNodeRequest(
            node_id=node.id, name="b", update_mask=FieldMask(paths=["name"]), etag=node.etag
        )
    )
    missing = str(uuid.uuid4())
    await refused(client.nodes.DeleteNode(nodes.DeleteNodeRequest(node_id=missing)))
    found = await listed(registry, admin, least=3, actor_id=ada.id)
    assert [
        (f"{NODES}/DeleteNode", "NOT_FOUND", [("node", missing)]),
        (f"{NODES}/UpdateNode", "OK", [("node", node.id)]),
        (f"{NODES}/CreateNode", "OK", []),
    ] == [(each.method, each.outcome, [(of.kind, of.id) for of in each.targets]) for each in found]
    assert {ada.id} == {each.tenant_id for each in found}
    updated, created = found[1:]
    assert node.etag == json.loads(updated.before_json)["etag"]
    assert "b" == json.loads(updated.after_json)["name"]
    assert node.id == json.loads(created.after_json)["id"]
    assert found[0].reason
    assert len({each.session_id for each in found}) == 1


async def test_what_an_administrator_changes_is_noted_with_the_values_before_and_after(
    registry: Registry, admin: Account, ada: Account
) -> None:
    """X23."""
    await admin.users.UpdateUser(
        users.UpdateUserRequest(
            user_id=ada.id, role=auth_pb2.ROLE_VIEWER, update_mask=FieldMask(paths=["role"])
        )
    )
    method = "/qflow.registry.v1.UserService/UpdateUser"
    (record,) = await listed(registry, admin, least=1, actor_id=admin.id, method=method)
    assert "user" == json.loads(record.before_json)["role"]
    assert "viewer" == json.loads(record.after_json)["role"]


async def test_no_password_token_or_code_is_noted(
    registry: Registry, admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    """X8, I37."""
    fresh = await again(registry, "ada")
    await fresh.users.ChangePassword(
        users.ChangePasswordRequest(old_password=PASSWORD, new_password="canary-password")
    )
    client = registry.client((await again(registry, "ada", password="canary-password")).token)
    await client.node("def canary_code() -> int:\n    return 1\n")
    await listed(registry, admin, least=1, method=f"{NODES}/CreateNode")
    noted = str(sql.execute("SELECT audit_records::text FROM audit_records").fetchall())
    assert "SignIn" in noted
    for secret in ("canary", PASSWORD, fresh.token, "@example.org"):
        assert secret not in noted


async def test_only_administrators_read_the_history(registry: Registry, ada: Account) -> None:
    """X17."""
    stub = history(registry, ada)
    for call in (
        stub.ListAuditRecords(pb.ListAuditRecordsRequest()),
        stub.VerifyHistory(pb.VerifyHistoryRequest()),
    ):
        assert grpc.StatusCode.PERMISSION_DENIED == (await refused(call)).code


async def test_a_list_goes_on_page_by_page_and_an_export_gives_all_in_order(
    registry: Registry, admin: Account, ada: Account
) -> None:
    client = registry.client(ada.token)
    for _ in range(5):
        await client.node(CODE)
    whole = await listed(registry, admin, least=5, actor_id=ada.id)
    stub, paged, token = history(registry, admin), [], ""
    while True:
        answer = await stub.ListAuditRecords(
            pb.ListAuditRecordsRequest(page_size=2, page_token=token, actor_id=ada.id)
        )
        paged += answer.records
        token = answer.next_page_token
        if not token:
            break
    assert whole == paged
    span = (stamp(datetime.now(UTC) - timedelta(hours=1)), stamp(datetime.now(UTC)))
    call = stub.ExportAuditRecords(
        pb.ExportAuditRecordsRequest(start_time=span[0], end_time=span[1])
    )
    exported = [each async for part in call for each in part.records if each.actor_id == ada.id]
    assert whole == exported[::-1]


async def test_a_history_that_nobody_touched_is_verified_page_by_page(
    registry: Registry, admin: Account, ada: Account
) -> None:
    client = registry.client(ada.token)
    for count in range(1, 4):
        await client.node(CODE)
        await listed(registry, admin, least=count, method=f"{NODES}/CreateNode")
    whole = await verified(registry, admin)
    assert [] == [*whole.faults]
    assert whole.checked_seal_count >= 3
    (latest,) = whole.latest_seals
    assert latest.seal_number == whole.checked_seal_count
    seals, token = 0, ""
    while True:
        part = await verified(registry, admin, page_size=2, page_token=token, known_seals=[latest])
        assert [] == [*part.faults]
        seals, token = seals + part.checked_seal_count, part.next_page_token
        if not token:
            break
    assert seals >= whole.checked_seal_count


_UNGUARDED = "ALTER TABLE {} DISABLE TRIGGER USER"


@pytest.mark.parametrize(
    ("table", "change", "kinds"),
    [
        ("audit_records", "UPDATE audit_records SET outcome = 'NOT_FOUND' WHERE number = 2", {1}),
        ("audit_records", "UPDATE audit_records SET after = '{ }' WHERE number = 2", {1}),
        ("audit_records", "DELETE FROM audit_records WHERE number = 2", {1}),
        ("audit_seals", "UPDATE audit_seals SET digest = sha256('x') WHERE number = 2", {1, 2}),
        ("audit_seals", "DELETE FROM audit_seals WHERE number = 2", {2}),
        ("audit_seals", "DELETE FROM audit_seals WHERE number = 1", {2}),
    ],
)
async def test_whatever_is_changed_or_taken_out_is_found(
    registry: Registry,
    admin: Account,
    ada: Account,
    sql: psycopg.Connection,
    table: str,
    change: str,
    kinds: set[int],
) -> None:
    """X23: also what somebody does who owns the database and switches the triggers off."""
    client = registry.client(ada.token)
    for count in range(1, 4):
        await client.node(CODE)
        await listed(registry, admin, least=count, method=f"{NODES}/CreateNode")
    assert [] == [*(await verified(registry, admin)).faults]
    await change_rows(sql, _UNGUARDED.format(table).encode())
    assert 1 == sql.execute(change.encode()).rowcount
    assert kinds == {each.kind for each in (await verified(registry, admin)).faults}


async def test_an_end_that_is_cut_off_is_found_by_whoever_noted_a_seal(
    registry: Registry, admin: Account, ada: Account, sql: psycopg.Connection
) -> None:
    """X23: what a chain by itself cannot tell."""
    await registry.client(ada.token).node(CODE)
    await listed(registry, admin, least=1, method=f"{NODES}/CreateNode")
    (latest,) = (await verified(registry, admin)).latest_seals
    await change_rows(sql, _UNGUARDED.format("audit_seals").encode())
    await change_rows(
        sql,
        "DELETE FROM audit_seals WHERE chain_id = %s AND number = %s",
        (latest.chain_id, latest.seal_number),
    )
    assert [] == [*(await verified(registry, admin)).faults]
    (fault,) = (await verified(registry, admin, known_seals=[latest])).faults
    assert pb.AUDIT_FAULT_KIND_KNOWN_SEAL == fault.kind


async def test_chains_follow_each_other_and_what_was_forgotten_leaves_them_whole(
    registry: Registry, admin: Account, database: Database, sql: psycopg.Connection
) -> None:
    """Three processes, one after the other, of which the first wrote long ago."""
    pool = await open_pool(
        database.url("qflow_runner_engine"), application_name="audit-test", size_max=2
    )
    try:
        for _ in range(3):
            recorder = Recorder(pool, "runner")
            for _ in range(2):
                recorder.add(record())
                await recorder.flush()
    finally:
        await pool.close()
    assert [] == [*(await verified(registry, admin)).faults]
    chains = "SELECT id FROM audit_chains WHERE service = 'runner' ORDER BY started_at"
    (first, *_) = [each for (each,) in sql.execute(chains.encode())]
    for table in ("audit_seals", "audit_records"):
        await change_rows(sql, _UNGUARDED.format(table).encode())
    await change_rows(
        sql, "UPDATE audit_seals SET sealed_at = '2020-01-01' WHERE chain_id = %s", (first,)
    )
    for table in ("audit_seals", "audit_records"):
        await change_rows(sql, f"ALTER TABLE {table} ENABLE TRIGGER USER".encode())
    assert (1,) == sql.execute("SELECT cleanup_old_audit_records('1 year', 1)").fetchone()
    assert [] == [*(await verified(registry, admin)).faults]
    assert (1,) == sql.execute("SELECT cleanup_old_audit_records('1 year', 1)").fetchone()
    assert [] == [*(await verified(registry, admin)).faults]


async def test_who_wrote_to_a_server_that_was_lost_goes_on_with_a_chain_of_its_own(
    registry: Registry, admin: Account, database: Database, sql: psycopg.Connection
) -> None:
    """The one that was promoted never had the chain, and is not to be refused for ever."""
    pool = await open_pool(
        database.url("qflow_runner_engine"), application_name="audit-test", size_max=2
    )
    recorder = Recorder(pool, "runner")
    recorder.add(record())
    await recorder.flush()
    for table in ("audit_records", "audit_seals", "audit_chains"):
        sql.execute(_UNGUARDED.format(table).encode())
        sql.execute(f"DELETE FROM {table}".encode())
    for _ in range(2):
        recorder.add(record())
        await recorder.flush()
    await pool.close()
    kept = "SELECT number, last_record FROM audit_seals ORDER BY number"
    assert [(1, 1), (2, 2)] == sql.execute(kept.encode()).fetchall()
    assert [] == [*(await verified(registry, admin)).faults]


async def test_while_nothing_can_be_noted_nothing_is_done(database: Database) -> None:
    pool = await open_pool(
        database.url("qflow_runner_engine"), application_name="audit-test", size_max=1
    )
    recorder = Recorder(pool, "runner")
    for _ in range(10_000):
        recorder.check_room()
        recorder.add(record())
    with pytest.raises(Unavailable, match="cannot be written"):
        recorder.check_room()
    await recorder.flush()
    recorder.check_room()
    await pool.close()
    with database.connect() as db:
        assert (10_000, 20) == db.execute(
            "SELECT (SELECT count(*) FROM audit_records), (SELECT count(*) FROM audit_seals)"
        ).fetchone()


def record() -> Record:
    return Record(
        tenant_id=uuid.uuid4(),
        actor_id=uuid.uuid4(),
        session_id=uuid.uuid4(),
        method="/a/B",
        outcome="OK",
        reason="",
        targets="[]",
        before="{}",
        after='{"name":"ä \\u0000"}',
        call_id="x",
        occurred_at=datetime.now(UTC),
    )


async def verified(registry: Registry, account: Account, **asked: Any) -> pb.VerifyHistoryResponse:
    asked.setdefault("page_size", 1000)
    answer: pb.VerifyHistoryResponse = await history(registry, account).VerifyHistory(
        pb.VerifyHistoryRequest(**asked)
    )
    return answer


def stamp(moment: datetime) -> Timestamp:
    encoded = Timestamp()
    encoded.FromDatetime(moment)
    return encoded
