"""How many runners are started on an engine of machines, how large, and which are not wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.runner.domain.limits import Asked, Tier, meets

SLOTS_PER_CPU: Final = 4
# The label by which a machine says that it isolates more strongly than namespaces do.
TIER_LABEL: Final = "qflow-tier"
_TIER_EVERYWHERE: Final = Tier.T2


class Size(NamedTuple):
    """What a runner is started with: it has that and offers that, whatever its machine has."""

    cpus: int
    memory_bytes: int
    gpus: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    tier: str = ""  # where nodes ask for one

    @property
    def slots(self) -> int:
        """How many attempts it takes at once; a GPU is not shared."""
        return self.gpus or SLOTS_PER_CPU * self.cpus


class Waiting(NamedTuple):
    """What a node that waits needs of a runner."""

    tier: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine of the engine's."""

    cpus: int
    memory_bytes: int
    gpus: int = 0
    labels: Mapping[str, str]

    @property
    def tier(self) -> str:
        """How strongly it says that it isolates."""
        return self.labels.get(TIER_LABEL, _TIER_EVERYWHERE.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A runner that was asked for."""

    name: str
    size: Size
    begun: bool  # a machine was found for it
    ready: bool  # it takes work


class Decision(NamedTuple):
    """What to do now."""

    start: Sequence[Size]
    withdraw: Sequence[str]  # of those that have no machine yet


def size_of(waiting: Waiting, plain: Size) -> Size:
    """Give what a runner for such a node is started with.

    Where the node asks for processors or memory the runner has those, and never less than a plain
    one has.
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
    """Say which runners to start and which to withdraw.

    Of each size they double, and never while one is on its way: the first ones show whether they
    are enough. Runners that are idle leave by themselves.
    """
    there = Counter(each.size for each in placed)
    on_the_way = {each.size for each in placed if not each.ready}
    withdraw = [each.name for each in placed if not (each.begun or demand.get(each.size))]
    room = runners_max - len(placed) + len(withdraw)
    start: list[Size] = []
    # The rarest first: what only some machines have must not be kept out by what all can run.
    for size, waiting in sorted(demand.items(), key=lambda each: each[1]):
        if waiting and size not in on_the_way:
            needed = -(-waiting // size.slots)
            start += [size] * min(needed, max(1, there[size]))
    return Decision(start[: max(0, room)], withdraw)


def steady(before: Mapping[Size, int], now: Mapping[Size, int]) -> dict[Size, int]:
    """Give what waited both times: what is gone a moment later needs no runner."""
    return {size: min(count, before[size]) for size, count in now.items() if size in before}


def caps_of(size: Size, caps: Asked) -> Asked:
    """Give what a call may have at most on a runner of this size, within what is allowed at all."""
    return caps._replace(
        memory_bytes=_least(size.memory_bytes, caps.memory_bytes),
        cpu_millicores=_least(size.cpus * 1000, caps.cpu_millicores),
    )


def _least(first: int, second: int) -> int:
    return min(first, second) if second else first


def environment_of(
    size: Size, *, caps: Asked, idle_s: float, addresses: Sequence[str]
) -> dict[str, str]:
    """Give the settings of a runner of this size; the rest is its machine's, secrets above all."""
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
