"""How long a sign-in has to wait after others that failed.

Three counts. Of an address from one peer: that is where guessing is slowed. Of a peer with whatever
address: guessing one password of many users. Of an address from anywhere: it never makes anybody
wait; when it is high, a peer that is new to the address has one try before waits begin instead of
ten. So whoever knows the password gets in from another peer at once, and from the peer of whoever
guesses after a wait that is bounded: nobody can be locked out for ever.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

PAIR_TRIES: Final = 10
PAIR_TRIES_SUSPECT: Final = 1
PAIR_WAIT_MAX_S: Final = 300.0
PEER_TRIES: Final = 50
PEER_WAIT_MAX_S: Final = 60.0
SUSPECT_FAILURES: Final = 50
# After so long without another failure the count begins anew.
QUIET_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Keys:
    """Under what an attempt is counted; digests, since addresses are personal."""

    pair: str
    peer: str
    address: str

    @property
    def all(self) -> tuple[str, str, str]:
        """The three, as they are stored."""
        return (self.pair, self.peer, self.address)


@dataclass(frozen=True, slots=True)
class Count:
    """The failures before this attempt, and how long ago the last of them was."""

    failures: int
    since_s: float


def keys_of(address: str, peer: str) -> Keys:
    """Return the keys of an attempt, whether anybody has the address or not."""
    return Keys(
        pair=_digest("pair", address, peer),
        peer=_digest("peer", peer),
        address=_digest("address", address),
    )


def wait_s(*, pair: Count, peer: Count, address: Count) -> float:
    """Return how long this attempt has to wait; 0 when it may go on."""
    suspect = _recent(address) >= SUSPECT_FAILURES
    tries = PAIR_TRIES_SUSPECT if suspect else PAIR_TRIES
    return max(
        _wait_s(pair, tries=tries, longest_s=PAIR_WAIT_MAX_S),
        _wait_s(peer, tries=PEER_TRIES, longest_s=PEER_WAIT_MAX_S),
    )


def _wait_s(count: Count, *, tries: int, longest_s: float) -> float:
    beyond = _recent(count) - tries
    if beyond < 0:
        return 0.0
    delay_s = min(2.0 ** min(beyond, 32), longest_s)
    return max(0.0, delay_s - count.since_s)


def _recent(count: Count) -> int:
    return count.failures if count.since_s < QUIET_S else 0


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
