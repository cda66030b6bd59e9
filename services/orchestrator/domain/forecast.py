"""Predicts how long a run takes: its longest path, from recent durations of its nodes."""

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
    """Durations in microseconds: the median and the 90th percentile."""

    median_us: float
    p90_us: float


NO_TIME: Final = Times(0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """Statistics of recent attempts or runs."""

    times: Times | None = None  # of completed ones
    samples: int = 0  # how many completed
    ended: int = 0  # how many ended, including failed ones
    failed: int = 0


NO_PAST: Final = Past()
_AT_ONCE: Final = Past(times=NO_TIME)
PlanKey: TypeAlias = tuple[UUID | None, int | None]
# Places whose results are in the cache, by workflow version.
Hits: TypeAlias = Mapping[PlanKey, Collection[int]]
NO_HITS: Final[Hits] = {}
# By node version and place: with None its attempts, with a place that place as a whole.
History: TypeAlias = Mapping[tuple[UUID, str | None], Past]


class Role(StrEnum):
    """In which phase of a run a place is expected to run."""

    MAIN = "main"
    ON_FAILURE = "on_failure"
    COMPENSATION = "compensation"
    FINALLY = "finally"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A prediction for a run of a plan. Sequences are indexed by place."""

    roles: Sequence[Role]
    past: Sequence[Past]  # of each place as a whole; without times if unknown
    path: tuple[int, ...]  # the places of the longest path
    total: Times | None  # of the longest path; None if unknown
    work: Times  # the sum over all places
    unknown: int  # how many places have no known duration


def forecasts(plans: Iterable[Plan], history: History, hits: Hits = NO_HITS) -> list[Forecast]:
    """Return a prediction for a run of each plan, computed once per plan.

    A result from the cache takes no time.
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
    """Return the phase of each place; those reached by failures only are not expected to run."""
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
    """Return what is known of a place as a whole."""
    if place.kind in (Kind.CHOICE, Kind.SIGNAL, Kind.APPROVAL):
        return _AT_ONCE  # or as long as people take, which is reported separately
    if place.kind is Kind.SLEEP and not place.grouped:
        seconds = _literal_seconds(place)
        if seconds is not None:
            return Past(times=Times(seconds * 1e6, seconds * 1e6))
    whole = place.grouped or place.kind is not Kind.PYTHON
    found = history.get((place.node_version_id, place.id if whole else None), NO_PAST)
    if place.sub is not None and sub is not None and not place.grouped:
        cached = sub.total is not None and hits.get(key_of(place.sub))
        if found.times is None or cached:  # its past runs had no cached results
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
    """Return the path with the largest sum of medians, and the largest sums."""
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
    before: dict[int, int] = {}  # the predecessor on the longest path to a place
    starts = dict.fromkeys(places, NO_TIME)  # when a place can start
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
    """Return the key of a plan: its workflow and version."""
    return plan.workflow_id, plan.workflow_version


def within(total: Times | None, work: Times, slots: int) -> Times | None:
    """Return the duration on so many slots: at least the work divided by their number."""
    if total is None or not slots:
        return total
    return Times(
        max(total.median_us, work.median_us / slots), max(total.p90_us, work.p90_us / slots)
    )


def distinct(plan: Plan) -> list[tuple[str, Plan]]:
    """Return a plan and its sub-workflows, each version once, with the path to it."""
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
