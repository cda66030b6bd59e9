"""The kit's bench: what a unary call costs its server through every stage, and without any.

`python -m bench.unary ADDRESS` is that server: it answers a read at once, for a caller whose token
is known, as nearly every call finds it.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, cast

import grpc
import psutil
import uvloop
from grpc_health.v1 import health
from qflow.registry.v1 import workflow_pb2, workflow_service_pb2_grpc
from qflow.registry.v1 import workflow_service_pb2 as pb

from bench import floors
from bench.figures import figure
from services.kit import log
from services.kit.ids import uuid7
from services.kit.pg import Pool
from services.kit.rpc.identity import Authenticator
from services.kit.rpc.listener import Listener
from services.kit.rpc.server import open_server
from services.kit.run import settle_garbage

_ROUNDS: Final = 9
_CALLS: Final = 4_000
_AT_ONCE: Final = 32
_TARGET_US: Final = 500.0
_METHOD: Final = "/qflow.registry.v1.WorkflowService/GetWorkflow"
_ANSWER: Final = pb.GetWorkflowResponse(workflow=workflow_pb2.Workflow(description="x" * 1_100))
_METADATA: Final = (("authorization", f"Bearer qf_{'a' * 43}"),)


async def unary() -> dict[str, Any]:
    """Microseconds of the server's time for one unary call through every stage of the kit."""
    floor = 1e6 / await floors.answers_per_s(_ANSWER.ByteSize())
    with tempfile.TemporaryDirectory(prefix="qfu-", dir="/tmp") as folder:
        path = f"unix:{folder}/sock"
        lines = (Path(folder) / "lines").open("wb")
        child = subprocess.Popen(  # noqa: ASYNC220  # nothing waits yet
            [sys.executable, "-m", "bench.unary", path], stdout=lines, stderr=sys.stderr
        )
        try:
            spans = await _spans_us(path, psutil.Process(child.pid))
        finally:
            child.terminate()
            child.wait(10)
            lines.close()
    told = figure(spans, "us/call", "lower", target=_TARGET_US, floor=floor)
    return told | {"stages_us": round(statistics.median(spans) - floor, 1)}


async def _spans_us(path: str, server: psutil.Process) -> list[float]:
    request = pb.GetWorkflowRequest(workflow_id=str(uuid7())).SerializeToString()
    async with grpc.aio.insecure_channel(path) as channel:
        call: Any = channel.unary_unary(_METHOD)

        async def some() -> None:
            for _ in range(_CALLS // _AT_ONCE):
                await call(request, metadata=_METADATA, wait_for_ready=True)

        await some()
        spans = []
        for _ in range(_ROUNDS):
            before = sum(server.cpu_times()[:2])
            await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
            spans.append((sum(server.cpu_times()[:2]) - before) * 1e6 / _CALLS)
        return spans


class _Answering(workflow_service_pb2_grpc.WorkflowServiceServicer):
    async def GetWorkflow(  # noqa: N802  # as the contract spells it
        self,
        request: pb.GetWorkflowRequest,  # noqa: ARG002  # asks nothing
        context: Any,  # noqa: ARG002  # nor of the call
    ) -> pb.GetWorkflowResponse:
        return _ANSWER


class _OneUser:
    """Answers the one question that an Authenticator asks, without a database."""

    async def fetchrow(self, _query: str, *_credential: object) -> dict[str, Any]:
        ids = dict.fromkeys(("user_id", "tenant_id", "session_id"), uuid7())
        return ids | {
            "role": "user",
            "is_owner": False,
            "kind": "user",
            "name": "bench",
            "scopes": None,
            "team_role": "",
            "expires_at": None,
        }


async def _serve(address: str) -> None:
    server = await open_server(
        Listener(address=address),
        [
            (
                workflow_service_pb2_grpc.add_WorkflowServiceServicer_to_server,
                _Answering(),  # type: ignore[abstract]  # the others are not called
            )
        ],
        authenticator=Authenticator(cast("Pool", _OneUser())),
        health_servicer=health.aio.HealthServicer(),
    )
    settle_garbage()
    await server.start()
    await server.server.wait_for_termination()


if __name__ == "__main__":
    log.configure("bench")
    uvloop.run(_serve(sys.argv[1]))
