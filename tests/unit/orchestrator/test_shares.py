"""How shards are shared: whatever comes and goes, all get about as many, and none is left."""

from __future__ import annotations

import random
from dataclasses import replace
from uuid import UUID

import pytest

from services.orchestrator.domain.core import SHARDS
from services.orchestrator.domain.shares import MemberState, share

A, B, C = (UUID(int=at) for at in (1, 2, 3))


def member(at: UUID, shards: range, *, live: bool = True, address: str = "here") -> MemberState:
    return MemberState(id=at, live=live, address=address, shards=tuple(shards), left_s=10.0)


def looked(members: list[MemberState]) -> list[MemberState]:
    """Every live member looks once and does what follows."""
    for at in range(len(members)):
        if not members[at].live:
            continue
        me = members[at].id
        due = share(me, members)
        have = {each.id: list(each.shards) for each in members}
        free = sorted(set(range(SHARDS)) - {shard for each in have.values() for shard in each})
        have[me] += free[: due.orphans]
        for owner, count in due.resting:
            taken = have[owner][-count:]
            del have[owner][-count:]
            have[me] += taken
        for shard, taker in due.gives:
            have[me].remove(shard)
            have[taker].append(shard)
        members = [replace(each, shards=tuple(have[each.id])) for each in members]
    return members


@pytest.mark.parametrize("seed", range(100))
def test_all_live_members_come_to_have_as_many_or_one_more_and_no_shard_is_left(seed: int) -> None:
    """I9: from any distribution over any members, within a few looks of each."""
    draw = random.Random(seed)
    alive = [draw.random() < 0.7 for _ in range(draw.randint(1, 9))]
    kinds = draw.choices(["owned", "dead"], [draw.random(), 0.5], k=SHARDS)
    skew = draw.randint(1, len(alive))
    members = [member(UUID(int=at + 1), range(0), live=live) for at, live in enumerate(alive)]
    members[0] = replace(members[0], live=True)
    for shard, kind in enumerate(kinds):
        if kind != "dead":
            at = shard % skew
            members[at] = replace(members[at], shards=(*members[at].shards, shard))
    for _ in range(6):
        members = looked(members)
    owned = [shard for each in members for shard in each.shards]
    assert sorted(owned) == list(range(SHARDS))
    live = [len(each.shards) for each in members if each.live]
    assert max(live) - min(live) <= 1
    assert members == looked(members)


def test_nothing_is_given_to_a_member_that_rests_or_is_about_to_end() -> None:
    members = [
        member(A, range(SHARDS)),
        member(B, range(0), live=False),
        member(C, range(0), address=""),
    ]
    assert () == share(A, members).gives


def test_a_live_member_takes_of_one_that_rests_no_more_than_its_own_share() -> None:
    due = share(B, [member(A, range(SHARDS), live=False), member(B, range(0))])
    assert (0, ((A, SHARDS // 2),), ()) == (due.orphans, due.resting, due.gives)
