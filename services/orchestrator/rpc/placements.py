"""PlacementService: reports demand for runners to services that can start some."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Final

import grpc
from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import placement_service_pb2 as pb
from qflow.orchestrator.v1 import placement_service_pb2_grpc

from services.orchestrator.domain.needs import Needs, Offer, Wanted
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.placements import Placement

Context = grpc.aio.ServicerContext[Any, Any]

# Demand changes within milliseconds, but a runner takes a second to start.
_LOOK_S: Final = 0.25


class PlacementServicer(placement_service_pb2_grpc.PlacementServiceServicer):
    """Reads the queue of the engine; assigns nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def WatchDemand(
        self, request: pb.WatchDemandRequest, context: Context
    ) -> AsyncIterator[pb.WatchDemandResponse]:
        """Stream what waits for runners until the caller disconnects."""
        placement = Placement(
            [_offer(each, request.pythons) for each in request.machines], request.machines_come
        )
        self._engine.placements.add(placement)
        told: Mapping[Wanted, int] | None = None
        try:
            while True:
                waiting = self._engine.core.ready.waiting()
                if waiting != told:
                    told = waiting
                    yield pb.WatchDemandResponse(
                        waiting=[_waiting(wanted, count) for wanted, count in waiting.items()]
                    )
                if not waiting:  # idle while no run is open
                    await self._engine.work.wait()
                await asyncio.sleep(_LOOK_S)
        finally:
            self._engine.placements.remove(placement)


def _offer(machine: pb.PlacementMachine, pythons: Iterable[str]) -> Offer:
    return Offer(
        pythons=frozenset(pythons),
        tier=isolation_pb2.Tier.Name(machine.tier).removeprefix("TIER_") if machine.tier else "",
        labels=frozenset(machine.labels.items()),
        cpus=machine.cpus,
        memory_bytes=machine.memory_bytes,
        gpus=machine.gpus,
    )


def _waiting(wanted: Wanted, count: int) -> pb.WaitingNodes:
    if isinstance(wanted, str):
        return pb.WaitingNodes(count=count, python_version=wanted)
    return _with_needs(wanted, count)


def _with_needs(needs: Needs, count: int) -> pb.WaitingNodes:
    return pb.WaitingNodes(
        count=count,
        python_version=needs.python_version,
        isolation=isolation_pb2.Tier.Value(f"TIER_{needs.isolation or 'UNSPECIFIED'}"),
        labels=dict(needs.labels),
        cpus=needs.cpus,
        memory_bytes=needs.memory_bytes,
        gpus=needs.gpus,
    )
