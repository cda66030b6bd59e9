"""Check what feeds inputs besides edges and literals: variables and parameters.

Both supply a value without conversion, so the input must accept their type directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from qflow.types import (
    Type,
    TypeFormatError,
    Verdict,
    VerdictKind,
    contains_named,
    expression,
    from_text,
)

from services.registry.domain.definition import ERROR, INFO, WARNING, Definition, Parameter

_EXAMPLE_CHARS_MAX: Final = 200
_ADVICE: Final = "give it a type that the input takes as it stands"


class Findings(Protocol):
    """The check that collects findings."""

    def add(self, severity: str, place: str, code: str, message: str, hint: str = "") -> None:
        """Add a finding."""

    def judge(self, source: Type, target: Type, conversion: str) -> Verdict:
        """Return the verdict on an edge between two types."""

    def value(self, place: str, of: Type, text: str) -> None:
        """Add findings if a JSON text is not a value of the type."""


@dataclass(slots=True)
class Bindings:
    """The known variables, and the parameters that the definition declares."""

    check: Findings
    variables: Mapping[str, Type]
    parameters: dict[str, Type | None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def declare(self, definition: Definition) -> tuple[Parameter, ...]:
        """Check the declared parameters; returns them with their types filled in."""
        filled = []
        for index, each in enumerate(definition.parameters):
            place = f"parameters[{index}]"
            of = self._type_of(each, f"{place}.type_json")
            if each.name in self.parameters:
                message = f"{each.name} is declared already"
                self.check.add(ERROR, f"{place}.name", "DUPLICATE_PARAMETER", message)
            self.parameters.setdefault(each.name, of)
            if each.default_json is None:
                message = f"the parameter {each.name} has no default: the workflow is a template"
                hint = "fill it in with CreateWorkflowFromTemplate, or give it a default"
                self.check.add(WARNING, place, "PARAMETER_OPEN", message, hint)
            elif of is not None:
                self.check.value(f"{place}.default_json", of, each.default_json)
            filled.append(replace(each, type=of, type_text=""))
        return tuple(filled)

    def _type_of(self, each: Parameter, place: str) -> Type | None:
        if not each.type_text:
            return each.type
        try:
            return from_text(each.type_text)
        except TypeFormatError as error:
            self.check.add(ERROR, place, "TYPE_INVALID", str(error))
            return None

    def unused(self, definition: Definition) -> None:
        """Report parameters that nothing uses."""
        for index, each in enumerate(definition.parameters):
            if each.name not in self.used:
                message = f"the parameter {each.name} feeds nothing"
                self.check.add(INFO, f"parameters[{index}]", "PARAMETER_UNUSED", message)

    def variable(self, place: str, name: str, target: Type) -> None:
        """Check that a variable exists and fits.

        Warns if it is missing, since it can be set later.
        """
        of = self.variables.get(name)
        if of is None:
            message = f"there is no variable {name} of the tenant or the workflow"
            hint = "make it with SetVariable before the workflow is activated"
            self.check.add(WARNING, f"{place}.variable", "VARIABLE_NOT_FOUND", message, hint)
        else:
            self._fit(f"{place}.variable", f"the variable {name}", of, target)

    def parameter(self, place: str, name: str, target: Type) -> None:
        """Check that a parameter is declared and fits."""
        self.used.add(name)
        if name not in self.parameters:
            message = f"the definition declares no parameter {name}"
            known = ", ".join([*self.parameters][:10])
            hint = f"it has {known}" if known else "declare it in parameters"
            self.check.add(ERROR, f"{place}.parameter", "UNKNOWN_PARAMETER", message, hint)
            return
        of = self.parameters[name]
        if of is not None:
            self._fit(f"{place}.parameter", f"the parameter {name}", of, target)

    def _fit(self, place: str, what: str, of: Type, target: Type) -> None:
        said = self.check.judge(of, target, "")
        fault = f"{what} is of {expression(of)}; {said.reason}"
        if said.kind is VerdictKind.CONVERSION:
            fault = f"{what} is of {expression(of)}, which only {said.method} would make fit"
        elif said.fits:
            opaque = contains_named(of) or contains_named(target)
            if opaque is None:
                return
            fault = f"{what}: values of {opaque} cannot be written as JSON"
        elif said.counter_example is not None:
            fault += f" (for example {said.counter_example[:_EXAMPLE_CHARS_MAX]})"
        self.check.add(ERROR, place, "TYPE_REFUTED", fault, _ADVICE)
