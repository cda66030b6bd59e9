"""Secrets of nodes: delivered into the sandbox that was granted them, and seen nowhere else."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from qflow.orchestrator.v1 import execution_pb2
from qflow.runner.v1 import secret_service_pb2 as pb
from qflow.runner.v1.log_service_pb2_grpc import LogServiceStub
from qflow.runner.v1.secret_service_pb2_grpc import SecretServiceStub

from services.kit.rpc.channel import open_channel
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.registry.conftest import refused
from tests.integration.runner.test_attach import attached, run
from tests.integration.runner.test_node_logs import listed
from tests.support.runner_process import RunnerProcess

__all__ = ["orchestra"]

CANARY = "canary-5f2c9e-of-a-secret"
_KEY = {"QFLOW_SECRETS_KEYS": "k1:" + base64.b64encode(b"1" * 32).decode()}
_NEXT_KEY = {
    "QFLOW_SECRETS_KEYS": f"k2:{base64.b64encode(b'2' * 32).decode()},{_KEY['QFLOW_SECRETS_KEYS']}"
}
_SHOWS = """
import logging, os, sys
def main(x: int) -> str:
    secret = os.environ.get("QFLOW_SECRET_API_KEY", "none")
    print("printed", secret)
    for piece in secret:
        os.write(2, piece.encode())
    os.write(2, b"\\n")
    logging.getLogger("mine").warning("logged %s", secret)
    if x < 0:
        raise ValueError("raised " + secret) from KeyError(secret)
    return f"{len(secret)} {secret}"
