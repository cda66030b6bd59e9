"""A workflow without any server: the same types, checks and conversions, in this process.

Nodes run one after the other, in the order in which they can. Waits take no time; signals and
approvals are answered by what `Local` was given. What needs a sandbox or a clock does not hold
here: limits of memory and time, retries' delays, caches.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from qflow import values
from qflow.authoring.constructs import ApprovalSpec, ChoiceSpec, SignalSpec, SleepSpec
from qflow.authoring.graph import Place
from qflow.authoring.node import Node
from qflow.authoring.refs import Source
from qflow.authoring.workflow import Workflow
from qflow.exceptions import AuthoringError, ExecutionFailedError, QflowError
from qflow.types import ANY, NONE, SCALARS, Collection, Dict, Type, VerdictKind, union_of, verdict

_ERROR: Final = Dict(SCALARS["str"], SCALARS["str"])
_SKIPPED: Final = object()


class EdgeRefusedError(AuthoringError):
    """An edge that the type check refutes: the registry would refuse it as well."""


@dataclass(slots=True)
class Local:
    """What a local run is told of the world: values of signals, and answers to approvals.

    `now` is where its clock begins; a wait moves it on.
    """

    signals: Mapping[str, Any] = field(default_factory=dict)
    approvals: Mapping[str, bool] = field(default_factory=dict)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


def run(workflow: Workflow[..., Any], given: Mapping[str, Any], world: Local | None = None) -> Any:
    """Run a workflow here and give its result; ExecutionFailedError where a node fails."""
    return shaped(workflow, _Run(workflow, world or Local()).run(given))


def shaped(workflow: Workflow[..., Any], outputs: dict[str, Any]) -> Any:
    """Make of the outputs by name what the workflow's function is annotated to give."""
    if set(outputs) == {"result"}:
        return outputs["result"]
    of: Any = workflow.hints.get("return")
    if isinstance(of, type) and (hasattr(of, "_fields") or hasattr(of, "__dataclass_fields__")):
        return of(**outputs)
    return outputs


def check(workflow: Workflow[..., Any]) -> None:
    """Hold every edge against its types; EdgeRefusedError names the first that is refuted."""
    for place in workflow.graph.places:
        for name, source in place.fed.items():
            _conversion(workflow, place, name, source)
        if isinstance(place.runs, Workflow):
            check(place.runs)


