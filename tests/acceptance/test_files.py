"""Files and arrays through whole runs: brought by a caller, made by nodes, fetched at the end."""

from __future__ import annotations

import json
import subprocess
import sys

import grpc
import pytest
from qflow.orchestrator.v1 import run_service_pb2 as runs_pb
from qflow.orchestrator.v1.run_service_pb2_grpc import RunServiceStub
from qflow.runner.v1 import file_service_pb2 as files_pb

from tests.integration.runner.test_file_service import Caller
from tests.support.client import COMPLETED, FAILED, Step, connected
from tests.support.suite import Suite

_COUNT = """
from pathlib import Path


def main(source: Path) -> Path:
    upper = Path("/tmp") / ("upper " + source.name)
    upper.write_text(source.read_text().upper())
    return upper
"""
_PASS = """
from typing import Annotated, Any


def main(of: int) -> Annotated[Any, "pickle"]:
    return {"self": {of}}
"""
_TAKE = """
from typing import Annotated, Any


def main(given: Annotated[Any, "pickle"]) -> str:
    return repr(given)
"""


async def test_a_file_goes_into_a_run_and_another_comes_out(suite: Suite) -> None:
    """Its edge says what went over it; what is not there, or another's, fails the node."""
    async with connected(suite) as client, suite.channel("runner") as channel:
        caller = Caller(channel)
        brought = await caller.bring("übung 🌍.txt", b"hello")
        first = await client.create_node("first", _COUNT)
        second = await client.create_node("second", _COUNT)
        workflow = await client.create_workflow(
            "files",
            [Step("a", first), Step("b", second)],
            [".source > a.source", "a.result > b.source"],
            inputs={"source": "file"},
            outputs=["out = b.result"],
        )
        ended = await client.run(workflow, {"source": {"$file": brought.id}})
        assert COMPLETED == ended.status, ended
        made = json.loads(ended.output_json)["out"]["$file"]
        assert b"HELLO" == await caller.download(made)
        told = await caller.files.GetFile(files_pb.GetFileRequest(file_id=made))
        assert "upper upper übung 🌍.txt" == told.file.filename
        assert ended.id == told.file.execution_id
        listed = await caller.files.ListFiles(files_pb.ListFilesRequest(execution_id=ended.id))
        assert 2 == len(listed.files)
        with suite.sql() as sql:
            edges = sql.execute(
                "SELECT data_type, data_size_bytes, transfer_time_us > 0, file_id IS NOT NULL"
                " FROM node_data_flow WHERE workflow_execution_id = %s",
                (ended.id,),
            ).fetchall()
        assert [("file", 5, True, True)] == edges
        missing = {"$file": "00000000-0000-4000-8000-000000000001"}
        failed = await client.run(workflow, {"source": missing})
        assert FAILED == failed.status
        assert "does not exist" in str(failed)


async def test_a_pickle_goes_over_an_edge_and_to_nobody_else(suite: Suite) -> None:
    """X28, X29: what the control plane has of it is an id."""
    async with connected(suite) as client, suite.channel("runner") as channel:
        maker = await client.create_node("maker", _PASS)
        taker = await client.create_node("taker", _TAKE)
        steps = [Step("a", maker), Step("b", taker)]
        edges = [".of > a.of", "a.result > b.given"]
        workflow = await client.create_workflow(
            "pickles", steps, edges, inputs={"of": "int"}, outputs=["p = a.result", "r = b.result"]
        )
        ended = await client.run(workflow, {"of": 5})
        assert COMPLETED == ended.status, ended
        outputs = json.loads(ended.output_json)
        assert "{'self': {5}}" == outputs["r"]
        with pytest.raises(grpc.aio.AioRpcError, match="what a caller brings is none"):
            await client.create_workflow(
                "alone", [Step("b", taker)], [".given > b.given"], inputs={"given": "pickle"}
            )
        async with suite.channel("orchestrator") as orchestrator:
            asked = runs_pb.RunNodeRequest(
                node_id=taker.id, input_json=json.dumps({"given": outputs["p"]})
            )
            refused = await RunServiceStub(orchestrator).RunNode(asked, timeout=60)
        assert FAILED == refused.execution.status
        assert "its own run" in str(refused)
        listed = await Caller(channel).files.ListFiles(
            files_pb.ListFilesRequest(execution_id=ended.id)
        )
        assert ["application/x-python-pickle"] == [each.mime_type for each in listed.files]
        with suite.sql() as sql:
            [(kind,)] = sql.execute(
                "SELECT data_type FROM node_data_flow WHERE workflow_execution_id = %s",
                (ended.id,),
            ).fetchall()
        assert "pickle" == kind


def test_no_service_can_open_a_pickle_at_all() -> None:
    """X28: of their code, only the agent, which runs in sandboxes alone, names such a module.

    What begins it reads its own code with one.
    """
    found = subprocess.run(
        [
            *("grep", "-rlE", r"^\s*(import|from) (pickle|marshal|shelve|dill|cloudpickle)\b"),
            *("--include=*.py", "services", "clients/python/qflow"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    agent = "services/runner/agent"
    assert [f"{agent}/carried_codecs.py", f"{agent}/joined.py"] == sorted(found.stdout.split())
    assert "pickle" in sys.stdlib_module_names
