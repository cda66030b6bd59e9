"""How long a sign-in has to wait after failed ones.

There are three counts. Per address and peer: slows down guessing one user's password. Per peer:
slows down guessing one password for many users. Per address: causes no delay by itself; when it is
high, a peer that is new to the address has one try before delays start instead of ten. So somebody
who knows the password gets in at once from another peer, and after a bounded delay from the
attacker's peer: nobody can be locked out for good.
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
# A count restarts after this long without a failure.
QUIET_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys under which an attempt is counted; digests, since addresses are personal data."""

    pair: str
    peer: str
    address: str

    @property
    def all(self) -> tuple[str, str, str]:
        """The three keys, as stored."""
        return (self.pair, self.peer, self.address)


@dataclass(frozen=True, slots=True)
class Count:
    """The failures before this attempt, and the time since the last one."""

    failures: int
    since_s: float


def keys_of(address: str, peer: str) -> Keys:
    """Return the keys of an attempt, whether or not a user has the address."""
    return Keys(
        pair=_digest("pair", address, peer),
        peer=_digest("peer", peer),
        address=_digest("address", address),
    )


def wait_s(*, pair: Count, peer: Count, address: Count) -> float:
    """Return how many seconds this attempt has to wait; 0 if it may proceed."""
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
