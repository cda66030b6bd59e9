"""Workflows: functions that call nodes, executed once to build the graph, never by a run."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, TypeVar, cast, overload

from qflow.authoring.annotations import type_of
from qflow.authoring.called import Called, Port
from qflow.authoring.graph import Graph, Input, Options, building, current
from qflow.authoring.refs import Ref, source_of
from qflow.exceptions import AuthoringError, QflowError
from qflow.types import ANY, Record, Type

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowOptions:
    """Options of all runs of a workflow."""

    timeout: timedelta | None = None


class Workflow(Called[P, R]):
    """A graph that was written as a function of its inputs.

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
        description = description or inspect.getdoc(function) or ""
        super().__init__(function, name=name, description=description, options=options)
        self.settings = settings or WorkflowOptions()
        self._building = False

    def __repr__(self) -> str:
        return f"<workflow {self.name}{self.signature}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Add a sub-workflow to the workflow under construction."""
        graph = current()
        if graph is None:
            raise AuthoringError(
                f"{self.name} is a workflow: run it with client.run({self.__name__}, …), or here "
                f"with {self.__name__}.run_local(…)"
            )
        return cast("R", self._place(graph, self.bind(*args, **kwargs), self._each))

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
    def inputs(self) -> Mapping[str, Port]:
        """The inputs by name, in the order of the signature."""
        return {each.name: Port(each.name, each.type, each.required) for each in self.graph.inputs}

    def output_names(self) -> Iterable[str]:
        """Return the names of the outputs, in order."""
        return self.graph.outputs

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
        for name, each in self.signature.parameters.items():
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
        except QflowError:
            raise
        except Exception as error:  # the function may raise anything
            raise AuthoringError(self._broken_by(error)) from error
        finally:
            self._building = False
        graph.outputs = {name: source_of(ref) for name, ref in self._outputs(result).items()}
        if not graph.places:
            raise AuthoringError(f"{self.name} calls no node")
        return graph

    def _broken_by(self, error: Exception) -> str:
        """Say where the function broke: what stands around it is not for its author to see."""
        at = self.function.__code__.co_filename
        lines = [
            each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == at
        ]
        where = f" (line {lines[-1]} of {Path(at).name})" if lines else ""
        return f"{self.name} cannot be read: {type(error).__name__}: {error}{where}"

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
