"""The limits of sandboxes, and their isolation tiers."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.runner.domain.network import NO_NETWORK, Network, Reach

MIB: Final = 1024 * 1024


class Tier(enum.StrEnum):
    """How strongly user code is isolated: from T0, not at all, to T4, with a kernel of its own."""

    T0 = "T0"
    T1 = "T1"
    T2 = "T2"
    T3 = "T3"
    T4 = "T4"


@dataclass(frozen=True, slots=True)
class ProbeCheck:
    """One attack of a sandbox on itself: whether it was stopped, and how, or what was open."""

    name: str
    held: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one sandbox; only sandboxes with equal limits are interchangeable."""

    memory_bytes: int = 512 * MIB
    processes: int = 128
    open_files: int = 1024
    temporary_bytes: int = 256 * MIB
    output_bytes: int = 64 * MIB
    cpu_millicores: int = 0  # 0: a fair share
    file_bytes: int = 4096 * MIB  # of a single file on disk
    network: Network = NO_NETWORK

    def as_json(self, tier: Tier) -> dict[str, object]:
        """Return the form stored in `containers.resource_limits`."""
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
    """The limits that a node asks for, besides its timeout; 0 means the default."""

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
    """Return the limits in force: those asked for or the defaults, capped by the deployment.

    A cap of 0 means no cap.
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
    """Return whether a tier is at least the minimum."""
    return tier.value >= minimum.value
