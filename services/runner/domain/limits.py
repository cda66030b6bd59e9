"""What a sandbox may use, and how strong it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.runner.domain.network import NO_NETWORK, Network, Reach

MIB: Final = 1024 * 1024


class Tier(enum.StrEnum):
    """How user code is held: from T0, nothing, to T4, a machine of its own."""

    T0 = "T0"
    T1 = "T1"
    T2 = "T2"
    T3 = "T3"
    T4 = "T4"


@dataclass(frozen=True, slots=True)
class ProbeCheck:
    """One attack of a sandbox on itself: whether it held, and how or what was open."""

    name: str
    held: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The caps of one sandbox; part of what makes two sandboxes interchangeable."""

    memory_bytes: int = 512 * MIB
    processes: int = 128
    open_files: int = 1024
    temporary_bytes: int = 256 * MIB
    output_bytes: int = 64 * MIB
    cpu_millicores: int = 0  # 0: a fair share
    file_bytes: int = 4096 * MIB  # of one file, where it is not in memory
    network: Network = NO_NETWORK

    def as_json(self, tier: Tier) -> dict[str, object]:
        """Give the form that `containers.resource_limits` keeps."""
        return {
            "isolation": tier.value,
            "memory_bytes": self.memory_bytes,
            "pids": self.processes,
            "open_files": self.open_files,
            "temporary_bytes": self.temporary_bytes,
            "output_bytes": self.output_bytes,
            "file_bytes": self.file_bytes,
            **({"cpu_millicores": self.cpu_millicores} if self.cpu_millicores else {}),
            "network": self.network.reach.value,
            **({"egress_hosts": [*self.network.hosts]} if self.network.hosts else {}),
        }


class Asked(NamedTuple):
    """What a node asks for, besides its time; 0 is the default of each."""

    memory_bytes: int = 0
    processes: int = 0
    open_files: int = 0
    temporary_bytes: int = 0
    output_bytes: int = 0
    cpu_millicores: int = 0


NOTHING_ASKED: Final = Asked()
_DEFAULT: Final = Limits()
# Below these no interpreter starts.
_LEAST: Final = Limits(
    memory_bytes=32 * MIB,
    processes=4,
    open_files=64,
    temporary_bytes=MIB,
    output_bytes=1024,
    cpu_millicores=10,
)


def limits_of(asked: Asked, caps: Asked, network: Network = NO_NETWORK) -> Limits:
    """Give what is in force: what is asked for or the default, and no more than the caps allow.

    A cap of 0 caps nothing.
    """
    chosen: dict[str, int] = {}
    for name, wanted, cap in zip(Asked._fields, asked, caps, strict=True):
        value = wanted or getattr(_DEFAULT, name)
        if cap:
            value = min(value or cap, cap)
        chosen[name] = max(value, getattr(_LEAST, name)) if value else 0
    if network.reach is not Reach.EGRESS:
        network = Network(network.reach)
    return Limits(**chosen, network=network)


def meets(tier: Tier, minimum: Tier) -> bool:
    """Whether a sandbox of this tier may run what asks for at least that one."""
    return tier.value >= minimum.value
