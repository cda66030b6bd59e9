"""Inputs and outputs sealed at rest: clear to callers and nodes, and nowhere else."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from qflow.orchestrator.v1 import execution_pb2, rerun_service_pb2
from qflow.orchestrator.v1 import execution_service_pb2 as pb
from qflow.orchestrator.v1.rerun_service_pb2_grpc import RerunServiceStub

from services.kit.env import EnvError
from tests import factories
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.test_attach import attached, until
from tests.integration.runner.test_node_secrets import everything_in_the_database

__all__ = ["orchestra"]

MARKER = 7700990011228833
K1, K2 = (f"k{at}:{base64.b64encode(bytes([at]) * 32).decode()}" for at in (1, 2))
_ON = {"QFLOW_DATA_KEYS": K1, "QFLOW_ENCRYPT_DATA": "1"}
_MIDDLE = "def main(x: int) -> str:\n    return f'middle of {x}'\n"
# So much that it is a file.
_LARGE = "def main(x: int) -> str:\n    return f'middle of {x} ' * 4000\n"
_WAITS = """
import time
def main(x: int) -> str:
    time.sleep(2)
    return f'middle of {x}'
"""
_LAST = "def main(x: str) -> str:\n    return 'last of ' + x[:26]\n"
_OUT = {"out": f"last of middle of {MARKER}"}


def chain(orchestra: Orchestra, middle: str = _MIDDLE, **settings: Any) -> str:
    sql, owner = orchestra.sql, orchestra.owner
    nodes = {
        "a": factories.node(sql, owner, code=middle, gives={"t": "str"}),
        "b": factories.node(sql, owner, code=_LAST, takes={"t": "str"}, gives={"t": "str"}),
    }
    return str(
        factories.workflow(
            sql,
            owner,
            nodes=nodes,
            edges=[("", "x", "a", "x"), ("a", "result", "b", "x")],
            outputs=[("out", "b")],
            node_settings={"a": settings} if settings else None,
        )
    )


async def started(orchestra: Orchestra, workflow: str) -> str:
    answer = await orchestra.stub.StartExecution(
        pb.StartExecutionRequest(workflow_id=workflow, input_json=json.dumps({"x": MARKER}))
    )
    return answer.execution.id


async def ended(orchestra: Orchestra, execution_id: str) -> Any:
    done = await orchestra.stub.WaitExecution(
        pb.WaitExecutionRequest(execution_id=execution_id), timeout=20
    )
    return done.execution


def found(orchestra: Orchestra) -> bool:
    """Whether the marker stands in the database or in a file of values."""
    files = (each for each in (orchestra.home / "files").rglob("*") if each.is_file())
    marker = str(MARKER)
    return marker in everything_in_the_database(orchestra) or any(
        marker.encode() in each.read_bytes() for each in files
    )


@pytest.mark.parametrize("env", [_ON, {}])
async def test_nothing_that_goes_in_or_out_is_in_the_database_or_the_files(
    orchestra: Orchestra, env: dict[str, str]
) -> None:
    """S65: input, output, intermediate values inline and as a file; with it off all are found."""
    on = bool(env)
    orchestra.more_env.update(env)
    async with orchestra.running(), attached(orchestra, **env):
        for middle in (_MIDDLE, _LARGE):
            execution_id = await started(orchestra, chain(orchestra, middle))
            done = await ended(orchestra, execution_id)
            assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
            assert _OUT == json.loads(done.output_json)
            read = await orchestra.stub.GetExecution(
                pb.GetExecutionRequest(
                    execution_id=execution_id, view=execution_pb2.EXECUTION_VIEW_FULL
                )
            )
            assert {"x": MARKER} == json.loads(read.execution.input_json)
            assert done.output_json == read.execution.output_json
        [(files,)] = orchestra.rows("SELECT count(*) FROM files")
        assert 1 == files
        assert on is not found(orchestra)
        # A value that is taken over is copied from row to row as it is.
        rerun = RerunServiceStub(orchestra.channel(orchestra.owner.token))
        again = await rerun.RerunExecution(
            rerun_service_pb2.RerunExecutionRequest(
                execution_id=execution_id, from_nodes=[rerun_service_pb2.RerunNode(node="b")]
            )
        )
        assert done.output_json == (await ended(orchestra, again.execution.id)).output_json
        assert on is not found(orchestra)


async def test_a_root_key_is_replaced_while_runs_are_under_way(orchestra: Orchestra) -> None:
    """What is sealed stays as it is; the data keys alone are wrapped anew."""
    orchestra.more_env.update(_ON)
    async with orchestra.running():
        runner = attached(orchestra, **_ON)
        async with runner:
            workflow = chain(orchestra, _WAITS)
            execution_id = await started(orchestra, workflow)
            await until(orchestra, "SELECT 1 FROM node_executions WHERE status = 'running'")
            before = orchestra.rows("SELECT input_data::text FROM workflow_executions")
    # The runner gives its result to whoever comes; it knows the new root key too by then.
    orchestra.more_env["QFLOW_DATA_KEYS"] = f"{K2},{K1}"
    async with orchestra.running(), attached(orchestra, QFLOW_DATA_KEYS=f"{K2},{K1}"):
        done = await ended(orchestra, execution_id)
        assert _OUT == json.loads(done.output_json)
        assert before == orchestra.rows("SELECT input_data::text FROM workflow_executions")
        assert [("k2",)] == orchestra.rows("SELECT key_id FROM data_keys")
        assert not found(orchestra)
    orchestra.more_env["QFLOW_DATA_KEYS"] = K2
    # Sealing ends with the switch; what was sealed is read for as long as there is a key.
    orchestra.more_env["QFLOW_ENCRYPT_DATA"] = "0"
    async with orchestra.running(), attached(orchestra, QFLOW_DATA_KEYS=K2):
        assert done.output_json == (await ended(orchestra, execution_id)).output_json
        again = await ended(orchestra, await started(orchestra, workflow))
        assert done.output_json == again.output_json
        assert found(orchestra)


@pytest.mark.parametrize("keys", ["", K2])
async def test_nothing_begins_without_the_keys_of_what_is_sealed(
    orchestra: Orchestra, keys: str
) -> None:
    """A run whose rows cannot be read would be ended; so the process says why and goes."""
    orchestra.more_env.update(_ON)
    async with orchestra.running():
        pass
    orchestra.more_env.update({"QFLOW_DATA_KEYS": keys, "QFLOW_ENCRYPT_DATA": "0"})
    with pytest.raises(EnvError, match="QFLOW_DATA_KEY_FILE"):
        async with orchestra.running():
            raise AssertionError("it began")


async def test_the_switch_needs_keys(orchestra: Orchestra) -> None:
    orchestra.more_env["QFLOW_ENCRYPT_DATA"] = "1"
    with pytest.raises(EnvError, match="QFLOW_DATA_KEY_FILE"):
        async with orchestra.running():
            raise AssertionError("it began")


async def test_a_result_of_the_cache_is_given_again_though_it_is_sealed(
    orchestra: Orchestra,
) -> None:
    orchestra.more_env.update(_ON)
    async with orchestra.running(), attached(orchestra, **_ON):
        workflow = chain(orchestra, cache_ttl_ms=60_000)
        first = await ended(orchestra, await started(orchestra, workflow))
        await until(orchestra, "SELECT 1 FROM cached_results")
        second = await ended(orchestra, await started(orchestra, workflow))
        assert first.output_json == second.output_json
        hits = orchestra.rows("SELECT count(*) FROM node_executions WHERE cache_hit")
        assert [(1,)] == hits
        assert not found(orchestra)
