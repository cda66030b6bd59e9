"""EnvironmentService."""

from __future__ import annotations

from typing import Any

import grpc
from qflow.runner.v1 import environment_service_pb2 as pb
from qflow.runner.v1.environment_service_pb2_grpc import EnvironmentServiceServicer

from services.runner.usecases.environments import Environments

Context = grpc.aio.ServicerContext[Any, Any]


class EnvironmentServicer(EnvironmentServiceServicer):
    """Pins requirements for the registry."""

    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    async def ResolveEnvironment(
        self, request: pb.ResolveEnvironmentRequest, context: Context
    ) -> pb.ResolveEnvironmentResponse:
        """Resolve, with wheels alone."""
        lock = await self._environments.resolve(list(request.requirements), request.python_version)
        return pb.ResolveEnvironmentResponse(lock=lock.text, lock_digest=lock.digest)
