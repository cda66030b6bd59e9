"""What waits for runners at an orchestrator, streamed while the connection lasts."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import grpc
from qflow.isolation.v1 import isolation_pb2
from qflow.orchestrator.v1 import placement_service_pb2 as pb
from qflow.orchestrator.v1.placement_service_pb2_grpc import PlacementServiceStub

from services.kit.rpc.channel import open_channel
from services.kit.rpc.tls import Trust
from services.runner.domain.placing import Machine, Waiting
from services.runner.gateways.attach import StreamLost

_TIERS: Final = {
    number: name.removeprefix("TIER_") for name, number in isolation_pb2.Tier.items() if number
}


async def watch_demand(
    address: str,
    machines: Sequence[Machine],
    *,
    token: str,
    trust: Trust | None,
    pythons: Sequence[str],
    machines_come: bool,
) -> AsyncIterator[Mapping[Waiting, int]]:
    """Yield the waiting work, whenever it changes; raises StreamLost at the end."""
    request = pb.WatchDemandRequest(
        pythons=pythons,
        machines=[_machine(each) for each in machines],
        machines_come=machines_come,
    )
    channel = open_channel(address, token, trust=trust, peer="orchestrator")
    stub: Any = PlacementServiceStub(channel)
    try:
        async for response in stub.WatchDemand(request):
            yield _waiting(response)
    except grpc.aio.AioRpcError as problem:
        text = f"{problem.code().name}: {problem.details()}"
        raise StreamLost(text, problem.code()) from None
    finally:
        await channel.close()


def _machine(machine: Machine) -> pb.PlacementMachine:
    return pb.PlacementMachine(
        tier=isolation_pb2.Tier.Value(f"TIER_{machine.tier}"),
        labels=dict(machine.labels),
        cpus=machine.cpus,
        memory_bytes=machine.memory_bytes,
        gpus=machine.gpus,
    )


def _waiting(response: pb.WatchDemandResponse) -> Mapping[Waiting, int]:
    found: Counter[Waiting] = Counter()
    for each in response.waiting:
        needs = Waiting(
            tier=_TIERS.get(each.isolation, ""),
            labels=tuple(sorted(each.labels.items())),
            cpus=each.cpus,
            memory_bytes=each.memory_bytes,
            gpus=each.gpus,
        )
        found[needs] += each.count
    return found
