"""What user code reaches of the network, as a node asks for it and a deployment allows it."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple


class Reach(enum.StrEnum):
    """How far user code reaches; each is weaker than the one before."""

    NONE = "none"
    EGRESS = "egress"  # hosts that are allowed by name, through a proxy
    HOST = "host"  # all that the runner's machine reaches

    __hash__ = str.__hash__  # in C: it stands in keys that every call looks up


class Network(NamedTuple):
    """What one node reaches."""

    reach: Reach = Reach.NONE
    hosts: tuple[str, ...] = ()  # of egress: none named is all that the deployment allows


NO_NETWORK: Final = Network()
_LABEL: Final = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_PATTERN: Final = re.compile(
    rf"(?=.{{1,260}}\Z)(\*|(\*\.)?{_LABEL}(\.{_LABEL})*)(:[1-9][0-9]{{0,4}})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRules:
    """What a deployment allows; nothing unless it says so."""

    egress_hosts: tuple[str, ...] = ()
    host: bool = False

    def offered(self, possible: Iterable[Reach]) -> tuple[Reach, ...]:
        """Give what nodes may ask for, of what the sandboxes here can hold."""
        allowed = {Reach.EGRESS: bool(self.egress_hosts), Reach.HOST: self.host}
        return tuple(sorted(reach for reach in possible if allowed.get(reach)))


def is_host_pattern(text: str) -> bool:
    """Whether a text says which hosts: `example.com`, `*.example.com`, `*`, with a port or not."""
    return _PATTERN.fullmatch(text) is not None
