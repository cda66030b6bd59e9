"""What a place requires of a runner, and whether one has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

_GIB: Final = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a runner offers; CPUs and memory are not reserved."""

    pythons: frozenset[str]
    slots: int = 0  # attempts at once; it may grant more credits than that
    tier: str = ""  # the strongest one; empty if not even its minimum is available
    labels: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    networks: frozenset[str] = field(default_factory=frozenset)  # in addition to no network


class Needs(NamedTuple):
    """Requirements in addition to a Python version."""

    python_version: str
    isolation: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    network: str = ""  # empty: none

    def met_by(self, offer: Offer) -> bool:
        """Return whether a runner meets all of them."""
        return self.python_version in offer.pythons and not any(self.lacking(offer))

    def lacking(self, offer: Offer) -> Iterator[str]:
        """Yield descriptions of what a runner lacks, apart from the Python version."""
        if self.isolation > offer.tier:
            yield f"isolation {self.isolation}"
        for name, value in self.labels:
            if (name, value) not in offer.labels:
                yield f"the label {name}={value}"
        if self.cpus > offer.cpus:
            yield f"{self.cpus} processors"
        if self.memory_bytes > offer.memory_bytes:
            yield f"{self.memory_bytes / _GIB:g} GiB of memory"
        if self.gpus > offer.gpus:
            yield f"{self.gpus} GPUs"
        if self.network and self.network not in offer.networks:
            yield f"the network {self.network}"


# What a place requires: for most just a Python version.
Wanted = str | Needs


def needs_of(
    python_version: str, stored: Mapping[str, Any] | None, network: str = ""
) -> Needs | None:
    """Decode the requirements of a stored place; None if it needs just a Python version."""
    network = "" if network == "none" else network
    if not stored and not network:
        return None
    stored = stored or {}
    labels = tuple(sorted(dict(stored.get("labels") or {}).items()))
    rest = {key: value for key, value in stored.items() if key != "labels"}
    return Needs(python_version=python_version, labels=labels, network=network, **rest)


def python_of(wanted: Wanted) -> str:
    """Return the required Python version."""
    return wanted if isinstance(wanted, str) else wanted.python_version


def takes(offer: Offer, wanted: Wanted) -> bool:
    """Return whether a runner meets the requirements."""
    return wanted in offer.pythons if isinstance(wanted, str) else wanted.met_by(offer)


def unmet(wanted: Needs, offers: Sequence[Offer]) -> list[str]:
    """Return what no runner has; if each requirement is met by some, that none meets all."""
    each = [set(wanted.lacking(offer)) for offer in offers]
    nobody = set.intersection(*each) if each else set[str]()
    return sorted(nobody) or ["all that it asks for at once"]


_ACTIONS: Final = {
    "isolation": "install Docker for a runner and set QFLOW_MINIMUM_TIER to that tier, for T4 also "
    "QFLOW_DOCKER_RUNTIME (runsc), and restart it",
    "the network egress": "name the hosts that nodes may reach in QFLOW_EGRESS_HOSTS of a runner, "
    "and restart it",
    "the network host": "let a runner allow it with QFLOW_NETWORK_HOST, and restart it; better ask "
    "for egress",
    "the label": "give a runner the label with QFLOW_RUNNER_LABELS, and restart it",
}


def action_for(lacking: list[str]) -> str:
    """Describe what helps against what is lacking."""
    for words, action in _ACTIONS.items():
        if any(each.startswith(words) for each in lacking):
            return action
    return "start a runner on a machine that has it, or let the node ask for less"
