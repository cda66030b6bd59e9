"""How shards are distributed: what a member takes, and what it hands over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from services.orchestrator.domain.core import SHARDS


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberState:
    """A member that may be alive, according to the database."""

    id: UUID
    live: bool  # holds a lease; else it is idle, without runs
    address: str  # empty if it is leaving: nothing is handed to it
    shards: tuple[int, ...]
    left_s: float  # of its lease
    silent: bool = False  # idle without a sign of life for long: it may be gone

    @property
    def staying(self) -> bool:
        """Whether it gets a share."""
        return bool(self.address) and not self.silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a member does after a survey."""

    orphans: int  # how many shards without an owner to take
    resting: tuple[tuple[UUID, int], ...]  # how many to take of which idle member
    gives: tuple[tuple[int, UUID], ...]  # shards to hand over, and to whom


def share(me: UUID, members: Sequence[MemberState]) -> Share:
    """Return what a live member takes and hands over, so that all end up with equal shares.

    Shards without an owner are divided among live members only: idle ones do not survey.
    """
    mine = next(each for each in members if each.id == me)
    owned = sum(len(each.shards) for each in members)
    staying = [each for each in members if each.staying or each.id == me]
    live = sum(each.live or each.id == me for each in staying)
    orphans = -(-(SHARDS - owned) // live)
    few = SHARDS // len(staying)
    missing = few - len(mine.shards) - orphans
    resting = []
    for each in members:
        over = min(missing, len(each.shards) - (few if each.staying else 0))
        if each.id != me and not each.live and over > 0:
            resting.append((each.id, over))
            missing -= over
    return Share(orphans=orphans, resting=tuple(resting), gives=_gives(mine, staying))


def _gives(mine: MemberState, members: Sequence[MemberState]) -> tuple[tuple[int, UUID], ...]:
    """Return which newest shards to hand over, each to the member with the fewest."""
    have = {each.id: len(each.shards) for each in members if each.live and each.id != mine.id}
    left = list(mine.shards)
    few, over = divmod(len(left) + sum(have.values()), len(have) + 1)
    many = few + (over > 0)
    gives = []
    while have and len(left) > few:
        poorest = min(have, key=lambda each: (have[each], each))
        # Go below the higher share only for a member with less than the lower one.
        if have[poorest] >= (few if len(left) <= many else many):
            break
        gives.append((left.pop(), poorest))
        have[poorest] += 1
    return tuple(gives)
