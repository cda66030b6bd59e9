"""Local runs: places in the order of calls, outputs as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, ParamSpec, TypeVar, cast

from qflow import values
from qflow.authoring.called import Called
from qflow.authoring.constructs import ApprovalSpec, ChoiceSpec, SignalSpec, SleepSpec
from qflow.authoring.graph import Place
from qflow.authoring.node import Node
from qflow.authoring.refs import Source
from qflow.authoring.workflow import Workflow
from qflow.exceptions import AuthoringError, ExecutionFailedError, QflowError
from qflow.local.calls import call, literal
from qflow.local.conditions import holds
from qflow.local.edges import Conversions, check, type_of_source
from qflow.local.joins import takes_none, wanted
from qflow.values import Codec

P = ParamSpec("P")
R = TypeVar("R")

_SKIPPED: Final = object()


@dataclass(slots=True)
class Local:
    """The outside world of a local run: values of signals, and answers of approvals.

    `now` is the initial time of its clock; waits advance it.
    """

    signals: Mapping[str, Any] = field(default_factory=dict)
    approvals: Mapping[str, bool] = field(default_factory=dict)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def run(self, workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a workflow here and return its result; raises ExecutionFailedError."""
        outputs = LocalRun(workflow, self).run(workflow.bind(*args, **kwargs))
        return cast("R", workflow.shaped(outputs))


