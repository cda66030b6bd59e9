"""Network access of user code, as nodes ask for it and a deployment allows it."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple


class Reach(enum.StrEnum):
    """How much of the network is reachable, in increasing order."""

    NONE = "none"
    EGRESS = "egress"  # hosts allowed by name, through a proxy
    HOST = "host"  # whatever the runner's machine reaches

    __hash__ = str.__hash__  # implemented in C: it is part of keys that every call looks up


class Network(NamedTuple):
    """The network access of one node."""

    reach: Reach = Reach.NONE
    hosts: tuple[str, ...] = ()  # for egress; empty: all hosts that the deployment allows


NO_NETWORK: Final = Network()
_LABEL: Final = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_PATTERN: Final = re.compile(
    rf"(?=.{{1,260}}\Z)(\*|(\*\.)?{_LABEL}(\.{_LABEL})*)(:[1-9][0-9]{{0,4}})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRules:
    """What a deployment allows; nothing by default."""

    egress_hosts: tuple[str, ...] = ()
    host: bool = False

    def offered(self, possible: Iterable[Reach]) -> tuple[Reach, ...]:
        """Return what nodes may ask for, among what the sandboxes here support."""
        allowed = {Reach.EGRESS: bool(self.egress_hosts), Reach.HOST: self.host}
        return tuple(sorted(reach for reach in possible if allowed.get(reach)))


def is_host_pattern(text: str) -> bool:
    """Return whether a text is `example.com`, `*.example.com` or `*`, each perhaps with a port."""
    return _PATTERN.fullmatch(text) is not None
