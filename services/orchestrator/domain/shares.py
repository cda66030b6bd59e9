"""How the shards are shared: what a member may take, and what it has to give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from services.orchestrator.domain.core import SHARDS


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberState:
    """A member that may be alive, as the database tells."""

    id: UUID
    live: bool  # holds a lease; else it rests, and has no run
    address: str  # empty when it is about to end: nothing is given to it any more
    shards: tuple[int, ...]
    left_s: float  # of its lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one look at the members leads to."""

    orphans: int  # how many shards without an owner to take
    resting: tuple[tuple[UUID, int], ...]  # how many to take of which resting member
    gives: tuple[tuple[int, UUID], ...]  # which shard to give to whom


def share(me: UUID, members: Sequence[MemberState]) -> Share:
    """Say what a live member takes and gives, so that all come to have as many, or one more.

    Shards without an owner are divided among the live alone: whoever rests does not look.
    """
    mine = next(each for each in members if each.id == me)
    owned = sum(len(each.shards) for each in members)
    members = [each for each in members if each.address or each.id == me]
    live = sum(each.live or each.id == me for each in members)
    orphans = -(-(SHARDS - owned) // live)
    few = SHARDS // len(members)
    missing = few - len(mine.shards) - orphans
    resting = []
    for each in members:
        over = min(missing, len(each.shards) - few)
        if each.id != me and not each.live and over > 0:
            resting.append((each.id, over))
            missing -= over
    return Share(orphans=orphans, resting=tuple(resting), gives=_gives(mine, members))


def _gives(mine: MemberState, members: Sequence[MemberState]) -> tuple[tuple[int, UUID], ...]:
    """Give the newest shards of the one who has too many to the one who has fewest, each time."""
    have = {each.id: len(each.shards) for each in members if each.live and each.id != mine.id}
    left = list(mine.shards)
    few, over = divmod(len(left) + sum(have.values()), len(have) + 1)
    many = few + (over > 0)
    gives = []
    while have and len(left) > few:
        poorest = min(have, key=lambda each: (have[each], each))
        # Down to the lower share only for one who has less than that.
        if have[poorest] >= (few if len(left) <= many else many):
            break
        gives.append((left.pop(), poorest))
        have[poorest] += 1
    return tuple(gives)
