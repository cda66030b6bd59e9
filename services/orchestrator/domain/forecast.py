"""How long a run may take: its longest path, by what its nodes took lately."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias
from uuid import UUID

from services.orchestrator.domain.plan import FROM_LITERAL, Kind, Phase, Place, Plan


class Times(NamedTuple):
    """How long something takes: half of the times, and nine in ten, are shorter."""

    median_us: float
    p90_us: float


NO_TIME: Final = Times(0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """How something went the last times."""

    times: Times | None = None  # of those that completed
    samples: int = 0  # how many completed
    ended: int = 0  # how many there are, failed ones too
    failed: int = 0


NO_PAST: Final = Past()
_AT_ONCE: Final = Past(times=NO_TIME)
PlanKey: TypeAlias = tuple[UUID | None, int | None]
# By workflow version: the places whose results are in the cache.
Hits: TypeAlias = Mapping[PlanKey, Collection[int]]
NO_HITS: Final[Hits] = {}
# By node version: under None its attempts, under a place what that took as a whole.
History: TypeAlias = Mapping[tuple[UUID, str | None], Past]


class Role(StrEnum):
    """When a place has its turn."""

    MAIN = "main"
    ON_FAILURE = "on_failure"
    COMPENSATION = "compensation"
    FINALLY = "finally"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is expected of a run of a plan. Sequences are indexed by place."""

    roles: Sequence[Role]
    past: Sequence[Past]  # of a place as a whole; without times where nothing is known
    path: tuple[int, ...]  # the places that take longest, one after the other
    total: Times | None  # of the longest path; None where nothing is known
    work: Times  # of all places one after the other
    unknown: int  # how many places are in none of these


def forecasts(plans: Iterable[Plan], history: History, hits: Hits = NO_HITS) -> list[Forecast]:
    """Say what to expect of a run of each of these plans; each is looked at once.

    What is taken from the cache takes no time.
    """
    known: dict[PlanKey, Forecast] = {}
    return [_forecast(plan, history, hits, known) for plan in plans]


def _forecast(
    plan: Plan, history: History, all_hits: Hits, known: dict[PlanKey, Forecast]
) -> Forecast:
    key = key_of(plan)
    if key in known:
        return known[key]
    roles = roles_of(plan)
    hits = all_hits.get(key, ())
    subs = [
        None if each.sub is None else _forecast(each.sub, history, all_hits, known)
        for each in plan.places
    ]
    shown = [
        _past_of(each, sub, history, all_hits) for each, sub in zip(plan.places, subs, strict=True)
    ]
    past = [_AT_ONCE if at in hits else each for at, each in enumerate(shown)]
    expected = [at for at, role in enumerate(roles) if role in (Role.MAIN, Role.FINALLY)]
    unknown = 0
    work = NO_TIME
    for at in expected:
        sub = None if plan.places[at].grouped else subs[at]
        if past[at].samples == 0 and sub is not None:
            unknown += sub.unknown
            work = _sum(work, sub.work)
        elif past[at].times is None:
            unknown += 1
        elif plan.places[at].kind is not Kind.SLEEP:
            work = _sum(work, past[at].times if sub is None else sub.work)
    timed = any(
        past[at].times is not None and at not in hits and _takes_time(plan.places[at])
        for at in expected
    )
    path, total = _longest(plan, roles, past)
    known[key] = Forecast(
        roles=roles,
        past=shown,
        path=tuple(at for at in path if at not in hits) if timed else (),
        total=total if timed or not unknown else None,
        work=work,
        unknown=unknown,
    )
    return known[key]


def _takes_time(place: Place) -> bool:
    return place.kind in (Kind.PYTHON, Kind.SLEEP, Kind.WORKFLOW)


def _sum(one: Times, other: Times | None) -> Times:
    if other is None:
        return one
    return Times(one.median_us + other.median_us, one.p90_us + other.p90_us)


def roles_of(plan: Plan) -> list[Role]:
    """Say when each place has its turn; what only failures lead to is not expected to run."""
    roles = [_LATER.get(place.phase, Role.ON_FAILURE) for place in plan.places]
    waiting = list(plan.roots)
    for at in waiting:
        roles[at] = Role.MAIN
    while waiting:
        for link in plan.links[waiting.pop()]:
            expected = (link.done or link.branches) and not plan.places[link.child].rescues
            if expected and roles[link.child] is Role.ON_FAILURE:
                roles[link.child] = Role.MAIN
                waiting.append(link.child)
    return roles


