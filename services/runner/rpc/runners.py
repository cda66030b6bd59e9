"""RunnerService."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import grpc
from qflow.isolation.v1 import isolation_pb2
from qflow.runner.v1 import runner_service_pb2 as pb
from qflow.runner.v1.runner_service_pb2_grpc import RunnerServiceServicer

from services.kit.caller import current_caller
from services.kit.pg import Pool
from services.kit.rpc import codec
from services.kit.rpc.pages import Pages
from services.runner.domain.limits import ProbeCheck, Tier
from services.runner.domain.network import Reach
from services.runner.storage.containers import Container
from services.runner.usecases.sandboxes import list_containers

Context = grpc.aio.ServicerContext[Any, Any]

_STATUS: Final = {
    "creating": pb.CONTAINER_STATUS_CREATING,
    "running": pb.CONTAINER_STATUS_RUNNING,
    "stopped": pb.CONTAINER_STATUS_STOPPED,
    "removing": pb.CONTAINER_STATUS_STOPPED,
    "removed": pb.CONTAINER_STATUS_STOPPED,
    "error": pb.CONTAINER_STATUS_ERROR,
}
_TIERS: Final[Mapping[object, isolation_pb2.Tier.ValueType]] = {
    tier: isolation_pb2.Tier.Value(f"TIER_{tier.value}") for tier in Tier
}
_NETWORKS: Final[Mapping[object, isolation_pb2.Network.ValueType]] = {
    reach: isolation_pb2.Network.Value(f"NETWORK_{reach.name}") for reach in Reach
}
_KIND: Final = "runner.ListContainers"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerFacts:
    """What this runner offers, and the results of the canary."""

    tier: Tier
    checks: Sequence[ProbeCheck]
    slots: int
    pythons: Sequence[str]
    networks: Sequence[Reach] = ()
    egress_hosts: Sequence[str] = ()


class RunnerServicer(RunnerServiceServicer):
    """Shows the runner and its sandboxes."""

    def __init__(self, pool: Pool, facts: RunnerFacts, incarnation: Callable[[], UUID]) -> None:
        self._pool = pool
        self._facts = facts
        self._incarnation = incarnation

    async def GetRunner(
        self, request: pb.GetRunnerRequest, context: Context
    ) -> pb.GetRunnerResponse:
        """Return what this runner offers."""
        facts = self._facts
        runner = pb.Runner(
            incarnation=str(self._incarnation()),
            tier=_TIERS[facts.tier],
            checks=[
                pb.ProbeCheck(name=each.name, held=each.held, detail=each.detail)
                for each in facts.checks
            ],
            slots=facts.slots,
            pythons=facts.pythons,
            networks=[_NETWORKS[reach] for reach in facts.networks],
            egress_hosts=facts.egress_hosts if Reach.EGRESS in facts.networks else (),
        )
        return pb.GetRunnerResponse(runner=runner)

    async def ListContainers(
        self, request: pb.ListContainersRequest, context: Context
    ) -> pb.ListContainersResponse:
        """Return a page of the tenant's sandboxes."""
        pages = Pages(_KIND, request)
        found = await list_containers(
            self._pool, current_caller(), after=pages.after_moment(), limit=pages.limit
        )
        shown, token = await pages.cut(
            found,
            encode=_container_to_pb,
            key=lambda container: (container.created_at, container.id),
        )
        return pb.ListContainersResponse(containers=shown, next_page_token=token)


def _container_to_pb(container: Container) -> pb.Container:
    limits, usage = container.resource_limits, container.resource_usage
    return pb.Container(
        id=str(container.id),
        container_id=container.container_id,
        python_version=container.python_version,
        status=_STATUS[container.status],
        tier=_TIERS.get(limits.get("isolation"), isolation_pb2.TIER_UNSPECIFIED),
        memory_limit_bytes=int(limits.get("memory_bytes", 0)),
        attempts=int(usage.get("attempts", 0)),
        cpu_time=codec.duration_ms(int(usage.get("cpu_us", 0)) / 1000),
        memory_peak_bytes=int(usage.get("memory_peak_bytes", 0)),
        create_time=codec.timestamp(container.created_at),
        start_time=codec.timestamp(container.started_at),
        stop_time=codec.timestamp(container.stopped_at),
        io_read_bytes=int(usage.get("io_read_bytes", 0)),
        io_write_bytes=int(usage.get("io_write_bytes", 0)),
        network=_NETWORKS.get(limits.get("network"), isolation_pb2.NETWORK_UNSPECIFIED),
        egress_hosts=limits.get("egress_hosts", ()),
        limits=pb.ContainerLimits(
            cpu_millicores=int(limits.get("cpu_millicores", 0)),
            processes=int(limits.get("pids", 0)),
            open_files=int(limits.get("open_files", 0)),
            temporary_bytes=int(limits.get("temporary_bytes", 0)),
            output_bytes=int(limits.get("output_bytes", 0)),
        ),
    )
