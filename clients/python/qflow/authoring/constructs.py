"""What stands between nodes: choices, waits, answers from outside, and when something runs."""

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
    """Branches by name, each with its CEL condition; `default` where none holds."""

    KIND: ClassVar = "choice"

    branches: Mapping[str, str]
    default: str


@dataclass(frozen=True, slots=True)
class SleepSpec:
    """A wait of `seconds`, or `until` a moment: whichever is fed."""

    KIND: ClassVar = "sleep"


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """A value that is sent to the run under a name."""

    KIND: ClassVar = "signal"

    name: str
    type: Type
    timeout: timedelta | None
    default: Any
    has_default: bool


@dataclass(frozen=True, slots=True)
class ApprovalSpec:
    """A person's yes or no."""

    KIND: ClassVar = "approval"

    name: str
    timeout: timedelta | None


class Approval(TypedDict):
    """What an approval gives: the answer, who gave it, and what else was said."""

    approved: bool
    comment: str
    approver: str
    reply: Any


@dataclass(frozen=True, slots=True)
class Choice:
    """A choice that stands in the graph: what is called under a branch runs where it is taken."""

    _place: Place
    _names: tuple[str, ...]

    def branch(self, name: str) -> AbstractContextManager[None]:
        """Let the nodes that are called under it run where this branch is taken."""
        if name not in self._names:
            raise AuthoringError(f"the choice has {', '.join(self._names)}, no branch {name!r}")
        return under(Edge("branch", self._place, name))


def choice(
    branches: Mapping[str, str], *, default: str = "", id: str = "choice", **values: Any
) -> Choice:
    """Take the first branch whose CEL condition over the values holds, else the default.

    With `size = qflow.choice({"large": "n > 100"}, default="small", n=count(rows))`, what is called
    under `with size.branch("large"):` runs where there are more than 100.
    """
    graph = needed("a choice")
    ref = graph.add(
        ChoiceSpec(dict(branches), default), id, ("branch",), values, options=Options(id="")
    )
    names = tuple(dict.fromkeys([*branches, *([default] if default else [])]))
    return Choice(place_of(ref), names)


def sleep(seconds: float | timedelta, *, id: str = "sleep") -> object:
    """Wait, durably, for so long; what comes `after` the value waits with it."""
    given = seconds.total_seconds() if isinstance(seconds, timedelta) else seconds
    return needed("a wait").add(SleepSpec(), id, ("result",), {"seconds": given})


def sleep_until(moment: datetime, *, id: str = "sleep") -> object:
    """Wait, durably, until a moment, which has a time zone."""
    if isinstance(moment, datetime) and moment.tzinfo is None:
        raise AuthoringError("the moment to wait for has a time zone")
    return needed("a wait").add(SleepSpec(), id, ("result",), {"until": moment})


_NONE: Any = object()


def signal(
    name: str, type: type[T], *, timeout: timedelta | None = None, default: Any = _NONE
) -> T:
    """Wait for a value that is sent to the run under a name: `client.signal(run, name, value)`."""
    spec = SignalSpec(
        name,
        type_of(type),
        timeout,
        None if default is _NONE else default,
        default is not _NONE,
    )
    return cast("T", needed("a signal").add(spec, name, ("result",), {}))


def approval(name: str, *, subject: Any = None, timeout: timedelta | None = None) -> Approval:
    """Wait for a person to approve or not; the subject is what that person is shown."""
    given = {} if subject is None else {"subject": subject}
    spec = ApprovalSpec(name, timeout)
    return cast("Approval", needed("an approval").add(spec, name, _APPROVAL, given))


def after(*values: object) -> AbstractContextManager[None]:
    """Let the nodes that are called under it wait for these values, without taking them."""
    return under(*(Edge("order", place_of(each)) for each in values))


@contextmanager
def on_failure(value: object) -> Iterator[dict[str, str]]:
    """Let the nodes that are called under it run where that value's place failed for good.

    Gives what it failed with, for an input that takes it: node_id, error_type and message.
    """
    place = place_of(value)
    with under(Edge("failure", place)):
        yield cast("dict[str, str]", Ref(place, ("error",)))


@contextmanager
def finally_() -> Iterator[None]:
    """Let the nodes that are called under it run after everything else, whatever happened."""
    graph = needed("finally")
    before, graph.in_finally = graph.in_finally, True
    try:
        yield
    finally:
        graph.in_finally = before
