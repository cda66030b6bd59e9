"""Nodes: plain annotated functions that workflows call, and that can be stored."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from qflow.authoring.annotations import type_of
from qflow.authoring.graph import Each, Options, Repeat, current, needed
from qflow.authoring.refs import Ref
from qflow.authoring.source import node_source
from qflow.exceptions import AuthoringError
from qflow.types import ANY, Record, Type

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Q = ParamSpec("Q")


@dataclass(frozen=True, slots=True)
class Port:
    """An input of a node."""

    name: str
    type: Type
    required: bool


class Node(Generic[P, R]):
    """A function that workflows can call.

    Called while a workflow is built, it adds a place and returns a ref of its value. To a type
    checker that is the value itself, so that a wrong edge is an error in the editor. Called
    anywhere else, it calls the function.
    """

    def __init__(
        self,
        function: Callable[P, Any],
        *,
        name: str = "",
        description: str = "",
        python_version: str = "",
        options: Options | None = None,
    ) -> None:
        self.function = function
        self.name = name or function.__name__
        self.description = description
        self.python_version = python_version
        self.default_options = options or Options()
        self._each: Each | None = None
        self._repeat: Repeat | None = None
        self._compensates: Ref | None = None
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<node {self.name}{inspect.signature(self.function)}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Add a place to the workflow under construction, else call the function."""
        graph = current()
        if graph is None:
            return cast("R", self.function(*args, **kwargs))
        given = self._bind(args, kwargs)
        ref = graph.add(
            self,
            self.function.__name__,
            tuple(self.outputs),
            given,
            options=self.default_options,
            each=self._each,
            repeat=self._repeat,
            compensates=self._compensates,
        )
        return cast("R", ref)

    def map(
        self: Node[Concatenate[T, Q], R],
        items: list[T],
        *args: Q.args,
        **kwargs: Q.kwargs,
    ) -> list[R]:
        """Add a map: a call for each element of a list, as the first argument; returns a list.

        `square.map(numbers)`; `.each(...)` sets how many run at once and how many may fail. Element
        types are checked by the registry and by local runs, not by type checkers.
        """
        ref = needed("a map").add(
            self,
            self.function.__name__,
            tuple(self.outputs),
            self._bind((items, *args), kwargs),
            options=self.default_options,
            each=replace(self._each or Each(""), input=next(iter(self.inputs))),
        )
        return cast("list[R]", ref)

    def each(
        self, *, max_in_flight: int | None = None, max_failed: int | None = None
    ) -> Node[P, R]:
        """Return a copy whose `map` has these limits."""
        return self._copy(_each=Each("", max_in_flight, max_failed))

    def repeat(
        self,
        *,
        while_: str,
        max_turns: int,
        carry: Mapping[str, str],
        fail_at_max: bool = False,
    ) -> Node[P, R]:
        """Return a copy that repeats while a CEL condition over its outputs and `turn` holds.

        `carry` maps inputs to outputs of the previous turn.
        """
        return self._copy(_repeat=Repeat(while_, max_turns, dict(carry), fail_at_max))

    def undoes(self, value: object) -> Node[P, R]:
        """Return a copy that compensates the node of a value, if the run fails after it."""
        if not isinstance(value, Ref):
            raise AuthoringError(f"{self.name} can undo the place of a value, not {value!r}")
        return self._copy(_compensates=value)

    def options(self, **changes: Any) -> Node[P, R]:
        """Return a copy with these `Options`."""
        return self._copy(default_options=self.default_options.but(**changes))

    def _copy(self, **changes: Any) -> Node[P, R]:
        made: Node[P, R] = Node(
            self.function,
            name=self.name,
            description=self.description,
            python_version=self.python_version,
            options=self.default_options,
        )
        for name in ("_each", "_repeat", "_compensates"):
            setattr(made, name, changes.pop(name, getattr(self, name)))
        for name, value in changes.items():
            setattr(made, name, value)
        return made

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            bound = inspect.signature(self.function).bind(*args, **kwargs)
        except TypeError as error:
            raise AuthoringError(f"{self.name}: {error}") from None
        return dict(bound.arguments)

    @cached_property
    def hints(self) -> Mapping[str, Any]:
        """The evaluated annotations of the function."""
        try:
            return typing.get_type_hints(self.function, include_extras=True)
        except Exception as error:  # annotations may raise anything
            raise AuthoringError(f"{self.name}: an annotation has no meaning: {error}") from error

    @cached_property
    def inputs(self) -> Mapping[str, Port]:
        """The inputs by name, in the order of the signature."""
        found = {}
        for name, each in inspect.signature(self.function).parameters.items():
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                continue
            found[name] = Port(
                name,
                type_of(self.hints[name]) if name in self.hints else ANY,
                each.default is each.empty,
            )
        return found

    @cached_property
    def outputs(self) -> Mapping[str, Type]:
        """The outputs: `result`, or the fields of the returned record."""
        result = type_of(self.hints["return"]) if "return" in self.hints else ANY
        if isinstance(result, Record) and result.fields:
            return {each.name: each.type for each in result.fields}
        return {"result": result}

    @cached_property
    def source(self) -> str:
        """The source text to store."""
        return node_source(self.function)


@overload
def node(function: Callable[P, typing.Coroutine[Any, Any, R]], /) -> Node[P, R]: ...
@overload
def node(function: Callable[P, R], /) -> Node[P, R]: ...
@overload
def node(
    *, name: str = "", description: str = "", python_version: str = "", **options: Any
) -> Callable[[Callable[P, R]], Node[P, R]]: ...
def node(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    python_version: str = "",
    **options: Any,
) -> Any:
    """Make a node of a plain annotated function: `@qflow.node`, or `qflow.node(function)`.

    Further arguments are `Options`: `@qflow.node(retry=qflow.Retry(), reuse="fork")`.
    """

    def make(function: Callable[..., Any]) -> Node[..., Any]:
        return Node(
            function,
            name=name,
            description=description,
            python_version=python_version,
            options=Options(**options),
        )

    return make if function is None else make(function)