class _Run:
    """One local run: the JSON value of every output so far, and what failed."""

    def __init__(self, workflow: Workflow[..., Any], world: Local) -> None:
        self.workflow = workflow
        self.world = world
        self.inputs: dict[str, Any] = {}
        self.plain: dict[tuple[int, str], Any] = {}
        self.state: dict[int, str] = {}  # by place: completed, skipped, failed
        self.failed: ExecutionFailedError | None = None

    def run(self, given: Mapping[str, Any]) -> dict[str, Any]:
        check(self.workflow)
        self._take(given)
        places = self.workflow.graph.places
        for place in _in_order(p for p in places if not p.finally_ and p.compensates is None):
            self._turn(place)
        if self.failed is not None:
            self._compensate()
        for place in _in_order(p for p in places if p.finally_):
            self._turn(place, anyway=True)
        if self.failed is not None:
            raise self.failed
        return {name: self._output(source) for name, source in self.workflow.graph.outputs.items()}

    def _take(self, given: Mapping[str, Any]) -> None:
        for each in self.workflow.graph.inputs:
            if each.name not in given and each.required:
                raise AuthoringError(f"{self.workflow.name}: the input {each.name} is missing")
            value = given.get(each.name, each.default)
            classes = values.classes_in(self.workflow.hints.get(each.name))
            self.inputs[each.name] = values.to_plain(
                value, each.type, name=f"input {each.name}", classes=classes
            )

    def _turn(self, place: Place, *, anyway: bool = False) -> None:
        handles = any(edge.kind == "failure" for edge in place.edges)
        if (self.failed is not None and not anyway) or not self._wanted(place, handles=handles):
            self.state[id(place)] = "skipped"
            return
        try:
            given = {name: self._fed(place, name, source) for name, source in place.fed.items()}
            literals = {name: _literal(place, name) for name in place.literals}
            if place.options.condition and not _holds(place.options.condition, given):
                self.state[id(place)] = "skipped"
                return
            outputs = self._perform(place, given, literals)
        except ExecutionFailedError as error:
            self._fail(place, error)
        except QflowError as error:
            self._fail(
                place, ExecutionFailedError(str(error), error_type="type_error", node_id=place.id)
            )
        else:
            self.state[id(place)] = "completed"
            for name, plain in outputs.items():
                self.plain[id(place), name] = plain

    def _fail(self, place: Place, error: ExecutionFailedError) -> None:
        self.state[id(place)] = "failed"
        self.plain[id(place), "error"] = {
            "node_id": place.id,
            "error_type": error.error_type,
            "message": error.message,
        }
        handled = any(
            edge.kind == "failure" and edge.source is place
            for each in self.workflow.graph.places
            for edge in each.edges
        )
        if not handled and not place.options.continue_on_failure and self.failed is None:
            self.failed = error

    def _wanted(self, place: Place, *, handles: bool) -> bool:
        """Whether its turn comes: its branch was taken, its sources ended as its join asks."""
        for edge in place.edges:
            state = self.state.get(id(edge.source), "skipped")
            if edge.kind == "failure" and state != "failed":
                return False
            if edge.kind == "branch" and self.plain.get((id(edge.source), "branch")) != edge.branch:
                return False
            if edge.kind == "order" and state != "completed" and place.options.join == "all":
                return False
        sources = [each.place for each in place.fed.values() if each.place is not None]
        if handles or not sources:
            return True
        active = sum(self.state.get(id(each)) == "completed" for each in sources)
        join = place.options.join
        if join == "all":
            required = [
                each.place
                for name, each in place.fed.items()
                if each.place is not None and not _may_lack(place, name)
            ]
            return all(self.state.get(id(each)) == "completed" for each in required) and active > 0
        return True if join == "all_done" else active >= (1 if join == "any" else join)

    def _fed(self, place: Place, name: str, source: Source) -> Any:
        if source.place is None:
            plain = self.inputs[source.output]
        elif self.state.get(id(source.place)) == "completed" or source.output == "error":
            plain = self.plain.get((id(source.place), source.output))
        else:
            return _SKIPPED
        method = _conversion(self.workflow, place, name, source)
        return values.convert(plain, method, name=f"{place.id}.{name}") if method else plain

    def _perform(
        self, place: Place, given: Mapping[str, Any], literals: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        present = {name: plain for name, plain in given.items() if plain is not _SKIPPED}
        match place.runs:
            case Node() as node:
                if place.each is not None:
                    return self._map(place, node, present, literals)
                if place.repeat is not None:
                    return self._repeat(place, node, present, literals)
                return _call(place, node, present, literals)
            case Workflow() as sub:
                inner = _Run(sub, self.world)
                typed = {i.name: i.type for i in sub.graph.inputs}
                hints = sub.hints
                ready = {
                    name: values.from_plain(
                        plain, typed[name], name=name, classes=values.classes_in(hints.get(name))
                    )
                    for name, plain in present.items()
                } | place.literals
                inner.run(ready)
                return {
                    name: inner._plain_of(source)  # its own kind
                    for name, source in sub.graph.outputs.items()
                }
            case _:
                return self._construct(place, present)

    def _construct(self, place: Place, present: Mapping[str, Any]) -> Mapping[str, Any]:
        match place.runs:
            case ChoiceSpec(branches=branches, default=default):
                taken = next(
                    (
                        name
                        for name, text in branches.items()
                        if _holds(text, {**place.literals, **present})
                    ),
                    default or None,
                )
                return {"branch": taken}
            case SleepSpec():
                given = {**place.literals, **present}
                if "seconds" in given:
                    self.world.now += timedelta(seconds=float(given["seconds"]))
                else:
                    moment = given["until"]
                    until = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
                    self.world.now = max(self.world.now, until)
                return {"result": self.world.now.isoformat()}
            case SignalSpec(name=name, type=kind, default=default, has_default=has):
                if name not in self.world.signals and not has:
                    raise ExecutionFailedError(
                        f"no signal {name} is given: Local(signals={{{name!r}: …}})",
                        error_type="timeout",
                        node_id=place.id,
                    )
                value = self.world.signals.get(name, default)
                return {"result": values.to_plain(value, kind, name=f"signal {name}")}
            case ApprovalSpec(name=name):
                if name not in self.world.approvals:
                    raise ExecutionFailedError(
                        f"{name} is not answered: Local(approvals={{{name!r}: True}})",
                        error_type="timeout",
                        node_id=place.id,
                    )
                answer = self.world.approvals[name]
                return {"approved": answer, "comment": "", "approver": "local", "reply": None}
            case other:
                raise AuthoringError(f"{place.id}: {other!r} cannot be run here")

    def _map(
        self,
        place: Place,
        node: Node[..., Any],
        given: Mapping[str, Any],
        literals: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        assert place.each is not None
        name = place.each.input
        items = {**literals, **given}[name]
        rest = {key: plain for key, plain in given.items() if key != name}
        fixed = {key: value for key, value in literals.items() if key != name}
        lists: dict[str, list[Any]] = {output: [] for output in node.outputs}
        failed = 0
        for item in items:
            try:
                outputs = _call(place, node, {**rest, name: item}, fixed)
            except ExecutionFailedError:
                failed += 1
                if failed > (place.each.max_failed or 0):
                    raise
                outputs = dict.fromkeys(lists)
            for output, each in outputs.items():
                lists[output].append(each)
        return lists

    def _repeat(
        self,
        place: Place,
        node: Node[..., Any],
        given: Mapping[str, Any],
        literals: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        assert place.repeat is not None
        fed, fixed = dict(given), dict(literals)
        outputs: Mapping[str, Any] = {}
        for turn in range(1, place.repeat.max_turns + 1):
            outputs = _call(place, node, fed, fixed)
            if not _holds(place.repeat.condition, {**fixed, **fed, **outputs, "turn": turn}):
                return outputs
            for name, output in place.repeat.carry.items():
                fed[name] = outputs[output]
                fixed.pop(name, None)
        if place.repeat.fail_at_max:
            raise ExecutionFailedError(
                "the condition still holds after the last turn",
                error_type="loop_limit",
                node_id=place.id,
            )
        return outputs

    def _compensate(self) -> None:
        undoing = [each for each in self.workflow.graph.places if each.compensates is not None]
        for place in reversed(undoing):
            if self.state.get(id(place.compensates)) == "completed":
                self._turn(place, anyway=True)

    def _plain_of(self, source: Source) -> Any:
        if source.place is None:
            return self.inputs[source.output]
        return self.plain.get((id(source.place), source.output))

    def _output(self, source: Source) -> Any:
        plain = self._plain_of(source)
        if plain is None:
            return None
        of, hint = _type_of(self.workflow, source)
        return values.from_plain(plain, of, name=str(source), classes=values.classes_in(hint))


def _in_order(places: Iterable[Place]) -> list[Place]:
    """Give places so that each comes after what it reads; calls were made in such an order."""
    return list(places)


def _call(
    place: Place, node: Node[..., Any], given: Mapping[str, Any], literals: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Run a node as its sandbox would: decode, call, encode; a retry follows at once."""
    tries = 1 + (place.options.retry.max_retries if place.options.retry else 0)
    arguments: dict[str, Any] = {}
    for name, plain in {**literals, **given}.items():
        port = node.inputs[name]
        classes = values.classes_in(node.hints.get(name))
        label = f"{place.id}: input {name!r}"
        arguments[name] = values.from_plain(plain, port.type, name=label, classes=classes)
    for attempt in range(tries):
        try:
            value = _result(node, arguments)
        except Exception as error:
            retry = place.options.retry
            kind = type(error).__name__
            again = (
                retry is not None
                and kind not in retry.never_on
                and (not retry.on or kind in retry.on)
            )
            if attempt + 1 < tries and again:
                continue
            raise ExecutionFailedError(
                f"{kind}: {error}", error_type="user_error", node_id=place.id
            ) from error
        return _encoded(place, node, value)
    raise AssertionError("a try returns or raises")


def _result(node: Node[..., Any], arguments: Mapping[str, Any]) -> Any:
    value = node.function(**arguments)
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Any) -> Any:
    return await value


def _encoded(place: Place, node: Node[..., Any], value: Any) -> Mapping[str, Any]:
    classes = values.classes_in(node.hints.get("return"))
    if set(node.outputs) == {"result"}:
        named = {"result": value}
    else:
        named = (
            value
            if isinstance(value, dict)
            else {each: getattr(value, each) for each in node.outputs}
        )
    return {
        name: values.to_plain(named[name], of, name=f"{place.id}: output {name!r}", classes=classes)
        for name, of in node.outputs.items()
        if name in named
    }


def _literal(place: Place, name: str) -> Any:
    """Give the JSON value of a literal, as it is written into the definition."""
    value = place.literals[name]
    if isinstance(place.runs, Node) and name in place.runs.inputs:
        port = place.runs.inputs[name]
        of = port.type
        if place.each is not None and place.each.input == name:
            of = Collection("list", of)
        classes = values.classes_in(place.runs.hints.get(name))
        return values.to_plain(value, of, name=f"{place.id}.{name}", classes=classes)
    return value


def _may_lack(place: Place, name: str) -> bool:
    """Whether an input does without a value: it has a default, or takes None."""
    if not isinstance(place.runs, Node) or name not in place.runs.inputs:
        return True
    port = place.runs.inputs[name]
    return not port.required


def _type_of(  # noqa: PLR0911  # one table
    workflow: Workflow[..., Any], source: Source
) -> tuple[Type, Any]:
    """Give the type of what a source gives, and the annotation with its classes."""
    place = source.place
    if place is None:
        found = next(each for each in workflow.graph.inputs if each.name == source.output)
        return found.type, workflow.hints.get(source.output)
    if source.output == "error" and "error" not in place.outputs:
        return _ERROR, None
    match place.runs:
        case Node() as node:
            of: Type = node.outputs[source.output]
            if place.each is not None:
                of = union_of((of, NONE)) if place.each.max_failed else of
                of = Collection("list", of)
            return of, node.hints.get("return")
        case Workflow() as sub:
            return _type_of(sub, sub.graph.outputs[source.output])
        case SignalSpec(type=kind):
            return kind, None
        case SleepSpec():
            return SCALARS["datetime"], None
        case ApprovalSpec():
            return {"approved": SCALARS["bool"], "reply": ANY}.get(
                source.output, SCALARS["str"]
            ), None
        case _:
            return ANY, None


def _wanted_type(place: Place, name: str) -> Type:
    match place.runs:
        case Node() as node:
            of = node.inputs[name].type
            mapped = place.each is not None and place.each.input == name
            return Collection("list", of) if mapped else of
        case Workflow() as sub:
            return next(each.type for each in sub.graph.inputs if each.name == name)
        case SleepSpec():
            return SCALARS["float"] if name == "seconds" else SCALARS["datetime"]
        case _:
            return ANY


def _conversion(
    workflow: Workflow[..., Any], place: Place, name: str, source: Source
) -> str | None:
    """Give the conversion that stands on an edge, if one does; EdgeRefusedError if none helps."""
    of, _ = _type_of(workflow, source)
    wanted = _wanted_type(place, name)
    found = verdict(of, wanted, place.options.conversions.get(name, ""))
    if found.kind is VerdictKind.REFUTED:
        raise EdgeRefusedError(
            f"{workflow.name}: {source} > {place.id}.{name} does not fit: {found.reason}"
        )
    return found.method or None


def _holds(condition: str, given: Mapping[str, Any]) -> bool:
    """Evaluate a CEL condition over JSON values."""
    try:
        import cel
    except ImportError:
        raise AuthoringError(
            "conditions run locally with the package common-expression-language: install it, or "
            "qflow[local]"
        ) from None
    return cel.evaluate(condition, dict(given)) is True