"""


def address_of(runner: RunnerProcess) -> str:
    # Runners of one test write into one log; the last is the one that runs.
    said = [each for each in runner.said().splitlines() if "service_started" in each]
    return str(json.loads(said[-1])["addresses"][0])


@asynccontextmanager
async def secrets_of(
    orchestra: Orchestra, runner: RunnerProcess, token: str = ""
) -> AsyncIterator[Any]:
    async with open_channel(address_of(runner), token or orchestra.owner.token) as channel:
        yield SecretServiceStub(channel)


def single(orchestra: Orchestra, **settings: Any) -> str:
    """A workflow of one node, which shows its secret in every way that it has."""
    one = factories.node(orchestra.sql, orchestra.owner, code=_SHOWS, gives={"t": "str"})
    workflow = factories.workflow(
        orchestra.sql,
        orchestra.owner,
        nodes={"a": one},
        edges=[("", "x", "a", "x")],
        outputs=[("out", "a")],
        node_settings={"a": settings},
    )
    return str(workflow)


def node_of(orchestra: Orchestra, workflow: str) -> str:
    [(node_id,)] = orchestra.rows(
        f"SELECT node_id FROM workflow_node_uses WHERE workflow_id = '{workflow}'"
    )
    return str(node_id)


async def granted(stub: Any, node_id: str, value: str = CANARY, name: str = "API_KEY") -> None:
    await stub.SetSecret(pb.SetSecretRequest(name=name, value=value))
    await stub.GrantSecret(pb.GrantSecretRequest(name=name, node_id=node_id))


def everything_in_the_database(orchestra: Orchestra) -> str:
    tables = orchestra.rows(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    )
    return "".join(
        str(row) for (table,) in tables for row in orchestra.rows(f"SELECT t::text FROM {table} t")
    )


@pytest.mark.parametrize("reuse", ["warm", "fresh"])
async def test_a_node_gets_its_secret_and_nobody_else_ever_sees_it(
    orchestra: Orchestra, reuse: str
) -> None:
    """I37, E19, B103: prints, records, errors with their causes, and outputs are masked."""
    async with orchestra.running(), attached(orchestra, **_KEY) as runner:
        workflow = single(orchestra, reuse=reuse)
        async with secrets_of(orchestra, runner) as stub:
            await granted(stub, node_of(orchestra, workflow))
            done = await run(orchestra, workflow)
            failed = await run(orchestra, workflow, -1)
            assert {"out": f"{len(CANARY)} ***"} == json.loads(done.output_json), done
            assert execution_pb2.EXECUTION_STATUS_FAILED == failed.status
            async with open_channel(address_of(runner), orchestra.owner.token) as channel:
                lines = (await listed(LogServiceStub(channel), done.id, 3)).lines
            assert {"printed ***", "***", "logged ***"} == {each.text for each in lines}
            found = everything_in_the_database(orchestra)
            assert "raised ***" in found
            assert CANARY not in found
            assert base64.b64encode(CANARY.encode()).decode() not in found
            assert CANARY not in runner.said()
            assert CANARY not in str(done) + str(failed)


async def test_a_node_without_a_grant_gets_nothing_and_one_that_loses_it_neither(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running(), attached(orchestra, **_KEY) as runner:
        with_it, without = single(orchestra), single(orchestra)
        async with secrets_of(orchestra, runner) as stub:
            node_id = node_of(orchestra, with_it)
            await granted(stub, node_id)
            assert "none" in (await run(orchestra, without)).output_json
            assert "***" in (await run(orchestra, with_it)).output_json
            assert "none" in (await run(orchestra, without)).output_json
            await stub.RevokeSecret(pb.RevokeSecretRequest(name="API_KEY", node_id=node_id))
            assert "none" in (await run(orchestra, with_it)).output_json


async def test_what_another_runner_was_told_holds_here_at_once(orchestra: Orchestra) -> None:
    """And is not asked for with every call: what is known holds until a change is told."""
    place = {**_KEY, "QFLOW_RUNNER_LABELS": "at=here"}
    workflow = single(orchestra, runner={"labels": {"at": "here"}})
    node_id = node_of(orchestra, workflow)
    async with (
        orchestra.running(),
        attached(orchestra, **place),
        attached(orchestra, **_KEY) as other,
        secrets_of(orchestra, other) as stub,
    ):
        assert "none" in (await run(orchestra, workflow)).output_json
        await granted(stub, node_id)
        assert "***" in (await run(orchestra, workflow)).output_json
        await stub.RevokeSecret(pb.RevokeSecretRequest(name="API_KEY", node_id=node_id))
        assert "none" in (await run(orchestra, workflow)).output_json


async def test_versions_follow_each_other_and_one_can_be_gone_back_to(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running(), attached(orchestra, **_KEY) as runner:
        workflow = single(orchestra)
        async with secrets_of(orchestra, runner) as stub:
            await granted(stub, node_of(orchestra, workflow), "x" * 10)
            lengths = []
            for version, length in ((None, 10), (None, 20), (1, 10)):
                if version:
                    use = pb.UseSecretVersionRequest(name="API_KEY", version=version)
                    await stub.UseSecretVersion(use)
                elif length != 10:
                    await stub.SetSecret(pb.SetSecretRequest(name="API_KEY", value="y" * length))
                lengths.append((await run(orchestra, workflow)).output_json)
            assert ['{"out":"10 ***"}', '{"out":"20 ***"}', '{"out":"10 ***"}'] == lengths
            for turn in range(12):
                value = f"value {turn:03}"
                await stub.SetSecret(pb.SetSecretRequest(name="API_KEY", value=value))
            told = await stub.GetSecret(pb.GetSecretRequest(name="API_KEY"))
            assert list(range(14, 4, -1)) == [each.version for each in told.versions]
            use = pb.UseSecretVersionRequest(name="API_KEY", version=1)
            assert "SECRET_VERSION_NOT_FOUND" == (await refused(stub.UseSecretVersion(use))).reason


async def test_a_new_root_key_is_taken_up_and_without_any_nothing_runs_in_the_dark(
    orchestra: Orchestra,
) -> None:
    async with orchestra.running():
        workflow = single(orchestra)
        async with attached(orchestra, **_KEY) as runner, secrets_of(orchestra, runner) as stub:
            await granted(stub, node_of(orchestra, workflow))
        async with attached(orchestra, **_NEXT_KEY) as runner:
            await runner.until_said("secrets_rewrapped")
            assert [("k2",)] == orchestra.rows("SELECT key_id FROM secret_versions")
            assert "***" in (await run(orchestra, workflow)).output_json
        async with attached(orchestra) as runner:
            await runner.until_said("service_started", times=3)
            done = await run(orchestra, workflow)
            assert execution_pb2.EXECUTION_STATUS_FAILED == done.status
            assert "no key for them" in str(done)
            async with secrets_of(orchestra, runner) as stub:
                call = stub.SetSecret(pb.SetSecretRequest(name="OTHER", value="some value"))
                assert "SECRETS_NOT_CONFIGURED" == (await refused(call)).reason


async def test_secrets_are_granted_to_own_nodes_by_who_leads_the_tenant(
    orchestra: Orchestra,
) -> None:
    """X16, X17, X21: a public node of others gets none, whatever one asks for."""
    async with orchestra.running(), attached(orchestra, **_KEY) as runner:
        stranger = factories.user(orchestra.sql)
        public = factories.node(orchestra.sql, stranger)
        await orchestra.change("UPDATE python_nodes SET is_public = true WHERE id = %s", public.id)
        member = factories.user(orchestra.sql)
        team = factories.team(orchestra.sql, admin=orchestra.owner, user=member)
        acting = {"metadata": (("qflow-tenant", str(team)),)}
        set_it = pb.SetSecretRequest(name="API_KEY", value=CANARY)
        async with secrets_of(orchestra, runner) as stub:
            await stub.SetSecret(set_it)
            grant = pb.GrantSecretRequest(name="API_KEY", node_id=str(public.id))
            told = await refused(stub.GrantSecret(grant))
            assert (grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND") == (told.code, told.reason)
            await stub.SetSecret(set_it, **acting)
        async with secrets_of(orchestra, runner, member.token) as stub:
            assert "NOT_TEAM_ADMIN" == (await refused(stub.SetSecret(set_it, **acting))).reason
            listed_there = await stub.ListSecrets(pb.ListSecretsRequest(), **acting)
            assert ["API_KEY"] == [each.name for each in listed_there.secrets]
            assert [] == list((await stub.ListSecrets(pb.ListSecretsRequest())).secrets)


async def test_a_secret_is_changed_as_it_was_read_and_goes_whole(orchestra: Orchestra) -> None:
    """B41, F26."""
    async with orchestra.running(), attached(orchestra, **_KEY) as runner:
        node = factories.node(orchestra.sql, orchestra.owner)
        async with secrets_of(orchestra, runner) as stub:
            request_id = "0190d6c1-5f2e-7c3a-9d5b-1f0e2d3c4b5a"
            make = pb.SetSecretRequest(name="A", value="a value", request_id=request_id)
            first, second = [(await stub.SetSecret(make)).secret for _ in range(2)]
            assert first == second
            make.value = "another"
            assert "REQUEST_ID_REUSED" == (await refused(stub.SetSecret(make))).reason
            await stub.GrantSecret(pb.GrantSecretRequest(name="A", node_id=str(node.id)))
            shown = await stub.ListSecretGrants(pb.ListSecretGrantsRequest(name="A"))
            assert [str(node.id)] == [each.node_id for each in shown.grants]
            stale = pb.DeleteSecretRequest(name="A", etag="1-1")
            assert "ETAG_MISMATCH" == (await refused(stub.DeleteSecret(stale))).reason
            await stub.DeleteSecret(pb.DeleteSecretRequest(name="A", etag=first.etag))
            assert [] == orchestra.rows("SELECT * FROM secret_versions, secret_grants")
            gone = pb.GetSecretRequest(name="A")
            assert "SECRET_NOT_FOUND" == (await refused(stub.GetSecret(gone))).reason
