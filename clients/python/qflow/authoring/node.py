"""Nodes: plain annotated functions that workflows call, and that can be stored."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, ParamSpec, TypeVar, cast, overload

from qflow.authoring.annotations import type_of
from qflow.authoring.called import Called, Port
from qflow.authoring.graph import Options, current
from qflow.authoring.source import node_source
from qflow.types import ANY, Record, Type

P = ParamSpec("P")
R = TypeVar("R")


class Node(Called[P, R]):
    """A function that can be a place of a workflow.

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
        super().__init__(function, name=name, description=description, options=options)
        self.python_version = python_version

    def __repr__(self) -> str:
        return f"<node {self.name}{self.signature}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Add a place to the workflow under construction, else call the function."""
        graph = current()
        if graph is None:
            return cast("R", self.function(*args, **kwargs))
        return cast("R", self._place(graph, self.bind(*args, **kwargs), self._each))

    @cached_property
    def inputs(self) -> Mapping[str, Port]:
        """The inputs by name, in the order of the signature."""
        found = {}
        for name, each in self.signature.parameters.items():
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

    def output_names(self) -> Iterable[str]:
        """Return the names of the outputs, in order."""
        return self.outputs

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
            options=Options().but(**options),
        )

    return make if function is None else make(function)
