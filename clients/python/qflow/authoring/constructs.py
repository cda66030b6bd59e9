"""Constructs around nodes: choices, waits, signals and approvals, ordering, failures, finally."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, TypedDict, TypeVar, cast

from qflow.authoring.annotations import type_of
from qflow.authoring.graph import Edge, Options, Place, needed, under
from qflow.authoring.refs import Ref, place_of
from qflow.exceptions import AuthoringError
from qflow.types import Type

T = TypeVar("T")
_APPROVAL: Final = ("approved", "comment", "approver", "reply")


@dataclass(frozen=True, slots=True)
class ChoiceSpec:
    """CEL conditions by branch; `default` is taken if none holds."""

    KIND: ClassVar = "choice"

    branches: Mapping[str, str]
    default: str


@dataclass(frozen=True, slots=True)
class SleepSpec:
    """A wait for `seconds` or `until` a moment, whichever is given."""

    KIND: ClassVar = "sleep"


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """A wait for a signal with a name."""

    KIND: ClassVar = "signal"

    name: str
    type: Type
    timeout: timedelta | None
    default: Any
    has_default: bool


@dataclass(frozen=True, slots=True)
class ApprovalSpec:
    """A wait for an approval."""

    KIND: ClassVar = "approval"

    name: str
    timeout: timedelta | None


class Approval(TypedDict):
    """The output of an approval."""

    approved: bool
    comment: str
    approver: str
    reply: Any


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice in the graph, whose branches are context managers."""

    _place: Place
    _names: tuple[str, ...]

    def branch(self, name: str) -> AbstractContextManager[None]:
        """Run the nodes called in the block only if this branch is taken."""
        if name not in self._names:
            raise AuthoringError(f"the choice has {', '.join(self._names)}, no branch {name!r}")
        return under(Edge("branch", self._place, name))


def choice(
    branches: Mapping[str, str], *, default: str = "", id: str = "choice", **values: Any
) -> Choice:
    """Add a choice: it takes the first branch whose CEL condition holds, else the default.

    With `size = qflow.choice({"large": "n > 100"}, default="small", n=count(rows))`, nodes called
    in `with size.branch("large"):` run only if there are more than 100 rows.
    """
    graph = needed("a choice")
    ref = graph.add(
        ChoiceSpec(dict(branches), default), id, ("branch",), values, options=Options(id="")
    )
    names = tuple(dict.fromkeys([*branches, *([default] if default else [])]))
    return Choice(place_of(ref), names)


def sleep(seconds: float | timedelta, *, id: str = "sleep") -> object:
    """Add a durable wait; nodes called `after` its value wait for it."""
    given = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    return needed("a wait").add(SleepSpec(), id, ("result",), {"seconds": given})


def sleep_until(moment: datetime, *, id: str = "sleep") -> object:
    """Add a durable wait until a moment, which must have a time zone."""
    if isinstance(moment, datetime) and moment.tzinfo is None:
        raise AuthoringError("the moment to wait for has a time zone")
    return needed("a wait").add(SleepSpec(), id, ("result",), {"until": moment})


_NONE: Any = object()


def signal(
    name: str, type: type[T], *, timeout: timedelta | None = None, default: Any = _NONE
) -> T:
    """Add a wait for a signal, sent with `run.signal(name, value)`; returns the sent value."""
    spec = SignalSpec(
        name,
        type_of(type),
        timeout,
        None if default is _NONE else default,
        default is not _NONE,
    )
    return cast("T", needed("a signal").add(spec, name, ("result",), {}))


def approval(name: str, *, subject: Any = None, timeout: timedelta | None = None) -> Approval:
    """Add a wait for an approval; the subject is shown to the approver."""
    given = {} if subject is None else {"subject": subject}
    spec = ApprovalSpec(name, timeout)
    return cast("Approval", needed("an approval").add(spec, name, _APPROVAL, given))


def after(*values: object) -> AbstractContextManager[None]:
    """Run the nodes called in the block after these values are there, without using them."""
    return under(*(Edge("order", place_of(each)) for each in values))


@contextmanager
def on_failure(value: object) -> Iterator[dict[str, str]]:
    """Run the nodes called in the block only if the node of that value failed for good.

    Yields the failure, which can be an input: node_id, error_type and message.
    """
    place = place_of(value)
    with under(Edge("failure", place)):
        yield cast("dict[str, str]", Ref(place, ("error",)))


@contextmanager
def finally_() -> Iterator[None]:
    """Run the nodes called in the block after everything else, whatever the outcome."""
    graph = needed("finally")
    before, graph.in_finally = graph.in_finally, True
    try:
        yield
    finally:
        graph.in_finally = before
