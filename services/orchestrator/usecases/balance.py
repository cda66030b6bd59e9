"""Distributes the shards evenly among the live members."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import structlog

from services.orchestrator.domain.core import SHARDS
from services.orchestrator.domain.shares import MemberState, share
from services.orchestrator.engine.engine import Engine

log = structlog.get_logger()

_JOIN_POLL_S: Final = 0.2
_SAFETY_S: Final = 60.0
_AGAIN_S: Final = 1.0
_LOOK_MIN_S: Final = 1.0
_AFTER_S: Final = 0.05  # after the end of a lease, by the database's clock


async def begin(engine: Engine) -> None:
    """Join the members, wait for a share of the shards, and load it.

    Shards of a dead member are free once its lease has expired; live members hand some over.
    """
    member = engine.member
    await member.join()
    waiting = False
    while not member.owned:
        await _take(engine, await member.survey())
        if member.owned:
            break
        if not waiting:
            waiting = True
            log.info("waiting_for_shards")
        await asyncio.sleep(_JOIN_POLL_S)
        await member.renew()
        await member.read_owned()
    await engine.begin()


async def look(engine: Engine) -> float:
    """Survey the members once and act on it; returns the seconds until the next survey.

    Raises `FencedError` if another member took over from this one.
    """
    member = engine.member
    was_live = member.live
    found = await member.survey()
    if was_live and member.live:  # others took none, but may have handed some over
        member.owned = frozenset(_of(member.id, found).shards)
    engine.meet({each.id: each.address for each in found if each.id != member.id and each.staying})
    orphans = SHARDS - sum(len(each.shards) for each in found)
    if orphans and not member.live:
        await engine.wake()
    left = await _take(engine, found) if member.live else 0
    new = member.owned - engine.shards.ready
    if new:
        await engine.take_in(new)
    refused = member.live and await _give(engine, found)
    return _AGAIN_S if refused or left else _next_look_s(member.id, found)


async def hand_over(engine: Engine) -> None:
    """Hand every shard to live members, one by one; the last member keeps its shards."""
    member = engine.member
    if not engine.shards.peers:
        return
    await member.leave()
    found = [
        each
        for each in await member.survey()
        if each.live and each.address and each.id != member.id
    ]
    if not found or not member.live:
        return
    engine.shards.closing = True
    have = {each.id: len(each.shards) for each in found}
    for shard in sorted(member.owned):
        poorest = min(have, key=lambda each: (have[each], each))
        if await engine.release(shard, poorest):
            have[poorest] += 1
    log.info("shards_handed_over", left=len(member.owned))


async def _take(engine: Engine, found: Sequence[MemberState]) -> int:
    """Take shards without an owner and surplus ones of idle members; returns what is left."""
    member = engine.member
    due = share(member.id, found)
    before = len(member.owned)
    if due.orphans:
        await member.take_orphans(due.orphans)
    taken = len(member.owned) - before
    for owner, count in due.resting:
        await member.take_of_resting(owner, count)
    if len(member.owned) > before:
        log.info("shards_taken", shards=len(member.owned) - before)
    return SHARDS - sum(len(each.shards) for each in found) - taken


async def _give(engine: Engine, found: Sequence[MemberState]) -> bool:
    """Hand over surplus shards; returns whether any could not be handed over."""
    given = refused = 0
    for shard, taker in share(engine.member.id, found).gives:
        if shard not in engine.shards.ready:
            continue
        if await engine.release(shard, taker):
            given += 1
        else:
            refused += 1
    if given:
        log.info("shards_given", shards=given)
    return refused > 0


def _of(member_id: UUID, found: Sequence[MemberState]) -> MemberState:
    return next(each for each in found if each.id == member_id)


def _next_look_s(member_id: UUID, found: Sequence[MemberState]) -> float:
    """Return the seconds until another member's lease ends; changes are notified before that."""
    ends = [each.left_s for each in found if each.live and each.id != member_id]
    return max(min(ends) + _AFTER_S, _LOOK_MIN_S) if ends else _SAFETY_S
