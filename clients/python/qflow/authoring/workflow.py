"""Workflows: functions that call nodes, executed once to build the graph, never by a run."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar, cast, overload

from qflow.authoring.annotations import type_of
from qflow.authoring.graph import Graph, Input, Options, building, current
from qflow.authoring.refs import Ref, source_of
from qflow.exceptions import AuthoringError
from qflow.types import ANY, Record, Type

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowOptions:
    """Options of all runs of a workflow."""

    timeout: timedelta | None = None


class Workflow(Generic[P, R]):
    """A graph written as a function of its inputs.

    Called within another workflow it adds a sub-workflow. `run_local` runs it here without a
    server, `client.run(workflow, ...)` on a Qflow.
    """

    KIND: ClassVar = "workflow"

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str = "",
        description: str = "",
        settings: WorkflowOptions | None = None,
        options: Options | None = None,
    ) -> None:
        self.function = function
        self.name = name or function.__name__
        self.description = description or inspect.getdoc(function) or ""
        self.settings = settings or WorkflowOptions()
        self.default_options = options or Options()
        self._building = False
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<workflow {self.name}{self._signature}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Add a sub-workflow to the workflow under construction."""
        graph = current()
        if graph is None:
            raise AuthoringError(
                f"{self.name} is a workflow: run it with client.run({self.__name__}, …), or here "
                f"with {self.__name__}.run_local(…)"
            )
        ref = graph.add(
            self,
            self.function.__name__,
            tuple(self.graph.outputs),
            self.bind(*args, **kwargs),
            options=self.default_options,
        )
        return cast("R", ref)

    def options(self, **changes: Any) -> Workflow[P, R]:
        """Return a copy with these `Options` for its place in another workflow."""
        return Workflow(
            self.function,
            name=self.name,
            description=self.description,
            settings=self.settings,
            options=self.default_options.but(**changes),
        )

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> dict[str, Any]:
        """Return the inputs by name; raises AuthoringError if they do not match the signature."""
        try:
            return dict(self._signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise AuthoringError(f"{self.name}: {error}") from None

    def run_local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it here without a server, with the checks and conversions of a real run.

        Waits take no time; signals and approvals are given with
        `qflow.Local(signals={"paid": 3}).run(workflow, ...)`.
        """
        from qflow.local import Local  # imported late: authoring does not need it

        return Local().run(self, *args, **kwargs)

    def shaped(self, outputs: dict[str, Any]) -> Any:
        """Convert outputs by name to the return type of the function."""
        if set(outputs) == {"result"}:
            return outputs["result"]
        of: Any = self.hints.get("return")
        if isinstance(of, type) and (hasattr(of, "_fields") or hasattr(of, "__dataclass_fields__")):
            return of(**outputs)
        return outputs

    @cached_property
    def _signature(self) -> inspect.Signature:
        return inspect.signature(self.function)

    @cached_property
    def hints(self) -> Mapping[str, Any]:
        """Give the annotations of the function, evaluated."""
        return typing.get_type_hints(self.function, include_extras=True)

    @property
    def output_types(self) -> Mapping[str, Type]:
        """The types of the outputs from the return annotation; `any` without one."""
        result = type_of(self.hints["return"]) if "return" in self.hints else ANY
        if isinstance(result, Record) and set(self.graph.outputs) == {
            each.name for each in result.fields
        }:
            return {each.name: each.type for each in result.fields}
        return {name: result if name == "result" else ANY for name in self.graph.outputs}

    @cached_property
    def graph(self) -> Graph:
        """The graph, built by calling the function once with refs of its inputs."""
        if self._building:
            raise AuthoringError(f"{self.name} calls itself: a sub-workflow ends somewhere")
        graph = Graph(self.name)
        given: dict[str, Any] = {}
        for name, each in self._signature.parameters.items():
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD, each.POSITIONAL_ONLY):
                raise AuthoringError(f"{self.name}: inputs have names, so * and / are not for them")
            required = each.default is each.empty
            kind = type_of(self.hints[name]) if name in self.hints else ANY
            graph.inputs.append(Input(name, kind, required, None if required else each.default))
            given[name] = Ref(None, (name,))
        self._building = True
        try:
            with building(graph):
                result = cast("Callable[..., Any]", self.function)(**given)
        finally:
            self._building = False
        graph.outputs = {name: source_of(ref) for name, ref in self._outputs(result).items()}
        if not graph.places:
            raise AuthoringError(f"{self.name} calls no node")
        return graph

    def _outputs(self, result: object) -> dict[str, Ref]:
        if result is None:
            return {}
        if isinstance(result, Ref):
            outputs: tuple[str, ...] = result._outputs  # noqa: SLF001  # a ref's attributes are its outputs
            if len(outputs) == 1:
                return {"result": result}
            return {name: result[name] for name in outputs}
        if isinstance(result, dict) and result:
            wrong = next((each for each in result.values() if not isinstance(each, Ref)), None)
            if wrong is None:
                return dict(result)
        raise AuthoringError(
            f"{self.name} returns what its run answers with: the value of a node, or a dict of "
            f"names and such values, not {result!r}"
        )


@overload
def workflow(function: Callable[P, R], /) -> Workflow[P, R]: ...
@overload
def workflow(
    *, name: str = "", description: str = "", timeout: timedelta | None = None
) -> Callable[[Callable[P, R]], Workflow[P, R]]: ...
def workflow(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    timeout: timedelta | None = None,
) -> Any:
    """Make a workflow of a function that calls nodes: its parameters are the inputs of a run."""

    def make(function: Callable[..., Any]) -> Workflow[..., Any]:
        settings = WorkflowOptions(timeout=timeout)
        return Workflow(function, name=name, description=description, settings=settings)

    return make if function is None else make(function)
