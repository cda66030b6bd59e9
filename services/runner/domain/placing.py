"""How many runners to start on a cluster, of which size, and which to withdraw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.runner.domain.limits import Asked, Tier, meets

SLOTS_PER_CPU: Final = 4
# The label of machines that isolate more strongly than namespaces do.
TIER_LABEL: Final = "qflow-tier"
_TIER_EVERYWHERE: Final = Tier.T2


class Size(NamedTuple):
    """What a runner is started with and offers, whatever else its machine has."""

    cpus: int
    memory_bytes: int
    gpus: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    tier: str = ""  # only if nodes ask for one

    @property
    def slots(self) -> int:
        """How many attempts it runs at once; a GPU is not shared."""
        return self.gpus or SLOTS_PER_CPU * self.cpus


class Waiting(NamedTuple):
    """What a waiting node needs of a runner."""

    tier: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of the cluster."""

    cpus: int
    memory_bytes: int
    gpus: int = 0
    labels: Mapping[str, str]

    @property
    def tier(self) -> str:
        """The isolation tier that it claims."""
        return self.labels.get(TIER_LABEL, _TIER_EVERYWHERE.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A requested runner."""

    name: str
    size: Size
    begun: bool  # it has got a machine
    ready: bool  # it accepts work


class Decision(NamedTuple):
    """What to do now."""

    start: Sequence[Size]
    withdraw: Sequence[str]  # runners that have no machine yet


def size_of(waiting: Waiting, plain: Size) -> Size:
    """Return the size of a runner for such a node.

    It has at least the processors and memory of a plain runner, and more if the node asks for more.
    """
    return Size(
        cpus=max(waiting.cpus, plain.cpus),
        memory_bytes=max(waiting.memory_bytes, plain.memory_bytes),
        gpus=waiting.gpus,
        labels=waiting.labels,
        tier=waiting.tier
        if waiting.tier and not meets(_TIER_EVERYWHERE, Tier(waiting.tier))
        else "",
    )


def decide(demand: Mapping[Size, int], placed: Sequence[Placed], *, runners_max: int) -> Decision:
    """Decide which runners to start and which to withdraw.

    The number of each size doubles at most, and never while one is starting: the first ones show
    whether they suffice. Idle runners end by themselves.
    """
    there = Counter(each.size for each in placed)
    on_the_way = {each.size for each in placed if not each.ready}
    withdraw = [each.name for each in placed if not (each.begun or demand.get(each.size))]
    room = runners_max - len(placed) + len(withdraw)
    start: list[Size] = []
    # The rarest first: what only few machines offer must not be crowded out by what all can run.
    for size, waiting in sorted(demand.items(), key=lambda each: each[1]):
        if waiting and size not in on_the_way:
            needed = -(-waiting // size.slots)
            start += [size] * min(needed, max(1, there[size]))
    return Decision(start[: max(0, room)], withdraw)


def steady(before: Mapping[Size, int], now: Mapping[Size, int]) -> dict[Size, int]:
    """Return what was waiting both times: brief demand needs no runner."""
    return {size: min(count, before[size]) for size, count in now.items() if size in before}


def caps_of(size: Size, caps: Asked) -> Asked:
    """Return the limits of calls on a runner of this size, within those of the deployment."""
    return caps._replace(
        memory_bytes=_least(size.memory_bytes, caps.memory_bytes),
        cpu_millicores=_least(size.cpus * 1000, caps.cpu_millicores),
    )


def _least(first: int, second: int) -> int:
    return min(first, second) if second else first


def environment_of(
    size: Size, *, caps: Asked, idle_s: float, addresses: Sequence[str]
) -> dict[str, str]:
    """Return the settings of a runner of this size; others, like secrets, are its machine's."""
    capped = caps_of(size, caps)
    return {
        "QFLOW_RUNNER_PLACEMENT": "local",
        "QFLOW_RUNNER_SLOTS": str(size.slots),
        "QFLOW_RUNNER_CPUS": str(size.cpus),
        "QFLOW_RUNNER_MEMORY_BYTES": str(size.memory_bytes),
        "QFLOW_RUNNER_GPUS": str(size.gpus),
        "QFLOW_RUNNER_IDLE_EXIT_S": f"{idle_s:g}",
        "QFLOW_ORCHESTRATOR_ATTACH_ADDRESS": ",".join(addresses),
        "QFLOW_NODE_MEMORY_BYTES_MAX": str(capped.memory_bytes),
        "QFLOW_NODE_CPU_MILLICORES_MAX": str(capped.cpu_millicores),
        **({"QFLOW_MINIMUM_TIER": size.tier} if size.tier else {}),
    }
