"""What a sandbox may use, and how strong it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

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
    file_bytes: int = 4096 * MIB  # of one file, where it is not in memory

    def as_json(self, tier: Tier) -> dict[str, object]:
        """Give the form that `containers.resource_limits` keeps."""
        return {
            "isolation": tier.value,
            "memory_bytes": self.memory_bytes,
            "pids": self.processes,
            "open_files": self.open_files,
            "temporary_bytes": self.temporary_bytes,
            "file_bytes": self.file_bytes,
        }


def meets(tier: Tier, minimum: Tier) -> bool:
    """Whether a sandbox of this tier may run what asks for at least that one."""
    return tier.value >= minimum.value
