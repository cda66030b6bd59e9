"""Workflows of any shape, written as a user writes them; the same number is the same workflow.

Every input takes None, so that hardly any of them is refused; what they give depends on nothing
but their input, so that they give it again wherever and however often they run.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, cast

import qflow
from qflow.authoring.constructs import SignalSpec
from qflow.authoring.workflow import Workflow

WORD: Final = "word"  # the signal that they wait for
_SIZES: Final = (2, 4, 6, 9, 12)
_CONDITIONS: Final = ("x == null || x != 2", "x != null", "x == null || x > 1")


@qflow.node(name="any flow: more")
def more(x: int | None) -> int:
    return -1 if x is None else x + 1


@qflow.node(name="any flow: even")
def even(x: int | None) -> int:
    if x is not None and x % 2:
        raise ValueError(f"{x} is odd")
    return x or 0


@qflow.node(name="any flow: add")
def add(x: int | None, y: int | None = 5) -> int:
    return (x or 0) + (100 if y is None else y)


@qflow.node(name="any flow: none")
def none(x: int | None) -> int | None:
    return x if x is not None and x % 3 else None


@qflow.node(name="any flow: numbers")
def numbers(x: int | None) -> list[int]:
    return list(range(abs(x or 0) % 5))


@qflow.node(name="any flow: total")
def total(xs: list[int | None] | None) -> int:
    return -7 if xs is None else sum(-100 if x is None else x for x in xs)


@qflow.node(name="any flow: told")
def told(error: dict[str, str] | None) -> int:
    return 0 if error is None else len(error["node_id"] + error["error_type"])


@qflow.node(name="any flow: less")
def less(x: int | None, by: int = 1) -> int:
    return (x or 0) - by


def any_flow(number: int) -> Workflow[[int], Any]:
    """Give one of the workflows; its outputs are all that nothing in it reads."""
    drawing = _Drawing(random.Random(f"any flow {number}"))

    @qflow.workflow(name=f"any flow {number}")
    def flow(x: int) -> Any:
        return drawing.draw(x)

    return flow


def waits(flow: Workflow[[int], Any]) -> int:
    """Say how many signals it waits for at most."""
    return sum(isinstance(place.runs, SignalSpec) for place in flow.graph.places)


@dataclass(slots=True)
class _Drawing:
    """A workflow that grows step by step: what it has so far, and what of that is read."""

    chance: random.Random
    depth: int = 0
    given: list[Any] = field(default_factory=list)  # numbers, or None
    made: list[Any] = field(default_factory=list)  # of those: what a place gave
    unread: dict[int, Any] = field(default_factory=dict)

    def draw(self, x: Any) -> Any:
        """Call nodes and whatever stands between them; gives the outputs."""
        self.given, self.made, self.unread = [x], [], {}
        for _ in range(self.chance.choice(_SIZES)):
            self._step()
        if self.chance.random() < 0.3 and not self.depth:
            with qflow.finally_():
                more(self._value())
        outputs = list(self.unread.values()) or [self._put(more(x))]
        if len(outputs) == 1:
            return outputs[0]
        return {f"o{at}": each for at, each in enumerate(outputs)}

    def _step(self) -> None:
        kinds: list[tuple[Callable[[], None], int]] = [
            (self._node, 9),
            (self._map, 4),
            (self._choice, 3),
            (self._loop, 2),
            (self._behind, 4),
            (self._signal, 0 if self.depth else 1),
            (self._sub, 0 if self.depth else 2),
        ]
        steps, weights = zip(*kinds, strict=True)
        self.chance.choices(steps, weights)[0]()

    def _put(self, ref: Any) -> Any:
        self.given.append(ref)
        self.made.append(ref)
        self.unread[id(ref)] = ref
        return ref

    def _read(self, refs: list[Any]) -> Any:
        fresh = [each for each in refs if id(each) in self.unread]
        ref = self.chance.choice(fresh if fresh and self.chance.random() < 0.6 else refs)
        self.unread.pop(id(ref), None)
        return ref

    def _value(self) -> Any:
        literal = self.chance.random() < 0.1
        return self.chance.choice((1, 2, 6)) if literal else self._read(self.given)

    def _options(self, *, condition: bool = True) -> dict[str, Any]:
        chance, found = self.chance, dict[str, Any]()
        if chance.random() < 0.15:
            found["join"] = "all_done"  # what waits for less depends on who is quicker
        if condition and chance.random() < 0.15:
            found["condition"] = chance.choice(_CONDITIONS)
        if chance.random() < 0.2:
            found["continue_on_failure"] = True
        return found

    def _node(self) -> None:
        which = self.chance.choice((more, even, even, add, none))
        self._put(which.options(**self._options())(self._read(self.given)))

    def _map(self) -> None:
        failed = self.chance.choice((None, 1, 3))
        goes_on = self.chance.random() < 0.2
        each = even.each(max_failed=failed).options(continue_on_failure=goes_on)
        mapped: Any = each.map(cast("Any", numbers(self._value())))
        self._put(total.options(**self._options(condition=False))(mapped))

    def _choice(self) -> None:
        default = self.chance.choice(("", "rest"))
        branches = {"big": "n != null && n > 4", "small": "n == null || n < 2"}
        made = qflow.choice(branches, default=default, n=self._value())
        for name in self.chance.sample([*branches, *filter(None, [default])], 2):
            with made.branch(name):
                self._step()

    def _loop(self) -> None:
        chance = self.chance
        again = less.repeat(
            while_=chance.choice(("result > 2", "turn < 3", "result > 2 && turn < 4")),
            max_turns=chance.choice((1, 3, 5)),
            carry={"x": "result"},
            fail_at_max=chance.random() < 0.3,
        )
        self._put(again.options(**self._options(condition=False))(self._value()))

    def _behind(self) -> None:
        """Call something after a place, or after its failure."""
        source = self.chance.choice(self.made) if self.made else qflow.sleep(0.01)
        if not self.made or self.chance.random() < 0.3:
            with qflow.after(source):
                self._step()
            return
        with qflow.on_failure(source) as error, self._besides():
            if self.chance.random() < 0.5:
                self._put(told(error))
            else:
                self._step()

    def _besides(self) -> AbstractContextManager[None]:
        wanted = self.chance.random() < 0.3
        return qflow.after(self.chance.choice(self.made)) if wanted else nullcontext()

    def _signal(self) -> None:
        self._put(qflow.signal(WORD, int))

    def _sub(self) -> None:
        inner = _Drawing(self.chance, self.depth + 1)

        @qflow.workflow(name=f"any flow inner {self.chance.random()}")
        def sub(x: int | None) -> Any:
            return inner.draw(x)

        ref = sub(self._value())
        outputs = list(sub.graph.outputs)
        for name in outputs:
            self._put(ref if len(outputs) == 1 else ref[name])