class LocalRun:
    """The state of one local run."""

    def __init__(self, workflow: Workflow[..., Any], world: Local) -> None:
        self.workflow = workflow
        self.world = world
        self.inputs: dict[str, Any] = {}
        self.plain: dict[tuple[int, str], Any] = {}
        self.state: dict[int, str] = {}  # by place: completed, skipped, failed
        self.failed: ExecutionFailedError | None = None
        self.conversions: Conversions = {}

    def run(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Run with Python values as inputs; returns the outputs by name as Python values."""
        self.conversions = check(self.workflow)
        self._take(given)
        places = self.workflow.graph.places
        for place in [p for p in places if not p.finally_ and p.compensates is None]:
            self._turn(place)
        if self.failed is not None:
            self._compensate()
        for place in [p for p in places if p.finally_]:
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
            self.inputs[each.name] = Codec(each.type, classes, is_local=True).to_plain(
                value, name=f"input {each.name}"
            )

    def _turn(self, place: Place, *, anyway: bool = False) -> None:
        stopped = self.failed is not None and not anyway
        if stopped or not wanted(place, self.state, self._branch_of):
            self.state[id(place)] = "skipped"
            return
        try:
            given = {name: self._fed(place, name, source) for name, source in place.fed.items()}
            literals = {name: literal(place, name) for name in place.literals}
            if not self._meets_condition(place, {**literals, **_with_nulls(given)}):
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

    def _meets_condition(self, place: Place, seen: Mapping[str, Any]) -> bool:
        text = place.options.condition
        return not text or holds(text, seen, place_id=place.id, what="condition")

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

    def _branch_of(self, choice: Place) -> Any:
        return self.plain.get((id(choice), "branch"))

    def _fed(self, place: Place, name: str, source: Source) -> Any:
        if source.place is None:
            plain = self.inputs[source.output]
        elif self.state.get(id(source.place)) == "completed" or source.output == "error":
            plain = self.plain.get((id(source.place), source.output))
        else:
            return _SKIPPED
        method = self.conversions.get((place.id, name))
        return values.convert(plain, method, name=f"{place.id}.{name}") if method else plain

    def _perform(
        self, place: Place, given: Mapping[str, Any], literals: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        present = {
            name: None if plain is _SKIPPED else plain
            for name, plain in given.items()
            if plain is not _SKIPPED or _is_null(place, name)
        }
        match place.runs:
            case Called() as called:
                _refuse_lack(place, called, present)
                if place.each is not None:
                    return self._map(place, called, present, literals)
                if place.repeat is not None:
                    return self._repeat(place, called, present, literals, _with_nulls(given))
                return self._call(place, called, {**literals, **present})
            case _:
                return self._construct(place, present)

    def _call(
        self, place: Place, called: Called[..., Any], plain: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if isinstance(called, Node):
            return call(place, called, plain)
        sub = cast("Workflow[..., Any]", called)
        inner = LocalRun(sub, self.world)
        inner.run(
            {
                name: values.from_plain(
                    each,
                    sub.inputs[name].type,
                    name=name,
                    classes=values.classes_in(sub.hints.get(name)),
                )
                for name, each in plain.items()
            }
        )
        return {name: inner._plain_of(source) for name, source in sub.graph.outputs.items()}

    def _construct(self, place: Place, present: Mapping[str, Any]) -> Mapping[str, Any]:
        match place.runs:
            case ChoiceSpec(branches=branches, default=default):
                read = {**place.literals, **present}
                for name, text in branches.items():
                    if holds(text, read, place_id=place.id, what=f"branch {name}"):
                        return {"branch": name}
                return {"branch": default}
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
                        error_type="signal_timeout",
                        node_id=place.id,
                    )
                value = self.world.signals.get(name, default)
                return {"result": values.to_plain(value, kind, name=f"signal {name}")}
            case ApprovalSpec(name=name):
                if name not in self.world.approvals:
                    raise ExecutionFailedError(
                        f"{name} is not answered: Local(approvals={{{name!r}: True}})",
                        error_type="approval_timeout",
                        node_id=place.id,
                    )
                answer = self.world.approvals[name]
                return {"approved": answer, "comment": "", "approver": "local", "reply": None}
            case other:
                raise AuthoringError(f"{place.id}: {other!r} cannot be run here")

    def _map(
        self,
        place: Place,
        called: Called[..., Any],
        given: Mapping[str, Any],
        literals: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        assert place.each is not None
        name = place.each.input
        items = {**literals, **given}.get(name) or []
        rest = {key: plain for key, plain in given.items() if key != name}
        fixed = {key: value for key, value in literals.items() if key != name}
        lists: dict[str, list[Any]] = {output: [] for output in called.output_names()}
        failed = 0
        for item in items:
            try:
                outputs = self._call(place, called, {**fixed, **rest, name: item})
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
        called: Called[..., Any],
        given: Mapping[str, Any],
        literals: Mapping[str, Any],
        seen: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        assert place.repeat is not None
        fed, fixed = dict(given), dict(literals)
        outputs: Mapping[str, Any] = {}
        for turn in range(1, place.repeat.max_turns + 1):
            outputs = self._call(place, called, {**fixed, **fed})
            read = {**fixed, **seen, **fed, **outputs, "turn": turn}
            if not holds(place.repeat.condition, read, place_id=place.id, what="loop"):
                return outputs
            for name, output in place.repeat.carry.items():
                fed[name] = outputs[output]
                fixed.pop(name, None)
        if place.repeat.fail_at_max:
            raise ExecutionFailedError(
                f"the condition still holds after {place.repeat.max_turns} turns",
                error_type="loop_exhausted",
                node_id=place.id,
            )
        return outputs

    def _compensate(self) -> None:
        undoing = {
            id(each.compensates): each
            for each in self.workflow.graph.places
            if each.compensates is not None
        }
        for done in reversed(list(self.state)):  # in reverse order of completion
            if done in undoing and self.state[done] == "completed":
                self._turn(undoing[done], anyway=True)

    def _plain_of(self, source: Source) -> Any:
        if source.place is None:
            return self.inputs[source.output]
        return self.plain.get((id(source.place), source.output))

    def _output(self, source: Source) -> Any:
        plain = self._plain_of(source)
        if plain is None:
            return None
        of, hint = type_of_source(self.workflow, source)
        codec = Codec(of, values.classes_in(hint), is_local=True)
        return codec.from_plain(plain, name=str(source))


def _with_nulls(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values for conditions: null for inputs without a value."""
    return {name: None if plain is _SKIPPED else plain for name, plain in given.items()}


def _refuse_lack(place: Place, called: Called[..., Any], present: Mapping[str, Any]) -> None:
    for name in place.fed:
        if name not in present and called.inputs[name].required:
            raise AuthoringError(
                f"{place.id}.{name} has no value, since its source ended without one: a Qflow "
                "refuses that; give it a default, or let it take None"
            )


def _is_null(place: Place, name: str) -> bool:
    """Return whether a skipped source passes None: for required inputs that accept it."""
    match place.runs:
        case ChoiceSpec():
            return True
        case Called() as called:
            port = called.inputs.get(name)
            return port is not None and port.required and takes_none(port.type)
        case _:
            return False