_LATER: Final[Mapping[Phase, Role]] = {
    Phase.COMPENSATION: Role.COMPENSATION,
    Phase.FINALLY: Role.FINALLY,
}


def _past_of(place: Place, sub: Forecast | None, history: History, hits: Hits) -> Past:
    """Say what is known of a place as a whole."""
    if place.kind in (Kind.CHOICE, Kind.SIGNAL, Kind.APPROVAL):
        return _AT_ONCE  # or as long as people take, which is told apart
    if place.kind is Kind.SLEEP and not place.grouped:
        seconds = _literal_seconds(place)
        if seconds is not None:
            return Past(times=Times(seconds * 1e6, seconds * 1e6))
    whole = place.grouped or place.kind is not Kind.PYTHON
    found = history.get((place.node_version_id, place.id if whole else None), NO_PAST)
    if place.sub is not None and sub is not None and not place.grouped:
        cached = sub.total is not None and hits.get(key_of(place.sub))
        if found.times is None or cached:  # its past runs did not have what the cache has
            return Past(times=sub.total)
    return found


def _literal_seconds(place: Place) -> float | None:
    for each in place.inputs:
        if each.name == "seconds" and each.source == FROM_LITERAL:
            value = json.loads(each.literal)
            return max(0.0, float(value)) if isinstance(value, int | float) else None
    return None


def _longest(
    plan: Plan, roles: Sequence[Role], past: Sequence[Past]
) -> tuple[tuple[int, ...], Times]:
    """Give the path with the largest sum of medians, and the largest sums there are."""
    path: tuple[int, ...] = ()
    total = NO_TIME
    for role in (Role.MAIN, Role.FINALLY):
        places = [at for at, each in enumerate(roles) if each is role]
        found, times = _longest_among(plan, places, past)
        path += found
        total = _sum(total, times)
    return path, total


def _longest_among(
    plan: Plan, places: Sequence[int], past: Sequence[Past]
) -> tuple[tuple[int, ...], Times]:
    among = set(places)
    children = {at: [each for each in plan.children[at] if each in among] for at in places}
    open_parents = Counter(child for each in children.values() for child in each)
    before: dict[int, int] = {}  # the place that a path comes from
    starts = dict.fromkeys(places, NO_TIME)  # by what came before
    ends: dict[int, Times] = {}
    ready = [at for at in places if not open_parents[at]]
    while ready:
        at = ready.pop()
        ends[at] = end = _sum(starts[at], past[at].times)
        for child in children[at]:
            start = starts[child]
            if child not in before or end.median_us > start.median_us:
                before[child] = at
            starts[child] = Times(*map(max, end, start))
            open_parents[child] -= 1
            if not open_parents[child]:
                ready.append(child)
    if not ends:
        return (), NO_TIME
    path = [max(ends, key=lambda at: ends[at].median_us)]
    while path[-1] in before:
        path.append(before[path[-1]])
    longest_p90 = max(each.p90_us for each in ends.values())
    return tuple(reversed(path)), Times(ends[path[0]].median_us, longest_p90)


def key_of(plan: Plan) -> PlanKey:
    """Name a workflow's version."""
    return plan.workflow_id, plan.workflow_version


def within(total: Times | None, work: Times, slots: int) -> Times | None:
    """Say how long a run takes on so many slots: no less than its work spread over all of them."""
    if total is None or not slots:
        return total
    return Times(
        max(total.median_us, work.median_us / slots), max(total.p90_us, work.p90_us / slots)
    )


def distinct(plan: Plan) -> list[tuple[str, Plan]]:
    """Give a plan and the sub-workflows in it, each version once, with the way to it."""
    found: dict[PlanKey, tuple[str, Plan]] = {}
    waiting: list[tuple[str, Plan]] = [("", plan)]
    for way, each in waiting:
        key = key_of(each)
        if key in found:
            continue
        found[key] = (way, each)
        waiting += [(f"{way}{place.id}/", sub) for place, sub in _subs(each.places)]
    return list(found.values())


def _subs(places: Iterable[Place]) -> Iterable[tuple[Place, Plan]]:
    for place in places:
        if place.sub is not None:
            yield place, place.sub
