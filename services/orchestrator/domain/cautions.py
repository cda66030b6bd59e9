"""Warnings about a planned run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple
from uuid import UUID

from services.orchestrator.domain.forecast import NO_PAST, History, Past, Times
from services.orchestrator.domain.plan import Kind, Place

_NAMES_MAX: Final = 10
# With fewer samples than this, history proves little.
_ENOUGH: Final = 4


class CautionCause(StrEnum):
    """The kinds of warnings, most severe first."""

    ENVIRONMENT_FAILED = "environment_failed"
    NO_RUNNER = "no_runner"
    DEADLINE_SHORT = "deadline_short"
    NODE_TIMEOUT_SHORT = "node_timeout_short"
    NODE_FAILS_OFTEN = "node_fails_often"
    ENVIRONMENT_PENDING = "environment_pending"
    ENVIRONMENT_TO_BUILD = "environment_to_build"
    RUNNERS_FULL = "runners_full"
    WAITS_FOR_PEOPLE = "waits_for_people"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """A warning, with some of the nodes concerned."""

    cause: CautionCause
    message: str
    action: str = ""
    nodes: tuple[str, ...] = ()
    node_count: int = 0


class Environment(StrEnum):
    """The state of the environment of a node version."""

    NOT_NEEDED = "not_needed"
    READY = "ready"
    BUILDING = "building"
    TO_BUILD = "to_build"
    PENDING = "pending"
    FAILED = "failed"


_BY_LOCK: Final = {
    "none": Environment.NOT_NEEDED,
    "pending": Environment.PENDING,
    "failed": Environment.FAILED,
}
_BUILT: Final = {
    "ready": Environment.READY,
    "building": Environment.BUILDING,
    "failed": Environment.FAILED,
}


def environment_of(lock_state: str, environment_state: str | None) -> Environment:
    """Return the state of an environment from the states of its lock and of its build."""
    by_lock = _BY_LOCK.get(lock_state)
    if by_lock is not None:
        return by_lock
    return _BUILT.get(environment_state or "", Environment.TO_BUILD)


class PythonSeats(NamedTuple):
    """How many runners have a Python version, and their slots."""

    python_version: str
    runners: int
    slots: int
    free: int


class Named(NamedTuple):
    """A place and its name; within sub-workflows, prefixed by their path."""

    name: str
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of a planned run."""

    places: Sequence[Named]
    environments: Mapping[UUID, Environment]
    history: History
    total: Times | None
    timeout_ms: int | None
    pythons: Sequence[PythonSeats]
    runners: int  # attached, with any Python

    def attempts(self, place: Place) -> Past:
        """Return the statistics of past attempts at a place's version."""
        return self.history.get((place.node_version_id, None), NO_PAST)


def cautions(outlook: Outlook) -> list[Caution]:
    """Return the warnings about a run, most severe first."""
    found = [*_environments(outlook), *_runners(outlook), *_deadline(outlook), *_nodes(outlook)]
    order = list(CautionCause)
    return sorted(found, key=lambda each: order.index(each.cause))


def _environments(outlook: Outlook) -> Iterator[Caution]:
    for cause, environment, said, action in (
        (
            CautionCause.ENVIRONMENT_FAILED,
            Environment.FAILED,
            "their requirements cannot be met, or their environments could not be built",
            "correct the requirements: node_versions says what is wrong with them",
        ),
        (
            CautionCause.ENVIRONMENT_PENDING,
            Environment.PENDING,
            "their environments are not resolved yet, and the run would wait for that",
            "wait; GetNode shows how far their locks are",
        ),
        (
            CautionCause.ENVIRONMENT_TO_BUILD,
            Environment.TO_BUILD,
            "their environments are built before they run for the first time",
            "",
        ),
    ):
        names = _names(
            outlook,
            lambda place, wanted=environment: (  # type: ignore[misc]
                outlook.environments.get(place.node_version_id) is wanted
            ),
        )
        if names:
            yield _about(cause, names, said, action)


def _runners(outlook: Outlook) -> Iterator[Caution]:
    if not outlook.pythons:
        return
    if not outlook.runners:
        names = _names(outlook, lambda _: True)
        if names:
            yield _about(CautionCause.NO_RUNNER, names, "no runner is attached", "start a runner")
        return
    full = {each.python_version for each in outlook.pythons if each.runners and not each.free}
    names = _names(outlook, lambda place: place.python_version in full)
    if names:
        said = "every runner that could take them is full now"
        action = "wait, add a runner, or start with a higher priority"
        yield _about(CautionCause.RUNNERS_FULL, names, said, action)


def _deadline(outlook: Outlook) -> Iterator[Caution]:
    total, limit_ms = outlook.total, outlook.timeout_ms
    if total is None or limit_ms is None or total.p90_us <= limit_ms * 1000:
        return
    likely = "probably" if total.median_us > limit_ms * 1000 else "perhaps"
    said = (
        f"the run may take {limit_ms / 1000:g} s and will {likely} take longer: "
        f"{total.median_us / 1e6:.3g} s by medians, {total.p90_us / 1e6:.3g} s in bad cases"
    )
    action = "give it more time: the start's timeout, or the workflow's"
    yield Caution(cause=CautionCause.DEADLINE_SHORT, message=said, action=action)


def _nodes(outlook: Outlook) -> Iterator[Caution]:
    def is_short(place: Place) -> bool:
        times = outlook.attempts(place).times
        return times is not None and times.p90_us > place.timeout_ms * 1000

    def fails_often(place: Place) -> bool:
        past = outlook.attempts(place)
        return past.ended >= _ENOUGH and past.failed * 2 > past.ended

    names = _names(outlook, is_short)
    if names:
        said = "one in ten of their last attempts took longer than they may take here"
        action = "give them a longer timeout"
        yield _about(CautionCause.NODE_TIMEOUT_SHORT, names, said, action)
    names = _names(outlook, fails_often)
    if names:
        said = "they failed in more than half of their last runs"
        action = "see why: ListNodeExecutions of a run that failed has their errors"
        yield _about(CautionCause.NODE_FAILS_OFTEN, names, said, action)
    waits = [each.name for each in outlook.places if each.place.wait is not None]
    if waits:
        said = "they wait for a signal or an approval"
        action = (
            "be ready to call SendSignal or AnswerApproval; without a timeout they wait for ever"
        )
        yield _about(CautionCause.WAITS_FOR_PEOPLE, waits, said, action)


def _names(outlook: Outlook, holds: Callable[[Place], bool]) -> list[str]:
    return [
        each.name for each in outlook.places if each.place.kind is Kind.PYTHON and holds(each.place)
    ]


def _about(cause: CautionCause, names: Sequence[str], message: str, action: str) -> Caution:
    return Caution(
        cause=cause,
        message=message,
        action=action,
        nodes=tuple(names[:_NAMES_MAX]),
        node_count=len(names),
    )
