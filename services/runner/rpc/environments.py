"""EnvironmentService."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
from qflow.runner.v1 import environment_service_pb2 as pb
from qflow.runner.v1.environment_service_pb2_grpc import EnvironmentServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.pythons import version_key
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.runner.storage.environment_lists import StoredEnvironment
from services.runner.usecases.environment_lists import (
    count_pythons,
    get_bom,
    get_environment,
    list_environments,
)
from services.runner.usecases.environments import Environments
from services.runner.usecases.prepare import Prepared, Preparer

Context = grpc.aio.ServicerContext[Any, Any]

_STATES: Final = {
    "building": pb.ENVIRONMENT_STATE_BUILDING,
    "ready": pb.ENVIRONMENT_STATE_READY,
    "failed": pb.ENVIRONMENT_STATE_FAILED,
    "evicted": pb.ENVIRONMENT_STATE_EVICTED,
}
# Kept back from the deadline for sending the response.
_MARGIN_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class ShownEnvironments:
    """Dependencies of the servicer; `pythons` has the full versions of this runner's Pythons."""

    pool: Pool
    environments: Environments
    preparer: Preparer
    pythons: Mapping[str, str]


class EnvironmentServicer(EnvironmentServiceServicer):
    """Pins requirements for the registry; shows and prepares environments for users."""

    def __init__(self, shown: ShownEnvironments) -> None:
        self._shown = shown

    async def ResolveEnvironment(
        self, request: pb.ResolveEnvironmentRequest, context: Context
    ) -> pb.ResolveEnvironmentResponse:
        """Pin requirements to wheels."""
        lock = await self._shown.environments.resolve(
            list(request.requirements),
            request.python_version,
            codec.uuid_from(request.tenant_id, field="tenant_id"),
        )
        return pb.ResolveEnvironmentResponse(lock=lock.text, lock_digest=lock.digest)

    async def PrepareEnvironment(
        self, request: pb.PrepareEnvironmentRequest, context: Context
    ) -> pb.PrepareEnvironmentResponse:
        """Build environments ahead, and wait for them."""
        left_s = context.time_remaining()
        wait_s = codec.milliseconds_from(request.wait, field="wait") / 1000
        if left_s is not None:
            wait_s = min(wait_s, left_s - _MARGIN_S)
        prepared, complete = await self._shown.preparer.prepare(
            current_caller(),
            node_id=codec.uuid_or_none(request.node_id, field="node_id"),
            workflow_id=codec.uuid_or_none(request.workflow_id, field="workflow_id"),
            version=request.version,
            wait_s=wait_s,
        )
        return pb.PrepareEnvironmentResponse(
            nodes=[_prepared(each) for each in prepared], complete=complete
        )

    async def GetEnvironment(
        self, request: pb.GetEnvironmentRequest, context: Context
    ) -> pb.GetEnvironmentResponse:
        """Return an environment."""
        environment_id = codec.uuid_from(request.environment_id, field="environment_id")
        found = await get_environment(self._shown.pool, current_caller(), environment_id)
        return pb.GetEnvironmentResponse(environment=_environment(found))

    async def ListEnvironments(
        self, request: pb.ListEnvironmentsRequest, context: Context
    ) -> pb.ListEnvironmentsResponse:
        """Return a page of environments."""
        pages = Pages("runner.ListEnvironments", request)
        found = await list_environments(
            self._shown.pool, current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found, encode=_environment, key=lambda each: (each.created_at, each.id)
        )
        return pb.ListEnvironmentsResponse(environments=shown, next_page_token=token)

    async def GetEnvironmentBom(
        self, request: pb.GetEnvironmentBomRequest, context: Context
    ) -> pb.GetEnvironmentBomResponse:
        """Return the bill of materials of an environment."""
        environment_id = codec.uuid_from(request.environment_id, field="environment_id")
        bom = await get_bom(self._shown.pool, current_caller(), environment_id)
        return pb.GetEnvironmentBomResponse(bom_json=bom)

    async def ListPythons(
        self, request: pb.ListPythonsRequest, context: Context
    ) -> pb.ListPythonsResponse:
        """Return the Pythons on offer, with the number of their runners."""
        here = self._shown.pythons
        counts = await count_pythons(self._shown.pool, current_caller())
        return pb.ListPythonsResponse(
            pythons=[
                pb.OfferedPython(
                    python_version=version,
                    runner_count=counts[version],
                    full_version=here.get(version, ""),
                )
                for version in sorted(counts, key=version_key)
            ]
        )


def _prepared(prepared: Prepared) -> pb.PreparedNode:
    found = prepared.environment
    return pb.PreparedNode(
        node_version_id=str(prepared.node_version_id),
        environment=None if found is None else _environment(found),
        problem=prepared.problem,
    )


def _environment(environment: StoredEnvironment) -> pb.Environment:
    return pb.Environment(
        id=str(environment.id),
        key=environment.key,
        python_version=environment.python_version,
        platform=environment.platform,
        lock_digest=environment.lock_digest,
        state=_STATES[environment.state],
        package_count=environment.package_count,
        size_bytes=environment.size_bytes or 0,
        build_time=codec.duration_ms(environment.build_ms),
        error=environment.error,
        has_bom=environment.has_bom,
        create_time=codec.timestamp(environment.created_at),
        ready_time=codec.timestamp(environment.ready_at),
        last_use_time=codec.timestamp(environment.last_used_at),
    )
