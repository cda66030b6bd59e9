"""Wait until services report that they are serving, in a process that spares the supervisor gRPC.

    python -m services.standalone.probe registry=127.0.0.1:7101 … [authorities=FILE]

Prints the name of each service as it becomes ready, then the runner's isolation of user code, and
exits with 0 when all are ready.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import suppress

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from qflow.isolation.v1 import isolation_pb2
from qflow.runner.v1 import runner_service_pb2

from services.standalone.bootstrap import OWNER_TOKEN
from services.standalone.home import Home
from services.standalone.reach import open_local
from services.standalone.tls_files import ENDPOINTS_KEY

_ASK_AGAIN_S = 0.05
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.enable_http_proxy", 0),
)


async def serving(address: str, authorities: str | None = None) -> bool:
    """Return whether the service at an address reports that it is serving."""
    async with open_local(address, authorities, options=_OPTIONS) as channel:
        try:
            ask = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = await ask(health_pb2.HealthCheckRequest(), timeout=2.0)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def _report(name: str, address: str, authorities: str | None) -> None:
    while not await serving(address, authorities):  # noqa: ASYNC110 - another process cannot set our event
        await asyncio.sleep(_ASK_AGAIN_S)
    print(name, flush=True)  # noqa: T201 - read by the supervisor


async def isolation(address: str, token: str, authorities: str | None = None) -> str:
    """Return the tier that a runner has proven, and which of its checks failed."""
    async with open_local(address, authorities, options=_OPTIONS) as channel:
        ask = channel.unary_unary(
            "/qflow.runner.v1.RunnerService/GetRunner",
            request_serializer=runner_service_pb2.GetRunnerRequest.SerializeToString,
            response_deserializer=runner_service_pb2.GetRunnerResponse.FromString,
        )
        answer = await ask(
            runner_service_pb2.GetRunnerRequest(),
            metadata=(("authorization", f"Bearer {token}"),),
            timeout=5.0,
        )
    runner = answer.runner
    failed = [f"{each.name}: {each.detail}" for each in runner.checks if not each.held]
    held = len(runner.checks) - len(failed)
    proof = f"{held} of {len(runner.checks)} attacks of its own held off"
    tier = isolation_pb2.Tier.Name(runner.tier).removeprefix("TIER_")
    return " ".join(f"{tier}, {'; '.join([proof, *failed])}".split())


async def _main(arguments: list[str], env: Mapping[str, str]) -> None:
    addresses = dict(argument.split("=", 1) for argument in arguments)
    authorities = addresses.pop(ENDPOINTS_KEY, None)
    async with asyncio.TaskGroup() as tasks:
        for name, address in addresses.items():
            tasks.create_task(_report(name, address, authorities))
    home = Home.from_env(env)
    with suppress(OSError, grpc.aio.AioRpcError):  # informational only, so errors are ignored
        token = (home.secrets / OWNER_TOKEN).read_text(encoding="utf-8").strip()
        told = await isolation(addresses["runner"], token, authorities)
        print(f"isolation={told}", flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:], os.environ))
