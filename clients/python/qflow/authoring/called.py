"""What workflows call: nodes and other workflows. Each call adds a place to the graph."""

from __future__ import annotations

import copy
import inspect
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast

from qflow.authoring.graph import Each, Graph, Options, Repeat, needed
from qflow.authoring.refs import Ref
from qflow.exceptions import AuthoringError
from qflow.types import Type

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Q = ParamSpec("Q")


@dataclass(frozen=True, slots=True)
class Port:
    """An input of a node or a workflow."""

    name: str
    type: Type
    required: bool


class Called(ABC, Generic[P, R]):
    """A function that workflows can call, and how its place runs."""

    def __init__(
        self, function: Callable[P, Any], *, name: str, description: str, options: Options | None
    ) -> None:
        self.function = function
        self.name = name or function.__name__
        self.description = description
        self.default_options = options or Options()
        self._each: Each | None = None
        self._repeat: Repeat | None = None
        self._compensates: Ref | None = None
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__wrapped__ = function

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Port]:
        """The inputs by name, in the order of the signature."""

    @abstractmethod
    def output_names(self) -> Iterable[str]:
        """Return the names of the outputs, in order."""

    def map(
        self: Called[Concatenate[T, Q], R],
        items: list[T],
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> list[R]:
        """Add a map: a call for each element of a list, as the first argument; returns a list.

        `square.map(numbers)`; `.each(...)` sets how many run at once and how many may fail. Element
        types are checked by the registry and by local runs, not by type checkers.
        """
        graph = needed("a map")
        self._refuse_first(kwargs)
        given = self.bind(items, *args, **kwargs)  # type: ignore[arg-type]  # each takes an element
        each = replace(self._each or Each(""), input=next(iter(given)))
        return cast("list[R]", self._place(graph, given, each))

    def each(self, *, max_in_flight: int | None = None, max_failed: int | None = None) -> Self:
        """Return a copy whose `map` has these limits."""
        return self._copy(_each=Each("", max_in_flight, max_failed))

    def repeat(
        self,
        *,
        while_: str,
        max_turns: int,
        carry: Mapping[str, str],
        fail_at_max: bool = False,
    ) -> Self:
        """Return a copy that repeats while a CEL condition over its outputs and `turn` holds.

        `carry` maps inputs to outputs of the previous turn.
        """
        return self._copy(_repeat=Repeat(while_, max_turns, dict(carry), fail_at_max))

    def undoes(self, value: object) -> Self:
        """Return a copy that compensates the node of a value, if the run fails after it."""
        if not isinstance(value, Ref):
            raise AuthoringError(f"{self.name} can undo the place of a value, not {value!r}")
        return self._copy(_compensates=value)

    def options(self, **changes: Any) -> Self:
        """Return a copy with these `Options`."""
        return self._copy(default_options=self.default_options.but(**changes))

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """Return the arguments by name; raises AuthoringError if the signature does not match."""
        try:
            return dict(self.signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise AuthoringError(f"{self.name}: {error}") from None

    def _refuse_first(self, named: Mapping[str, Any]) -> None:
        """Raise AuthoringError if a map is given its first parameter by name."""
        first = next(iter(self.signature.parameters), "")
        if first in named:
            raise AuthoringError(
                f"{self.name}.map: its first parameter, {first}, takes the elements of the list, "
                f"so {first}= is one too many: let the parameter that takes them stand first"
            )

    @cached_property
    def signature(self) -> inspect.Signature:
        """The signature of the function."""
        return inspect.signature(self.function)

    @cached_property
    def hints(self) -> Mapping[str, Any]:
        """The evaluated annotations of the function."""
        try:
            return typing.get_type_hints(self.function, include_extras=True)
        except Exception as error:  # annotations may raise anything
            raise AuthoringError(f"{self.name}: an annotation has no meaning: {error}") from error

    def _place(self, graph: Graph, given: Mapping[str, Any], each: Each | None) -> Ref:
        return graph.add(
            self,
            self.function.__name__,
            tuple(self.output_names()),
            given,
            options=self.default_options,
            each=each,
            repeat=self._repeat,
            compensates=self._compensates,
        )

    def _copy(self, **changes: Any) -> Self:
        made = copy.copy(self)
        for name, value in changes.items():
            setattr(made, name, value)
        return made
